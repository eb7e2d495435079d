"""The objects: immutable files named by their hash, who needs them, and removing those that nobody needs.

What this keeps true: a file under `objects/` is complete and its bytes were durable before it got its name; it is never
written to again. An object that a `Claim` names is not removed while the claim is held, nor before the end of a sweep
that was under way when the claim was let go.

Why: pinning and looking up happen under the same lock as removing, so an object is either found and kept, or not found
and written again. No grace period, no clock.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from appliance import errors
from appliance.store import disk, failpoints
from appliance.store.tree import TAG, Node, decode

CHUNK = 1 << 20
KNOWN_ROWS = 32_768  # some 8 MiB of directory nodes at hand; no fewer than one node, however large


@dataclass(eq=False)
class Claim:
    """What one tree needs, while it is being stored and until its row is committed. `source` goes with the commit."""

    source: Path | None
    digits: set[str] = field(default_factory=set)
    added_bytes: int = 0


@dataclass
class _Fan:
    """One of the 256 folders. `dirty`: a name in it may not be durable. True at the start, since we cannot know."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    dirty: bool = True


class Objects:
    """The folder `objects/`. Any number of threads at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.fspath(folder)
        self._lock = threading.Lock()
        self._claims: set[Claim] = set()
        self._lingering: set[Claim] = set()
        self._sweeps = 0
        self._totals: tuple[int, int] | None = None
        self._known: OrderedDict[str, Node] = OrderedDict()
        self._fans = {f"{number:02x}": _Fan() for number in range(256)}

    def make(self) -> None:
        """The 256 folders exist, durably."""
        for fan in self._fans:
            Path(self._folder, fan).mkdir(mode=0o700, exist_ok=True)
        disk.sync_folder(Path(self._folder))

    def path(self, digits: str) -> str:
        """Where the object lies if it exists. A str: this is called once for each file of a version."""
        return f"{self._folder}/{digits[:2]}/{digits}"

    # -- needing ---------------------------------------------------------------------------------------------------

    def claim(self, source: Path | None) -> Claim:
        """A new claim, empty."""
        made = Claim(source)
        with self._lock:
            self._claims.add(made)
        return made

    def let_go(self, claim: Claim) -> None:
        """The claim no longer holds anything, except against a sweep that has already asked what is live."""
        with self._lock:
            self._claims.discard(claim)
            if self._sweeps:
                self._lingering.add(claim)

    def has(self, claim: Claim, digits: str, size_bytes: int) -> bool:
        """Whether the object exists; in either case `claim` pins it from now on, before the look-up."""
        with self._lock:
            claim.digits.add(digits)
        return self._is_whole(digits, size_bytes)

    def _is_whole(self, digits: str, size_bytes: int) -> bool:
        try:
            return os.stat(self.path(digits), follow_symlinks=False).st_size == size_bytes  # noqa: PTH116 - hot path
        except FileNotFoundError:
            return False

    def place(self, claim: Claim, made: str, digits: str, size_bytes: int) -> None:
        """The file `made`, whose bytes are durable, gets its name; if another thread was faster, `made` goes."""
        with self._lock:
            if self._is_whole(digits, size_bytes):
                os.unlink(made)  # noqa: PTH108 - hot path
                return
            failpoints.hit("place")
            self._fans[digits[:2]].dirty = True
            os.rename(made, self.path(digits))  # noqa: PTH104 - hot path
            claim.added_bytes += size_bytes
            if self._totals is not None:
                self._totals = (self._totals[0] + 1, self._totals[1] + size_bytes)

    def sync(self, claim: Claim) -> None:
        """Every name that the claim needs is durable, whoever made it. Each folder is synced once after a change."""
        for name in sorted({digits[:2] for digits in claim.digits}):
            fan = self._fans[name]
            with fan.lock:
                if fan.dirty:
                    fan.dirty = False
                    try:
                        disk.sync_folder(Path(self._folder, name))
                    except BaseException:
                        fan.dirty = True
                        raise

    # -- reading ---------------------------------------------------------------------------------------------------

    def node(self, digits: str) -> Node:
        """The directory node; its bytes were checked against its name. Raises Corrupt."""
        data = b"".join(self.read(digits))
        return decode(data, digits)

    def known_node(self, digits: str) -> Node:
        """Like `node`, but one that was asked for lately is not read again: a version's files are read one by one."""
        with self._lock:
            node = self._known.get(digits)
            if node is not None:
                self._known.move_to_end(digits)
                return node
        node = self.node(digits)
        with self._lock:
            self._known[digits] = node
            while len(self._known) > 1 and sum(len(known.rows) for known in self._known.values()) > KNOWN_ROWS:
                self._known.popitem(last=False)
        return node

    def size_of(self, digits: str) -> int:
        """Bytes of the object; raises Corrupt when it is missing or is not a plain file."""
        try:
            seen = os.stat(self.path(digits), follow_symlinks=False)  # noqa: PTH116 - hot path
        except FileNotFoundError as error:
            raise _missing(digits) from error
        if not stat.S_ISREG(seen.st_mode):
            raise errors.Corrupt(f"The object {TAG}{digits} is not a plain file.")
        return seen.st_size

    def read(self, digits: str) -> Iterator[bytes]:
        """The object's bytes in chunks of at most 1 MiB. The last chunk comes only after all of them proved right.

        Raises Corrupt, naming the object: at once when it is missing, else in place of the last chunk.
        """
        self.size_of(digits)
        return self._checked(digits)

    def _open(self, digits: str) -> int:
        try:
            return os.open(self.path(digits), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise _missing(digits) from error

    def _checked(self, digits: str) -> Iterator[bytes]:
        fd = self._open(digits)
        try:
            hasher, held = blake3(), b""
            while chunk := _read(fd, CHUNK, digits):
                hasher.update(chunk)
                if held:
                    yield held
                held = chunk
            if hasher.hexdigest() != digits:
                raise errors.Corrupt(f"The object {TAG}{digits} is damaged: its bytes are not those that were stored.")
            if held:
                yield held
        finally:
            os.close(fd)

    def slice(self, digits: str, offset: int, length: int) -> Iterator[bytes]:
        """`length` bytes from `offset`, fewer at the end; a part cannot be checked against the hash of the whole."""
        self.size_of(digits)
        return self._sliced(digits, offset, length)

    def _sliced(self, digits: str, offset: int, length: int) -> Iterator[bytes]:
        fd = self._open(digits)
        try:
            os.lseek(fd, offset, os.SEEK_SET)
            while length > 0 and (chunk := _read(fd, min(CHUNK, length), digits)):
                length -= len(chunk)
                yield chunk
        finally:
            os.close(fd)

    # -- counting and removing -------------------------------------------------------------------------------------

    def all(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Every entry beneath the 256 folders with its folder's name, whatever it is."""
        for fan in self._fans:
            with os.scandir(f"{self._folder}/{fan}") as entries:
                for entry in entries:
                    yield fan, entry

    def totals(self) -> tuple[int, int]:
        """How many objects there are, and their bytes. Counted once, then kept up to date."""
        with self._lock:
            if self._totals is None:
                sizes = [entry.stat(follow_symlinks=False).st_size for _, entry in self.all()]
                self._totals = (len(sizes), sum(sizes))
            return self._totals

    def begin_sweep(self) -> None:
        """From now until `end_sweep`, whatever is or becomes claimed is kept. Call before asking what is live."""
        with self._lock:
            self._sweeps += 1

    def end_sweep(self) -> None:
        with self._lock:
            self._sweeps -= 1
            if not self._sweeps:
                self._lingering.clear()

    def sweep(self, live: set[str]) -> tuple[int, int]:
        """Every object that is neither in `live` nor claimed is gone. How many, and their bytes.

        Files that no object could be called are left for `verify` to report.
        """
        count = size_bytes = 0
        for fan, entry in self.all():
            if entry.name in live or len(entry.name) != 64 or not entry.name.startswith(fan):
                continue
            freed = self._remove(entry)
            if freed is not None:
                count, size_bytes = count + 1, size_bytes + freed
        return count, size_bytes

    def _remove(self, entry: os.DirEntry[str]) -> int | None:
        with self._lock:
            if any(entry.name in claim.digits for claim in self._claims | self._lingering):
                return None
            failpoints.hit("unlink")
            size_bytes = entry.stat(follow_symlinks=False).st_size
            os.unlink(entry.path)  # noqa: PTH108 - hot path
            if self._totals is not None:
                self._totals = (self._totals[0] - 1, self._totals[1] - size_bytes)
            return size_bytes


def _missing(digits: str) -> errors.Corrupt:
    return errors.Corrupt(f"The object {TAG}{digits} is missing from the store.")


def _read(fd: int, count: int, digits: str) -> bytes:
    try:
        return os.read(fd, count)
    except OSError as error:
        raise errors.Corrupt(f"The disk cannot read the object {TAG}{digits}: {error.strerror}.") from error
