"""The janitor: what nothing needs goes, and what is made while it cleans stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_of import Bench
from web_support import person

from appliance import datasets
from appliance.db import Database
from appliance.janitor import Janitor
from appliance.repos import Repos
from appliance.store import Stage, Store, failpoints

pytestmark = pytest.mark.fast


@pytest.fixture
def bench(tmp_path: Path, db: Database, store: Store, repos: Repos) -> Iterator[Bench]:
    made = Bench(tmp_path, db, store, repos, person(db, "ana@example.org"))
    yield made
    failpoints.arm(None)
    made.close()


def staged(bench: Bench, name: str) -> tuple[str, Stage]:
    """A new version of a new dataset, into which files may be put."""
    with bench.db.write() as tx:
        datasets.create(tx, bench.actor, name=name)
        version = datasets.create_version(tx, bench.actor, name)
    with bench.db.read() as reader:
        stage = datasets.stage(reader, bench.actor, bench.config.staging_dir, name, version.id)
    return version.id, Stage(stage.folder, floor_bytes=0)


def test_folders_of_what_is_gone_go_and_those_of_what_is_open_stay(bench: Bench) -> None:
    _, stage = staged(bench, "digits")
    stage.write("a", [b"1"])
    for folder in (bench.config.work_dir, bench.config.volumes_dir, bench.config.staging_dir):
        (folder / "gone" / "deep").mkdir(parents=True)
    (bench.config.staging_dir / ".gone.part-00").write_bytes(b"half of it")
    (bench.config.logs_dir / "gone").mkdir()

    Janitor(bench.shop).tick()

    assert list(bench.config.work_dir.iterdir()) == list(bench.config.volumes_dir.iterdir()) == []
    assert list(bench.config.staging_dir.iterdir()) == [stage.folder]
    assert list(bench.config.logs_dir.iterdir()) == []
    assert (stage.folder / "a").read_bytes() == b"1"


def test_a_version_whose_files_come_while_folders_are_removed_keeps_them(bench: Bench) -> None:
    (bench.config.work_dir / "gone").mkdir()
    found: list[str] = []

    def while_it_removes(place: str) -> None:
        if place == "remove" and not found:
            version_id, stage = staged(bench, "late")
            found.append(version_id)
            stage.write("a", [b"1"])

    failpoints.arm(while_it_removes)
    Janitor(bench.shop).tick()
    failpoints.arm(None)

    done = datasets.commit_version(bench.db, bench.store, bench.config.staging_dir, bench.actor, "late", found[0])
    assert done.file_count == 1


def test_an_upload_that_lasts_longer_than_a_round_arrives_whole(bench: Bench) -> None:
    _, stage = staged(bench, "large")

    def pieces() -> Iterator[bytes]:
        yield b"first, "
        Janitor(bench.shop).tick()
        yield b"second"

    stage.write("a", pieces())

    assert (stage.folder / "a").read_bytes() == b"first, second"
