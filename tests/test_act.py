"""The reconciler's threads: a slow image holds up nothing but other slow images."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_of import IMAGE, Bench
from waiting import wait_until
from web_support import person

from appliance import containers, leases
from appliance.db import Database
from appliance.records import ContainerSpec, MachineType
from appliance.repos import Repos
from appliance.states import Seen
from appliance.store import Store

pytestmark = pytest.mark.fast

SMALL = MachineType("small", 0, 1, 0, None)


@pytest.fixture
def bench(tmp_path: Path, db: Database, store: Store, repos: Repos) -> Iterator[Bench]:
    made = Bench(tmp_path, db, store, repos, person(db, "ana@example.org"))
    yield made
    made.close()


def wanted(bench: Bench, container_id: str, image: str) -> None:
    """A container that has its lease."""
    spec = ContainerSpec(container_id, "replica", "workload", image, ("sleep", "600"), None, {}, (), 0.1, 64)
    with bench.db.write() as tx:
        containers.add(tx, spec, owner_id="spec", project_id=bench.project.id, machine_type="C1")
        lease = leases.grant(tx, container_id, "spec", SMALL, ())
        containers.leased(tx, container_id, lease.id, ())


def seen(bench: Bench, container_id: str) -> Seen | None:
    bench.reconciler.tick()
    with bench.db.read() as reader:
        found = containers.find_container(reader, container_id)
    return found.seen if found else None


def test_nothing_waits_behind_images_that_are_pulled(bench: Bench) -> None:
    bench.reconciler._roller.prepare = lambda _: None  # type: ignore[method-assign,assignment,return-value]
    wanted(bench, "first", IMAGE)
    wait_until(lambda: seen(bench, "first") is Seen.RUNNING, 5, "it runs")
    come, gate = threading.Event(), threading.Event()
    real = bench.engine.pull

    def pull(name: str, progress: object = None) -> None:
        come.set()
        gate.wait(30)
        real(name)

    bench.engine.pull = pull  # type: ignore[method-assign,assignment]
    try:
        for number in range(12):
            bench.world.pullable.add(f"far/{number}:1")
            wanted(bench, f"pulled{number}", f"far/{number}:1")
        bench.reconciler.tick()
        assert come.wait(5)

        wanted(bench, "second", IMAGE)
        with bench.db.write() as tx:
            containers.want_gone(tx, "first")

        wait_until(lambda: seen(bench, "second") is Seen.RUNNING, 5, "another starts")
        wait_until(lambda: seen(bench, "first") in (Seen.EXITED, Seen.REMOVED), 5, "one is stopped")
    finally:
        gate.set()
    wait_until(lambda: seen(bench, "pulled11") is Seen.RUNNING, 5, "what was pulled starts too")
