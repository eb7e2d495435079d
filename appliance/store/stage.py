"""A stage: the files of a version that is not committed yet, as they are uploaded one by one.

What this keeps true: a path from outside cannot leave the folder, whatever lies in it; a file appears whole or not at
all; what `write` returned for is durable, so a stage that survives a power cut holds no half file. The folder holds
only what was written, so it can be given to `Store.put_tree` as it is.

Why: uploads come from anybody who may write a dataset, and last longer than a process of ours.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance import errors
from appliance.records import FileEntry
from appliance.store import disk, failpoints
from appliance.store.paths import clean_path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_ROOM_EVERY = 16 << 20


class Stage:
    """The folder of one uncommitted version. Several threads may write different files at once."""

    def __init__(self, folder: Path, floor_bytes: int = disk.GIB) -> None:
        self.folder = folder
        self._floor_bytes = floor_bytes

    def write(
        self, path: str, chunks: Iterable[bytes], *, executable: bool = False, max_bytes: int | None = None
    ) -> int:
        """The file `path` holds exactly `chunks`, durably, in place of what was there; its size in bytes.

        Raises BadRequest (the path), Conflict (a folder is in the way), TooLarge, DiskFull; then nothing has changed.
        """
        parts = clean_path(path).split("/")
        with disk.translated("making the version's folder"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = self.folder.parent / f"{self._part_prefix}{os.urandom(8).hex()}"
        try:
            size_bytes = self._fill(made, path, chunks, executable, max_bytes)
            with disk.translated(f"writing {path!r}"):
                self._move_in(made, parts)
        finally:
            made.unlink(missing_ok=True)
        return size_bytes

    def delete(self, path: str) -> None:
        """The file or folder `path` is gone, and so are folders above it that are empty now. Raises NotFound."""
        parts = clean_path(path).split("/")
        with self._parent(parts, make=False) as fd:
            try:
                seen = os.stat(parts[-1], dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError as error:
                raise errors.NotFound(f"There is no {path!r} in this version.") from error
            with disk.translated(f"deleting {path!r}"):
                if stat.S_ISDIR(seen.st_mode):
                    disk.remove_folder(Path(f"/proc/self/fd/{fd}").readlink() / parts[-1])
                else:
                    os.unlink(parts[-1], dir_fd=fd)
        self._prune(parts[:-1])

    def files(self) -> list[FileEntry]:
        """Every entry, a folder before its contents, names in byte order. Hashes are not known yet: None."""
        if not self.folder.is_dir():
            return []
        with disk.translated("listing the version's files"):
            fd = os.open(self.folder, _FOLDER)
            try:
                return list(_entries(fd, ""))
            finally:
                os.close(fd)

    def remove(self) -> None:
        """Folder, files and what unfinished uploads left are gone; nothing happens when there are none."""
        for left in self.folder.parent.glob(f"{self._part_prefix}*"):
            left.unlink(missing_ok=True)
        disk.remove_folder(self.folder)

    @property
    def _part_prefix(self) -> str:
        """Unfinished files lie beside the folder, never in it: a crash must not add them to the version."""
        return f".{self.folder.name}.part-"

    def _fill(self, made: Path, path: str, chunks: Iterable[bytes], executable: bool, max_bytes: int | None) -> int:
        # Only our own calls are translated: an error of `chunks` is its maker's, and passes as it is.
        with disk.translated(f"writing {path!r}"):
            failpoints.hit("stage-create")
            fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755 if executable else 0o644)
        try:
            size_bytes = unchecked = 0
            disk.check_room(self.folder, 0, self._floor_bytes)
            for chunk in chunks:
                size_bytes, unchecked = size_bytes + len(chunk), unchecked + len(chunk)
                if max_bytes is not None and size_bytes > max_bytes:
                    raise errors.TooLarge(f"{path!r} is larger than the {max_bytes} bytes that are allowed.")
                if unchecked >= _ROOM_EVERY:
                    disk.check_room(self.folder, len(chunk), self._floor_bytes)
                    unchecked = 0
                with disk.translated(f"writing {path!r}"):
                    disk.write_all(fd, chunk)
            disk.fsync(fd, f"the bytes of {path!r}")
            return size_bytes
        finally:
            os.close(fd)

    def _move_in(self, made: Path, parts: list[str]) -> None:
        with self._parent(parts, make=True) as fd:
            failpoints.hit("stage-rename")
            try:
                os.rename(made, parts[-1], dst_dir_fd=fd)
            except IsADirectoryError as error:
                raise errors.Conflict(f"{'/'.join(parts)!r} is a folder of this version. Delete it first.") from error
            disk.fsync(fd, "the names in a folder")

    @contextmanager
    def _parent(self, parts: list[str], *, make: bool) -> Iterator[int]:
        """A handle of the folder that holds the last part. A link on the way is not followed but is in the way."""
        fd = self._open(self.folder, None, parts)
        try:
            for part in parts[:-1]:
                if make and self._make(part, fd):
                    disk.fsync(fd, "the names in a folder")
                inner = self._open(part, fd, parts)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _make(self, part: str, fd: int) -> bool:
        try:
            os.mkdir(part, 0o755, dir_fd=fd)
        except FileExistsError:
            return False
        return True

    def _open(self, part: str | Path, fd: int | None, parts: list[str]) -> int:
        try:
            return os.open(part, _FOLDER, dir_fd=fd)
        except FileNotFoundError as error:
            raise errors.NotFound(f"There is no {'/'.join(parts)!r} in this version.") from error
        except OSError as error:
            message = f"{str(part)!r} is a file of this version, so {'/'.join(parts)!r} cannot lie beneath it."
            raise errors.Conflict(message) from error

    def _prune(self, parts: list[str]) -> None:
        while parts:
            try:
                with self._parent(parts, make=False) as fd:
                    os.rmdir(parts[-1], dir_fd=fd)
            except (OSError, errors.ApplianceError):
                return
            parts = parts[:-1]


def _entries(fd: int, path: str) -> Iterator[FileEntry]:
    with os.scandir(fd) as entries:
        listed = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    for entry in listed:
        seen, at = entry.stat(follow_symlinks=False), f"{path}{entry.name}"
        if stat.S_ISDIR(seen.st_mode):
            yield FileEntry(at, "directory", 0, False, None)
            inner = os.open(entry.name, _FOLDER, dir_fd=fd)
            try:
                yield from _entries(inner, f"{at}/")
            finally:
                os.close(inner)
        elif stat.S_ISLNK(seen.st_mode):
            yield FileEntry(at, "symlink", seen.st_size, False, None)
        else:
            yield FileEntry(at, "file", seen.st_size, bool(seen.st_mode & stat.S_IXUSR), None)
