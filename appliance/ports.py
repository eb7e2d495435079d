"""Who listens on a TCP port of this machine, read from /proc.

What this keeps true: a busy port is never only "Address already in use"; the sentence names the process that has it.
Other users' processes are seen by root alone, in which case the holder is None although the port is busy.

Why: gateway and doctor both need it, and neither may import the other.
"""

from __future__ import annotations

import contextlib
import re
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
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and not inodes.isdisjoint(_socket_inodes(process)):
            return Listener(port, int(process.name), command_of(int(process.name)))
    return Listener(port, None, None)


def command_of(pid: int) -> str | None:
    """The command line of a process; None when it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return " ".join(words.replace("\0", " ").split())


def parent_of(pid: int) -> int | None:
    """The process that started `pid`; None when it is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return None
    return int(after_name.split()[1])


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:  # a kernel without IPv6
            continue
        for row in (line.split() for line in lines):
            if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port:
                yield row[9]


def _socket_inodes(process: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):  # the process ended meanwhile, or belongs to somebody else
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # this one was closed meanwhile
                if found := re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink())):
                    yield found[1]
