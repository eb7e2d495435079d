"""Carry the plan out: make, stop and remove containers, note what was seen, tell the owners.

What this keeps true: what was seen is written together with what it means for the owner and the lease, in one
transaction; a slow step (a stop with its grace) holds up its own container alone, and a pull at most other pulls; a container whose making is
refused ends with the engine's sentence, one that the engine is too busy for is tried again at the next look.

Why: the decisions are in plan.py; this page only touches the world.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from appliance import clock, containers, deployments, leases, runs
from appliance.db import Database
from appliance.errors import ApplianceError, DurabilityLost, EngineBusy, EngineRefused, ImageNotFound
from appliance.reconcile.plan import Make, Note, Remove, Step, Stop, plan
from appliance.records import Container, Sighting
from appliance.runtime.engine import Engine
from appliance.runtime.gpus import Gpus
from appliance.runtime.watch import LogPump
from appliance.states import LeaseState, Reason, Seen, Want
from appliance.store import failpoints

_LOG = logging.getLogger(__name__)
_WORKERS = 8
_PULLS = 3
_LOG_S = 60.0
_NETWORKS_EVERY_S = 30.0
_ISOLATION_EVERY_S = 10.0


class Reconciler:
    """Held by one loop. Steps that take time run on a few threads, one for a container at a time."""

    def __init__(
        self,
        db: Database,
        engine: Engine,
        shop: runs.Workshop,
        roller: deployments.Roller,
        pump: LogPump,
        gpus: Gpus,
        wake: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._db, self._engine, self._shop, self._roller = db, engine, shop, roller
        self._pump, self._gpus, self._wake, self._fail = pump, gpus, wake, fail
        self._pool = ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="step")
        self._pulls = ThreadPoolExecutor(max_workers=_PULLS, thread_name_prefix="pull")
        self._in_hand: set[str] = set()
        self._lock = threading.Lock()
        self._networks_at = self._isolation_at = 0.0
        self.problem: str | None = None

    def tick(self) -> None:
        """One look: sightings against rows, and every step that is due is done or on its way."""
        try:
            sightings = self._engine.sightings()
            self.problem = None
        except EngineBusy as error:
            self.problem = error.message
            return
        self._pump.attend(sightings)
        with self._db.read() as reader:
            rows = containers.list_open(reader)
            keep = {row.id: until for row in rows if (until := containers.keep_until(reader, row.id)) is not None}
        # The engine keeps a container's log no longer than the container: one that has ended is removed after that.
        lately = clock.stamp(clock.now() - timedelta(seconds=_LOG_S))
        unread = {one.id for one in sightings if self._is_unread(one) and (one.finished_at or "") > lately}
        with self._lock:
            in_hand = set(self._in_hand)
        for step in plan(rows, sightings, keep, clock.stamp(), in_hand=in_hand):
            if not (isinstance(step, Remove) and step.container_id in unread):
                self._take_alone(step)
        self._settle_leases()
        self._hold_isolation()
        self._tidy_networks(rows)

    def _is_unread(self, one: Sighting) -> bool:
        return one.seen is Seen.EXITED and not self._pump.is_complete(one.id)

    def close(self) -> None:
        """No further step is begun; those on their way are waited for."""
        for pool in (self._pulls, self._pool):
            pool.shutdown(wait=True, cancel_futures=True)

    def hand_out(self, key: str, work: Callable[[], None], *, long: bool = False) -> None:
        """Do `work` on a thread of the pool, unless something with that key is on its way.

        What may take many minutes (`long`) has few threads of its own, so that nothing else ever waits behind it.
        """
        with self._lock:
            if key in self._in_hand:
                return
            self._in_hand.add(key)
        try:
            (self._pulls if long else self._pool).submit(self._do, key, work)
        except RuntimeError:
            with self._lock:
                self._in_hand.discard(key)

    def _do(self, key: str, work: Callable[[], None]) -> None:
        try:
            work()
        except EngineBusy as error:
            _LOG.info("%s waits: %s", key, error.message)
        except DurabilityLost as error:
            self._fail(error)
        except Exception:
            _LOG.exception("work on %s failed; it is tried again", key)
        else:
            self._wake()
        finally:
            with self._lock:
                self._in_hand.discard(key)

    def _take_alone(self, step: Step) -> None:
        """One container's trouble holds no other up; the step is due again at the next look."""
        try:
            self._take(step)
        except DurabilityLost:
            raise
        except EngineBusy as error:
            _LOG.info("a step waits: %s", error.message)
        except Exception:
            _LOG.exception("a step failed; it is tried again: %r", step)

    def _take(self, step: Step) -> None:
        match step:
            case Note():
                self._note(step.container, step.seen, step.sighting, step.error)
            case Make():
                container = step.container
                self.hand_out(container.id, lambda: self._make(container), long=self._needs_pull(container))
            case Stop():
                self.hand_out(step.container_id, lambda: self._engine.stop(step.container_id, step.grace_s))
            case Remove():
                self.hand_out(step.container_id, lambda: self._engine.remove(step.container_id))

    # -- making --------------------------------------------------------------------------------------------------------

    def _make(self, container: Container) -> None:
        try:
            if container.kind == "replica":
                self._roller.prepare(container)
            if container.spec.profile == "workload" and container.spec.network is not None:
                self._engine.ensure_network(container.spec.network)
            if not self._engine.image_exists(container.spec.image):
                self._pull(container)
            failpoints.hit("container.wanted")
            with self._db.read() as reader:
                now = containers.find_container(reader, container.id)
            if now is None or now.want is Want.GONE:
                return  # cancelled during the pull; the next look takes care
            self._engine.create(container.spec)
            failpoints.hit("container.created")
            self._engine.start(container.id)
            failpoints.hit("container.started")
        except ImageNotFound as error:
            self._refused(container, Reason.IMAGE, error)
        except EngineRefused as error:
            self._refused(container, Reason.ENGINE, error)

    def _needs_pull(self, container: Container) -> bool:
        try:
            return not self._engine.image_exists(container.spec.image)
        except EngineRefused:
            return False  # making it meets the same refusal, and says so where it belongs

    def _pull(self, container: Container) -> None:
        image = container.spec.image
        self._shop.logs.note(container.id, f"The image {image} is not here; asking its registry …")
        self._engine.pull(image, lambda text: self._shop.logs.note(container.id, text))

    def _refused(self, container: Container, reason: Reason, error: ApplianceError) -> None:
        self._engine.remove(container.id)
        self._shop.logs.note(container.id, error.message)
        self._note(container, Seen.REMOVED, None, error.message, reason)

    # -- noting --------------------------------------------------------------------------------------------------------

    def _note(
        self,
        container: Container,
        seen: Seen,
        sighting: Sighting | None,
        error: str | None,
        reason: Reason | None = None,
    ) -> None:
        with self._db.write() as tx:
            news = containers.saw(
                tx,
                container.id,
                seen,
                engine_id=sighting.engine_id if sighting else None,
                exit_code=sighting.exit_code if sighting else None,
                out_of_memory=bool(sighting and sighting.out_of_memory),
                error=error or (sighting.error if sighting else None),
                started_at=sighting.started_at if sighting else None,
                finished_at=sighting.finished_at if sighting else None,
            )
            if not news:
                return
            now = containers.get_container(tx, container.id)
            if now.lease_id is not None and seen in (Seen.EXITED, Seen.REMOVED):
                leases.end(tx, now.lease_id)
            if now.kind == "attempt":
                if seen is Seen.RUNNING:
                    runs.container_started(tx, now)
                elif seen in (Seen.EXITED, Seen.REMOVED):
                    runs.container_ended(tx, now, reason)
        failpoints.hit(f"{container.kind}.seen.{seen}")
        if seen is Seen.REMOVED and container.kind == "replica":
            self._roller.tidy(container.id)

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _settle_leases(self) -> None:
        """Leases with cards end when NVML shows their cards empty."""
        with self._db.read() as reader:
            open_ = [one for one in leases.list_open(reader) if one.state is not LeaseState.ACTIVE and one.cards]
        if not open_:
            return
        busy = self._gpus.busy_cards()
        with self._db.write() as tx:
            for lease in open_:
                note = next((busy[card] for card in lease.cards if card in busy), None)
                leases.settle(tx, lease.id, busy, note)

    def _hold_isolation(self) -> None:
        """The rules that hold workloads apart are put back where somebody (a firewall's reload) took them away."""
        if clock.monotonic() - self._isolation_at < _ISOLATION_EVERY_S:
            return
        self._isolation_at = clock.monotonic()
        if self._engine.networks():
            self._engine.assert_isolation()

    def _tidy_networks(self, rows: list[Container]) -> None:
        """Networks of runs that have ended and that no container is on are removed, every now and then."""
        if clock.monotonic() - self._networks_at < _NETWORKS_EVERY_S:
            return
        self._networks_at = clock.monotonic()
        with self._db.read() as reader:
            wanted = set(runs.open_run_ids(reader)) | {row.spec.network for row in rows}
        try:
            for network in self._engine.networks():
                if network not in wanted:
                    self._engine.remove_network(network)
        except (EngineBusy, EngineRefused) as error:
            _LOG.info("networks are tidied later: %s", error.message)
