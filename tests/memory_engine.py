"""An engine without Docker, for tests; believed only because it passes the same facts (test_runtime_conformance.py).

A `World` is the machine: it outlives the `MemoryEngine` objects that look at it, as Docker outlives the daemon. The
programs are a few words of sh, run by a thread each: statements parted by `;` of `echo TEXT [>&2]`, `sleep S`,
`exit N`, `trap '' TERM`, `tail /dev/zero` (uses up its memory) and `seq N` (N lines). Tests may also steer: `finish`,
`say`, `lose`, `break_down`.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from appliance import clock
from appliance.errors import EngineBusy, EngineRefused, ImageNotFound
from appliance.records import ContainerSpec, Sighting
from appliance.runtime.engine import Health, ImageInfo, LogEntry, Nudge, Stats
from appliance.states import Seen


@dataclass
class _Box:
    """One container of the world."""

    spec: ContainerSpec
    instance: str
    sighting: Sighting
    lines: list[LogEntry] = field(default_factory=list)
    told: threading.Event = field(default_factory=threading.Event)
    deaf: bool = False
    gone: bool = False


class World:
    """The machine. `images` are those that are here, `pullable` those that the registry has."""

    def __init__(self, *images: str) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.boxes: dict[tuple[str, str], _Box] = {}
        self.images: set[str] = set(images)
        self.pullable: set[str] = set()
        self.networks: dict[tuple[str, str], str] = {}
        self.nudges: list[tuple[str, Nudge]] = []
        self.broken = False
        self.breaks = 0
        self.created = 0
        self._last_ns = 0

    def stamp_ns(self) -> str:
        """Engine time: nine digits, never twice the same."""
        self._last_ns = max(self._last_ns + 1, time.time_ns())
        seconds, rest = divmod(self._last_ns, 10**9)
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"

    def break_down(self, broken: bool = True) -> None:
        """The engine does not answer (or does again); what runs goes on, every stream ends."""
        with self.changed:
            self.breaks += broken
            self.broken = broken
            self.changed.notify_all()

    def say(self, container_id: str, text: str, stream: str = "stdout") -> None:
        """The container writes a line."""
        with self.changed:
            for box in self._boxes(container_id):
                box.lines.append(LogEntry(self.stamp_ns(), stream, text))
            self.changed.notify_all()

    def finish(self, container_id: str, exit_code: int = 0, *, out_of_memory: bool = False) -> None:
        """The container ends now."""
        with self.changed:
            for box in self._boxes(container_id):
                self.end(box, exit_code, out_of_memory=out_of_memory)

    def lose(self, container_id: str) -> None:
        """Somebody removes it by hand."""
        with self.changed:
            for box in self._boxes(container_id):
                self.end(box, 137)
                box.gone = True
                self.boxes = {key: it for key, it in self.boxes.items() if it is not box}
                self.nudge(box, "destroy")

    def end(self, box: _Box, exit_code: int, *, out_of_memory: bool = False) -> None:
        if box.sighting.seen is Seen.RUNNING:
            now = clock.stamp()
            box.sighting = replace(
                box.sighting, seen=Seen.EXITED, exit_code=exit_code, out_of_memory=out_of_memory, finished_at=now
            )
            self.nudge(box, "die")
        box.told.set()

    def nudge(self, box: _Box, kind: str) -> None:
        self.nudges.append((box.instance, Nudge(kind, box.spec.id)))
        self.changed.notify_all()

    def _boxes(self, container_id: str) -> list[_Box]:
        return [box for box in self.boxes.values() if box.spec.id == container_id]


class _Stream:
    def __init__(self, items: Iterator[LogEntry] | Iterator[Nudge], closed: threading.Event, world: World) -> None:
        self._items = items
        self._closed = closed
        self._world = world

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._items)

    def close(self) -> None:
        self._closed.set()
        with self._world.changed:
            self._world.changed.notify_all()


class MemoryEngine:
    """See appliance.runtime.engine.Engine."""

    def __init__(self, instance: str = "memory", world: World | None = None) -> None:
        self.instance = instance
        self.world = world or World("appliance-test/busybox:latest")

    def health(self) -> Health:
        if self.world.broken:
            return Health(ok=False, version=None, problem="The memory engine was broken by a test.")
        return Health(ok=True, version="memory", problem=None)

    def create(self, spec: ContainerSpec) -> str:
        with self._world() as world:
            if box := world.boxes.get((self.instance, spec.id)):
                return box.sighting.engine_id
            if not self.image_exists(spec.image):
                raise ImageNotFound(f"The image {spec.image!r} is neither here nor in a registry; check its name.")
            if spec.network and (self.instance, spec.network) not in world.networks:
                raise EngineRefused(f"There is no network {spec.network!r}; it must be made before the container.")
            world.created += 1
            engine_id = f"{world.created:064x}"
            seen = Sighting(spec.id, engine_id, spec.lease_id, Seen.CREATED, None, False, None, None, None)
            box = world.boxes[self.instance, spec.id] = _Box(spec, self.instance, seen)
            world.nudge(box, "create")
            return engine_id

    def start(self, container_id: str) -> None:
        with self._world() as world:
            box = self._require(container_id)
            if box.sighting.seen is not Seen.CREATED:
                return
            box.sighting = replace(box.sighting, seen=Seen.RUNNING, started_at=clock.stamp())
            world.nudge(box, "start")
            threading.Thread(target=self._program, args=(box,), daemon=True).start()

    def stop(self, container_id: str, grace_s: float) -> None:
        with self._world() as world:
            box = world.boxes.get((self.instance, container_id))
            if box is None or box.sighting.seen is not Seen.RUNNING:
                return
            if box.deaf:
                world.changed.wait_for(lambda: box.sighting.seen is not Seen.RUNNING, grace_s)
                world.end(box, 137)
            world.end(box, 143)

    def remove(self, container_id: str) -> None:
        with self._world() as world:
            if (self.instance, container_id) in world.boxes:
                box = world.boxes[self.instance, container_id]
                world.end(box, 137)
                box.gone = True
                del world.boxes[self.instance, container_id]
                world.nudge(box, "destroy")

    def sightings(self) -> list[Sighting]:
        with self._world() as world:
            return [box.sighting for (instance, _), box in world.boxes.items() if instance == self.instance]

    def logs(self, container_id: str, *, since: str | None = None, follow: bool = False) -> _Stream:
        with self._world() as world:
            closed = threading.Event()
            box = world.boxes.get((self.instance, container_id))
            return _Stream(self._lines(box, since or "", follow, closed, world.breaks), closed, world)

    def stats(self, container_id: str) -> Stats | None:
        with self._world() as world:
            box = world.boxes.get((self.instance, container_id))
            if box is None or box.sighting.seen is not Seen.RUNNING:
                return None
            return Stats(cpu=0.0, memory_mib=1, memory_limit_mib=box.spec.memory_mib, processes=1)

    def exec(self, container_id: str, command: tuple[str, ...], timeout_s: float = 10.0) -> tuple[int, str]:
        with self._world():
            if self._require(container_id).sighting.seen is not Seen.RUNNING:
                raise EngineRefused("The container is not running, so no command runs in it.")
        words = list(command)
        if words[:1] == ["sleep"] and float(words[1]) > timeout_s:
            raise EngineBusy(f"The command in the container did not end within {timeout_s:g} s.")
        script = words[2] if words[:2] == ["sh", "-c"] else shlex.join(words)
        output, code = "", 0
        for statement in map(str.strip, script.split(";")):
            match statement.split(maxsplit=1):
                case ["echo", text]:
                    output += text.removesuffix(" >&2") + "\n"
                case ["exit", number]:
                    code = int(number)
        return code, output

    def events(self) -> _Stream:
        with self._world() as world:
            closed = threading.Event()
            return _Stream(self._nudges(len(world.nudges), closed, world.breaks), closed, world)

    def address(self, container_id: str) -> str | None:
        with self._world() as world:
            box = world.boxes.get((self.instance, container_id))
            if box is None or box.sighting.seen is not Seen.RUNNING or box.spec.network is None:
                return None
            subnet = world.networks[self.instance, box.spec.network]
            return subnet.replace(".0/28", ".2")

    def images(self) -> list[ImageInfo]:
        with self._world() as world:
            return [ImageInfo((name,), f"sha256:{name}", 1, clock.stamp()) for name in sorted(world.images)]

    def image_exists(self, name: str) -> bool:
        with self._world() as world:
            return name in world.images or f"{name}:latest" in world.images

    def pull(self, name: str, progress: Callable[[str], None] = lambda _: None) -> None:
        if self.image_exists(name):
            return
        with self._world() as world:
            if name not in world.pullable:
                raise ImageNotFound(f"The image {name!r} is neither here nor in a registry; check its name.")
            world.images.add(name)
            progress(f"Pulled {name}")

    def ensure_network(self, name: str) -> str:
        with self._world() as world:
            return world.networks.setdefault((self.instance, name), f"10.213.{len(world.networks)}.0/28")

    def remove_network(self, name: str) -> None:
        with self._world() as world:
            used = {box.spec.network for (instance, _), box in world.boxes.items() if instance == self.instance}
            if (self.instance, name) in world.networks and name in used:
                raise EngineBusy(f"The network {name!r} still has containers on it.")
            world.networks.pop((self.instance, name), None)

    def networks(self) -> list[str]:
        with self._world() as world:
            return sorted(name for instance, name in world.networks if instance == self.instance)

    def assert_isolation(self) -> bool:
        return True

    def close(self) -> None:
        pass

    # -- inside --------------------------------------------------------------------------------------------------------

    def _world(self) -> _Turn:
        return _Turn(self.world)

    def _require(self, container_id: str) -> _Box:
        box = self.world.boxes.get((self.instance, container_id))
        if box is None:
            raise EngineRefused(f"There is no container {container_id} on the engine; it must be created first.")
        return box

    def _program(self, box: _Box) -> None:
        command = (*(box.spec.entrypoint or ()), *(box.spec.command or ())) or ("sleep", "600")
        script = command[2] if command[:2] == ("sh", "-c") else shlex.join(command)
        code, hungry = 0, False
        for statement in map(str.strip, script.split(";")):
            if box.told.is_set():
                return
            match shlex.split(statement):
                case ["echo", *words]:
                    stream = "stderr" if words[-1:] == [">&2"] else "stdout"
                    self._say(box, " ".join(word for word in words if word != ">&2"), stream)
                case ["seq", count]:
                    for number in range(1, int(count) + 1):
                        self._say(box, str(number), "stdout")
                case ["trap", "", "TERM"]:
                    box.deaf = True
                case ["sleep", seconds]:
                    box.told.wait(float(seconds))
                case ["tail", "/dev/zero"]:
                    code, hungry = 137, True
                case ["exit", number]:
                    code = int(number)
                    break
                case ["no-such-program"]:
                    self._say(box, "exec no-such-program failed: No such file or directory", "stderr")
                    code = 127
        with self.world.changed:
            self.world.end(box, code, out_of_memory=hungry)

    def _say(self, box: _Box, text: str, stream: str) -> None:
        with self.world.changed:
            if box.sighting.seen is Seen.RUNNING:
                box.lines.append(LogEntry(self.world.stamp_ns(), stream, text))
                self.world.changed.notify_all()

    def _lines(
        self, box: _Box | None, since: str, follow: bool, closed: threading.Event, breaks: int
    ) -> Iterator[LogEntry]:
        world, at = self.world, 0
        while box is not None and not closed.is_set():
            with world.changed:
                if world.breaks != breaks:
                    raise EngineBusy("The memory engine was broken by a test.")
                ready, ended = box.lines[at:], box.sighting.seen is Seen.EXITED or box.gone
                if not ready and not (follow and not ended):
                    return
                if not ready:
                    world.changed.wait(10)
            at += len(ready)
            yield from (line for line in ready if line.at >= since)

    def _nudges(self, at: int, closed: threading.Event, breaks: int) -> Iterator[Nudge]:
        world = self.world
        while not closed.is_set():
            with world.changed:
                if world.breaks != breaks:
                    raise EngineBusy("The memory engine was broken by a test.")
                ready = world.nudges[at:]
                if not ready:
                    world.changed.wait(10)
            at += len(ready)
            yield from (nudge for instance, nudge in ready if instance == self.instance)


class _Turn:
    """The world, one caller at a time, if it answers at all."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self) -> World:
        self._world.changed.acquire()
        if self._world.broken:
            self._world.changed.release()
            raise EngineBusy("The memory engine was broken by a test.")
        return self._world

    def __exit__(self, *_: object) -> None:
        self._world.changed.release()
