"""What systemd is told (sd_notify(3)): ready, alive, stopping. Without systemd nothing is sent.

Why by hand: the protocol is one datagram, a library would be longer.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


def notify(text: str, environ: Mapping[str, str] = os.environ) -> None:
    """Send `text` (`READY=1`) to the socket that NOTIFY_SOCKET names; a name that begins with @ is an abstract one."""
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(text.encode(), name)


def watchdog_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often systemd wants to hear from this process, in seconds; half of its limit. None: not at all."""
    text = environ.get("WATCHDOG_USEC", "")
    mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(text) / 2_000_000 if text.isdigit() and int(text) > 0 and mine else None
