"""Pushes: every move of a ref counts once, whoever tells of it and however often."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from journeys.stories import Repository
from web_support import person

from appliance import projects, pushes
from appliance.config import Config
from appliance.db import Database
from appliance.records import Actor, Push
from appliance.repos import Repos

pytestmark = pytest.mark.fast

WORKFLOW = "{on}jobs:\n  a: {{uses: container@v1, with: {{image: x}}}}\n"
MAIN = "on: {github: {branches: {only: main}}}\n"
PATH = ".gradient/workflows/w.yaml"
Change = tuple[str, str | None, str | None]


@dataclass
class Forge:
    """A project with its repository, and a working copy that pushes to it over its path."""

    db: Database
    repos: Repos
    config: Config
    actor: Actor
    project: Any
    copy: Repository

    def push(self, *what: str) -> None:
        """By a git that has no hook: nobody is told."""
        self.copy.git("push", "--quiet", "--force", str(self.repos.path(self.project.id)), *what)

    def record(self) -> list[Push]:
        return pushes.record(self.db, self.repos, self.project.id, pushes.unseen(self.db, self.repos, self.project.id))

    def told(self, *updates: Change, by: str = "ana@example.org") -> list[Push]:
        return pushes.told(self.db, self.project.id, list(updates), by)

    def start(self, push: Push) -> list[str]:
        return list(pushes.start_runs(self.db, self.repos, self.config, push))

    def runs(self) -> list[dict[str, Any]]:
        with self.db.read() as reader:
            return [dict(row) for row in reader.all("SELECT * FROM runs ORDER BY rowid")]


@pytest.fixture
def forge(tmp_path: Path, db: Database, repos: Repos) -> Forge:
    actor = person(db, "ana@example.org")
    with db.write() as tx:
        project = projects.create(tx, actor, "vision")
    repos.create(project.id)
    copy = Repository(tmp_path / "copy")
    return Forge(db, repos, Config(data_dir=tmp_path, host_name="house"), actor, project, copy)


def moves(found: list[Push]) -> set[Change]:
    return {(push.ref, push.old, push.new) for push in found}


def test_what_no_hook_told_of_is_found_by_comparing_and_only_once(forge: Forge) -> None:
    first = forge.copy.commit("first")
    forge.push("main", "main:side", "main:refs/tags/v1")

    found = forge.record()

    assert moves(found) == {
        ("refs/heads/main", None, first),
        ("refs/heads/side", None, first),
        ("refs/tags/v1", None, first),
    }
    assert forge.record() == []


def test_moves_between_two_comparisons_are_one_and_a_deleted_branch_is_one_without_a_run(forge: Forge) -> None:
    first = forge.copy.commit("first")
    forge.push("main", "main:side")
    forge.record()
    forge.copy.commit("second")
    forge.push("main")
    third = forge.copy.commit("third")
    forge.push("main", ":side")

    found = forge.record()

    assert moves(found) == {("refs/heads/main", first, third), ("refs/heads/side", first, None)}
    (gone,) = [push for push in found if push.new is None]
    assert forge.start(gone) == []
    assert forge.runs() == []


def test_a_move_that_the_hook_told_of_is_not_found_again(forge: Forge) -> None:
    first = forge.copy.commit("first")
    forge.push("main")

    told = forge.told(("refs/heads/main", None, first))

    assert moves(told) == {("refs/heads/main", None, first)}
    assert told[0].pusher == "ana@example.org"
    assert forge.told(("refs/heads/main", None, first)) == []
    assert forge.record() == []


def test_what_was_found_is_recorded_only_if_it_is_still_so_after_the_hooks_had_their_turn(forge: Forge) -> None:
    first = forge.copy.commit("first")
    forge.push("main")
    found = pushes.unseen(forge.db, forge.repos, forge.project.id)

    forge.told(("refs/heads/main", None, first))

    assert pushes.record(forge.db, forge.repos, forge.project.id, found) == []


def test_refs_that_are_neither_branch_nor_tag_are_nobodys_push(forge: Forge) -> None:
    first = forge.copy.commit("first")

    assert forge.told(("refs/notes/commits", None, first), ("refs/heads/same", first, first)) == []


@pytest.mark.parametrize(
    ("ref", "on", "starts"),
    [
        ("main", MAIN, True),
        ("main:side", MAIN, False),
        ("main:refs/tags/v1", MAIN, False),
        ("main:refs/tags/v1", "on: {github: {tags: {only: v*}}}\n", True),
        ("main", "", False),
    ],
)
def test_a_push_starts_the_workflows_that_ask_for_its_ref(forge: Forge, ref: str, on: str, starts: bool) -> None:
    forge.copy.write(PATH, WORKFLOW.format(on=on))
    commit = forge.copy.commit("with a workflow")
    forge.push(ref)

    (push,) = forge.record()
    lines = forge.start(push)

    assert [(run["commit"], run["ref"], run["push_id"]) for run in forge.runs()] == (
        [(commit, push.ref, push.id)] if starts else []
    )
    assert lines == (["w: run 1 started: https://house:8443/projects/vision/runs/w/1"] if starts else [])


def test_started_again_after_a_crash_it_is_the_same_run(forge: Forge) -> None:
    forge.copy.write(PATH, WORKFLOW.format(on=MAIN))
    forge.copy.write(".gradient/workflows/v.yaml", WORKFLOW.format(on=MAIN))
    forge.copy.commit("two workflows")
    forge.push("main")
    (push,) = forge.record()
    begun = pushes.start_runs(forge.db, forge.repos, forge.config, push)
    next(begun)
    begun.close()  # as when the process ends after the first
    with forge.db.read() as reader:
        assert pushes.unhandled(reader) == [push]

    lines = forge.start(push)

    assert [line.split(":")[0] for line in lines] == ["v", "w"]
    assert len(forge.runs()) == 2
    with forge.db.read() as reader:
        assert pushes.unhandled(reader) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("jobs:\n  a: {uses: fly@v1}\n", "line 2, jobs.a.uses: "),
        ("jobs: [\n", "line 2: "),
        ("\x00", "line 1"),
    ],
)
def test_a_broken_workflow_is_a_failed_run_and_the_others_start(forge: Forge, text: str, sentence: str) -> None:
    forge.copy.write(".gradient/workflows/a broken one.yaml", text)
    forge.copy.write(PATH, WORKFLOW.format(on=MAIN))
    forge.copy.commit("half broken")
    forge.push("main")
    (push,) = forge.record()

    lines = forge.start(push)

    assert lines[0] == "a-broken-one: run 1 failed: https://house:8443/projects/vision/runs/a-broken-one/1"
    assert lines[1].strip().startswith(f".gradient/workflows/a broken one.yaml, {sentence}")
    assert lines[-1].startswith("w: run 1 started: ")
    assert [(run["state"], run["message"]) for run in forge.runs()] == [("failed", lines[1].strip()), ("pending", None)]


def test_a_tag_of_a_file_and_a_commit_that_is_not_there_start_nothing_and_stop_nothing(forge: Forge) -> None:
    forge.copy.write("file", "text")
    forge.copy.commit("a file")
    blob = forge.copy.git("rev-parse", "HEAD:file").strip()
    forge.copy.git("tag", "of-a-file", blob)
    forge.push("main", "refs/tags/of-a-file")

    said = [forge.start(push) for push in forge.record()]

    assert forge.runs() == []
    assert all(line.startswith("appliance: ") for lines in said for line in lines)
    with forge.db.read() as reader:
        assert pushes.unhandled(reader) == []


def test_a_project_that_is_gone_or_unknown_is_not_recorded(forge: Forge, tmp_path: Path) -> None:
    forge.repos.create("pnobodys")
    subprocess.run(
        ["git", "-C", forge.copy.folder, "commit", "-q", "--allow-empty", "-m", "x"], env=forge.copy.env, check=True
    )
    forge.copy.git("push", "--quiet", str(forge.repos.path("pnobodys")), "main")

    found = pushes.unseen(forge.db, forge.repos, "pnobodys")

    assert found == {}


def test_pushes_are_listed_newest_first_and_in_pages(forge: Forge) -> None:
    commits = []
    for number in range(5):
        commits.append(forge.copy.commit(f"{number}"))
        forge.told(("refs/heads/main", commits[-2] if number else None, commits[-1]))

    with forge.db.read() as reader:
        first = pushes.list_pushes(reader, forge.actor, forge.project.id, limit=3)
        rest = pushes.list_pushes(reader, forge.actor, forge.project.id, after=first.next_page, limit=3)

    assert [push.new for push in (*first.items, *rest.items)] == commits[::-1]
    assert rest.next_page is None


def test_two_files_that_make_the_same_workflow_are_named_and_the_first_runs(forge: Forge) -> None:
    folder = PATH.rpartition("/")[0]
    for name in ("a b.yaml", "a-b.yaml", "train.yaml", "train.yml"):
        forge.copy.write(f"{folder}/{name}", WORKFLOW.format(on=MAIN))
    forge.copy.commit("first")
    forge.push("main")

    (push,) = forge.record()
    lines = forge.start(push)

    assert len(forge.runs()) == 2
    assert len(lines) == 4
    assert f"a-b: {folder}/a-b.yaml never runs, because {folder}/a b.yaml makes the same workflow" in lines[1]
    assert f"train: {folder}/train.yml never runs, because {folder}/train.yaml makes the same workflow" in lines[3]
