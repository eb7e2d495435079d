"""The power fails right after the store said that a tree is safe.

The store lies on a journaled ext4 in an image file. When `put_tree` has returned, the image is copied as it is: what
the file system had not yet written is missing in the copy, as it would be after a power cut. The copy is mounted, its
journal replayed, and the tree must be whole. With fsync doing nothing the same test finds the loss, so it can see one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.store import Stage, Store

IMAGE_BYTES = 48 << 20


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    # commit=300: the journal's own timer must not do what the store forgot to do
    subprocess.run(["mount", "-o", "loop,commit=300", image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", at], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "image"
    with made.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "has_journal", made], check=True)
    return made


def lay_out(folder: Path, turn: int) -> Path:
    (folder / "sub" / "empty").mkdir(parents=True)
    for number in range(30):
        (folder / "sub" / f"{number}").write_bytes(os.urandom(1000 * turn + number))
    (folder / "large").write_bytes(os.urandom((1 << 20) + turn))
    (folder / "run").write_bytes(b"#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    (folder / "link").symlink_to("large")
    return folder


def store_three_times(image: Path, tmp_path: Path) -> list[tuple[Path, list[str]]]:
    """Copies of the image at three moments, and the roots that were acknowledged by then."""
    cuts, roots = [], []
    with mounted(image, tmp_path / "disk") as disk:
        store = Store(disk / "store", reserve_mib=0, floor_bytes=0)
        for turn, move in enumerate((True, False, True), 1):
            tree = store.put_tree(lay_out(disk / f"source{turn}", turn), move=move)
            roots.append(tree.root)
            cut = tmp_path / f"cut{turn}"
            subprocess.run(["cp", "--sparse=always", image, cut], check=True)
            cuts.append((cut, list(roots)))
            store.publish(tree)
        store.close()
    return cuts


def losses(cuts: list[tuple[Path, list[str]]], tmp_path: Path) -> list[str]:
    found = []
    for cut, roots in cuts:
        with mounted(cut, tmp_path / "after") as disk:
            store = Store(disk / "store", reserve_mib=0, floor_bytes=0)
            found += [problem.message for problem in store.verify(roots, deep=True)]
            found += [problem.message for problem in store.verify(None, deep=True)]
            store.close()
    return found


def test_a_power_cut_right_after_a_tree_was_acknowledged_loses_nothing_of_it(image: Path, tmp_path: Path) -> None:
    assert losses(store_three_times(image, tmp_path), tmp_path) == []


def test_a_power_cut_right_after_an_upload_was_acknowledged_loses_nothing_of_it(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "disk") as disk:
        Stage(disk / "staging" / "v1", floor_bytes=0).write("a/b", [b"uploaded"])
        subprocess.run(["cp", "--sparse=always", image, tmp_path / "cut"], check=True)

    with mounted(tmp_path / "cut", tmp_path / "after") as disk:
        assert (disk / "staging" / "v1" / "a" / "b").read_bytes() == b"uploaded"


def test_the_power_cut_would_be_noticed_if_nothing_were_synced(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)

    cuts = store_three_times(image, tmp_path)

    assert any("missing" in message for message in losses(cuts, tmp_path))
