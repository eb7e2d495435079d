"""The daemon is killed (-9) after each row of the main path in turn; started again, it goes on as if nothing had been.

One appliance on real Docker and a workflow of a second. For each place: the daemon dies there under a push, is started
again, and afterwards there is exactly one of everything that the push asked for, and nothing is left over.
"""

from __future__ import annotations

import base64
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from journeys.stories import Repository, adder, ask, key_for
from running import Running
from waiting import wait_until

from appliance.store import Store

pytestmark = pytest.mark.docker

# In the order of the main path; each is just after the row (or effect) that it is called by.
PLACES = (
    "push.recorded",
    "push.started",
    "push.handled",
    "run.settled",
    "attempt.prepared",
    "attempt.wanted",
    "lease.granted",
    "container.wanted",
    "container.created",
    "container.started",
    "attempt.seen.running",
    "attempt.seen.exited",
    "outputs.taken",
    "volumes.kept",
    "versions.committed",
    "attempt.collected",
    "model.committed",
    "spec.applied",
    "replica.wanted",
    "spec.starting",
    "replica.seen.running",
    "socket.handed",
    "spec.serving",
    "spec.draining",
    "replica.seen.exited",
    "spec.retired",
    "replica.seen.removed",
)
WORKFLOW = """\
on: {github: {branches: {only: main}}}
jobs:
  make:
    uses: script@v1
    with:
      image: appliance/base:latest
      script: |-
        base64 -d > /outputs/net/model.onnx <<< %s
        echo %s > /outputs/note
        echo tool > /outputs/tools/tool
        sleep 0.5  # so that it is seen to run
    outputs:
      net: {type: dataset, with: {ref: net}}
      note: {type: string}
      tools: {type: volume}
  register:
    needs: [make]
    inputs: {model: make.outputs.net}
    uses: create-model@v1
    with: {name: adder, type: ONNX}
    outputs: {model-id: {type: string}}
  deploy:
    needs: [register]
    inputs: {model: register.outputs.model-id}
    uses: deploy@v1
    with: {name: adder}
"""


