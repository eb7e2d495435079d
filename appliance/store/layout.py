"""The store's own folder: its format's number, its lock, its reserve.

What this keeps true: one process uses a store at a time; a release never touches a store of a newer format; what an
earlier process left in `tmp/` is out of the way.

Why: everything above may then treat `tmp/` as its own and memory as the only place where pins are kept.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from appliance import errors
from appliance.store import disk, failpoints

FORMAT = 1


class Layout:
    """The root folder, held by this process until `close`."""

    def __init__(self, root: Path, reserve_bytes: int, floor_bytes: int) -> None:
        self.root = root
        self.objects, self.tmp, self.views = root / "objects", root / "tmp", root / "views"
        self.trash = root / "trash"
        self._reserve = root / "reserve"
        self._reserve_bytes = reserve_bytes
        self._floor_bytes = floor_bytes
        with disk.translated(f"opening the store in {root}"):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_format()
            self._lock = self._take_lock()
            try:
                self._make()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Another process may use the store. May be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __del__(self) -> None:
        if getattr(self, "_lock", -1) >= 0:
            self.close()

    def _check_format(self) -> None:
        marker = self.root / "FORMAT"
        if not marker.exists():
            return
        name, _, number = marker.read_text(errors="replace").strip().partition(" ")
        if name != "appliance-store" or not number.isdecimal():
            raise errors.PreconditionFailed(
                f"{marker} does not describe a store of the appliance; nothing was changed."
            )
        if int(number) > FORMAT:
            raise errors.PreconditionFailed(
                f"The store in {self.root} has format {number}, and this release reads up to {FORMAT}. "
                "Install the newer release again; nothing was changed."
            )

    def _take_lock(self) -> int:
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(fd, 64).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise errors.Conflict(f"The store in {self.root} is in use by process {holder}. Stop it first.") from error
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            if error.errno not in disk.FULL:  # a full disk must not keep a store from opening: deleting needs it
                os.close(fd)
                raise
        return fd

    def _make(self) -> None:
        for folder in (self.objects, self.tmp, self.trash, self.views):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.throw_away(self.tmp)
        marker = self.root / "FORMAT"
        if not marker.exists():
            made = self.tmp / "FORMAT"
            fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
            try:
                disk.write_all(fd, f"appliance-store {FORMAT}\n".encode())
                disk.fsync(fd, "the store's format")
            finally:
                os.close(fd)
            made.rename(marker)
            disk.sync_folder(self.root)
        self.make_reserve()

    def throw_away(self, folder: Path) -> None:
        """`folder` is empty at once, whatever it held; `empty_trash` removes that.

        What is in it is renamed one by one: on a full disk a folder could not be made anew.
        """
        for doomed in folder.iterdir():
            self.throw_away_one(doomed)

    def throw_away_one(self, doomed: Path) -> None:
        """This one file or folder is out of the way; nothing happens where there is none."""
        failpoints.hit("throw-away")
        with suppress(FileNotFoundError):
            doomed.rename(self.trash / os.urandom(8).hex())

    def empty_trash(self) -> None:
        for doomed in self.trash.iterdir():
            disk.remove_folder(doomed)

    # -- the reserve -----------------------------------------------------------------------------------------------

    @property
    def reserve_bytes(self) -> int:
        """What the reserve holds now."""
        return self._reserve.stat().st_size if self._reserve.exists() else 0

    def give_up_reserve(self) -> None:
        """The reserve's bytes are free for whoever must write in order to delete."""
        failpoints.hit("reserve")
        self._reserve.unlink(missing_ok=True)

    def make_reserve(self) -> None:
        """The reserve is allocated if there is room for it; otherwise the next collection tries again."""
        if self.reserve_bytes >= self._reserve_bytes:
            return
        try:
            disk.check_room(self.root, self._reserve_bytes, self._floor_bytes)
            fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._reserve_bytes)
            finally:
                os.close(fd)
        except (OSError, errors.DiskFull):
            self._reserve.unlink(missing_ok=True)

    def is_short(self) -> bool:
        """Whether the disk has less free than the store keeps for itself."""
        try:
            disk.check_room(self.root, 0, self._floor_bytes)
        except errors.DiskFull:
            return True
        return False
