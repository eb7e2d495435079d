"""Dying at a named place, for the tests of what a crash leaves: `APPLIANCE_FAILPOINT=NAME`, `NAME=EIO`, `!NAME,…`.

What this keeps true: without that variable nothing is armed and a place costs one comparison with None.

Why in the daemon: only the real process, killed by the kernel between two real effects, shows what the next start finds.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Mapping

from appliance.store import failpoints


def arm(environ: Mapping[str, str] = os.environ) -> None:
    """At the place called NAME this process is killed, or (with `=EIO`, `=ENOSPC`) meets that error each time.

    `!A,B` kills it at the first place of the main path (they have a dot in their names) that is neither A nor B.
    """
    name, _, error = environ.get("APPLIANCE_FAILPOINT", "").partition("=")
    if name:
        failpoints.arm(lambda place: _meet(place, error) if _is_meant(name, place) else None)


def _is_meant(name: str, place: str) -> bool:
    if name.startswith("!"):
        return "." in place and place not in name[1:].split(",")
    return place == name


def _meet(place: str, error: str) -> None:
    if error:
        raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))
    print(f"killed at {place}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
