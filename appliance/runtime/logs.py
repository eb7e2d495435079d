"""What containers wrote, in our own files: numbered lines, kept after the container is gone, followed live.

What this keeps true: a line is stored once and keeps its number for ever. One container's log is one folder of
segments, each named by its first line's number; a segment that is full, or the last one of a sealed log, is gzip. So
page N is found by the names and costs reading one segment. A line on disk is `TIME S TEXT` and a newline: the engine's
time with nine digits, `o`, `e` or `n` (standard output, standard error, a note of ours), and the text as it was
written, control characters and all: what may be shown of them is the door's decision (`printable` is its help).
Secrets are masked before anything is written. A log has a limit; at the limit one line says so and no more is kept.

After a crash or a restart (the rule against losing or doubling a line): the engine is asked from `since`, which is one
second before the newest time that is stored, because two streams may reach the engine's file out of order; of what it
then sends, an entry is skipped for each stored line of the same time and stream. A half-written last line is cut off
and comes again. Times are the engine's, so a clock that is set back by more than a second while nobody listens can
lose lines; nothing else can.

Order of effects: a segment is complete and synced as gzip before the plain one goes; where a crash leaves both, the
gzip wins. `seal` syncs: after it the log is complete and never changes.

Why not Docker's own files: they go with the container, and know no line numbers, limits over all, or secrets.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import re
import shutil
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from appliance import clock
from appliance.errors import DiskFull, EngineBusy, NotFound
from appliance.records import LogLine
from appliance.runtime.engine import LogEntry

LIMIT_BYTES = 64 * 2**20
SEGMENT_BYTES = 2**20
_OVERLAP = timedelta(seconds=1)
_LOOK_S = 5.0
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CODES = {"stdout": "o", "stderr": "e"}
_STREAMS = {"o": "stdout", "e": "stderr", "n": "stderr"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_SEALED = "sealed"


def printable(text: str) -> str:
    """`text` for a page or a terminal: tabs and colours stay, every other control character is shown as `\\xNN`."""
    kept = _COLOUR.findall(text)
    parts = [_CONTROL.sub(lambda it: f"\\x{ord(it.group()):02x}", part) for part in _COLOUR.split(text)]
    return "".join(part + colour for part, colour in zip(parts, [*kept, ""], strict=True))


@dataclass
class _Writer:
    """The open end of one log: the segment being written, and where its lines begin."""

    first: int
    path: Path
    file: int
    starts: list[int] = field(default_factory=list)
    size: int = 0
    closed_bytes: int = 0
    full: bool = False
    last_at: str | None = None

    @property
    def next_number(self) -> int:
        return self.first + len(self.starts)


class LogStore:
    """Every container's log under `folder`. Any thread may call; one thread captures one container."""

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._segment = segment_bytes
        self._changed = threading.Condition(threading.RLock())
        self._writers: dict[str, _Writer] = {}
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every new line and every end of a log, in the writing thread; it must only set a flag."""
        self._listeners.append(listener)

    # -- writing -------------------------------------------------------------------------------------------------------

    def since(self, container_id: str) -> str | None:
        """From when on the engine is to be asked; None for from the beginning."""
        newest = self.last_at(container_id)
        return _earlier(newest) if newest else None

    def last_at(self, container_id: str) -> str | None:
        """The engine's newest time of any stored line."""
        with self._changed:
            if container_id in self._writers:
                return self._writers[container_id].last_at
            for _, path in reversed(self._segments(container_id)):
                if times := [_at(line) for line in _lines_of(path) if _code(line) != "n"]:
                    return max(times)
            return None

    def capture(self, container_id: str, entries: Iterable[LogEntry], mask: Callable[[str], str] = str) -> bool:
        """Store each entry as it comes, but for those that are stored already; False when the log's limit is reached.

        Called again after a crash with what the engine has from `since` on, it goes on where it stopped. A sealed log
        takes nothing. `DiskFull` leaves what was stored, and the log can be captured again later.
        """
        if self.is_sealed(container_id):
            return True
        with self._changed:
            writer = self._writer(container_id)
            floor = self.since(container_id) or ""
            stored = self._stored_since(container_id, floor)
        for entry in entries:
            if entry.at < floor:
                continue
            key = (entry.at, _CODES.get(entry.stream, "e"))
            if stored[key] > 0:
                stored[key] -= 1
            elif not self._append(container_id, writer, key[0], key[1], mask(entry.text)):
                return False
        return not writer.full

    def note(self, container_id: str, text: str) -> None:
        """A line of our own (an image is being pulled, why it was stopped), among those of standard error."""
        if self.is_sealed(container_id):
            return
        with self._changed:
            at = clock.stamp().removesuffix("Z") + "000000Z"
            self._append(container_id, self._writer(container_id), at, "n", text)

    def seal(self, container_id: str) -> None:
        """The log is complete, compressed and durable, and takes nothing more. May be called again."""
        with self._changed:
            if self.is_sealed(container_id):
                return
            writer = self._writers.pop(container_id, None)
            if writer is not None:
                os.close(writer.file)
            folder = self._of(container_id)
            with _ours(container_id):
                folder.mkdir(parents=True, exist_ok=True)
                for _, path in self._segments(container_id):
                    if path.suffix == ".log":
                        _compress(path)
                (folder / _SEALED).touch()
                _sync_folder(folder)
            self._tell()

    def close(self) -> None:
        """Nothing is open any more; followers end. Logs that are not sealed go on at the next capture."""
        with self._changed:
            for writer in self._writers.values():
                os.close(writer.file)
            self._writers.clear()
            self._tell()

    def remove(self, container_id: str) -> None:
        """The log is gone. Missing: nothing happens."""
        with self._changed:
            if writer := self._writers.pop(container_id, None):
                os.close(writer.file)
            shutil.rmtree(self._of(container_id), ignore_errors=True)
            self._tell()

    # -- reading -------------------------------------------------------------------------------------------------------

    def is_sealed(self, container_id: str) -> bool:
        return (self._of(container_id) / _SEALED).exists()

    def count(self, container_id: str) -> int:
        """How many lines there are; the last one's number and one."""
        with self._changed:
            if writer := self._writers.get(container_id):
                return writer.next_number
            segments = self._segments(container_id)
            return segments[-1][0] + len(_lines_of(segments[-1][1])) if segments else 0

    def read(self, container_id: str, after: int = -1, limit: int = 1000) -> list[LogLine]:
        """At most `limit` lines with numbers above `after`, in order; none for a log that does not exist."""
        found: list[LogLine] = []
        number = max(0, after + 1)
        with self._changed:
            segments = self._segments(container_id)
            at = max(0, bisect_right([first for first, _ in segments], number) - 1)
            for first, path in segments[at:]:
                skip = max(0, number - first)
                lines = self._read_segment(container_id, path, skip, limit - len(found))
                found += [_line(first + skip + i, line) for i, line in enumerate(lines)]
                if len(found) >= limit:
                    break
        return found

    def wait(self, container_id: str, after: int, timeout_s: float, stop: threading.Event | None = None) -> bool:
        """Whether there is a line above `after` or the log has ended; waits for it at most `timeout_s` seconds."""

        def news() -> bool:
            return self.count(container_id) > after + 1 or self.is_sealed(container_id)

        with self._changed:
            self._changed.wait_for(lambda: news() or (stop is not None and stop.is_set()), timeout_s)
            return news()

    def follow(self, container_id: str, after: int = -1, stop: threading.Event | None = None) -> Iterator[LogLine]:
        """Every line above `after`, those to come as well, until the log is sealed or `stop` is set.

        New lines wake it. Who sets `stop` calls `wake`, or waits some seconds.
        """
        while stop is None or not stop.is_set():
            lines = self.read(container_id, after)
            yield from lines
            if lines:
                after = lines[-1].number
            elif self.is_sealed(container_id) and self.count(container_id) <= after + 1:
                return
            else:
                self.wait(container_id, after, _LOOK_S, stop)

    def wake(self) -> None:
        """Every follower looks at its `stop`."""
        with self._changed:
            self._tell()

    def _tell(self) -> None:
        """With the lock held: something is new."""
        self._changed.notify_all()
        for listener in self._listeners:
            listener()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _of(self, container_id: str) -> Path:
        if not _ID.fullmatch(container_id):
            raise NotFound(f"There is no log {container_id!r}.")
        return self._folder / container_id

    def _segments(self, container_id: str) -> list[tuple[int, Path]]:
        """First number and file of each segment, in order; of two of one number the gzip."""
        found: dict[int, Path] = {}
        for path in sorted(self._of(container_id).glob("*.log*")):
            if path.name.endswith((".log", ".log.gz")):
                found[int(path.name.split(".")[0])] = path
        return sorted(found.items())

    def _read_segment(self, container_id: str, path: Path, skip: int, limit: int) -> list[bytes]:
        writer = self._writers.get(container_id)
        if writer is None or writer.path != path:
            return _lines_of(path)[skip : skip + limit]
        starts = [*writer.starts[skip : skip + limit + 1], writer.size]
        with path.open("rb") as file:
            file.seek(starts[0])
            end = starts[limit] if len(starts) > limit else writer.size
            return file.read(end - starts[0]).split(b"\n")[:-1]

    def _stored_since(self, container_id: str, floor: str) -> Counter[tuple[str, str]]:
        """How many lines of each time and stream are stored from `floor` on."""
        stored: Counter[tuple[str, str]] = Counter()
        if not floor:
            return stored
        for _, path in reversed(self._segments(container_id)):
            lines = _lines_of(path)
            stored.update((_at(line), _code(line)) for line in lines if _at(line) >= floor)
            if lines and _at(lines[0]) < floor:
                break
        return stored

    def _writer(self, container_id: str) -> _Writer:
        """The open end, made or mended: a half line is cut off, full segments left by a crash are compressed."""
        if container_id in self._writers:
            return self._writers[container_id]
        newest = self.last_at(container_id)
        folder = self._of(container_id)
        with _ours(container_id):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("*.tmp"):
                left.unlink()
            for done in folder.glob("*.log.gz"):
                done.with_suffix("").unlink(missing_ok=True)
            segments = self._segments(container_id)
            for _, path in segments[:-1]:
                if path.suffix == ".log":
                    _compress(path)
            if segments and segments[-1][1].suffix == ".log":
                writer = _reopened(*segments[-1])
            else:
                writer = _opened(folder, self.count(container_id))
        writer.last_at = newest
        writer.closed_bytes = sum(_raw_size(path) for _, path in segments[:-1])
        writer.full = writer.closed_bytes + writer.size >= self._limit
        self._writers[container_id] = writer
        return writer

    def _append(self, container_id: str, writer: _Writer, at: str, code: str, text: str) -> bool:
        """Store one line; False when the limit was reached before or is now."""
        with self._changed:
            if writer.full or self._writers.get(container_id) is not writer:
                return False
            self._write(container_id, writer, f"{at} {code} {text}".replace("\n", " "))
            if code != "n":
                writer.last_at = max(writer.last_at or at, at)
            if writer.closed_bytes + writer.size >= self._limit:
                limit = f"{self._limit / 2**20:g} MiB"
                self._write(container_id, writer, f"{at} n [The log has reached {limit}; what follows is not kept.]")
                writer.full = True
            elif writer.size >= self._segment:
                self._roll(container_id, writer)
            self._tell()
            return not writer.full

    def _write(self, container_id: str, writer: _Writer, line: str) -> None:
        data = line.encode(errors="replace") + b"\n"
        with _ours(container_id):
            try:
                written = os.write(writer.file, data)
                while written < len(data):
                    written += os.write(writer.file, data[written:])
            except OSError:
                os.ftruncate(writer.file, writer.size)
                raise
        writer.starts.append(writer.size)
        writer.size += len(data)

    def _roll(self, container_id: str, writer: _Writer) -> None:
        """The segment is full: the next one begins, and this one is compressed."""
        full = writer.path
        with _ours(container_id):
            following = _opened(full.parent, writer.next_number)
            os.close(writer.file)
            writer.closed_bytes += writer.size
            writer.first, writer.path, writer.file = following.first, following.path, following.file
            writer.starts, writer.size = [], 0
            _compress(full)


