"""The one protocol for running things. The loops know this page and nothing of Docker.

What this keeps true: every id that goes in or out is our container id (the label `appliance.id`), never a name and
never the engine's own, but for what `create` returns. Every method may be called again with the same effect, also by
another process after a crash: `create` adopts what is already there, `start` of a running container, `stop` of a
stopped one and `remove` of a missing one do nothing. Every method returns within its own timeout; what cannot be done
now raises `EngineBusy` (a later try may succeed: the engine is down, slow, or in the middle of something), what will
never be done raises `EngineRefused` with the remedy in its sentence, and an image that cannot be had `ImageNotFound`.
No other exception leaves an engine. Only containers of this instance are ever listed or touched.

Order: `ensure_network` and `pull` before `create`, `create` before `start`; `stop` before `remove` where an end in
good order is wanted (`remove` kills). `logs` works from `create` until `remove`.

Threads: every method may be called from any thread, several at once. Two calls about one container are carried out in
some order; callers that care serialise them (the reconciler is one thread). The iterators (`logs` with follow,
`events`) belong to the thread that iterates them and may be closed from any thread.

Why: one page that the memory engine of the tests, Docker today and more than one server later can all keep, held by
one set of facts (tests/test_runtime_conformance.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

from appliance.records import ContainerSpec, Sighting


def spec_hash(spec: ContainerSpec) -> str:
    """The label `appliance.spec`: the same for equal specs, on every machine and in every process."""
    text = json.dumps(asdict(spec), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class LogEntry:
    """One line that a container wrote. `at` is the engine's own time, RFC 3339 with nine digits and Z: it sorts as text.

    `text` has no line end; other control characters are as written. A line longer than 64 KiB arrives as several
    entries with the same `at`. Bytes that are no UTF-8 become U+FFFD.
    """

    at: str
    stream: str
    text: str


@dataclass(frozen=True)
class Stats:
    """What a container uses now: `cpu` in cores (1.0 is one core busy), memory in MiB without the page cache."""

    cpu: float
    memory_mib: int
    memory_limit_mib: int
    processes: int


@dataclass(frozen=True)
class Nudge:
    """Something changed; look at the sightings. A nudge is never the news itself: nudges may be lost or doubled."""

    kind: str
    container_id: str


@dataclass(frozen=True)
class Health:
    """`ok` is whether containers can be started now; `problem` says, for a person, why not and what to do.

    `warnings` are sentences about what works but should be better (an old version, live-restore off).
    """

    ok: bool
    version: str | None
    problem: str | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageInfo:
    """An image that is here. `size_bytes` counts what it shares with others, too."""

    names: tuple[str, ...]
    id: str
    size_bytes: int
    created_at: str


class LogStream(Protocol):
    """An iterator of entries that can be closed from another thread, which ends the iteration at once."""

    def __iter__(self) -> Iterator[LogEntry]: ...

    def __next__(self) -> LogEntry: ...

    def close(self) -> None: ...


class EventStream(Protocol):
    """An iterator of nudges that can be closed from another thread, which ends the iteration at once."""

    def __iter__(self) -> Iterator[Nudge]: ...

    def __next__(self) -> Nudge: ...

    def close(self) -> None: ...


class Engine(Protocol):
    """See the module's docstring for what holds for every method."""

    def health(self) -> Health:
        """The engine's state. Never raises."""
        ...

    def create(self, spec: ContainerSpec) -> str:
        """Make the container of `spec`, not yet started; its engine id. A container of this `spec.id` is adopted as it is.

        `ImageNotFound` when the image is not here (nothing is pulled: see `pull`); `EngineRefused` when a mount's
        source, the network or the cards that the spec names do not exist.
        """
        ...

    def start(self, container_id: str) -> None:
        """Start it. Nothing happens to one that runs or has ended (containers are one-shot). Missing: `EngineRefused`."""
        ...

    def stop(self, container_id: str, grace_s: float) -> None:
        """TERM, wait at most `grace_s` seconds, KILL; afterwards it does not run. Missing or ended: nothing happens.

        `EngineBusy` when it still runs some seconds after the KILL (a process in uninterruptible sleep).
        """
        ...

    def remove(self, container_id: str) -> None:
        """Kill it if it runs, and remove it with its anonymous volumes and logs. Missing: nothing happens."""
        ...

    def sightings(self) -> list[Sighting]:
        """Every container of this instance in any state, running or not, in no order."""
        ...

    def logs(self, container_id: str, *, since: str | None = None, follow: bool = False) -> LogStream:
        """What it wrote, oldest first, from `since` (an entry's `at`, inclusive) on.

        Without `follow` it ends with what is there now. With `follow` it ends when the container does.
        Missing: no entry.
        """
        ...

    def stats(self, container_id: str) -> Stats | None:
        """What it uses now; None when it does not run, or the engine cannot measure it."""
        ...

    def exec(self, container_id: str, command: tuple[str, ...], timeout_s: float = 10.0) -> tuple[int, str]:
        """Run `command` inside, under the container's own user: exit code and the last 64 KiB of its output.

        `EngineRefused` when it does not run; `EngineBusy` when the command has not ended in time (it is left running
        inside, and ends with the container).
        """
        ...

    def events(self) -> EventStream:
        """Wakes, with no promise of completeness, whenever a container of this instance starts, ends or goes.

        Ends (with `EngineBusy`, or quietly when closed) when the engine goes away. Listen first, then look.
        """
        ...

    def address(self, container_id: str) -> str | None:
        """Its IPv4 address as reached from the server; None when it does not run or has no network."""
        ...

    def images(self) -> list[ImageInfo]:
        """Every image that has a name."""
        ...

    def image_exists(self, name: str) -> bool:
        """Whether `create` would find it."""
        ...

    def pull(self, name: str, progress: Callable[[str], None] = lambda _: None) -> None:
        """Get the image from its registry; afterwards it exists. One that is here is left as it is.

        `progress` is called with sentences for a person, at most about twice a second. `ImageNotFound` when the
        registry does not have it, wants a login, or cannot be reached; the sentence says which and what to do.
        """
        ...

    def ensure_network(self, name: str) -> str:
        """The network `name` exists, apart from all others, with a way out to the internet; its subnet.

        Also asserts the rules that keep containers from the host's own services, from each other's networks and from
        the metadata address. `EngineBusy` when every subnet of the pool is taken.
        """
        ...

    def remove_network(self, name: str) -> None:
        """The network is gone, if no container is left on it (else `EngineBusy`). Missing: nothing happens."""
        ...

    def networks(self) -> list[str]:
        """The names of this instance's networks."""
        ...

    def assert_isolation(self) -> bool:
        """The rules that `ensure_network` asserts stand; False when they had to be put back.

        To be called every now and then, since a firewall that is loaded again flushes them.
        """
        ...
