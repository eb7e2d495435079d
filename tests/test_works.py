"""The daemon's works in this process: their health, their end, and pushes that cannot be taken up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from journeys.stories import Repository
from test_db import failing_disk
from waiting import wait_until
from web_support import person

from appliance import clock, projects, pushes
from appliance.config import Config
from appliance.daemon.works import Works
from appliance.errors import DurabilityLost

pytestmark = pytest.mark.fast

WORKFLOW = "on: push\njobs:\n  a: {uses: container@v1, with: {image: x}}\n"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        data_dir=tmp_path / "data",
        run_dir=tmp_path / "run",
        log_dir=tmp_path / "log",
        docker_socket=tmp_path / "no-docker.sock",
        free_floor_mib=0,
    )


@pytest.fixture
def works(config: Config) -> Iterator[Works]:
    made = Works(config)
    yield made
    made.stop()


def test_works_that_never_started_end_in_order_and_give_the_data_back(config: Config) -> None:
    Works(config).stop()

    Works(config).stop()


def test_what_will_not_end_keeps_nothing_else_from_ending(config: Config) -> None:
    works = Works(config)
    works.gpus.close = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]

    works.stop()

    Works(config).stop()


def test_a_janitor_that_works_long_is_healthy_and_any_other_loop_is_stuck(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    works.start()
    now = clock.monotonic
    with works.store._collecting:  # a round's collection lasts as long as this does
        works.janitor._live = None
        works.loops["janitor"].wake()
        wait_until(lambda: works.loops["janitor"].stuck_for_s() > 0.2, 5, "the janitor is at work")
        monkeypatch.setattr(clock, "monotonic", lambda: now() + 3600)

        assert works.loops["janitor"].stuck_for_s() > 3600
        wait_until(lambda: works.health() is None, 5, "it is healthy all the same")

        monkeypatch.setattr(works.loops["course"], "_began", now())
        assert "'course' has not come round" in str(works.health())


def test_a_push_that_cannot_be_taken_up_is_said_and_holds_no_other_up(
    works: Works, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ana = person(works.db, "ana@example.org")
    copy = Repository(tmp_path / "copy")
    copy.write(".gradient/workflows/w.yaml", WORKFLOW)
    sha = copy.commit("first")
    for name in ("bad", "good"):
        with works.db.write() as tx:
            project = projects.create(tx, ana, name)
        works.repos.create(project.id)
        copy.git("push", "--quiet", str(works.repos.path(project.id)), "main")
        pushes.told(works.db, project.id, [("refs/heads/main", None, sha)], "ana@example.org")
        if name == "bad":
            works.repos.remove(project.id)

    with caplog.at_level(logging.WARNING):
        works._take_up_left()

    with works.db.read() as reader:
        assert [row["name"] for row in reader.all("SELECT name FROM workflows")] == ["w"]
        assert len(pushes.unhandled(reader)) == 1
    assert "is taken up later" in caplog.text


def test_a_write_that_was_lost_ends_the_daemon_whoever_made_it(works: Works) -> None:
    with pytest.raises(DurabilityLost), failing_disk(works.config.db_path), works.db.write() as tx:
        tx.insert("settings", {"name": "t", "value": "x"})

    assert works.failed.is_set()