# -- one segment -------------------------------------------------------------------------------------------------------


def _opened(folder: Path, first: int) -> _Writer:
    path = folder / f"{first:012d}.log"
    return _Writer(first, path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))


def _reopened(first: int, path: Path) -> _Writer:
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    os.ftruncate(file, size)
    starts = [0, *(found.end() for found in re.finditer(rb"\n", data[:size]))][:-1]
    return _Writer(first, path, file, starts=starts, size=size)


def _compress(path: Path) -> None:
    temporary = path.with_name(path.name + ".gz.tmp")
    with temporary.open("wb") as file:
        file.write(gzip.compress(path.read_bytes(), compresslevel=3, mtime=0))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path.with_name(path.name + ".gz"))
    path.unlink()


def _lines_of(path: Path) -> list[bytes]:
    """The whole lines of a segment; a half one at the end is not there yet."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.split(b"\n")[:-1]


def _raw_size(path: Path) -> int:
    if path.suffix != ".gz":
        return path.stat().st_size
    return int.from_bytes(path.read_bytes()[-4:], "little")  # RFC 1952: the last four bytes are the length


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _at(line: bytes) -> str:
    return line[:30].decode("ascii", "replace")


def _code(line: bytes) -> str:
    return chr(line[31]) if len(line) > 31 else "e"


def _line(number: int, line: bytes) -> LogLine:
    at, code, text = _at(line), _code(line), line[33:].decode(errors="replace")
    return LogLine(number=number, at=f"{at[:23]}Z", stream=_STREAMS.get(code, "stderr"), text=text)


def _earlier(at: str) -> str:
    """`at` less the overlap, again with nine digits."""
    moment = datetime.fromisoformat(at[:19] + "+00:00") - _OVERLAP
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + at[19:]


@contextlib.contextmanager
def _ours(container_id: str) -> Iterator[None]:
    """What the disk refuses inside leaves as one of our errors."""
    try:
        yield
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"The disk is full, so the log of {container_id} cannot be written; free some space, "
                "and it goes on where it stopped."
            ) from cause
        raise EngineBusy(f"The log of {container_id} cannot be written: {cause}.") from cause