class Main:
    """The main path, taken once for each push; its model adds the push's number."""

    def __init__(self, house: Running, folder: Path) -> None:
        self.house, self.number = house, 0
        self.label = f"label=appliance.instance={house.instance()}"
        self.repository = Repository(folder)
        with house.client() as client:
            self.path = str(client.projects.create("main")["repoPath"])
        self.push()
        self.come_out_right()
        self.key = key_for(house, self.deployment())

    def push(self) -> None:
        """Over the repository's path: the push itself is git's, and lives on when the daemon dies."""
        self.number += 1
        model = self.repository.folder.parent / "model.onnx"
        adder(model, self.number)
        text = WORKFLOW % (base64.b64encode(model.read_bytes()).decode(), self.number)
        self.repository.write(".gradient/workflows/main.yaml", text)
        self.commit = self.repository.commit(f"adds {self.number}")
        self.repository.git("push", self.path, "main")

    def deployment(self) -> str:
        return str(self.house.rows("SELECT id FROM deployments")[0]["id"])

    def come_out_right(self) -> None:
        """The newest push has had its one effect."""
        run = self.one('SELECT * FROM runs WHERE "commit" = ?', self.commit)
        ended = self.house.finished(run["id"], 40)
        assert ended["status"]["phase"] == "Succeeded", ended["status"]
        wait_until(self.is_calm, 20, "nothing is on its way any more")
        self.check_rows(run["id"])
        self.check_engine()

    def one(self, sql: str, *values: Any) -> dict[str, Any]:
        rows = wait_until(lambda: self.house.rows(sql, *values), 10, sql)
        assert len(rows) == 1, rows
        return rows[0]

    def is_calm(self) -> bool:
        return not self.house.rows(
            "SELECT 1 FROM deployment_specs WHERE state NOT IN ('serving', 'retired')"
            " UNION SELECT 1 FROM containers WHERE kind = 'replica' AND want = 'gone' AND seen != 'removed'"
            " UNION SELECT 1 FROM pushes WHERE handled_at IS NULL UNION SELECT 1 FROM runs WHERE finished_at IS NULL"
        )

    def is_over(self) -> bool:
        """The daemon died, or it has nothing left to do."""
        serves = "SELECT 1 FROM deployment_specs WHERE state = 'serving' AND number = ?"
        done = bool(self.house.rows(serves, self.number)) and self.is_calm()
        return done or self.house.processes["run"].poll() is not None

    def check_rows(self, run_id: str) -> None:
        count = self.number
        totals = {
            "pushes": count,
            "runs": count,
            "jobs": 3 * count,
            "attempts": 3 * count,
            "versions": 2 * count,
            "deployment_specs": count,
            "containers WHERE kind = 'attempt'": count,
            "containers WHERE kind = 'replica'": count,
            "versions WHERE state = 'uncommitted'": 0,
        }
        for what, expected in totals.items():
            assert self.house.rows(f"SELECT count(*) AS n FROM {what}") == [{"n": expected}], what
        outputs = self.house.rows("SELECT outputs FROM jobs WHERE run_id = ? AND name = 'make'", run_id)
        assert f'"value": "{count}"' in outputs[0]["outputs"]
        # The machine is promised to the one replica that serves, and to nothing else.
        serving = self.one("SELECT id FROM containers WHERE want = 'running'")
        held = self.one("SELECT container_id FROM leases WHERE state != 'released'")
        assert held["container_id"] == serving["id"]

    def check_engine(self) -> None:
        made = subprocess.run(
            ["docker", "ps", "-a", "--format", '{{.Label "appliance.id"}}', "--filter", self.label],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        known = {row["id"] for row in self.house.rows("SELECT id FROM containers WHERE seen != 'removed'")}
        assert sorted(made) == sorted(known)


@pytest.fixture(scope="module")
def main(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Main]:
    made = Main(running, tmp_path_factory.mktemp("main") / "copy")
    yield made
    running.stop_daemon()
    running.start_daemon()
    # At the very end nothing is left over, and everything that was ever stored is whole.
    for folder in ("work", "volumes"):
        wait_until(lambda folder=folder: not list((running.data / folder).iterdir()), 40, f"{folder} is empty")
    ended = running.rows("SELECT id FROM attempts UNION SELECT id FROM containers WHERE seen = 'removed'")
    logs = [running.data / "logs" / row["id"] for row in ended]
    is_sealed = [(log / "sealed").exists for log in logs if log.exists()]
    wait_until(lambda: all(sealed() for sealed in is_sealed), 40, "every ended log is sealed", every_s=0.5)
    running.stop_daemon()
    with_roots = [row["root"] for row in running.rows("SELECT root FROM versions WHERE root IS NOT NULL")]
    store = Store(running.data / "store", floor_bytes=0)
    try:
        assert store.verify(with_roots, deep=True) == []
    finally:
        store.close()


def died(house: Running, within_s: float = 20) -> None:
    process = house.processes["run"]
    wait_until(lambda: process.poll() is not None, within_s, "the daemon dies")
    assert house.processes.pop("run").returncode == -signal.SIGKILL


@pytest.mark.parametrize("place", PLACES)
def test_a_daemon_killed_at_any_step_of_the_main_path_changes_nothing_in_the_end(main: Main, place: str) -> None:
    main.house.stop_daemon()
    main.house.start_daemon(APPLIANCE_FAILPOINT=place)
    main.push()
    died(main.house)

    main.house.start_daemon()

    main.come_out_right()
    with main.house.client() as client:
        endpoint = client.deployments.get(main.deployment())["localUrl"]
    assert ask(endpoint, main.key, 100) == 100 + main.number


def test_one_push_survives_a_daemon_that_dies_at_every_step_once(main: Main) -> None:
    main.house.stop_daemon()
    main.push()
    places: list[str] = []
    while True:
        process = main.house.begin_daemon(APPLIANCE_FAILPOINT="!" + ",".join(places))
        wait_until(main.is_over, 30, f"the daemon dies at one more place than {places}, or has nothing left to do")
        if process.poll() is None:
            break
        died(main.house)
        places.append((main.house.log / "run.log").read_text().rpartition("killed at ")[2].strip())

    main.house.stop_daemon()
    main.house.start_daemon()
    main.come_out_right()

    # A job may end while the daemon is away, one whose versions are committed is not collected again, and at the last
    # places nothing is left to wait for.
    may_miss = {"attempt.seen.running", "attempt.collected", "spec.retired", "replica.seen.removed"}
    assert set(PLACES) - set(places) <= may_miss
