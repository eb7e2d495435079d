"""The operating system's file calls, and what their errors mean in our words.

What this keeps true: no OSError leaves the store. A full disk is `DiskFull`, whoever notices it; a failed fsync is
`DurabilityLost`, because a second try could report success for bytes that are gone.

Why: callers above decide by the kind of error (refuse, retry, end the daemon), and none of them should know an errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance import errors
from appliance.store import failpoints

GIB = 1 << 30
_LIBC = ctypes.CDLL(None)
_SYNC_FILE_RANGE_WRITE = 2
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
CHANGED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ESTALE})


@dataclass(frozen=True)
class Room:
    """What a file system has: bytes in all, and free to ordinary programs."""

    total_bytes: int
    free_bytes: int


def room(folder: Path) -> Room:
    """The room on the file system of `folder`."""
    with translated("asking for the free space"):
        seen = os.statvfs(folder)
    return Room(seen.f_blocks * seen.f_frsize, seen.f_bavail * seen.f_frsize)


def check_room(folder: Path, need_bytes: int, floor_bytes: int) -> None:
    """Raises DiskFull if `need_bytes` more would leave less than 2 % of the disk or `floor_bytes`, whichever is more."""
    has = room(folder)
    keep = max(has.total_bytes // 50, floor_bytes)
    if has.free_bytes - need_bytes < keep:
        raise errors.DiskFull(
            f"The disk has {_mib(has.free_bytes)} free, and {_mib(need_bytes)} more would leave less than the "
            f"{_mib(keep)} that the appliance keeps for itself. Delete versions that are no longer needed."
        )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.1f} MiB"


@contextmanager
def translated(what: str, path: str | None = None) -> Iterator[None]:
    """Turns an OSError inside into ours. `what` completes "… failed"; `path` is the user's file it was about, if any."""
    try:
        yield
    except OSError as error:
        raise translate(error, what, path) from error


def translate(error: OSError, what: str, path: str | None = None) -> errors.ApplianceError:
    """Our error for `error`."""
    if error.errno in FULL:
        return errors.DiskFull(
            f"The disk is full: {what} failed. Delete versions that are no longer needed and try again."
        )
    if path is not None and error.errno in CHANGED:
        return changed(path)
    about = f" ({path})" if path is not None else ""
    return errors.ApplianceError(f"The disk refused it: {what} failed{about}: {error.strerror}. See the system's log.")


def changed(path: str) -> errors.BadRequest:
    """The error for a source that does not hold still."""
    return errors.BadRequest(f"{path!r} changed while it was being stored. Stop what writes to it and try again.")


def fsync(fd: int, what: str) -> None:
    """Makes what was written through `fd` durable. Raises DiskFull, or DurabilityLost for every other failure."""
    try:
        failpoints.hit("fsync")
        os.fsync(fd)
    except OSError as error:
        if error.errno in FULL:
            raise translate(error, what) from error
        raise errors.DurabilityLost(
            f"The disk could not make {what} durable ({error.strerror}). Check the disk; the store takes no more data "
            "until the appliance is started again."
        ) from error


def start_writing(fd: int) -> None:
    """The kernel starts to write back what is dirty in `fd`, and does not wait: a hint, so its result is not looked at.

    The fsyncs that follow find their pages on the way: 5,000 small files in 0.5 s instead of 0.9 s (ext4, 8 threads).
    """
    _LIBC.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    with translated("opening a folder"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(fd, "the names in a folder")
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Writes every byte; a short write (a disk that fills up) is continued and so ends in its true error."""
    view = memoryview(data)
    while view:
        failpoints.hit("write")
        view = view[os.write(fd, view) :]


def remove_folder(folder: Path) -> None:
    """`folder` and everything beneath it is gone; nothing happens where there is none.

    `rm` walks by directory handles, never follows a link and takes any depth, where Python's rmtree runs out of stack.
    """
    failpoints.hit("remove")
    done = subprocess.run(
        ["rm", "-rf", "--one-file-system", "--", os.fspath(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise errors.ApplianceError(f"The folder {folder} could not be removed: {done.stderr.strip()[:300]}")
