"""Taking a folder in: a walk that cannot be led astray, and new objects that are durable before they have a name.

What this keeps true: nothing outside the source is ever opened, whatever the source contains and however it changes
meanwhile; what is refused is refused before anything is stored; the hash of a stored object is the hash of the bytes
that were written, not of bytes read at another moment. Steps and their order: FORMAT.md, section 6.

Why: the source is the output of a program that nobody vouches for, and its files may be gigabytes that should be taken
over rather than copied.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from appliance import errors
from appliance.store import disk, failpoints
from appliance.store.objects import CHUNK, Claim, Objects
from appliance.store.paths import MAX_DEPTH, MAX_PATH_BYTES
from appliance.store.tree import EXECUTABLE, FILE, FOLDER, LINK, Node, Row, encode, node_of

# Two batches of descriptors at most stay open at once, one being filled and one being synced; 8 threads is where more of them no longer shortened 5,000 fsyncs.
BATCH = 128
# Below this a copy is faster than link, chmod, chown and rename of the file that is there (5,000 files: 1.3 s to 1.7 s).
TAKE_FROM = 64 << 10
# Below this the threads that hash one file cost more than they bring.
THREADS_FROM = 16 << 20
SYNC_THREADS = 8

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


@dataclass
class Found:
    """A folder as the walk saw it: names of files and links, and the folders in it."""

    name: bytes
    files: list[bytes] = field(default_factory=list)
    links: list[bytes] = field(default_factory=list)
    folders: list[Found] = field(default_factory=list)


@dataclass
class _Pending:
    """An object in `tmp/` that is not durable yet. `path` is the user's; `leased`: nobody may have written to it."""

    fd: int
    made: str
    digits: str
    size_bytes: int
    path: str
    leased: bool


# -- the walk ----------------------------------------------------------------------------------------------------------


@contextmanager
def opened(name: bytes | Path, flags: int, dir_fd: int | None, path: str) -> Iterator[int]:
    """A descriptor of `name` in `dir_fd`, closed afterwards; `path` is what a person calls it."""
    with disk.translated("opening it", path):
        fd = os.open(name, flags, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def scan(source: Path) -> tuple[Found, int]:
    """Everything in `source`, and its apparent bytes. Raises BadRequest, naming the path, for what cannot be stored."""
    if not source.is_dir() or source.is_symlink():
        raise errors.NotFound(f"There is no folder {source} to be stored.")
    with opened(source, _OPEN_FOLDER, None, str(source)) as fd:
        return _scan_folder(fd, b"", "", 0)


def _scan_folder(fd: int, name: bytes, path: str, depth: int) -> tuple[Found, int]:
    if depth >= MAX_DEPTH:
        raise errors.BadRequest(f"{path[:100]!r}… lies deeper than {MAX_DEPTH} folders. Store a flatter folder.")
    found, total = Found(name), 0
    with disk.translated("listing a folder", path), os.scandir(fd) as entries:
        listed = list(entries)
    for entry in listed:
        at = f"{path}/{entry.name}" if path else entry.name
        raw = _checked_name(entry.name, at)
        with disk.translated("looking at it", at):
            seen = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(seen.st_mode):
            with opened(raw, _OPEN_FOLDER, fd, at) as inner:
                folder, size_bytes = _scan_folder(inner, raw, at, depth + 1)
            found.folders.append(folder)
            total += size_bytes
        elif stat.S_ISREG(seen.st_mode):
            found.files.append(raw)
            total += seen.st_size
        elif stat.S_ISLNK(seen.st_mode):
            found.links.append(raw)
        else:
            raise errors.BadRequest(f"{at!r} is a {_special(seen.st_mode)}, which cannot be stored. Remove it.")
    return found, total


def _checked_name(name: str, at: str) -> bytes:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(at)
        raise errors.BadRequest(
            f"The name {shown!r} is not UTF-8, so it cannot be shown or asked for. Rename it."
        ) from error
    if len(os.fsencode(at)) > MAX_PATH_BYTES:
        raise errors.BadRequest(
            f"The path {at[:100]!r}… is longer than {MAX_PATH_BYTES} bytes. Store a flatter folder."
        )
    return os.fsencode(name)


def _special(mode: int) -> str:
    names = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFBLK: "block device", stat.S_IFCHR: "device"}
    return names.get(stat.S_IFMT(mode), "special file")


