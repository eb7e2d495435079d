"""Read-only views: complete folders of a tree, made of hard links to its objects, ready to be bind-mounted.

What this keeps true: a folder under `views/` with a root's digits is complete (it got its name last) and was made in
this boot of the machine. A view shares its inodes with the store, so it must never be mounted writable.

Why: a version of any size is at hand for the cost of its names, and shares the page cache with every other version.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from appliance import errors
from appliance.store import disk, failpoints
from appliance.store.layout import Layout
from appliance.store.objects import Objects
from appliance.store.tree import EXECUTABLE, FILE, FOLDER, LINK, Row

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Views:
    """The folder `views/`. Any number of threads at once; one view is built by one of them."""

    def __init__(self, layout: Layout, objects: Objects, floor_bytes: int) -> None:
        self._layout = layout
        self._folder = layout.views
        self._objects = objects
        self._floor_bytes = floor_bytes
        self._lock = threading.Lock()
        self._building: dict[str, threading.Lock] = {}
        self._asked: set[str] = set()

    def make(self) -> None:
        """Views of an earlier boot are out of the way: a power cut may have torn them."""
        boot, now = self._folder / ".boot", _BOOT_ID.read_text()
        if boot.exists() and boot.read_text() == now:
            return
        self._layout.throw_away(self._folder)
        with suppress(OSError):  # a full disk: without the note the next start throws the views away, and that is safe
            boot.write_text(now)

    def folder_of(self, digits: str) -> Path:
        """The view of the root `digits`, built if there is none. Its time stamp says when it was last asked for."""
        view = self._folder / digits
        with self._lock_of(digits):
            if not view.is_dir():
                self._build(digits, view)
            os.utime(view)
            self._asked.add(digits)
        return view

    def count(self) -> int:
        """How many views there are."""
        return sum(len(entry.name) == 64 for entry in self._folder.iterdir())

    def names(self) -> list[str]:
        """The digits of all views, the most recently used first."""
        found = [entry for entry in self._folder.iterdir() if len(entry.name) == 64]
        return [entry.name for entry in sorted(found, key=lambda entry: entry.stat().st_mtime_ns, reverse=True)]

    def begin_trim(self) -> None:
        """What is asked for from now on stays in the next `trim`. Call it before what `trim` is told is read."""
        self._asked = set()

    def trim(self, live: Collection[str], needed: Collection[str], kept: int) -> None:
        """Views of dead roots are gone, and of the live ones all but the `kept` last used.

        Those `needed` stay, and those asked for since `begin_trim`: their roots may be newer than `live` and `needed`.
        """
        names = [name for name in self.names() if name not in needed]
        alive = [name for name in names if name in live]
        for name in {*names} - {*alive[:kept]}:
            with self._lock_of(name):
                if name not in self._asked:
                    self._layout.throw_away_one(self._folder / name)

    def _lock_of(self, digits: str) -> threading.Lock:
        with self._lock:
            return self._building.setdefault(digits, threading.Lock())

    def _build(self, digits: str, view: Path) -> None:
        scaffold = self._layout.tmp / f"view-{os.urandom(8).hex()}"
        failpoints.hit("view-begin")
        try:
            with disk.translated("building a view"):
                (scaffold / "tree").mkdir(parents=True, mode=0o755)
                _Builder(self._objects, scaffold, self._floor_bytes).fill(scaffold / "tree", digits)
                failpoints.hit("view-rename")
                (scaffold / "tree").rename(view)
        finally:
            disk.remove_folder(scaffold)


class _Builder:
    """One view in the making. `twins` are copies for what a hard link of the object itself cannot be."""

    def __init__(self, objects: Objects, scaffold: Path, floor_bytes: int) -> None:
        self._objects = objects
        self._scaffold = scaffold
        self._floor_bytes = floor_bytes
        self._twins: dict[tuple[str, str], str] = {}
        self._made = 0

    def fill(self, folder: Path, digits: str) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._fill(fd, digits)
        finally:
            os.close(fd)

    def _fill(self, fd: int, digits: str) -> None:
        for row in self._objects.node(digits).rows:
            if row.kind == FOLDER:
                os.mkdir(row.name, 0o755, dir_fd=fd)
                inner = os.open(row.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                try:
                    self._fill(inner, row.digits)
                finally:
                    os.close(inner)
            elif row.kind == LINK:
                os.symlink(b"".join(self._objects.read(row.digits)), row.name, dir_fd=fd)
            else:
                self._link(row, fd)
        os.fchmod(fd, 0o555)

    def _link(self, row: Row, fd: int) -> None:
        source = self._twins.get((row.digits, row.kind))
        if source is None:
            source = self._objects.path(row.digits) if row.kind == FILE else self._twin(row)
        try:
            os.link(source, row.name, dst_dir_fd=fd)
        except FileNotFoundError as error:
            raise errors.Corrupt(f"The object b3:{row.digits} is missing from the store.") from error
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            os.link(self._twin(row), row.name, dst_dir_fd=fd)

    def _twin(self, row: Row) -> str:
        """A copy with the same bytes and its own inode; further links of this view go to it."""
        disk.check_room(self._scaffold, row.size_bytes, self._floor_bytes)
        self._made += 1
        made = f"{self._scaffold}/twin-{self._made}"
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for chunk in self._objects.read(row.digits):
                disk.write_all(fd, chunk)
            os.fchmod(fd, 0o555 if row.kind == EXECUTABLE else 0o444)
        finally:
            os.close(fd)
        self._twins[(row.digits, row.kind)] = made
        return made
