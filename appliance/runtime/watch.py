"""Listening to the engine: what changed wakes the loops, and what containers write goes into the log store.

What this keeps true: `Watch` calls `wake` soon after anything of ours changes on the engine, and once after each time
that it (re)connects, since what happened in between was missed. It never says what changed: whoever is woken looks. An
engine that is away is tried again after 0.1 s, then twice as long each time up to 10 s, by one waiting thread.
`LogPump` keeps one thread for each container whose log is still coming, at most `limit` of them; the others wait their
turn and lose nothing, since the engine keeps what they write.

Why threads: the engine's streams block, there are as many as containers run, and each mostly sleeps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from appliance.errors import ApplianceError
from appliance.records import Sighting
from appliance.runtime.engine import Engine, EventStream, LogStream
from appliance.runtime.logs import LogStore
from appliance.states import Seen

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0
_JOIN_S = 5.0
_PACE_S = 0.02  # so that an engine whose streams end at once is not asked in a tight loop


def unmasked(container_id: str) -> Callable[[str], str]:
    """No secrets are known for it."""
    del container_id
    return str


class Watch:
    """One thread that follows the engine's events. `start` and `stop` once each."""

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._wake = wake
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._stream: EventStream | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The thread has ended, also when it never ran."""
        self._stopped.set()
        with self._lock:
            if self._stream is not None:
                self._stream.close()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._stopped.is_set():
            try:
                self._follow()
                wait_s = _FIRST_WAIT_S
            except ApplianceError as problem:
                logger.warning("the engine's events broke off: %s", problem)
            self._stopped.wait(wait_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    def _follow(self) -> None:
        stream = self._engine.events()
        with self._lock:
            self._stream = stream
        if self._stopped.is_set():
            stream.close()
        self._wake()
        for _ in stream:
            self._wake()


class LogPump:
    """Carries what containers write into the store. `attend` is called with each list of sightings.

    `mask_of` gives, for a container, the function that hides its secrets. `wake` is called when a log has come to an
    end, so that whoever waits for it need not look every now and then.
    """

    def __init__(
        self,
        engine: Engine,
        store: LogStore,
        *,
        mask_of: Callable[[str], Callable[[str], str]] = unmasked,
        wake: Callable[[], None] = lambda: None,
        limit: int = 256,
    ) -> None:
        self._engine = engine
        self._store = store
        self._mask_of = mask_of
        self._wake = wake
        self._limit = limit
        self._lock = threading.Lock()
        self._streams: dict[str, LogStream | None] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._finished: set[str] = set()
        self._stopped = threading.Event()

    def attend(self, sightings: Iterable[Sighting]) -> None:
        """Every container that has started and whose log is not complete is being read, as far as `limit` allows.

        Called again with the same sightings it does nothing more. A container that has ended is read to its end.
        """
        present = {it.id: it for it in sightings}
        with self._lock:
            self._finished &= present.keys()
            for container_id, sighting in present.items():
                if self._stopped.is_set() or len(self._threads) >= self._limit:
                    return
                if sighting.seen not in (Seen.RUNNING, Seen.EXITED) or container_id in self._finished:
                    continue
                if container_id not in self._threads:
                    self._begin(container_id, ended=sighting.seen is Seen.EXITED)

    def is_complete(self, container_id: str) -> bool:
        """Whether everything that an ended container wrote is in the store; then it can be sealed and removed."""
        with self._lock:
            return container_id in self._finished

    def stop(self) -> None:
        """No thread reads any more; the next pump goes on where this one stopped."""
        with self._lock:
            self._stopped.set()
            threads = list(self._threads.values())
            for stream in self._streams.values():
                if stream is not None:
                    stream.close()
        for thread in threads:
            thread.join(_JOIN_S)

    def _begin(self, container_id: str, *, ended: bool) -> None:
        thread = threading.Thread(target=self._run, args=(container_id, ended), name=f"log {container_id}", daemon=True)
        self._threads[container_id] = thread
        self._streams[container_id] = None
        thread.start()

    def _run(self, container_id: str, ended: bool) -> None:
        try:
            full = not self._pump(container_id)
        except ApplianceError as problem:
            # The next look at the sightings tries again.
            logger.warning("the log of %s broke off: %s", container_id, problem)
            self._forget(container_id)
            return
        # A stream ends in good order also when the engine is told to stop and its containers live on. So only what was
        # read after the container was seen to have ended is known to be all; the rest is asked for once more.
        if not ended:
            self._stopped.wait(_PACE_S)
        self._forget(container_id, complete=(ended or full) and not self._stopped.is_set())
        if not self._stopped.is_set():
            self._wake()

    def _forget(self, container_id: str, *, complete: bool = False) -> None:
        with self._lock:
            self._threads.pop(container_id, None)
            self._streams.pop(container_id, None)
            if complete:
                self._finished.add(container_id)

    def _pump(self, container_id: str) -> bool:
        """Store what comes until the stream ends; False when the log is full."""
        stream = self._engine.logs(container_id, since=self._store.since(container_id), follow=True)
        with self._lock:
            self._streams[container_id] = stream
            if self._stopped.is_set():
                stream.close()
        try:
            return self._store.capture(container_id, stream, self._mask_of(container_id))
        finally:
            stream.close()
