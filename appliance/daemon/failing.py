"""Dying at a named place, for the tests of what a crash leaves: `APPLIANCE_FAILPOINT=NAME` or `NAME=EIO`.

What this keeps true: without that variable nothing is armed and a place costs one comparison with None.

Why in the daemon: only the real process, killed by the kernel between two real effects, shows what the next start finds.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping

from appliance.store import failpoints


def arm(environ: Mapping[str, str] = os.environ) -> None:
    """At the place called NAME this process is killed, or (with `=EIO`, `=ENOSPC`) meets that error each time."""
    name, _, error = environ.get("APPLIANCE_FAILPOINT", "").partition("=")
    if not name:
        return

    def plan(place: str) -> None:
        if place != name:
            return
        if error:
            raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))
        os.kill(os.getpid(), signal.SIGKILL)

    failpoints.arm(plan)
