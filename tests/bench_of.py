"""Runs, reconciler and scheduler around the memory engine, turned by hand: a test decides when which loop looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_engine import MemoryEngine, World
from waiting import wait_until

from appliance import deployments, projects, runs, scheduler, workflows
from appliance.config import Config
from appliance.db import Database
from appliance.reconcile import Reconciler
from appliance.records import Actor, Job, Run
from appliance.repos import Repos
from appliance.runtime.gpus import Gpus
from appliance.runtime.logs import LogStore
from appliance.runtime.watch import LogPump
from appliance.store import Store

IMAGE = "appliance/datascience:latest"


@dataclass
class Bench:
    """One project with runs that have real rows, a real store and containers in memory."""

    folder: Path
    db: Database
    store: Store
    repos: Repos
    actor: Actor
    world: World = field(default_factory=lambda: World(IMAGE, "appliance/base:latest", "appliance/serving:latest"))
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = Config(
            data_dir=self.folder / "data",
            run_dir=self.folder / "run",
            log_dir=self.folder / "log",
            container_retention_s=0,
            free_floor_mib=0,
        )
        for path in (self.config.work_dir, self.config.volumes_dir, self.config.logs_dir):
            path.mkdir(parents=True, exist_ok=True)
        with self.db.write() as tx:
            found = projects.find_project(tx, self.actor, "vision")
            self.project = found or projects.create(tx, self.actor, "vision")
        self.repos.create(self.project.id)
        self.open()

    def open(self) -> None:
        """Everything that a daemon holds in memory is made anew, as after a restart."""
        self.engine = MemoryEngine("bench", self.world)
        self.logs = LogStore(self.config.logs_dir)
        self.pump = LogPump(self.engine, self.logs)
        self.shop = runs.Workshop(self.config, self.db, self.store, self.repos, self.logs)
        self.reconciler = Reconciler(
            self.db,
            self.engine,
            self.shop,
            deployments.Roller(self.config, self.db, self.store),
            self.pump,
            Gpus(),
            lambda: None,
            self.failures.append,
        )

    def close(self) -> None:
        self.reconciler.close()
        self.pump.stop()
        self.logs.close()

    def start(self, text: str, **more: Any) -> Run:
        plan = workflows.parse(text, "w.yaml")
        with self.db.write() as tx:
            return runs.start(
                tx, self.actor, project_id=self.project.id, name="w", path=None, spec_text=text, plan=plan, **more
            )

    def turn(self) -> None:
        """Every loop looks once."""
        for run_id in runs.settle(self.db):
            runs.tidy_run(self.shop, run_id)
        with self.db.read() as reader:
            ready, ended = runs.pending(reader), runs.ended(reader)
        for attempt in ready:
            runs.prepare(self.shop, attempt.id)
        scheduler.tick(self.db, list)
        self.reconciler.tick()
        wait_until(lambda: not self.reconciler._in_hand, 5, "the steps are done")
        for attempt in ended:
            runs.collect(self.shop, attempt.id)

    def until(self, probe: Callable[[], Any], what: str, within_s: float = 10) -> Any:
        """Turn until `probe` says something true."""

        def once() -> Any:
            self.turn()
            return probe()

        return wait_until(once, within_s, what)

    def run(self, run: Run) -> Run:
        with self.db.read() as reader:
            return runs.get_run(reader, self.actor, run.id)

    def job(self, run: Run, name: str) -> Job:
        return next(job for job in self.run(run).jobs if job.name == name)

    def container_of(self, run: Run, name: str) -> str:
        """The id of the job's running container."""

        def running() -> str | None:
            attempts = self.job(run, name).attempts
            return attempts[-1].id if attempts and attempts[-1].state == "running" else None

        return str(self.until(running, f"{name} runs"))

    def outputs(self, run: Run, name: str) -> Path:
        return self.config.work_dir / self.container_of(run, name) / "outputs"

    def finish(self, run: Run, name: str, exit_code: int = 0, **how: Any) -> None:
        self.world.finish(self.container_of(run, name), exit_code, **how)

    def ended(self, run: Run) -> Run:
        return self.until(lambda: found if (found := self.run(run)).finished_at else None, "the run ends")  # type: ignore[no-any-return]