# -- new objects -------------------------------------------------------------------------------------------------------


class Writer:
    """New objects on their way from `tmp/` into the store, in batches. Used by one thread; closed by it."""

    def __init__(self, objects: Objects, claim: Claim, folder: Path, floor_bytes: int) -> None:
        self._objects = objects
        self._claim = claim
        self._folder = folder
        self._floor_bytes = floor_bytes
        self._pending: list[_Pending] = []
        self._syncing: list[tuple[_Pending, Future[None]]] = []
        self._count = 0
        self._pool = ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="store-sync")
        failpoints.hit("mkdir")
        folder.mkdir(mode=0o700)
        self.device = folder.stat().st_dev

    def add(self, data: bytes, path: str) -> str:
        """The digits of `data`, which is an object after the next `flush`."""
        digits = blake3(data).hexdigest()
        if not self._objects.has(self._claim, digits, len(data)):
            disk.check_room(self._folder, len(data), self._floor_bytes)
            fd, made = self._new(path)
            self._write(fd, data)
            self._append(_Pending(fd, made, digits, len(data), path, leased=False))
        return digits

    def copy(self, source: int, path: str) -> tuple[str, int]:
        """Digits and size of what `source` holds, as it was read while it was written. Known content is not copied."""
        digits, size_bytes = _hash(source)
        if self._objects.has(self._claim, digits, size_bytes):
            return digits, size_bytes
        disk.check_room(self._folder, size_bytes, self._floor_bytes)
        fd, made = self._new(path)
        try:
            hasher, size_bytes = blake3(), 0
            os.lseek(source, 0, os.SEEK_SET)
            while chunk := os.read(source, CHUNK):
                hasher.update(chunk)
                disk.write_all(fd, chunk)
                size_bytes += len(chunk)
        except BaseException:
            os.close(fd)
            raise
        digits = hasher.hexdigest()
        self._objects.has(self._claim, digits, size_bytes)
        self._append(_Pending(fd, made, digits, size_bytes, path, leased=False))
        return digits, size_bytes

    def take(self, fd: int, dir_fd: int, name: bytes, path: str) -> tuple[str, int] | None:
        """Like `copy`, but the file itself becomes the object; None if somebody could still change it.

        A read lease is granted only while nobody has the file open for writing, and is broken (which `flush` sees) by
        whoever opens it so. A file with a second name could be reached another way, so it is copied.
        """
        if not _lease(fd):
            return None
        digits, size_bytes = _hash(fd)
        if self._objects.has(self._claim, digits, size_bytes):
            return digits, size_bytes
        made = self._next()
        failpoints.hit("link")
        os.link(name, made, src_dir_fd=dir_fd, follow_symlinks=False)
        ours, linked = os.fstat(fd), os.stat(made, follow_symlinks=False)  # noqa: PTH116 - compared by inode
        if ours.st_ino != linked.st_ino or ours.st_nlink != 2:
            os.unlink(made)  # noqa: PTH108 - hot path
            return None
        failpoints.hit("chmod")
        os.fchown(fd, 0, 0)
        os.fchmod(fd, 0o444)
        self._append(_Pending(os.dup(fd), made, digits, size_bytes, path, leased=True))
        return digits, size_bytes

    def may_take(self, seen: os.stat_result) -> bool:
        """Whether taking over is worth it, and could be done again.

        An executable would lose its bit in the source, so that a second try after a crash would store another tree.
        """
        plain = not seen.st_mode & stat.S_IXUSR and seen.st_nlink == 1
        return plain and seen.st_size >= TAKE_FROM and seen.st_dev == self.device

    def flush(self) -> None:
        """Everything added so far is durable and has its name."""
        self._turn()
        self._turn()

    def close(self) -> None:
        """Nothing is left in `tmp/`."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for one in [*self._pending, *(one for one, _ in self._syncing)]:
            os.close(one.fd)
        self._pending, self._syncing = [], []
        disk.remove_folder(self._folder)

    def _append(self, one: _Pending) -> None:
        self._pending.append(one)
        self._pool.submit(disk.start_writing, one.fd)
        if len(self._pending) >= BATCH:
            self._turn()

    def _turn(self) -> None:
        """The batch that was being synced gets its names; the one that was being filled is being synced."""
        done, self._syncing = self._syncing, []
        filled, self._pending = self._pending, []
        self._syncing = [(one, self._pool.submit(disk.fsync, one.fd, f"the bytes of {one.path!r}")) for one in filled]
        wait([sync for _, sync in done])  # all: a descriptor must not be closed, and its number reused, under a thread
        try:
            for one, sync in done:
                sync.result()
                if one.leased and fcntl.fcntl(one.fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                    raise disk.changed(one.path)
                self._objects.place(self._claim, one.made, one.digits, one.size_bytes)
        finally:
            for one, _ in done:
                os.close(one.fd)

    def _next(self) -> str:
        self._count += 1
        return f"{self._folder}/{self._count}"

    def _new(self, path: str) -> tuple[int, str]:
        made = self._next()
        failpoints.hit("create")
        with disk.translated(f"storing {path!r}"):
            fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.fchmod(fd, 0o444)  # whatever the process's umask is
        return fd, made

    def _write(self, fd: int, data: bytes) -> None:
        try:
            with disk.translated("writing an object"):
                disk.write_all(fd, data)
        except BaseException:
            os.close(fd)
            raise


def _lease(fd: int) -> bool:
    """Whether a read lease was granted. A break would send SIGIO, which kills; SIGURG is ignored by default."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def _hash(fd: int) -> tuple[str, int]:
    """Digits and size of everything from the start of `fd`. Read, not mapped: a file that shrinks cannot kill us."""
    os.lseek(fd, 0, os.SEEK_SET)
    threads = blake3.AUTO if os.fstat(fd).st_size >= THREADS_FROM else 1
    hasher, size_bytes = blake3(max_threads=threads), 0
    while chunk := os.read(fd, 8 * CHUNK if size_bytes else CHUNK):
        hasher.update(chunk)
        size_bytes += len(chunk)
    return hasher.hexdigest(), size_bytes


