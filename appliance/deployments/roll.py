"""From what should serve to what serves: replicas started, healthy, given the socket, and only then the old ones drained.

What this keeps true: a deployment's listening socket is made once and kept by the holder; a new spec's replicas get it
when all of them are ready; the old spec's replicas are stopped after that and answer what they have begun; a spec that
cannot start fails with a sentence and leaves the old one serving; a serving replica that ended is replaced.

Order of effects of a roll-out: rows of the new replicas, their containers, readiness, the socket handed over, the row
`serving`, the old rows `draining`, their containers stopped. A crash anywhere leaves two sets of replicas on one socket at
worst, and the next round goes on.

Why: nothing here is in the data path. A client connects to a socket that never closes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from appliance import clock, containers, ids, machine, versions
from appliance.config import Config
from appliance.db import Database, Reader
from appliance.deployments import wishes
from appliance.errors import ApplianceError, Conflict, DurabilityLost, EngineBusy
from appliance.inference import control
from appliance.records import Container, ContainerSpec, Deployment, DeploymentSpec, Mount
from appliance.states import Seen, SpecState, Want
from appliance.store import Store, failpoints

_LOG = logging.getLogger(__name__)
DRAIN_S = 30
START_S = 300
_READY_S, _TROUBLE_S = 0.1, 1.0
_DOOR_S = 3.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _FORGIVEN_S = 10.0, 600.0, 300.0
_INSIDE = "/run/serving"
_NOBODY = 65534


@dataclass
class Roller:
    """Carries out the wishes. Held by one loop; remembers only what may be forgotten."""

    config: Config
    db: Database
    store: Store
    _keys_sent: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _listening: set[str] = field(default_factory=set)
    _problems: dict[str, str] = field(default_factory=dict)
    _handed: dict[str, float] = field(default_factory=dict)
    _patience: dict[str, tuple[int, float, float | None]] = field(default_factory=dict)

    def tick(self) -> float | None:
        """One round over all deployments; the seconds after which something wants another look, if nothing changes before.

        Changes of rows wake the loop; only a process that is getting ready has to be asked.
        """
        with self.db.read() as reader:
            deployments = wishes.all_deployments(reader)
            held = {deployment.id for deployment in deployments}
        restless = troubled = False
        for deployment in deployments:
            try:
                restless |= self._roll(deployment)
            except DurabilityLost:
                raise
            except ApplianceError as error:  # one deployment's trouble (a port that somebody has) is no other's
                self._complain(deployment, error)
                troubled = True
            else:
                self._problems.pop(deployment.id, None)
        self._close_others(held)
        return _READY_S if restless else _TROUBLE_S if troubled else None

    def _complain(self, deployment: Deployment, error: ApplianceError) -> None:
        """Say it once, not at every look."""
        if self._problems.get(deployment.id) != error.message and not isinstance(error, EngineBusy):
            _LOG.warning("the deployment %s cannot go on: %s", deployment.name, error.message)
        self._problems[deployment.id] = error.message

    def _close_others(self, held: set[str]) -> None:
        """Sockets of deployments that are gone are closed: clients are refused at once."""
        holder = control.HolderClient(self.config.holder_socket)
        with contextlib.suppress(ApplianceError):
            for name in set(holder.list()) - held:
                holder.close(name)
                (self.config.replicas_dir / "keys" / name).unlink(missing_ok=True)

    def _roll(self, deployment: Deployment) -> bool:
        with self.db.read() as reader:
            specs = wishes.open_specs(reader, deployment.id)
            replicas = {spec.id: self._replicas(reader, spec) for spec in specs}
        if not deployment.enabled:
            with contextlib.suppress(ApplianceError):
                control.HolderClient(self.config.holder_socket).close(deployment.id)
        newest = specs[-1] if specs else None
        restless = False
        for spec in specs:
            current = spec is newest and deployment.enabled
            mine = replicas[spec.id]
            match spec.state:
                case SpecState.PENDING if current:
                    self._begin(deployment, spec, mine)
                case SpecState.PENDING:
                    self._move(spec, SpecState.RETIRED)
                case SpecState.STARTING if current:
                    self._try(deployment, spec, mine)
                    restless |= any(one.seen is Seen.RUNNING for one in mine)
                case SpecState.STARTING:
                    self._drain(spec, mine)
                case SpecState.SERVING | SpecState.ASLEEP if current:
                    restless |= self._keep(deployment, spec, mine)
                case SpecState.SERVING | SpecState.ASLEEP if not deployment.enabled or self._is_replaced(
                    deployment, spec
                ):
                    self._drain(spec, mine)
                case SpecState.SERVING | SpecState.ASLEEP:
                    restless |= self._keep(deployment, spec, mine)
                case SpecState.DRAINING:
                    if all(one.seen in (Seen.EXITED, Seen.REMOVED) for one in mine):
                        self._move(spec, SpecState.RETIRED)
                case _:
                    pass
        return restless

    def _replicas(self, reader: Reader, spec: DeploymentSpec) -> list[Container]:
        """What a look needs: of a spec that serves, only what may still be there (the dead of months may be many)."""
        if spec.state in (SpecState.SERVING, SpecState.ASLEEP):
            return containers.list_kept(reader, spec.id)
        return containers.list_of(reader, spec.id)

    # -- starting ------------------------------------------------------------------------------------------------------

    def _begin(self, deployment: Deployment, spec: DeploymentSpec, replicas: list[Container]) -> None:
        """The spec's replicas are wanted; those that were before a crash already count."""
        for _ in range(spec.replicas - len(replicas)):
            self._add_replica(deployment, spec)
        failpoints.hit("replica.wanted")
        self._move(spec, SpecState.STARTING)

    def _add_replica(self, deployment: Deployment, spec: DeploymentSpec) -> None:
        with self.db.read() as reader:
            version = versions.find_by_id(reader, spec.model_version_id)
            if version is None or version.root is None:
                return
        view = self.store.mount_of(version.root)
        replica_id = ids.new_id("re", 16)
        folder = self.config.replicas_dir / replica_id
        with self.db.write() as tx:
            kind = machine.resolve_type(tx, spec.config.get("machineType"))
            made = ContainerSpec(
                id=replica_id,
                kind="replica",
                profile="serving",
                image=self.config.serving_image,
                command=("--control", f"{_INSIDE}/control.sock", "--config", f"{_INSIDE}/config.json"),
                entrypoint=None,
                env={},
                mounts=(Mount(str(view), "/model", read_only=True), Mount(str(folder), _INSIDE, read_only=False)),
                cpus=kind.cpus,
                memory_mib=kind.memory_mib,
                labels={"appliance.deployment": deployment.id},
            )
            containers.add(
                tx,
                made,
                owner_id=spec.id,
                project_id=deployment.project_id,
                machine_type=kind.name,
                grace_s=DRAIN_S + 5.0,
            )

    def _try(self, deployment: Deployment, spec: DeploymentSpec, replicas: list[Container]) -> None:
        """Hand the socket over when every replica is ready; fail the spec when one cannot be."""
        failure = self._failure(deployment.id, replicas)
        if failure is not None:
            with self.db.write() as tx:
                if wishes.move_spec(tx, spec, SpecState.FAILED, error=failure):
                    for replica in replicas:
                        containers.want_gone(tx, replica.id)
            return
        if len(replicas) < spec.replicas or not all(self._is_ready(replica) for replica in replicas):
            return
        for replica in replicas:
            self._hand_over(deployment, replica)
        failpoints.hit("socket.handed")
        since = self._handed.setdefault(spec.id, clock.monotonic())
        if not self._is_known_by_name(deployment) and clock.monotonic() - since < _DOOR_S:
            return
        self._handed.pop(spec.id, None)
        self._move(spec, SpecState.SERVING)

    def _is_known_by_name(self, deployment: Deployment) -> bool:
        """Whether the gateway has its route: a new one is told to nginx within a second, and "serving" waits for that.

        Where nobody is at the door there is nothing to wait for.
        """
        line = http.client.HTTPConnection("127.0.0.1", self.config.http_port, timeout=1)
        try:
            line.request("GET", f"/serving/{deployment.id}/v2/health/ready")
            return line.getresponse().status != http.HTTPStatus.NOT_FOUND
        except (OSError, http.client.HTTPException):
            return True
        finally:
            line.close()

    def _failure(self, deployment_id: str, replicas: list[Container]) -> str | None:
        """The sentence that says why the replicas will never be ready, or None."""
        for replica in replicas:
            if replica.seen in (Seen.EXITED, Seen.REMOVED):
                if replica.error:
                    return replica.error
                if replica.out_of_memory:
                    limit = replica.spec.memory_mib
                    return f"The model ran out of memory at {limit} MiB; choose a larger machine type."
                return f"The serving process ended with code {replica.exit_code} before it was ready; its log says why."
            if replica.seen is not Seen.RUNNING:
                continue
            with contextlib.suppress(EngineBusy):
                status = control.status(self._socket(replica))
                if status.state == "failed":
                    return status.error or "The model could not be loaded."
            started = clock.parse(replica.started_at or clock.stamp())
            if clock.now() - started > timedelta(seconds=START_S):
                why = self._problems.get(deployment_id, "its log may say why")
                return f"The deployment was not ready within {START_S} seconds: {why}"
        return None

    def _is_ready(self, replica: Container) -> bool:
        if replica.seen is not Seen.RUNNING:
            return False
        try:
            return control.status(self._socket(replica)).state in ("ready", "serving")
        except EngineBusy:
            return False

    def _hand_over(self, deployment: Deployment, replica: Container) -> None:
        """The replica accepts on the deployment's socket, and knows its keys."""
        self._send_keys(deployment, replica)
        sock = self._listener(deployment)
        try:
            control.listen(self._socket(replica), sock)
        finally:
            sock.close()
        self._listening.add(replica.id)

    def _listener(self, deployment: Deployment) -> socket.socket:
        """The deployment's listening socket, from the holder. One that never served takes another port for a busy one;
        one whose port its clients know waits for it.
        """
        holder = control.HolderClient(self.config.holder_socket)
        try:
            return holder.open(deployment.id, self.config.deployment_address, deployment.port)[0]
        except Conflict as error:
            with self.db.write() as tx:
                if not wishes.take_another_port(tx, deployment.id):
                    raise
            raise EngineBusy(f"{error.message} Another port is taken.") from error

    # -- serving -------------------------------------------------------------------------------------------------------

    def _is_replaced(self, deployment: Deployment, spec: DeploymentSpec) -> bool:
        """Whether a newer spec serves, so that this one may go."""
        return deployment.serving is not None and deployment.serving.number > spec.number

    def _keep(self, deployment: Deployment, spec: DeploymentSpec, replicas: list[Container]) -> bool:
        """As many replicas as wanted accept on the socket, with today's keys; True while one is missing."""
        alive = [one for one in replicas if one.want is Want.RUNNING and one.seen not in (Seen.EXITED, Seen.REMOVED)]
        dead = [one for one in replicas if one.want is Want.RUNNING and one.seen in (Seen.EXITED, Seen.REMOVED)]
        if dead:
            with self.db.write() as tx:
                for replica in dead:
                    containers.want_gone(tx, replica.id)
        if len(alive) < spec.replicas and self._may_replace(spec):
            self._add_replica(deployment, spec)
        elif len(alive) >= spec.replicas:
            self._is_whole(spec)
        for replica in alive:
            if replica.seen is not Seen.RUNNING:
                continue
            if replica.id not in self._listening and self._is_ready(replica):
                self._hand_over(deployment, replica)
            elif replica.id in self._listening:
                self._send_keys(deployment, replica)
        return any(one.seen is Seen.RUNNING and one.id not in self._listening for one in alive)

    def _may_replace(self, spec: DeploymentSpec) -> bool:
        """A first replacement at once; a replica that keeps ending is replaced after 10 s, 20 s, … 10 min."""
        times, next_at, _ = self._patience.get(spec.id, (0, 0.0, None))
        if clock.monotonic() < next_at:
            return False
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**times)
        self._patience[spec.id] = (times + 1, clock.monotonic() + pause_s, None)
        return True

    def _is_whole(self, spec: DeploymentSpec) -> None:
        """All replicas are there; after five minutes of that, earlier endings are forgotten."""
        if spec.id not in self._patience:
            return
        times, next_at, since = self._patience[spec.id]
        since = clock.monotonic() if since is None else since
        self._patience[spec.id] = (times, next_at, since)
        if clock.monotonic() - since > _FORGIVEN_S:
            del self._patience[spec.id]

    def _drain(self, spec: DeploymentSpec, replicas: list[Container]) -> None:
        """The replicas are stopped in good order (TERM lets them answer what they have begun)."""
        with self.db.write() as tx:
            if wishes.move_spec(tx, spec, SpecState.DRAINING):
                for replica in replicas:
                    containers.want_gone(tx, replica.id)
        failpoints.hit("spec.draining")

    def _move(self, spec: DeploymentSpec, to: SpecState) -> None:
        with self.db.write() as tx:
            wishes.move_spec(tx, spec, to)
        failpoints.hit(f"spec.{to}")

    # -- what a replica needs ------------------------------------------------------------------------------------------

    def prepare(self, container: Container) -> None:
        """The replica's folder holds its configuration. Called before its container is created, as often as needed."""
        with self.db.read() as reader:
            row = reader.one("SELECT deployment_id, config FROM deployment_specs WHERE id = ?", container.owner_id)
            if row is None:
                return
            config = json.loads(row["config"])
            keys = self._keys(reader, row["deployment_id"])
        folder = self.config.replicas_dir / container.id
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {
                "deployment": row["deployment_id"],
                "model": config["modelName"],
                "version": str(config["modelVersion"]),
                "path": "/model",
                "keys": list(keys),
                "threads": config["threads"],
                "drain_s": DRAIN_S,
            }
        )
        (folder / "config.json").write_text(text)
        os.chmod(folder, 0o700)  # noqa: PTH101 - beside chown, which pathlib lacks for ids
        for path in (folder, folder / "config.json"):
            os.chown(path, _NOBODY, _NOBODY)

    def tidy(self, container_id: str) -> None:
        """The replica is gone, and so is its folder."""
        shutil.rmtree(self.config.replicas_dir / container_id, ignore_errors=True)
        self._keys_sent.pop(container_id, None)
        self._listening.discard(container_id)

    def statuses(self, replicas: list[Container]) -> Mapping[str, control.ServingStatus]:
        """What each running replica says of itself; one that does not answer is left out."""
        found = {}
        for replica in replicas:
            if replica.seen is Seen.RUNNING:
                with contextlib.suppress(ApplianceError):
                    found[replica.id] = control.status(self._socket(replica))
        return found

    def _socket(self, replica: Container) -> Path:
        return self.config.replicas_dir / replica.id / "control.sock"

    def _send_keys(self, deployment: Deployment, replica: Container) -> None:
        with self.db.read() as reader:
            keys = self._keys(reader, deployment.id)
        if self._keys_sent.get(replica.id) != keys:
            control.configure(self._socket(replica), keys)
            self._keys_sent[replica.id] = keys

    def _keys(self, reader: Reader, deployment_id: str) -> tuple[str, ...]:
        """The hashes of all keys that open the deployment, the daemon's own included."""
        own = wishes.hash_of(internal_key(self.config, deployment_id))
        return tuple(sorted([own, *wishes.key_hashes(reader, deployment_id)]))


def internal_key(config: Config, deployment_id: str) -> str:
    """The key by which the daemon itself asks the deployment (the dashboard's form). Made at need, lost at reboot."""
    path = config.replicas_dir / "keys" / deployment_id
    try:
        return path.read_text()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = f"int_{secrets.token_urlsafe(32)}"
        temporary = path.with_name(f".{deployment_id}.{secrets.token_hex(4)}")
        temporary.touch(mode=0o600)
        temporary.write_text(key)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
        return path.read_text()
