"""What the kernel's log says about memory that ran out.

Why: Docker hears of it from a watcher that loses the race with the container's end when the machine is busy (seen with
Docker 20.10 and cgroup v1: exit code 137, and memory never blamed). The kernel writes its line before it kills.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_LOG = "/dev/kmsg"
_RECORD = 8192  # linux: PRINTKRB_RECORD_MAX is smaller


def blames_memory(engine_id: str, path: str = _LOG) -> bool | None:
    """Whether the kernel killed something in this container because its memory ran out; None if it cannot be asked."""
    try:
        log = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return any(b"oom-kill:" in record and engine_id.encode() in record for record in _records(log))
    finally:
        os.close(log)


def _records(log: int) -> Iterator[bytes]:
    """One record for each read; the log is a ring, and EPIPE says that it has overtaken us, so the next read goes on."""
    while True:
        try:
            record = os.read(log, _RECORD)
        except BrokenPipeError:
            continue
        except OSError:  # EAGAIN: no more
            return
        if not record:
            return
        yield record