# -- a tree ------------------------------------------------------------------------------------------------------------


def store_folder(writer: Writer, source: Path, found: Found, *, move: bool) -> tuple[str, Node]:
    """Every object of the tree is durable; the digits of its root and the root's node. The source is not changed,
    except that files taken over now belong to root and are read-only."""
    with opened(source, _OPEN_FOLDER, None, str(source)) as fd:
        digits, node = _folder(writer, fd, found, "", move)
    writer.flush()
    return digits, node


def _folder(writer: Writer, fd: int, found: Found, path: str, move: bool) -> tuple[str, Node]:
    rows, beneath = [], 0
    for name in found.files:
        rows.append(_file(writer, fd, name, f"{path}{os.fsdecode(name)}", move))
    for name in found.links:
        at = f"{path}{os.fsdecode(name)}"
        with disk.translated("reading a symbolic link", at):
            target = os.readlink(name, dir_fd=fd)
        rows.append(Row(name, LINK, len(target), writer.add(target, at)))
    for inner in found.folders:
        at = f"{path}{os.fsdecode(inner.name)}"
        with opened(inner.name, _OPEN_FOLDER, fd, at) as inner_fd:
            digits, node = _folder(writer, inner_fd, inner, f"{at}/", move)
        rows.append(Row(inner.name, FOLDER, node.size_bytes, digits))
        beneath += node.file_count
    node = node_of(rows, beneath)
    return writer.add(encode(node), path or "the version's folder"), node


def _file(writer: Writer, dir_fd: int, name: bytes, path: str, move: bool) -> Row:
    with opened(name, _OPEN_FILE, dir_fd, path) as fd, disk.translated("reading it", path):
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            raise disk.changed(path)
        kind = EXECUTABLE if seen.st_mode & stat.S_IXUSR else FILE
        if move and writer.may_take(seen) and not _has_extras(fd):
            taken = writer.take(fd, dir_fd, name, path)
            if taken is not None:
                return Row(name, kind, taken[1], taken[0])
            os.lseek(fd, 0, os.SEEK_SET)
        if seen.st_size <= CHUNK:
            data = os.read(fd, CHUNK + 1)
            if len(data) <= CHUNK and not os.read(fd, 1):
                return Row(name, kind, len(data), writer.add(data, path))
        digits, size_bytes = writer.copy(fd, path)
        return Row(name, kind, size_bytes, digits)


def _has_extras(fd: int) -> bool:
    """Extended attributes (capabilities, access lists) would travel with the inode; only SELinux's label may."""
    try:
        return any(name != "security.selinux" for name in os.listxattr(fd))
    except OSError:
        return True
