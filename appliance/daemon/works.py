"""Everything that the daemon is made of, built once and started in order; stopped in the reverse order.

What this keeps true: nothing is accepted before the database is migrated, the store is open and the loops run; stopping
stops no container.

Why: the only place that knows all floors.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import appliance.inference
from appliance import clock, containers, deployments, doctor, machine, projects, pushes, runs, scheduler, schema
from appliance.config import Config
from appliance.daemon.lock import Lock
from appliance.daemon.loops import Loop
from appliance.db import Database, Reader, open_database
from appliance.errors import ApplianceError, DurabilityLost
from appliance.gateway import Gateway, Route
from appliance.janitor import Janitor
from appliance.reconcile import Reconciler
from appliance.records import SYSTEM, Push
from appliance.repos import HookServer, Repos
from appliance.runtime.docker import DockerEngine
from appliance.runtime.gpus import Gpus
from appliance.runtime.inherit import inherited_env, inherited_mounts
from appliance.runtime.logs import LogStore
from appliance.runtime.watch import LogPump, Watch
from appliance.states import Seen
from appliance.store import Store
from appliance.web.house import House

_LOG = logging.getLogger(__name__)
_HOOKS_FIRST_S = 1.5
_ROUTES_EVERY_S = 600.0


def make_folders(config: Config) -> None:
    """The folders of the data, run and log directories are there; what must be private is."""
    for folder in (
        config.data_dir,
        config.store_dir,
        config.repos_dir,
        config.staging_dir,
        config.work_dir,
        config.volumes_dir,
        config.logs_dir,
    ):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    config.data_dir.chmod(0o700)
    for folder in (config.run_dir, config.log_dir, config.replicas_dir):
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)


def open_data(config: Config) -> Database:
    """The database of this data directory, at the newest schema. The lock is the caller's."""
    for name in schema.migrate(config.db_path):
        _LOG.info("migrated the database: %s", name)
    config.db_path.chmod(0o600)
    return open_database(config.db_path)


