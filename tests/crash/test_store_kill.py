"""The store's process is killed (-9) before each of its effects in turn, and what is left must keep FORMAT.md's promise.

One child for each point: it opens a store, uploads, stores two trees, commits them (a line in a file stands for the
row), mounts one, deletes one and collects. Killed at its Nth effect, a new process opens what is left.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.store import Stage, Store, failpoints


@pytest.fixture
def scratch() -> Iterator[Path]:
    # In memory: a kill loses nothing that the kernel has, so the disk beneath would only make it slow.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def lay_out(folder: Path) -> None:
    (folder / "taken" / "sub").mkdir(parents=True)
    for number in range(4):
        (folder / "taken" / "sub" / f"{number}").write_bytes(b"taken %d" % number)
    (folder / "taken" / "large").write_bytes(b"large" * 20_000)  # large enough to be taken over
    (folder / "taken" / "run").write_bytes(b"#!/bin/sh\n")
    (folder / "taken" / "run").chmod(0o755)
    (folder / "copied").mkdir()
    (folder / "copied" / "shared").write_bytes(b"taken 1")
    (folder / "copied" / "own").write_bytes(b"own")
    (folder / "store" / "tmp" / "put-left-by-an-earlier-crash").mkdir(parents=True)


def live_life(folder: Path) -> None:
    """What the child does. Rows are what a database would hold; each change of them is one atomic step."""
    store = Store(folder / "store", reserve_mib=1, floor_bytes=0)
    stage = Stage(folder / "staged", floor_bytes=0)
    stage.write("d/upload", [b"up", b"load"])
    rows: list[str] = []
    for source, move in ((folder / "taken", True), (folder / "copied", False), (stage.folder, True)):
        tree = store.put_tree(source, move=move)
        rows.append(tree.root)
        write_rows(folder, rows)
        store.publish(tree)
    store.mount_of(rows[0])
    store.mount_of(rows[1])
    write_rows(folder, rows[1:])
    store.give_up_reserve()
    store.collect(lambda: rows[1:])
    store.close()


def write_rows(folder: Path, rows: list[str]) -> None:
    (folder / "rows.new").write_text("\n".join(rows))
    (folder / "rows.new").rename(folder / "rows")


def read_rows(folder: Path) -> list[str]:
    return (folder / "rows").read_text().split() if (folder / "rows").exists() else []


def in_child(work: Callable[[], None]) -> int:
    """The child's end: 0, or the signal that killed it, negative."""
    child = os.fork()
    if child == 0:
        code = 70
        signal.alarm(60)  # a child that hangs fails the test instead of holding it up
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(moment: int) -> Callable[[str], None]:
    count = 0
    lock = threading.Lock()

    def plan(name: str) -> None:
        nonlocal count
        with lock:
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    return plan


def names_of_a_life(folder: Path) -> list[str]:
    names: list[str] = []
    failpoints.arm(names.append)
    try:
        live_life(folder)
    finally:
        failpoints.arm(None)
    return names


def check_what_is_left(folder: Path, rows: list[str], whole: Path) -> None:
    store = Store(folder / "store", reserve_mib=1, floor_bytes=0)
    try:
        assert store.verify(rows, deep=True) == []
        assert store.verify(None, deep=True) == []
        assert list((folder / "store" / "tmp").iterdir()) == []
        for root in rows:
            assert all(entry.hash for entry in store.files(root))
            assert store.mount_of(root).is_dir()
        if not rows and not (folder / "staged").exists():
            assert subprocess.run(["diff", "-r", whole, folder / "taken"], check=False).returncode == 0
            tree = store.put_tree(folder / "taken", move=True)
            assert store.entry(tree.root, "run").executable
            store.discard(tree)
        store.collect(lambda: rows)
        assert store.verify(rows, deep=True) == []
        left = store.usage().objects
        for root in rows:
            assert store.entry(root, "").kind == "directory"
        store.collect(list)
        assert store.usage().objects == 0
        assert left > 0 or not rows
    finally:
        store.close()


def test_every_acknowledged_tree_survives_a_kill_before_any_effect(scratch: Path) -> None:
    lay_out(scratch / "whole")
    lay_out(scratch / "counted")
    moments = len(names_of_a_life(scratch / "counted"))

    for moment in range(1, moments + 1):
        folder = scratch / f"life{moment}"
        lay_out(folder)

        def life(folder: Path = folder, moment: int = moment) -> None:
            failpoints.arm(killed_at(moment))
            live_life(folder)

        assert in_child(life) == -signal.SIGKILL, f"moment {moment} of {moments}"
        check_what_is_left(folder, read_rows(folder), scratch / "whole" / "taken")
        subprocess.run(["rm", "-rf", folder], check=True)

    assert moments > 90


def test_the_sweep_reaches_every_named_effect_of_the_store(scratch: Path) -> None:
    lay_out(scratch / "counted")
    package = Path(failpoints.__file__).parent
    named = {name for file in package.glob("*.py") for name in re.findall(r'hit\("([a-z-]+)"\)', file.read_text())}

    assert set(names_of_a_life(scratch / "counted")) == named
