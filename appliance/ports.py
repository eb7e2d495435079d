"""Who listens on a TCP port of this machine, read from /proc.

What this keeps true: a busy port is never only "Address already in use"; the sentence names the process that has it.
Other users' processes are seen by root alone, in which case the holder is None although the port is busy.

Why: gateway and doctor both need it, and neither may import the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"  # Linux: include/net/tcp_states.h


@dataclass(frozen=True)
class Listener:
    """A listening socket; `pid` and `command` are None where this process may not see its owner."""

    port: int
    pid: int | None
    command: str | None

    def __str__(self) -> str:
        if self.pid is None:
            return "a process that cannot be seen from here"
        return f"process {self.pid} ({(self.command or 'ended meanwhile')[:120]})"


def find_listener(port: int) -> Listener | None:
    """Who listens on `port`, at whatever address; None when nobody does."""
    inodes = set(_listening_inodes(port))
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in processes():
        if not wanted.isdisjoint(_open_files(Path(f"/proc/{pid}"))):
            return Listener(port, pid, command_of(pid))
    return Listener(port, None, None)


def command_of(pid: int) -> str | None:
    """The command line of a process; None when it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return " ".join(words.replace("\0", " ").split())


def processes() -> list[int]:
    """Every process of this moment, in the order of their ids."""
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def is_alive(pid: int) -> bool:
    """Whether the process still has its files and ports; a dying one loses its command line before them."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return False
    return after_name.split()[0] not in ("Z", "X")


def has_open(pid: int, path: Path) -> bool:
    """Whether the process has the file open; False where it is gone or may not be looked at."""
    return str(path) in _open_files(Path(f"/proc/{pid}"))


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:  # a kernel without IPv6
            continue
        for row in (line.split() for line in lines):
            if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port:
                yield row[9]


def _open_files(process: Path) -> Iterator[str]:
    """What its file descriptors point to, as the kernel writes it."""
    with contextlib.suppress(OSError):  # the process ended meanwhile, or belongs to somebody else
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # this one was closed meanwhile
                yield str(entry.readlink())
