"""Deployments: what people may ask for, and the roll-out with real serving processes, a real holder and real clients.

The test plays the container engine: what is wanted is started as a process on this machine.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from journeys.stories import Asker, adder, ask
from running import free_port, free_range, is_free
from test_holder import holder
from tritonclient.utils import InferenceServerException
from waiting import wait_until
from web_support import person

from appliance import containers, deployments, leases, machine, models, projects, scheduler, versions
from appliance.config import Config
from appliance.db import Database
from appliance.deployments.wishes import normalised
from appliance.errors import BadRequest, Conflict, NotFound
from appliance.records import Actor, Container, Deployment
from appliance.states import Seen, SpecState, Want
from appliance.store import Store, failpoints

ROOT = Path(__file__).parents[1]


@dataclass
class Stage:
    """Roller, scheduler and an engine of processes, turned by hand."""

    config: Config
    db: Database
    store: Store
    actor: Actor
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    made: int = 0

    def __post_init__(self) -> None:
        with self.db.write() as tx:
            self.project = projects.create(tx, self.actor, "vision")
            self.model = models.create(tx, self.actor, name="adder", model_type="ONNX", project_id=self.project.id)
            machine.set_setting(tx, "deployment_ports", "{}-{}".format(*self.config.deployment_ports))
        self.restart()

    def restart(self) -> None:
        """What the daemon remembers is forgotten."""
        self.roller = deployments.Roller(self.config, self.db, self.store)

    def version(self, constant: float | None) -> str:
        """A version of the model that adds `constant`; None: one that is no model at all."""
        self.made += 1
        source = self.folder / f"version-{self.made}"
        source.mkdir()
        if constant is None:
            (source / "model.onnx").write_text("no model")
        else:
            adder(source / "model.onnx", constant)
        tree = self.store.put_tree(source, move=False)
        with self.db.write() as tx:
            made = versions.add_committed(tx, models.CATALOG.owner(self.model), self.actor, tree)
        self.store.publish(tree)
        return f"{self.model.id}:{made.id}"

    def apply(self, constant: float | None, name: str = "adder", **more: Any) -> Deployment:
        config = {"name": name, "model": self.version(constant), **more}
        with self.db.write() as tx:
            return deployments.apply(tx, self.actor, project_id=self.project.id, config=config)

    def look(self, deployment: Deployment) -> Deployment:
        with self.db.read() as reader:
            return deployments.get_deployment(reader, self.actor, deployment.id)

    def replicas(self, want: Want | None = None) -> list[Container]:
        with self.db.read() as reader:
            found = containers.list_open(reader)
        return [one for one in found if want is None or one.want is want]

    def turn(self) -> None:
        """Every loop looks once."""
        self.roller.tick()
        scheduler.tick(self.db, list)
        for row in self.replicas():
            self._carry_out(row)

    def _carry_out(self, row: Container) -> None:
        process = self.processes.get(row.id)
        if process is None and row.want is Want.RUNNING and row.lease_id is not None:
            self._start(row)
        elif process is None and row.want is Want.GONE:
            self._saw(row, Seen.REMOVED)
        elif process is not None and process.poll() is not None:
            self._saw(row, Seen.EXITED, exit_code=process.returncode)
            if row.want is Want.GONE:
                self._saw(row, Seen.REMOVED)
        elif process is not None and row.want is Want.GONE:
            process.terminate()

    def _start(self, row: Container) -> None:
        self.roller.prepare(row)
        folder = self.config.replicas_dir / row.id
        inside = json.loads((folder / "config.json").read_text())
        view = next(mount.source for mount in row.spec.mounts if mount.target == "/model")
        (folder / "here.json").write_text(json.dumps({**inside, "path": view}))
        paths = ["--control", str(folder / "control.sock"), "--config", str(folder / "here.json")]
        self.processes[row.id] = subprocess.Popen(
            [sys.executable, "-m", "appliance.inference.serve", *paths],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._saw(row, Seen.RUNNING)

    def _saw(self, row: Container, seen: Seen, **more: Any) -> None:
        with self.db.write() as tx:
            news = containers.saw(tx, row.id, seen, **more)
            if news and seen is not Seen.RUNNING and row.lease_id is not None:
                leases.end(tx, row.lease_id)
        if seen is Seen.REMOVED:
            self.roller.tidy(row.id)

    def until(self, probe: Callable[[], Any], what: str, within_s: float = 20) -> Any:
        def once() -> Any:
            self.turn()
            return probe()

        return wait_until(once, within_s, what, every_s=0.05)

    def serving(self, deployment: Deployment, number: int) -> Deployment:
        """The deployment, once that spec serves and no other is there."""

        def calm() -> Deployment | None:
            now = self.look(deployment)
            is_it = now.serving is not None and now.serving.number == number
            return now if is_it and len(self.replicas()) == now.serving.replicas else None  # type: ignore[union-attr]

        found: Deployment = self.until(calm, f"spec {number} serves alone")
        return found

    def key(self, deployment: Deployment) -> str:
        with self.db.write() as tx:
            return deployments.create_key(tx, self.actor, deployment.id, "test")[1]

    def url(self, deployment: Deployment) -> str:
        return deployments.local_url(self.config, deployment)

    def states(self, deployment: Deployment) -> list[str]:
        with self.db.read() as reader:
            found = deployments.history(reader, self.actor, deployment.id).items
        return [spec.state.value for spec in found]


@pytest.fixture
def stage(tmp_path: Path, db: Database, store: Store) -> Iterator[Stage]:
    run_dir = tmp_path / "run"
    config = Config(
        data_dir=tmp_path / "data",
        run_dir=run_dir,
        deployment_ports=free_range(4),
        host_name="house",
        http_port=free_port(),
    )
    config.replicas_dir.mkdir(parents=True)
    with holder(config.holder_socket):
        made = Stage(config, db, store, person(db, "ana@example.org"), tmp_path)
        try:
            yield made
        finally:
            for process in made.processes.values():
                process.kill()
                process.wait()


# -- the roll-out ------------------------------------------------------------------------------------------------------


def test_what_was_applied_serves_once_it_is_ready_and_answers_whoever_has_a_key(stage: Stage) -> None:
    deployment = stage.serving(stage.apply(10), 1)
    key = stage.key(deployment)

    stage.until(lambda: stage.turn() or True, "the key is told")

    assert ask(stage.url(deployment), key, 1) == 11
    with pytest.raises(InferenceServerException):
        ask(stage.url(deployment), None)
    assert deployment.serving is not None
    assert deployment.serving.healthy_at is not None
    with stage.db.write() as tx, pytest.raises(Conflict, match="the deployment adder serves it"):
        models.delete_version(tx, stage.actor, stage.model.id, "1")


def test_a_roll_over_fails_no_request_and_leaves_one_replica(stage: Stage) -> None:
    deployment = stage.serving(stage.apply(10), 1)
    key = stage.key(deployment)
    stage.turn()
    askers = [Asker(stage.url(deployment), key, kept=kept) for kept in (True, False)]
    try:
        wait_until(lambda: all(asker.answers for asker in askers), 5, "both are answered")
        stage.apply(20)
        stage.serving(deployment, 2)
        for asker in askers:
            asker.wait_for(21)
    finally:
        for asker in askers:
            asker.stop()

    assert [asker.failures for asker in askers] == [[], []]
    stage.until(lambda: stage.states(deployment) == ["serving", "retired"], "the old spec is retired")
    with stage.db.read() as reader:
        assert [lease.container_id for lease in leases.list_open(reader)] == [stage.replicas()[0].id]


def test_a_model_that_cannot_be_loaded_fails_its_spec_and_the_old_one_goes_on_serving(stage: Stage) -> None:
    deployment = stage.serving(stage.apply(10), 1)
    key = stage.key(deployment)

    stage.apply(None)

    stage.until(lambda: stage.states(deployment)[0] == "failed", "the new spec fails")
    newest = stage.look(deployment).latest
    assert newest is not None
    assert "model.onnx" in (newest.error or "")
    stage.serving(deployment, 1)
    assert ask(stage.url(deployment), key, 1) == 11


def test_a_replica_that_ends_is_replaced_and_clients_wait_meanwhile(stage: Stage) -> None:
    deployment = stage.serving(stage.apply(10), 1)
    key = stage.key(deployment)
    stage.turn()
    (old,) = stage.replicas()
    stage.processes[old.id].kill()
    stage.until(lambda: [one.id for one in stage.replicas(Want.RUNNING)] not in ([], [old.id]), "another is wanted")

    asker = Asker(stage.url(deployment), key, kept=False)
    try:
        stage.until(lambda: asker.answers, "the next one answers")
    finally:
        asker.stop()

    assert asker.failures == []


def test_several_replicas_share_the_socket_and_one_may_end(stage: Stage) -> None:
    deployment = stage.serving(stage.apply(10, replicas=2), 1)
    key = stage.key(deployment)
    stage.turn()

    first, _ = stage.replicas()
    stage.processes[first.id].terminate()
    stage.processes[first.id].wait(10)

    assert [ask(stage.url(deployment), key, 1) for _ in range(10)] == [11] * 10


def test_switched_off_it_refuses_clients_and_switched_on_it_has_the_same_address(stage: Stage) -> None:
    deployment = stage.serving(stage.apply(10), 1)
    key = stage.key(deployment)
    with stage.db.write() as tx:
        deployments.set_enabled(tx, stage.actor, deployment.id, False)
    stage.until(lambda: not stage.replicas(), "nothing runs")
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", deployment.port), timeout=5):
        pass

    with stage.db.write() as tx:
        wanted = deployments.set_enabled(tx, stage.actor, deployment.id, True).latest

    assert wanted is not None
    again = stage.serving(deployment, wanted.number)
    stage.turn()
    assert again.port == deployment.port
    assert ask(stage.url(again), key, 1) == 11


def test_a_deleted_one_is_gone_with_its_socket_its_keys_and_its_replicas_and_the_model_stays(stage: Stage) -> None:
    deployment = stage.serving(stage.apply(10), 1)
    stage.key(deployment)
    with stage.db.write() as tx:
        assert "refused at once" in deployments.removal(tx, stage.actor, deployment.id)
        deployments.delete(tx, stage.actor, deployment.id)

    stage.until(lambda: not stage.replicas(), "nothing runs")

    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", deployment.port), timeout=5):
        pass
    assert [path.name for path in stage.config.replicas_dir.iterdir() if path.name.startswith("re")] == []
    with stage.db.write() as tx:
        assert models.get_version(tx, stage.actor, stage.model.id, "1").number == 1
        models.delete_version(tx, stage.actor, stage.model.id, "1")


def test_a_key_opens_within_a_look_and_a_revoked_one_no_more(stage: Stage) -> None:
    deployment = stage.serving(stage.apply(10), 1)
    key = stage.key(deployment)
    stage.turn()
    assert ask(stage.url(deployment), key, 1) == 11

    with stage.db.write() as tx:
        (listed,) = deployments.list_keys(tx, stage.actor, deployment.id)
        deployments.revoke_key(tx, stage.actor, deployment.id, listed.id)
    stage.turn()

    with pytest.raises(InferenceServerException) as refused:
        ask(stage.url(deployment), key)
    assert refused.value.status() == "401"
    assert key not in str(listed)


def test_one_that_never_served_takes_another_port_for_a_busy_one(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", stage.config.deployment_ports[0])):
        deployment = stage.apply(10, "first")
        assert deployment.port == stage.config.deployment_ports[0]

        stage.until(lambda: stage.look(deployment).serving, "it serves")

    assert stage.look(deployment).port == stage.config.deployment_ports[0] + 1


def test_one_whose_known_port_somebody_has_says_so_waits_and_keeps_no_other_from_serving(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = stage.serving(stage.apply(10, "blocked"), 1)
    with stage.db.write() as tx:
        deployments.set_enabled(tx, stage.actor, blocked.id, False)
    stage.until(lambda: is_free(blocked.port), "its port is free")
    with socket.create_server(("127.0.0.1", blocked.port)):
        with stage.db.write() as tx:
            deployments.set_enabled(tx, stage.actor, blocked.id, True)
        free = stage.apply(20, "free")

        stage.until(lambda: stage.look(free).serving, "the other one serves")

        assert stage.look(blocked).serving is None
        said = [record.getMessage() for record in caplog.records if "blocked" in record.getMessage()]
        assert len(said) == 1
        assert str(blocked.port) in said[0]

    stage.until(lambda: stage.look(blocked).serving, "it serves when the port is free")
    assert stage.look(blocked).port == blocked.port


@pytest.mark.parametrize("place", ["replica.wanted", "spec.starting", "socket.handed", "spec.serving", "spec.draining"])
def test_a_restart_after_any_row_of_a_roll_over_goes_on_and_doubles_nothing(stage: Stage, place: str) -> None:
    deployment = stage.serving(stage.apply(10), 1)
    key = stage.key(deployment)
    stage.apply(20)

    class Crash(BaseException):
        """Nothing catches it, as nothing catches a kill."""

    def plan(here: str) -> None:
        if here == place:
            raise Crash

    failpoints.arm(plan)
    try:
        with pytest.raises(Crash):
            stage.until(lambda: False, "it crashes")
    finally:
        failpoints.arm(None)
    stage.restart()

    stage.serving(deployment, 2)
    assert ask(stage.url(deployment), key, 1) == 21
    with stage.db.read() as reader:
        assert reader.value("SELECT count(*) FROM containers") == 2
        assert len(leases.list_open(reader)) == 1


# -- what may be asked for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"name": "a"}, "names no model"),
        ({"model": "m"}, "has no name"),
        ({"name": "a", "model": " "}, "names no model"),
        ({"name": "a", "model": "m", "image": "x"}, "unknown key 'image'. A deployment serves an ONNX model"),
        ({"name": "a", "model": "m", "replica": 1}, "unknown key 'replica'"),
        ({"name": "a", "model": "m", "replicas": 17}, "'replicas' is '17'; give a whole number from 0 to 16"),
        ({"name": "a", "model": "m", "replicas": True}, "'replicas' is 'True'"),
        ({"name": "a", "model": "m", "resources": []}, None),
        ({"name": "a", "model": "m", "resources": "large"}, "'resources' is not a mapping"),
        ({"name": "a", "model": "m", "enabled": "yes"}, "'enabled' is true or false"),
        ({"name": "a/b", "model": "m"}, "a/b"),
        ({"name": "a", "model": "m", "threads": 0}, "'threads' is '0'"),
    ],
)
def test_a_configuration_is_checked_and_the_sentence_names_the_key(
    config: dict[str, Any], sentence: str | None
) -> None:
    if sentence is None:
        assert normalised(config)["replicas"] == 1
        return
    with pytest.raises(BadRequest) as refused:
        normalised(config)
    assert sentence in refused.value.message


def test_gradients_nesting_is_read_too() -> None:
    found = normalised({"name": "a", "model": {"ref": "m:1"}, "resources": {"replicas": 3, "instanceType": "C4"}})

    assert found == {"name": "a", "model": "m:1", "replicas": 3, "machineType": "C4", "threads": 1, "enabled": True}


def test_each_application_is_a_new_spec_and_an_old_one_can_be_applied_again(stage: Stage) -> None:
    stage.apply(10)
    deployment = stage.apply(20)

    with stage.db.write() as tx:
        newest, oldest = deployments.history(tx, stage.actor, deployment.id).items
        again = deployments.apply_again(tx, stage.actor, deployment.id, oldest.id)

    assert (newest.number, oldest.number, again.latest.number if again.latest else 0) == (2, 1, 3)
    assert again.latest is not None
    assert again.latest.model_version_id == oldest.model_version_id
    stage.turn()
    stage.until(lambda: stage.states(deployment)[1:] == ["retired", "retired"], "those in between are never started")


def test_the_same_job_applies_once(stage: Stage) -> None:
    config = {"name": "adder", "model": stage.version(1)}
    with stage.db.write() as tx:
        for _ in range(2):
            deployments.apply(tx, stage.actor, project_id=stage.project.id, config=config, origin="at1")

        assert tx.value("SELECT count(*) FROM deployment_specs") == 1


def test_ports_belong_to_one_deployment_each_and_may_run_out(stage: Stage) -> None:
    first, last = stage.config.deployment_ports
    made = [stage.apply(1, f"d{number}") for number in range(last - first + 1)]

    assert sorted(one.port for one in made) == list(range(first, last + 1))
    with pytest.raises(Conflict, match=f"All ports from {first} to {last}"):
        stage.apply(1, "one-too-many")


def test_deployments_are_for_the_projects_people(stage: Stage) -> None:
    deployment = stage.apply(1)
    bob = person(stage.db, "bob@example.org")

    with stage.db.write() as tx:
        assert deployments.list_deployments(tx, bob).items == ()
        for verb in (deployments.get_deployment, deployments.removal, deployments.delete, deployments.list_keys):
            with pytest.raises(NotFound):
                verb(tx, bob, deployment.id)
        with pytest.raises(NotFound):
            deployments.create_key(tx, bob, deployment.id, "mine")
        assert [one.id for one in deployments.list_deployments(tx, stage.actor).items] == [deployment.id]


def test_specs_go_only_forward() -> None:
    from appliance.states import SPEC_MOVES

    assert SpecState.PENDING not in {to for moves in SPEC_MOVES.values() for to in moves}
    assert SPEC_MOVES[SpecState.RETIRED] == SPEC_MOVES[SpecState.FAILED] == frozenset()