class Works:
    """Built by `Works(config)`; `start` and `stop` once each. `failed` is set when the daemon has to end."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.lock = Lock(config.data_dir / "lock")
        make_folders(config)
        self.lock.take()
        self.failed = threading.Event()
        self.db = open_data(config)
        self.db.on_failure(self.fail)
        self.gpus = Gpus()
        with self.db.write() as tx:
            self.instance = machine.instance(tx)
            machine.take_stock(tx, self.gpus.inventory())
            machine.set_setting(tx, "deployment_ports", "{}-{}".format(*config.deployment_ports))
        self.store = Store(config.store_dir, floor_bytes=config.free_floor_mib * 1024 * 1024)
        self.repos = Repos(config.repos_dir, hook_socket=config.run_dir / "hook.sock")
        self.logs = LogStore(config.logs_dir)
        self.engine = DockerEngine(
            self.instance,
            config.network_pool,
            config.docker_socket,
            serving_seccomp=Path(appliance.inference.__file__).with_name("seccomp.json"),
            environment=inherited_env(),
            mounts=inherited_mounts(),
        )
        self.shop = runs.Workshop(config, self.db, self.store, self.repos, self.logs)
        self.roller = deployments.Roller(config, self.db, self.store)
        self.gateway = Gateway(config)
        self.janitor = Janitor(self.shop)
        self.pump = LogPump(self.engine, self.logs, wake=self.wake)
        self.reconciler = Reconciler(
            self.db, self.engine, self.shop, self.roller, self.pump, self.gpus, self.wake, self.fail
        )
        self.loops = {
            "course": Loop("course", self._course, 2.0, self.fail),
            "reconcile": Loop("reconcile", self._reconcile, 5.0, self.fail),
            "roll": Loop("roll", self._roll, 5.0, self.fail),
            "gateway": Loop("gateway", self._routes, 30.0, self.fail),
            "janitor": Loop("janitor", self._clean, 30.0, self.fail, patience_s=None),
        }
        self._watch = Watch(self.engine, self.loops["reconcile"].wake)
        self._hooks: HookServer | None = None
        self._stopping = threading.Event()
        self._pushes = threading.Thread(target=self._watch_pushes, name="pushes", daemon=True)
        self._routes_told: tuple[tuple[Route, ...], float] | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._make_repositories()
        self._hooks = HookServer(self.config.run_dir / "hook.sock", self._on_push)
        self.db.on_commit(self._committed)
        for loop in self.loops.values():
            loop.start()
        self._watch.start()
        self._pushes.start()

    def stop(self) -> None:
        """Everything ends in order, whatever of it had begun and whatever will not end; containers go on."""
        self._stopping.set()
        ends: list[Callable[[], None]] = [
            self._watch.stop,
            *(loop.stop for loop in self.loops.values()),
            self.reconciler.close,
            self.pump.stop,
            self.logs.close,
            self._join_pushes,
            self.store.close,
            self.gpus.close,
            self.db.close,
            self.lock.release,
        ]
        if self._hooks is not None:
            ends.insert(0, self._hooks.close)
        for end in ends:
            try:
                end()
            except Exception:
                _LOG.exception("something did not end in order; the rest still does")

    def _join_pushes(self) -> None:
        if self._pushes.is_alive():
            self._pushes.join(5)

    def wake(self) -> None:
        """Every loop that acts on rows looks at once."""
        for name in ("course", "reconcile", "roll"):
            self.loops[name].wake()

    def fail(self, error: BaseException) -> None:
        """The daemon has to end: what it would say from now on might not be true."""
        _LOG.critical("the daemon ends: %s", error)
        self.failed.set()

    def health(self) -> str | None:
        """None while all loops come round, else the sentence that says which does not."""
        for loop in self.loops.values():
            if loop.is_dead():
                return f"The loop {loop.name!r} has ended; restart the daemon and look at its log."
            if loop.is_stuck():
                return (
                    f"The loop {loop.name!r} has not come round for {loop.stuck_for_s():.0f} s; see the daemon's log."
                )
        return "The daemon is ending after a failed write; see its log." if self.failed.is_set() else None

    def house(self) -> House:
        return House(
            config=self.config,
            db=self.db,
            store=self.store,
            repos=self.repos,
            engine=self.engine,
            logs=self.logs,
            wake=self.wake,
            instance=self.instance,
            health=self.health,
            doctor=lambda: doctor.examine(self.config),
            cards=self.gpus.inventory,
            fail=self.fail,
        )

    # -- the loops' ticks ----------------------------------------------------------------------------------------------

    def _committed(self) -> None:
        self.wake()
        self.loops["gateway"].wake()

    def _course(self) -> None:
        """Runs move on, ready jobs are prepared, ended ones collected, leases given out."""
        for run_id in runs.settle(self.db):
            runs.tidy_run(self.shop, run_id)
        with self.db.read() as reader:
            ready = runs.pending(reader)
            ended = [one for one in runs.ended(reader) if self._is_log_complete(reader, one.container_id)]
        for attempt in ready:
            self.reconciler.hand_out(f"attempt {attempt.id}", partial(runs.prepare, self.shop, attempt.id))
        for attempt in ended:
            self.reconciler.hand_out(f"attempt {attempt.id}", partial(runs.collect, self.shop, attempt.id))
        scheduler.tick(self.db, self.gpus.inventory)

    def _is_log_complete(self, reader: Reader, container_id: str | None) -> bool:
        container = containers.find_container(reader, container_id)
        return container is None or container.seen is not Seen.EXITED or self.pump.is_complete(container.id)

    def _reconcile(self) -> None:
        self.reconciler.tick()

    def _roll(self) -> float | None:
        return self.roller.tick()

    def _routes(self) -> float | None:
        with self.db.read() as reader:
            routes = tuple(Route(one.id, one.port) for one in deployments.all_deployments(reader))
        now = clock.monotonic()
        if self._routes_told is not None:
            told, at = self._routes_told
            if told == routes and now - at < _ROUTES_EVERY_S:
                return None
        again_s = self.gateway.write(routes)
        self._routes_told = None if again_s else (routes, now)
        return again_s or None

    def _clean(self) -> None:
        self._take_up_left()
        self.janitor.tick()

    # -- pushes --------------------------------------------------------------------------------------------------------

    def _make_repositories(self) -> None:
        """Each project has its repository (a crash may have come between its row and it)."""
        with self.db.read() as reader:
            page = projects.list_projects(reader, SYSTEM, limit=1_000_000)
        for project in page.items:
            self.repos.create(project.id)

    def _on_push(self, project_id: str, updates: list[pushes.Update], pusher: str) -> Iterator[str]:
        """Everything is started before the first line is told: the pusher may be gone by then."""
        told = pushes.told(self.db, project_id, updates, pusher)
        yield from [line for push in told for line in pushes.start_runs(self.db, self.repos, self.config, push)]

    def _watch_pushes(self) -> None:
        """What no hook told of: pushes while the daemon was down, refs moved by hand."""
        while not self._stopping.is_set():
            try:
                self._take_up_left()
                for project_id in self.repos.watch(self._stopping):
                    moves = pushes.unseen(self.db, self.repos, project_id)
                    if not moves:
                        continue
                    if self._stopping.wait(_HOOKS_FIRST_S):
                        return
                    for push in pushes.record(self.db, self.repos, project_id, moves):
                        self._start_runs(push)
            except Exception:
                _LOG.exception("watching for pushes failed; it is tried again")
                self._stopping.wait(5)

    def _take_up_left(self) -> None:
        """Pushes that were recorded and not taken up: a crash came between, or the disk was full."""
        with self.db.read() as reader:
            left = pushes.unhandled(reader)
        for push in left:
            self._start_runs(push)

    def _start_runs(self, push: Push) -> None:
        """One push's trouble is no other's: it is said, and the push is taken up again with what is left."""
        try:
            for line in pushes.start_runs(self.db, self.repos, self.config, push):
                _LOG.info("push to %s of %s: %s", push.project_id, push.ref, line)
        except DurabilityLost as error:
            self.fail(error)
        except ApplianceError as error:
            _LOG.warning("the push to %s of %s is taken up later: %s", push.project_id, push.ref, error.message)
        except Exception:
            _LOG.exception("the push to %s of %s could not be taken up; it is tried again", push.project_id, push.ref)
