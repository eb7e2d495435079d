"""The main job as a story: push, run, versions, model, deployment, answer; and again, with clients that never notice.

The tests of this page are one story and run in order on one appliance.
"""

from __future__ import annotations

import json
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from journeys.stories import (
    Asker,
    Repository,
    ask,
    deployment,
    key_for,
    main_path,
    push_url,
    run_of,
    script,
    urls_in,
)
from running import Running
from tritonclient.utils import InferenceServerException
from waiting import wait_until

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def repository(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    with running.client() as client:
        client.projects.create("vision")
    made = Repository(tmp_path_factory.mktemp("copy") / "vision")
    made.git("remote", "add", "origin", push_url(running, "vision"))
    return made


@pytest.fixture(scope="module")
def first(running: Running, repository: Repository) -> tuple[str, str, str]:
    """The first push: its commit, what the pusher was shown, and its run."""
    commit = main_path(repository, 10)
    shown = repository.git("push", "origin", "main")
    run_id = run_of(running, commit)
    assert running.finished(run_id)["status"]["phase"] == "Succeeded"
    return commit, shown, run_id


@pytest.fixture(scope="module")
def key(running: Running, first: tuple[str, str, str]) -> str:
    return key_for(running, deployment(running)["id"])


def test_the_pusher_is_shown_the_url_of_the_run_that_the_push_started(
    running: Running, first: tuple[str, str, str]
) -> None:
    lines = [line for line in first[1].splitlines() if line.startswith("remote:")]

    (line,) = [line for line in lines if "run 1 started" in line]

    assert line.startswith("remote: train: run 1 started: ")
    assert urls_in(line) == [f"https://localhost:{running.https_port}/projects/vision/runs/train/1"]


def test_a_push_becomes_dataset_versions_a_model_and_a_deployment(
    running: Running, first: tuple[str, str, str]
) -> None:
    with running.client() as client:
        run = client.runs.get(first[2])

        assert {name: job["phase"] for name, job in run["status"]["jobs"].items()} == dict.fromkeys(
            ("checkout", "train", "register", "deploy"), "Succeeded"
        )
        assert client.datasets.read("numbers", "1", "data.txt") == b"10\n"
        (version,) = client.models.versions("adder")
        assert (version["number"], version["runId"]) == (1, first[2])
    assert "training" in running.log_text(first[2], "train")
    assert deployment(running)["state"] == "serving"
    assert running.rows("SELECT owner_id FROM leases WHERE state != 'released'") == running.rows(
        "SELECT owner_id FROM containers WHERE kind = 'replica'"
    )


def test_an_unmodified_client_is_answered_over_tls_over_loopback_and_on_the_deployments_own_port(
    running: Running, key: str
) -> None:
    found = deployment(running)
    roads = [found["url"], f"{running.url}/serving/{found['id']}", found["localUrl"]]

    answers = [ask(road, key, 5, ca=running.data / "tls" / "ca.crt") for road in roads]

    assert [road.split(":")[0] for road in roads] == ["https", "http", "http"]
    assert answers == [15, 15, 15]


@pytest.mark.parametrize("wrong", [None, "dep_wrong", "grad_wrong"])
def test_without_the_right_key_nobody_is_answered_on_any_road(running: Running, key: str, wrong: str | None) -> None:
    found = deployment(running)

    for road in (found["url"], f"{running.url}/serving/{found['id']}", found["localUrl"]):
        with pytest.raises(InferenceServerException, match="key") as refused:
            ask(road, wrong, ca=running.data / "tls" / "ca.crt")
        assert refused.value.status() == "401"


def test_a_client_that_does_not_know_our_authority_is_not_talked_into_trusting_it(running: Running, key: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(deployment(running)["url"], key, ca=Path(ssl.get_default_verify_paths().cafile or "/dev/null"))


def test_a_second_push_rolls_the_deployment_over_and_no_request_fails(
    running: Running, repository: Repository, key: str
) -> None:
    found = deployment(running)
    roads = [found["localUrl"], f"{running.url}/serving/{found['id']}"]
    askers = [Asker(road, key, kept=kept) for road in roads for kept in (True, False)]
    try:
        for asker in askers:
            asker.wait_for(11)
        commit = main_path(repository, 20)
        shown = repository.git("push", "origin", "main")
        run = running.finished(run_of(running, commit))
        for asker in askers:
            asker.wait_for(21)
        gone = "SELECT 1 FROM deployment_specs WHERE number = 1 AND state = 'retired'"
        wait_until(lambda: running.rows(gone), 60, "the old replica is drained and gone")
    finally:
        for asker in askers:
            asker.stop()

    assert "run 2 started" in shown
    assert run["status"]["phase"] == "Succeeded"
    assert [asker.failures for asker in askers] == [[], [], [], []]
    for asker in askers:
        assert set(asker.answers) == {11, 21}
    with running.client() as client:
        assert [version["number"] for version in client.datasets.versions("numbers")] == [2, 1]
        assert [version["number"] for version in client.models.versions("adder")] == [2, 1]
    assert deployment(running)["servingSpec"]["number"] == 2
    assert len(running.rows("SELECT 1 FROM leases WHERE state != 'released'")) == 1


QUICK = "on: {github: {branches: {only: ['**']}, tags: {only: ['**']}}}\n" + script("hello", "echo hello")


@pytest.fixture(scope="module")
def other(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A second project, whose workflow only says hello."""
    with running.client() as client:
        client.projects.create("many")
    made = Repository(tmp_path_factory.mktemp("copy") / "many")
    made.git("remote", "add", "origin", push_url(running, "many"))
    return made


def pushes_of(house: Running, project: str) -> list[tuple[str, str | None, str | None]]:
    """Every recorded push that was taken up: ref, old, new; the oldest first."""
    rows = house.rows(
        "SELECT p.* FROM pushes p JOIN projects j ON j.id = p.project_id WHERE j.name = ?"
        " AND p.handled_at IS NOT NULL ORDER BY p.rowid",
        project,
    )
    return [(row["ref"], row["old"], row["new"]) for row in rows]


def test_pushes_in_a_row_are_as_many_pushes(running: Running, other: Repository) -> None:
    commits = []
    for number in range(3):
        commits.append(other.commit(f"number {number}"))
        other.git("push", "--quiet", "origin", "main")

    found = wait_until(lambda: rows if len(rows := pushes_of(running, "many")) >= 3 else None, 10, "they are recorded")

    assert found == [("refs/heads/main", old, new) for old, new in zip([None, *commits[:-1]], commits, strict=True)]


def test_a_dozen_pushes_at_once_are_a_dozen_pushes(running: Running, other: Repository) -> None:
    before = len(pushes_of(running, "many"))
    commit = other.git("rev-parse", "HEAD").strip()
    branches = [f"branch-{number}" for number in range(12)]

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda branch: other.git("push", "--quiet", "origin", f"main:refs/heads/{branch}"), branches))

    found = wait_until(
        lambda: rows if len(rows := pushes_of(running, "many")[before:]) >= 12 else None, 10, "they are recorded"
    )
    assert sorted(found, key=str) == sorted([(f"refs/heads/{name}", None, commit) for name in branches], key=str)


def test_a_force_push_a_tag_and_a_deleted_branch_count_once_each(running: Running, other: Repository) -> None:
    before = len(pushes_of(running, "many"))
    old = other.git("rev-parse", "HEAD").strip()
    other.git("commit", "--quiet", "--amend", "--allow-empty", "-m", "said otherwise")
    new = other.git("rev-parse", "HEAD").strip()

    other.git("push", "--quiet", "--force", "origin", "main")
    other.git("push", "--quiet", "origin", "main:side", "main:refs/tags/v1")
    other.git("push", "--quiet", "origin", ":side")

    found = wait_until(
        lambda: rows if len(rows := pushes_of(running, "many")[before:]) >= 4 else None, 10, "they are recorded"
    )
    assert sorted(found, key=str) == sorted(
        [
            ("refs/heads/main", old, new),
            ("refs/heads/side", None, new),
            ("refs/tags/v1", None, new),
            ("refs/heads/side", new, None),
        ],
        key=str,
    )


def test_a_push_over_a_path_is_noticed_and_its_run_started(running: Running, other: Repository) -> None:
    with running.client() as client:
        path = client.projects.get("many")["repoPath"]
    other.write(".gradient/workflows/hello.yaml", QUICK)
    commit = other.commit("says hello")

    shown = other.git("push", path, "main")

    assert "hello: run 1 started" in shown
    run = running.finished(run_of(running, commit))
    assert (run["status"]["phase"], run["startedBy"]) == ("Succeeded", "root@localhost")
    assert running.log_text(run["uuid"], "hello") == "hello"


def test_a_ref_that_moved_without_a_word_is_found_and_its_run_started_once(running: Running, other: Repository) -> None:
    with running.client() as client:
        path = client.projects.get("many")["repoPath"]
    commit = other.commit("quietly")

    # No hook runs: as when the repository was changed by a tool that is not git-receive-pack.
    subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", "-C", path, "fetch", "-q", other.folder, "main"], check=True
    )
    subprocess.run(["git", "-C", path, "update-ref", "refs/heads/main", commit], check=True)

    assert running.finished(run_of(running, commit))["status"]["phase"] == "Succeeded"


def test_a_push_while_the_daemon_is_down_is_found_at_its_start(running: Running, other: Repository) -> None:
    with running.client() as client:
        path = client.projects.get("many")["repoPath"]
    running.stop_daemon()
    commit = other.commit("while you were away")
    shown = other.git("push", path, "main")

    running.start_daemon()

    assert "the appliance is not running; the push is kept" in shown
    assert running.finished(run_of(running, commit))["status"]["phase"] == "Succeeded"


def test_runs_are_started_from_the_command_line_without_a_push(running: Running, other: Repository) -> None:
    other.write(
        "local.yaml",
        "inputs:\n  who: {type: string, with: {value: world}}\n"
        + script("greet", "echo hello $(cat /inputs/who)", more="    inputs: {who: workflow.inputs.who}\n"),
    )
    before = len(pushes_of(running, "many"))

    of_file = running.cli("runs", "start", "many", "--file", str(other.folder / "local.yaml"), "-i", "who=moon", "-f")
    of_commit = running.cli("runs", "start", "many", "--path", ".gradient/workflows/hello.yaml", "--json")

    assert of_file.returncode == 0, of_file.stderr
    assert "hello moon" in of_file.stdout
    assert of_commit.returncode == 0, of_commit.stderr
    run = running.finished(json.loads(of_commit.stdout)["uuid"])
    assert (run["status"]["phase"], run["workflowName"]) == ("Succeeded", "hello")
    assert len(pushes_of(running, "many")) == before
