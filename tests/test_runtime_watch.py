"""The threads that listen to the engine, on the memory engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_engine import MemoryEngine, World
from test_runtime_conformance import IMAGE, spec
from waiting import wait_until

from appliance.runtime.logs import LogStore
from appliance.runtime.watch import LogPump, Watch

pytestmark = pytest.mark.fast


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine("watched", World(f"{IMAGE}:latest"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LogStore]:
    it = LogStore(tmp_path)
    yield it
    it.close()


def run(engine: MemoryEngine, script: str, container_id: str = "ctr1") -> None:
    engine.create(spec(script, container_id))
    engine.start(container_id)


def texts(store: LogStore, container_id: str = "ctr1") -> list[str]:
    return [line.text for line in store.read(container_id)]


class Wakes:
    """Counts how often it was woken."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_a_change_on_the_engine_wakes_and_so_does_each_connection(engine: MemoryEngine) -> None:
    wakes = Wakes()
    watch = Watch(engine, wakes)
    watch.start()
    wait_until(lambda: wakes.count == 1, 5, "it was woken for the connection")

    engine.create(spec("sleep 60"))
    wait_until(lambda: wakes.count == 2, 5, "it was woken for the container")

    engine.world.break_down()
    engine.world.break_down(False)
    wait_until(lambda: wakes.count >= 3, 5, "it has connected again")
    watch.stop()
    assert not any(thread.name == "watch" for thread in threading.enumerate())


def test_an_engine_that_is_away_is_tried_again_without_a_tight_loop(engine: MemoryEngine) -> None:
    engine.world.break_down()
    wakes = Wakes()
    watch = Watch(engine, wakes)
    watch.start()

    engine.world.break_down(False)

    wait_until(lambda: wakes.count == 1, 5, "it has connected")
    watch.stop()


def test_what_a_container_writes_is_in_the_store_and_its_end_is_told(engine: MemoryEngine, store: LogStore) -> None:
    wakes = Wakes()
    pump = LogPump(engine, store, wake=wakes)
    run(engine, "echo one; sleep 600")
    pump.attend(engine.sightings())
    pump.attend(engine.sightings())
    wait_until(lambda: texts(store) == ["one"], 5, "the first line is there")
    assert not pump.is_complete("ctr1")

    engine.world.say("ctr1", "two")
    engine.world.finish("ctr1")
    wait_until(lambda: wakes.count == 1, 5, "the end of the stream was told")
    pump.attend(engine.sightings())

    wait_until(lambda: pump.is_complete("ctr1"), 5, "the log is known to be complete")
    assert texts(store) == ["one", "two"]
    pump.stop()


def test_the_log_of_what_ended_while_nobody_looked_is_fetched(engine: MemoryEngine, store: LogStore) -> None:
    run(engine, "echo one; echo two")
    wait_until(lambda: engine.sightings()[0].exit_code == 0, 5, "it has ended")
    pump = LogPump(engine, store)

    pump.attend(engine.sightings())

    wait_until(lambda: pump.is_complete("ctr1"), 5, "the log is complete")
    assert texts(store) == ["one", "two"]
    pump.stop()


def test_a_new_pump_goes_on_where_the_old_one_stopped(engine: MemoryEngine, store: LogStore) -> None:
    first = LogPump(engine, store)
    run(engine, "echo one; sleep 600")
    first.attend(engine.sightings())
    wait_until(lambda: texts(store) == ["one"], 5, "the first line is there")
    first.stop()
    engine.world.say("ctr1", "meanwhile")

    second = LogPump(engine, store)
    second.attend(engine.sightings())

    wait_until(lambda: texts(store) == ["one", "meanwhile"], 5, "nothing is lost or doubled")
    second.stop()
    assert not any(thread.name.startswith("log ") for thread in threading.enumerate())


def test_an_engine_that_breaks_off_is_read_again_at_the_next_look(engine: MemoryEngine, store: LogStore) -> None:
    pump = LogPump(engine, store)
    run(engine, "echo one; sleep 600")
    pump.attend(engine.sightings())
    wait_until(lambda: texts(store) == ["one"], 5, "the first line is there")
    engine.world.break_down()
    wait_until(lambda: not any(t.name == "log ctr1" for t in threading.enumerate()), 5, "the stream broke off")
    engine.world.break_down(False)
    engine.world.say("ctr1", "two")

    pump.attend(engine.sightings())

    wait_until(lambda: texts(store) == ["one", "two"], 5, "it goes on")
    assert not pump.is_complete("ctr1")
    pump.stop()


def test_no_more_threads_than_the_limit_and_nothing_is_lost(engine: MemoryEngine, store: LogStore) -> None:
    pump = LogPump(engine, store, limit=2)
    names = [f"ctr{i}" for i in range(5)]
    for name in names:
        run(engine, f"echo {name}", name)

    def all_complete() -> bool:
        pump.attend(engine.sightings())
        assert sum(thread.name.startswith("log ") for thread in threading.enumerate()) <= 2
        return all(pump.is_complete(name) for name in names)

    wait_until(all_complete, 10, "every log is complete")
    assert [texts(store, name) for name in names] == [[name] for name in names]
    pump.stop()


def test_a_log_at_its_limit_is_complete_although_the_container_runs(engine: MemoryEngine, tmp_path: Path) -> None:
    store = LogStore(tmp_path / "small", limit_bytes=500)
    pump = LogPump(engine, store)
    run(engine, "seq 100; sleep 600")

    pump.attend(engine.sightings())

    wait_until(lambda: pump.is_complete("ctr1"), 5, "it is not read any more")
    pump.stop()
    store.close()


def test_secrets_of_a_container_are_masked(engine: MemoryEngine, store: LogStore) -> None:
    secrets = {"ctr1": "s3cret-s3cret"}
    pump = LogPump(engine, store, mask_of=lambda it: lambda text: text.replace(secrets[it], "***"))
    run(engine, "echo token s3cret-s3cret")

    pump.attend(engine.sightings())

    wait_until(lambda: texts(store) == ["token ***"], 5, "the line is there, masked")
    pump.stop()
