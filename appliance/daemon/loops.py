"""A loop: something that looks, does what is due, and sleeps until it is woken or its interval is over.

What this keeps true: a tick that fails is logged and tried again, later each time up to 30 s; nothing but a lost fsync
ends the daemon; whoever asks learns which loop has not come round for too long.

Why: "only a loop catches everything" needs one loop.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from appliance import clock
from appliance.errors import ApplianceError, DurabilityLost

_LOG = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 30.0
STUCK_S = 120.0


class Loop:
    """Calls `tick` in a thread of its own. `tick` may return the seconds until it wants to be called again.

    A tick that goes on for more than `patience_s` is stuck; None: it may be as long as its work.
    """

    def __init__(
        self,
        name: str,
        tick: Callable[[], float | None],
        interval_s: float,
        fail: Callable[[BaseException], None],
        *,
        patience_s: float | None = STUCK_S,
    ) -> None:
        self.name = name
        self._patience_s = patience_s
        self._tick, self._interval_s, self._fail = tick, interval_s, fail
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._began: float | None = None
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look at once, or again after the look that is going on."""
        self._wake.set()

    def stop(self, within_s: float = 10.0) -> None:
        """No further tick begins; the one that is going on is waited for."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(within_s)

    def stuck_for_s(self) -> float:
        """For how long the present tick has been going on; 0 between ticks."""
        began = self._began
        return 0.0 if began is None else clock.monotonic() - began

    def is_stuck(self) -> bool:
        return self._patience_s is not None and self.stuck_for_s() > self._patience_s

    def is_dead(self) -> bool:
        return not self._thread.is_alive() and not self._stopping.is_set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            self._wake.wait(self._once())

    def _once(self) -> float:
        """One tick; the seconds to sleep."""
        self._began = clock.monotonic()
        try:
            wanted = self._tick()
            self._failures = 0
            return self._interval_s if wanted is None else wanted
        except DurabilityLost as error:
            self._fail(error)
            return _LONGEST_PAUSE_S
        except ApplianceError as error:
            self._failures += 1
            _LOG.warning("%s: %s", self.name, error.message)
        except Exception:
            self._failures += 1
            _LOG.exception("%s failed; it is tried again", self.name)
        finally:
            self._began = None
        pause_s = min(_LONGEST_PAUSE_S, 0.1 * 2.0**self._failures)
        self._stopping.wait(pause_s)
        return 0.0
