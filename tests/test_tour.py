"""The tour's parts, each against its real thing; the whole of it is a journey (tests/journeys)."""

from __future__ import annotations

import io
import os
import pty
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_script import Request, Script, events, scripted
from live_web import Live, live_web
from waiting import wait_until

from appliance import tour
from appliance.client import Client, TimedOut
from appliance.errors import NotFound
from appliance.tour import digits, push
from appliance.tour.show import Progress, picture

SEVEN = "7," + ",".join("0" * 63 + "9").replace("9", "16")
THREE = "3," + ",".join(["8"] * 64)
HELD_OUT = f"label,{','.join(f'p{n:02d}' for n in range(64))}\n{SEVEN}\n{THREE}\n".encode()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_web(tmp_path_factory.mktemp("web")) as found:
        yield found


@pytest.fixture
def client(web: Live) -> Iterator[Client]:
    with Client(web.url, web.admin) as found:
        yield found


def log(web: Live, project: str) -> list[str]:
    repo = web.house.config.repos_dir / f"{project}.git"
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "log", "--format=%s", "main"],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# -- the push ----------------------------------------------------------------------------------------------------------


def test_each_push_is_a_commit_on_top_of_the_one_before(web: Live, client: Client, tmp_path: Path) -> None:
    project = client.projects.create("tour-push")

    first = push.push_showcase(client, project["name"], tmp_path / "one", "The first")
    second = push.push_showcase(client, project["name"], tmp_path / "two", "The second")

    assert first != second
    assert log(web, project["id"]) == ["The second", "The first"]
    assert (tmp_path / "two" / ".gradient" / "workflows" / "train.yaml").exists()


def test_what_a_user_changed_in_the_project_stays(web: Live, client: Client, tmp_path: Path) -> None:
    project = client.projects.create("tour-notes")
    push.push_showcase(client, project["name"], tmp_path / "one", "The first")
    env = push._environment(client, tmp_path / "one")
    (tmp_path / "one" / "NOTES.md").write_text("mine")
    for words in (["add", "NOTES.md"], ["commit", "-qm", "Notes"], ["push", "-q", "origin", "HEAD:main"]):
        subprocess.run(["git", *words], cwd=tmp_path / "one", env=env, check=True, timeout=30, capture_output=True)

    push.push_showcase(client, project["name"], tmp_path / "two", "The second")

    assert (tmp_path / "two" / "NOTES.md").read_text() == "mine"
    assert log(web, project["id"]) == ["The second", "Notes", "The first"]


