"""The Docker engine behind the protocol of engine.py.

What this keeps true: everything of ours carries the labels `appliance.id` and `appliance.instance`, and nothing without
both is ever listed or touched. A container's name is only Docker's guard that two creates of one id cannot both succeed.
RestartPolicy is always "no": the reconciler restarts, so nothing runs after a reboot before its lease is known again.
Every call has a time limit, and whatever Docker or its client raises leaves here as EngineBusy, EngineRefused or
ImageNotFound. Engine API 1.41 (Docker 20.10) and newer, cgroup v1 and v2.

The arguments of a container are made in arguments.py alone; what never ends by itself is read in stream.py.

Why docker-py's low level: it negotiates the API's version and reads registry logins, and takes the arguments as the
plain JSON that the API documents, so that one pure function can be the only author of them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
import resource
import socket as sockets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests

from appliance import clock
from appliance.errors import ApplianceError, EngineBusy, EngineRefused, ImageNotFound, NotFound
from appliance.records import ContainerSpec, Mount, Sighting
from appliance.runtime import networks
from appliance.runtime.answers import (
    EngineConflict,
    checked_image,
    follow_pull,
    image_not_found,
    moment,
    refusal,
    sighting_of,
    stamp_of,
    warnings,
    with_tag,
)
from appliance.runtime.arguments import LABEL, OPEN_FILES, create_arguments
from appliance.runtime.engine import EventStream, Health, ImageInfo, LogStream, Stats
from appliance.runtime.kernel import blames_memory
from appliance.runtime.stream import DockerEvents, DockerLogs, Stream, frames
from appliance.states import Seen

_KNOCK_S = 5.0
_CALL_S = 20
_SLOW_S = 120  # making, starting and removing touch the disk and may wait for it
_PULL_SILENCE_S = 600  # unpacking a large layer says nothing for minutes
_KILLED = 128 + 9
_OOM_NEWS_S = 0.3
_ADOPT_S = 1.0
_INIT_S = 0.5
_EXEC_OUTPUT = 64 * 1024


class DockerEngine:
    """The containers, networks and images of one instance of the appliance on the Docker engine behind `socket`.

    `serving_seccomp` is the profile of serving containers (JSON); without it they are refused. `environment` and
    `mounts` are what every workload inherits from this machine (see inherit.inherited_env). Making one connects to
    nothing.
    """

    def __init__(
        self,
        instance: str,
        pool: str = "10.213.0.0/16",
        socket: Path = Path("/var/run/docker.sock"),
        *,
        serving_seccomp: Path | None = None,
        environment: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
    ) -> None:
        self.instance = instance
        self._pool = ipaddress.IPv4Network(pool)
        self._isolation = networks.Isolation(self._pool)
        self._path = str(socket)
        self._serving_seccomp = serving_seccomp
        self._environment = dict(environment or {})
        self._mounts = tuple(mounts)
        self._lock = threading.Lock()
        self._network_lock = threading.Lock()
        self._clients: dict[float, Any] = {}
        self._settled: dict[tuple[str, str], Sighting] = {}
        self._cpu: dict[str, tuple[float, float]] = {}
        self._killed: set[str] = set()
        self._pause = threading.Event()

    # -- the engine itself ---------------------------------------------------------------------------------------------

    def health(self) -> Health:
        try:
            with self._translated("tell its version"):
                info = self._api().info()
        except ApplianceError as problem:
            return Health(ok=False, version=None, problem=problem.message)
        version = str(info.get("ServerVersion", ""))
        return Health(ok=True, version=version, problem=None, warnings=tuple(warnings(info, version)))

    def close(self) -> None:
        """Give the connections back. The engine may be used again afterwards."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    # -- containers ----------------------------------------------------------------------------------------------------

    def create(self, spec: ContainerSpec) -> str:
        checked_image(spec.image)
        if (found := self._find(spec.id)) is not None:
            return found
        network_id = self._network_of(spec)
        arguments = create_arguments(
            spec,
            self.instance,
            network_id=network_id,
            seccomp=self._seccomp_of(spec),
            environment=self._environment,
            mounts=self._mounts,
            # runc cannot raise the limit above its own; the engine's is taken to be no lower than ours.
            open_files=min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        )
        name = f"appliance-{self.instance[:12]}-{spec.id}"
        try:
            with self._translated(f"create the container of {spec.image!r}", image=spec.image):
                return str(self._api(_SLOW_S).create_container_from_config(arguments, name)["Id"])
        except EngineConflict:
            return self._adopt(spec.id, name)

    def start(self, container_id: str) -> None:
        with self._translated("start the container"):
            engine_id = self._require(container_id)
            state = self._api().inspect_container(engine_id)["State"]
            if state["Status"] == "created":
                self._api(_SLOW_S).start(engine_id)

    def stop(self, container_id: str, grace_s: float) -> None:
        if (engine_id := self._find(container_id)) is None:
            return
        self._killed.add(engine_id)
        with self._translated("stop the container", missing_is_fine=True):
            self._let_init_listen(self._api().inspect_container(engine_id)["State"])
            self._api().stop(engine_id, timeout=math.ceil(grace_s))

    def remove(self, container_id: str) -> None:
        if (engine_id := self._find(container_id)) is None:
            return
        with (
            contextlib.suppress(EngineConflict),  # somebody else is removing it
            self._translated("remove the container", missing_is_fine=True),
        ):
            self._api(_SLOW_S).remove_container(engine_id, v=True, force=True)
        self._cpu.pop(container_id, None)
        self._killed.discard(engine_id)

    def sightings(self) -> list[Sighting]:
        with self._translated("list its containers"):
            rows = self._api().containers(all=True, filters={"label": self._labels("id")})
        found = {}
        for row in rows:
            key = (row["Id"], row["State"])
            sighting = self._settled.get(key) or self._look(row["Id"])
            if sighting is not None:
                found[key] = sighting
        # One-shot: what runs began once and what ended ended once, so neither needs to be looked at again.
        self._settled = {key: it for key, it in found.items() if it.seen in (Seen.RUNNING, Seen.EXITED)}
        return list(found.values())

    def logs(self, container_id: str, *, since: str | None = None, follow: bool = False) -> LogStream:
        engine_id = self._find(container_id) or "missing"
        return DockerLogs(self._path, self._version(), engine_id, since, follow)

    def stats(self, container_id: str) -> Stats | None:
        if (engine_id := self._find(container_id)) is None:
            return None
        with self._translated("tell what the container uses", missing_is_fine=True):
            sample = self._api().stats(engine_id, stream=False, one_shot=True)
            return self._stats_of(container_id, sample)
        return None

    def exec(self, container_id: str, command: tuple[str, ...], timeout_s: float = 10.0) -> tuple[int, str]:
        with self._translated("run a command in the container"):
            engine_id = self._require(container_id)
            task = self._api().exec_create(engine_id, list(command))["Id"]
        output = self._output_of(task, timeout_s)
        with self._translated("run a command in the container"):
            code = self._api().exec_inspect(task)["ExitCode"]
        return (-1 if code is None else int(code)), output

    def events(self) -> EventStream:
        return DockerEvents(self._path, self._version(), self.instance)

    def address(self, container_id: str) -> str | None:
        if (engine_id := self._find(container_id)) is None:
            return None
        with self._translated("tell the container's address", missing_is_fine=True):
            networks_of = self._api().inspect_container(engine_id)["NetworkSettings"]["Networks"]
            return next((str(net["IPAddress"]) for net in networks_of.values() if net["IPAddress"]), None)
        return None

    # -- images --------------------------------------------------------------------------------------------------------

    def images(self) -> list[ImageInfo]:
        with self._translated("list its images"):
            rows = self._api().images()
        return [
            ImageInfo(
                names=tuple(name for name in row["RepoTags"] or () if name != "<none>:<none>"),
                id=row["Id"],
                size_bytes=row["Size"],
                created_at=clock.stamp(moment(row["Created"])),
            )
            for row in rows
            if set(row["RepoTags"] or ()) - {"<none>:<none>"}
        ]

    def image_exists(self, name: str) -> bool:
        try:
            checked_image(name)
            with self._translated("look at an image", image=name):
                self._api().inspect_image(name)
        except ImageNotFound:
            return False
        return True

    def pull(self, name: str, progress: Callable[[str], None] = lambda _: None) -> None:
        checked_image(name)
        if self.image_exists(name):
            return
        with self._translated(f"pull {name!r}", image=name, pulling=True):
            client = self._connect(_PULL_SILENCE_S)
            try:
                follow_pull(name, client.pull(with_tag(name), stream=True, decode=True), progress)
            finally:
                client.close()

    # -- networks ------------------------------------------------------------------------------------------------------

    def ensure_network(self, name: str) -> str:
        with self._network_lock:
            self._isolation.hold()
            if (found := self._find_network(name)) is not None:
                return str(found["IPAM"]["Config"][0]["Subnet"])
            return self._make_network(name)

    def remove_network(self, name: str) -> None:
        with self._network_lock:
            if (found := self._find_network(name)) is None:
                return
            try:
                with self._translated("remove a network", missing_is_fine=True):
                    self._api().remove_network(found["Id"])
            except (EngineRefused, EngineConflict) as cause:
                raise EngineBusy(f"The network {name!r} still has containers on it: {cause}") from cause

    def networks(self) -> list[str]:
        with self._translated("list its networks"):
            rows = self._api().networks(filters={"label": self._labels("network")})
        return sorted(row["Labels"][f"{LABEL}.network"] for row in rows)

    def assert_isolation(self) -> bool:
        return self._isolation.hold()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _api(self, timeout_s: float = _CALL_S) -> Any:
        """A client whose every call ends within `timeout_s`; made when it is first needed, so a dead engine is no obstacle."""
        self._knock()
        with self._lock:
            if timeout_s not in self._clients:
                self._clients[timeout_s] = self._connect(timeout_s)
            return self._clients[timeout_s]

    def _knock(self) -> None:
        """OSError where nobody listens. Asked first, because docker-py 7.2 leaves a socket open each time it finds out
        by itself, and an engine that is away is asked for a long time."""
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as door:
            door.settimeout(_KNOCK_S)
            door.connect(self._path)

    def _connect(self, timeout_s: float) -> Any:
        self._knock()
        return docker.APIClient(base_url=f"unix://{self._path}", version="auto", timeout=timeout_s)

    def _version(self) -> str:
        with self._translated("tell its version"):
            return str(self._api().api_version)

    def _labels(self, key: str, value: str | None = None) -> list[str]:
        wanted = f"{LABEL}.{key}" if value is None else f"{LABEL}.{key}={value}"
        return [f"{LABEL}.instance={self.instance}", wanted]

    def _find(self, container_id: str) -> str | None:
        with self._translated("find a container"):
            rows = self._api().containers(all=True, filters={"label": self._labels("id", container_id)})
        return str(rows[0]["Id"]) if rows else None

    def _require(self, container_id: str) -> str:
        if (engine_id := self._find(container_id)) is None:
            raise EngineRefused(f"There is no container {container_id} on the engine; it must be created first.")
        return engine_id

    def _let_init_listen(self, state: Mapping[str, Any]) -> None:
        """A TERM that comes before the container's init listens is lost, and then the whole grace would pass."""
        started = stamp_of(state["StartedAt"])
        if state["Running"] and started is not None:
            age = (clock.now() - clock.parse(started)).total_seconds()
            if 0 <= age < _INIT_S:
                self._pause.wait(_INIT_S - age)

    def _adopt(self, container_id: str, name: str) -> str:
        """The container that took `name` since we looked. Docker gives a name away before it lists the container."""
        patience = clock.monotonic() + _ADOPT_S
        while clock.monotonic() < patience:
            if (found := self._find(container_id)) is not None:
                return found
            self._pause.wait(0.02)
        with self._translated("look at a container", missing_is_fine=True):
            self._api().inspect_container(name)
            raise EngineRefused(f"A container that is not ours has the name {name}; remove or rename it.")
        raise EngineBusy(f"The container {name} is being made or removed by somebody else; it is tried again.")

    def _look(self, engine_id: str) -> Sighting | None:
        """What it shows. A KILL that was not ours is looked into: the kernel knows whether memory ran out, and Docker
        may come to know it a moment later."""
        patience = clock.monotonic() + _OOM_NEWS_S
        while True:
            with self._translated("look at a container", missing_is_fine=True):
                sighting = sighting_of(self._api().inspect_container(engine_id))
                unsure = sighting.exit_code == _KILLED and not sighting.out_of_memory
                if not unsure or engine_id in self._killed or clock.monotonic() > patience:
                    return sighting
                if blames_memory(engine_id):
                    return replace(sighting, out_of_memory=True)
                self._pause.wait(0.05)
                continue
            return None

    def _network_of(self, spec: ContainerSpec) -> str | None:
        if spec.network is None or spec.profile == "serving":
            return None
        if (found := self._find_network(spec.network)) is None:
            raise EngineRefused(f"There is no network {spec.network!r}; it must be made before the container.")
        return str(found["Id"])

    def _seccomp_of(self, spec: ContainerSpec) -> str | None:
        if spec.profile != "serving":
            return None
        if self._serving_seccomp is None:
            raise EngineRefused("Serving containers need their seccomp profile, and this engine was given none.")
        try:
            return json.dumps(json.loads(self._serving_seccomp.read_text()))
        except (OSError, ValueError) as cause:
            raise EngineRefused(f"The seccomp profile {self._serving_seccomp} cannot be read: {cause}.") from cause

    def _find_network(self, name: str) -> dict[str, Any] | None:
        with self._translated("find a network"):
            rows = self._api().networks(filters={"label": self._labels("network", name)})
        return rows[0] if rows else None

    def _make_network(self, name: str) -> str:
        taken = networks.own_routes() + self._subnets()
        while (subnet := networks.choose_subnet(self._pool, taken)) is not None:
            try:
                with self._translated("make a network"):
                    self._api().create_network(
                        f"appliance-{self.instance[:12]}-{name}",
                        driver="bridge",
                        ipam={"Driver": "default", "Config": [{"Subnet": str(subnet)}]},
                        check_duplicate=True,
                        enable_ipv6=False,
                        labels={f"{LABEL}.instance": self.instance, f"{LABEL}.network": name},
                        options={"com.docker.network.bridge.enable_icc": "true"},
                    )
                return str(subnet)
            except EngineRefused as cause:
                # Another process took this subnet since we looked: 20.10 says "overlaps", newer ones "overlap".
                if "overlap" not in cause.message:
                    raise
                taken.append(subnet)
        raise EngineBusy(f"Every network of the pool {self._pool} is in use; finished runs give theirs back.")

    def _subnets(self) -> list[ipaddress.IPv4Network]:
        with self._translated("list its networks"):
            rows = self._api().networks()
        configs = [config for row in rows for config in (row["IPAM"] or {}).get("Config") or ()]
        return [ipaddress.IPv4Network(it["Subnet"]) for it in configs if ":" not in it.get("Subnet", ":")]

    def _stats_of(self, container_id: str, sample: Mapping[str, Any]) -> Stats | None:
        memory = sample.get("memory_stats") or {}
        if "usage" not in memory:
            return None  # it does not run, or containerd found no cgroup to measure
        detail = memory.get("stats") or {}
        cache = detail.get("total_inactive_file", detail.get("inactive_file", 0))  # cgroup v1, v2
        used = sample["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
        moment = clock.monotonic()
        before_used, before = self._cpu.get(container_id, (used, moment - 1.0))
        self._cpu[container_id] = (used, moment)
        return Stats(
            cpu=max(0.0, used - before_used) / max(0.001, moment - before),
            memory_mib=max(0, memory["usage"] - cache) // 2**20,
            memory_limit_mib=memory.get("limit", 0) // 2**20,
            processes=(sample.get("pids_stats") or {}).get("current", 0),
        )

    def _output_of(self, task: str, timeout_s: float) -> str:
        deadline = clock.monotonic() + timeout_s
        body = {"Detach": False, "Tty": False}
        try:
            stream = Stream(
                self._path, f"/v{self._version()}/exec/{task}/start", method="POST", body=body, timeout_s=timeout_s
            )
        except NotFound as gone:
            raise EngineRefused(f"The command cannot be run in the container: {gone.message}") from gone
        kept = b""
        try:
            for _, payload in frames(stream):
                kept = (kept + payload)[-_EXEC_OUTPUT:]
                stream.set_timeout(max(0.001, deadline - clock.monotonic()))
        except TimeoutError as late:
            raise EngineBusy(f"The command in the container did not end within {timeout_s:g} s.") from late
        finally:
            stream.finish()
        return kept.decode(errors="replace")

    @contextlib.contextmanager
    def _translated(
        self,
        doing: str,
        *,
        image: str | None = None,
        pulling: bool = False,
        missing_is_fine: bool = False,
    ) -> Iterator[None]:
        """Whatever Docker or its client raises inside leaves as one of ours."""
        try:
            yield
        except ApplianceError:
            raise
        except docker.errors.NotFound as cause:
            if image is not None and (pulling or "image" in str(cause.explanation).lower()):
                raise image_not_found(image, str(cause.explanation)) from cause
            if not missing_is_fine:
                raise EngineRefused(f"Docker could not {doing}: {cause.explanation}") from cause
        except docker.errors.APIError as cause:
            text = str(cause.explanation or cause)
            raise refusal(doing, cause.status_code or 500, text, image if pulling else None) from cause
        except (requests.RequestException, docker.errors.DockerException, OSError) as cause:
            raise EngineBusy(
                f"The Docker engine at {self._path} could not {doing}: it does not answer. "
                "It is tried again; if it stays so, look at `systemctl status docker`."
            ) from cause
