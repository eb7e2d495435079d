"""The daemon comes and goes, as at an upgrade; what runs and what serves does not notice."""

from __future__ import annotations

import base64
import subprocess
from typing import Any

import pytest
from journeys.stories import Asker, adder, deployment, key_for, run_now, script
from running import Running
from waiting import wait_until

pytestmark = pytest.mark.docker

COUNT = 60


@pytest.fixture(scope="module")
def project(running: Running) -> str:
    with running.client() as client:
        client.projects.create("steady")
    return "steady"


@pytest.fixture(scope="module")
def serving(running: Running, project: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A deployment that adds 1."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    adder(path, 1)
    text = script(
        "make",
        f"base64 -d > /outputs/net/model.onnx <<< {base64.b64encode(path.read_bytes()).decode()}",
        "{net: {type: dataset, with: {ref: net}}}",
    )
    text += """\
  register:
    needs: [make]
    inputs: {model: make.outputs.net}
    uses: create-model@v1
    with: {name: adder, type: ONNX}
    outputs: {model-id: {type: string}}
  deploy: {needs: [register], inputs: {model: register.outputs.model-id}, uses: deploy@v1, with: {name: adder}}
"""
    assert run_now(running, project, text)["status"]["phase"] == "Succeeded"
    return deployment(running)


def begin(house: Running, project: str, lines: str, name: str = "long") -> str:
    with house.client() as client:
        return str(client.runs.submit(project, spec_text=script("a", lines), name=name)["uuid"])


def container_of(house: Running, run_id: str, state: str = "running") -> str:
    """The engine's own id of the run's container, once it is in that state."""

    def found() -> str:
        attempt = house.rows("SELECT a.id FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE j.run_id = ?", run_id)
        if not attempt:
            return ""
        return subprocess.run(
            [
                "docker",
                "ps",
                "-aq",
                "--no-trunc",
                "--filter",
                f"label=appliance.id={attempt[0]['id']}",
                "--filter",
                f"status={state}",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    return wait_until(found, 20, f"the container is {state}", every_s=0.1)


def test_a_job_that_prints_all_the_time_loses_and_doubles_no_line_over_restarts(running: Running, project: str) -> None:
    printing = f"python3 -u -c 'import time\nfor n in range({COUNT}): print(n); time.sleep(0.1)'"
    run_id = begin(running, project, printing.replace("\n", "\n"))
    container = container_of(running, run_id)

    for way in (running.stop_daemon, running.kill9, running.stop_daemon):
        way()
        running.start_daemon()
        seen = running.log_text(run_id, "a").splitlines()
        assert seen == [str(number) for number in range(len(seen))]

    run = running.finished(run_id)
    assert run["status"]["phase"] == "Succeeded"
    assert running.log_text(run_id, "a").splitlines() == [str(number) for number in range(COUNT)]
    assert container_of(running, run_id, "exited") == container


def test_a_job_that_ends_while_the_daemon_is_down_is_collected_with_its_code_its_times_and_its_log(
    running: Running, project: str
) -> None:
    run_id = begin(running, project, "echo first; sleep 1; echo last; exit 7")
    container = container_of(running, run_id)
    running.kill9()
    subprocess.run(["docker", "wait", container], check=True, capture_output=True, timeout=20)
    ended = subprocess.run(
        ["docker", "inspect", "--format", "{{.State.FinishedAt}}", container], capture_output=True, text=True
    ).stdout

    running.start_daemon()

    run = running.finished(run_id)
    assert run["status"]["message"] == "a: It exited with code 7; its log says why."
    assert running.log_text(run_id, "a").splitlines() == ["first", "last"]
    (row,) = running.rows(
        "SELECT finished_at, exit_code FROM containers WHERE id = (SELECT id FROM attempts WHERE job_id"
        " = (SELECT id FROM jobs WHERE run_id = ?))",
        run_id,
    )
    assert (row["exit_code"], row["finished_at"][:19]) == (7, ended[:19])


def test_a_client_of_a_deployment_is_answered_all_through_stops_kills_and_the_daemons_absence(
    running: Running, serving: dict[str, Any]
) -> None:
    key = key_for(running, serving["id"])
    replicas = running.rows("SELECT id FROM containers WHERE kind = 'replica'")
    # Through nginx with new connections alone: it may close an idle one at any time, and does at a reload.
    through = f"{running.url}/serving/{serving['id']}"
    askers = [Asker(serving["localUrl"], key, kept=kept) for kept in (True, False)] + [Asker(through, key, kept=False)]
    try:
        for way in (running.stop_daemon, running.kill9):
            way()
            before = [len(asker.answers) for asker in askers]
            for asker, count in zip(askers, before, strict=True):
                wait_until(lambda asker=asker, count=count: len(asker.answers) > count + 20, 20, "20 more answers")
            running.start_daemon()
        wait_until(lambda: running.rows("SELECT 1 FROM deployment_specs WHERE state = 'serving'"), 5, "it serves")
    finally:
        for asker in askers:
            asker.stop()

    assert [asker.failures for asker in askers] == [[], [], []]
    assert running.rows("SELECT id FROM containers WHERE kind = 'replica'") == replicas


def test_a_replica_that_dies_is_replaced_and_a_client_that_asks_again_is_answered(
    running: Running, serving: dict[str, Any]
) -> None:
    key = key_for(running, serving["id"])
    (old,) = running.rows("SELECT id, engine_id FROM containers WHERE kind = 'replica' AND seen = 'running'")
    subprocess.run(["docker", "kill", old["engine_id"]], check=True, capture_output=True)

    asker = Asker(serving["localUrl"], key, kept=False)
    try:
        # The listening socket never went away, so whoever connects waits in its queue for the next replica.
        wait_until(lambda: asker.answers, 40, "the next replica answers")
    finally:
        asker.stop()

    assert asker.failures == []
    (new,) = running.rows("SELECT id FROM containers WHERE kind = 'replica' AND want = 'running'")
    assert new["id"] != old["id"]


def test_a_run_that_is_cancelled_stops_within_its_grace_and_leaves_nothing(running: Running, project: str) -> None:
    run_id = begin(
        running, project, "trap 'echo told; exit 0' TERM; echo up; while true; do sleep 0.1; done", "stopped"
    )
    container = container_of(running, run_id)
    wait_until(lambda: "up" in running.log_text(run_id, "a"), 10, "it is up")
    with running.client() as client:
        client.runs.cancel(run_id)

    run = running.finished(run_id, 15)

    assert (run["status"]["phase"], run["status"]["message"]) == ("Canceled", "Cancelled by root@localhost.")
    assert running.log_text(run_id, "a").splitlines() == ["up", "told"]
    gone = ["docker", "inspect", container]
    wait_until(lambda: subprocess.run(gone, capture_output=True).returncode != 0, 15, "its container is removed")
    held = "SELECT 1 FROM leases l JOIN containers c ON c.id = l.container_id WHERE l.state != 'released' AND c.kind = 'attempt'"
    assert running.rows(held) == []


def test_a_container_that_somebody_removed_is_noticed_and_its_run_says_so(running: Running, project: str) -> None:
    run_id = begin(running, project, "sleep 600", "removed")
    container = container_of(running, run_id)
    wait_until(lambda: running.rows("SELECT 1 FROM containers WHERE seen = 'running' AND kind = 'attempt'"), 10, "seen")

    subprocess.run(["docker", "rm", "-f", container], check=True, capture_output=True)

    run = running.finished(run_id, 15)
    assert run["status"]["message"] == "a: Its container is gone; somebody removed it, or the engine lost it."


def test_a_container_of_ours_without_a_row_is_removed_and_a_strangers_is_left_alone(running: Running) -> None:
    def made(*labels: str) -> str:
        options = [word for label in labels for word in ("--label", label)]
        command = ["docker", "create", "--network", "none", "--label", "appliance.test=1", *options]
        return subprocess.run(
            [*command, "appliance/base:latest", "sleep", "600"], check=True, capture_output=True, text=True
        ).stdout.strip()

    ours = made(f"appliance.instance={running.instance()}", "appliance.id=atnobodysrow00000")
    others = made("appliance.instance=another", "appliance.id=atanothersrow0000")
    try:
        gone = ["docker", "inspect", ours]
        wait_until(lambda: subprocess.run(gone, capture_output=True).returncode != 0, 20, "ours without a row is gone")
        subprocess.run(["docker", "inspect", others], check=True, capture_output=True)
    finally:
        subprocess.run(["docker", "rm", "-f", ours, others], capture_output=True)