def test_the_key_is_in_no_argument_and_in_no_file(
    web: Live, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.projects.create("tour-secret")
    spy, said = tmp_path / "bin" / "git", tmp_path / "said"
    spy.parent.mkdir()
    real = subprocess.run(["which", "git"], capture_output=True, text=True, timeout=10).stdout.strip()
    spy.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {said}\nexec {real} "$@"\n')
    spy.chmod(spy.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{spy.parent}:{os.environ['PATH']}")

    push.push_showcase(client, "tour-secret", tmp_path / "work", "Secret")

    secret = web.admin.rpartition("_")[2]
    assert "push --quiet" in said.read_text()
    assert secret not in said.read_text()
    holders = subprocess.run(
        ["grep", "-rl", secret, str(tmp_path / "work")], capture_output=True, text=True, timeout=10
    )
    assert holders.stdout == ""


def test_a_user_s_own_git_configuration_is_neither_read_nor_changed(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.projects.create("tour-config")
    (tmp_path / ".gitconfig").write_text("[commit]\n\tgpgSign = true\n[http]\n\tproxy = http://127.0.0.1:9\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    before = (tmp_path / ".gitconfig").read_text()

    assert re.fullmatch("[0-9a-f]{40}", push.push_showcase(client, "tour-config", tmp_path / "work", "Mine"))
    assert (tmp_path / ".gitconfig").read_text() == before


def test_a_push_with_a_wrong_key_says_so_and_asks_nobody(web: Live, client: Client, tmp_path: Path) -> None:
    client.projects.create("tour-wrong")
    with Client(web.url, "grad_wrong") as other, pytest.raises(push.PushFailed, match="git ls-remote failed"):
        push.push_showcase(other, "tour-wrong", tmp_path / "work", "No")


# -- the digit ---------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_a_digit_is_chosen_out_of_the_held_out_ones() -> None:
    assert digits.choose(HELD_OUT, 3) == digits.Sample(3, (8,) * 64)
    assert {digits.choose(HELD_OUT, None).label for _ in range(60)} == {3, 7}
    with pytest.raises(NotFound):
        digits.choose(HELD_OUT, 5)


@pytest.mark.fast
def test_a_picture_is_as_wide_as_high() -> None:
    shown = picture(tuple([16, 0] * 32)).splitlines()

    assert shown == ["  " + "██  " * 4] * 8


@pytest.mark.fast
def test_nobody_answering_is_one_sentence() -> None:
    with pytest.raises(digits.NoAnswer, match="gave no answer"):
        digits.ask("http://127.0.0.1:9", "digits", "key", digits.choose(HELD_OUT, 3), None)


# -- showing -----------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_progress_in_a_pipe_is_one_plain_line_for_each_stage() -> None:
    out = io.StringIO()
    progress = Progress(out)

    with progress.stage("push") as stage:
        progress.step("prepare", 1.25, "Succeeded")
        stage.say("abc\x1b[2J")
    with pytest.raises(NotFound), progress.stage("run"):
        raise NotFound("gone")

    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["·", "prepare", "1.2", "s"]
    assert lines[1].startswith("✓ push")
    assert lines[1].endswith("abc\\x1b[2J")
    assert lines[2].startswith("✗ run")
    assert set(progress.seconds) == {"push", "run"}


@pytest.mark.fast
def test_progress_on_a_terminal_moves_while_a_stage_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    seen = b""

    def moved() -> bool:
        nonlocal seen
        seen += os.read(leader, 4096)
        return seen.decode(errors="ignore").count("run") >= 2

    with os.fdopen(follower, "w") as out, Progress(out).stage("run"):
        wait_until(moved, 5, "the line was written twice")
    os.close(leader)
    assert b"\r\x1b[2K" in seen


# -- the whole, with a server that says what a real one says -----------------------------------------------------------


def run_of(phase: str, jobs: dict[str, Any]) -> dict[str, Any]:
    return {"id": 1, "uuid": "u1", "workflowName": "train", "commit": "c1", "status": {"phase": phase, "jobs": jobs}}


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted() as found:
        yield found


@pytest.mark.fast
def test_a_job_that_fails_ends_the_tour_with_its_last_lines(script: Script) -> None:
    failed = run_of("Failed", {"train": {"phase": "Failed", "message": "The script ended with 3."}})

    def answer(request: Request) -> Any:
        if request.path.endswith("/u1/stream"):
            return events(request, ("run", failed))
        if "/logs?" in request.path:
            lines = [{"line": n, "at": "", "stream": "stderr", "message": f"l{n}"} for n in range(40)]
            return 200, {"items": lines if "after=-1" in request.path else []}
        return 200, {"items": [failed], "hasMore": False}

    script.answer = answer
    with Client(script.url, "k") as client, pytest.raises(tour.TourFailed) as caught:
        tour._run(client, "p1", "c1", Progress(io.StringIO()), float("inf"))

    assert "Job train" in str(caught.value)
    assert "ended with 3" in str(caught.value)
    assert caught.value.issues == tuple(f"l{n}" for n in range(25, 40))


@pytest.mark.fast
def test_a_roll_out_that_fails_is_not_waited_for(script: Script) -> None:
    spec = {"modelVersionId": "v2", "state": "failed", "error": "No memory."}
    script.answer = lambda _: (200, {"items": [{"name": "digits", "id": "d", "latestSpec": spec}], "hasMore": False})

    with Client(script.url, "k") as client, pytest.raises(tour.TourFailed, match="No memory"):
        tour._deployment(client, "p1", "v2", float("inf"))


@pytest.mark.fast
def test_a_model_that_is_not_served_in_time_is_said(script: Script) -> None:
    spec = {"modelVersionId": "v1", "state": "serving"}
    found = {"name": "digits", "id": "d", "latestSpec": spec, "servingSpec": spec}
    script.answer = lambda _: (200, {"items": [found], "hasMore": False})

    with Client(script.url, "k") as client, pytest.raises(TimedOut, match="in time"):
        tour._deployment(client, "p1", "v2", 0.0)


@pytest.mark.fast
def test_the_deployment_s_key_is_revoked_whatever_happens(script: Script) -> None:
    def answer(request: Request) -> tuple[int, Any]:
        if request.path.endswith("/metadata"):
            return 200, {"name": "digits"}
        return 200, {"id": "k1", "key": "secret"}

    script.answer = answer
    with Client(script.url, "k") as client, pytest.raises(digits.NoAnswer):
        tour._ask(client, "d1", "http://127.0.0.1:9", digits.choose(HELD_OUT, 3))

    assert (script.seen[-1].method, script.seen[-1].path) == ("DELETE", "/v1/deployments/d1/keys/k1")


@pytest.mark.fast
def test_numpy_and_the_triton_client_are_loaded_for_the_question_alone() -> None:
    code = "import sys, appliance.tour; sys.exit(bool({'numpy', 'tritonclient', 'gevent'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
