"""A dashboard that a browser can open: the whole web on a TCP port of loopback, Chromium, and work that moves by our verbs.

Errors on the console fail the test: `browsing` collects them and asserts at the end that there were none.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvicorn
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from waiting import wait_until
from web_support import database, person

from appliance import accounts, clock, datasets, machine, models, projects, runs, versions
from appliance.config import Config
from appliance.db import Tx
from appliance.records import SYSTEM, Actor, Model, Project, Role, Run, Version
from appliance.repos import Repos
from appliance.runs import course, rows
from appliance.runtime.engine import LogEntry
from appliance.runtime.logs import LogStore
from appliance.states import AttemptState, Reason
from appliance.store import Store
from appliance.web.app import create_app
from appliance.web.house import House

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK, PHONE = (1280, 900), (390, 800)

TWO_JOBS = """
jobs:
  prepare:
    uses: script@v1
    with:
      script: make it
    outputs:
      digits:
        type: dataset
        with:
          ref: digits
  train:
    needs: [prepare]
    inputs:
      digits: prepare.outputs.digits
    uses: script@v1
    with:
      script: learn it
"""


@dataclass
class Dashboard:
    """The running web, and the hand that stands in for scheduler, engine and collector."""

    house: House
    url: str
    boss: Actor
    ana: Actor

    def project(self, name: str, actor: Actor | None = None) -> Project:
        with self.house.db.write() as tx:
            made = projects.create(tx, actor or self.boss, name)
        self.house.repos.create(made.id)
        return made

    def submit(self, project: Project, spec: str = TWO_JOBS, name: str = "train", **more: Any) -> Run:
        house = self.house
        made = runs.submit(house.db, house.repos, self.boss, project_id=project.id, spec_text=spec, name=name, **more)
        runs.settle(house.db)
        return made

    def begin(self, run: Run, job: str) -> str:
        """The job runs; the key of its log."""
        with self.house.db.write() as tx:
            attempt = runs.get_job(tx, SYSTEM, run.id, job).attempts[-1]
            attempt = rows.move_attempt(tx, attempt, AttemptState.LEASED)
            rows.move_attempt(tx, attempt, AttemptState.RUNNING)
        return attempt.id

    def write(self, log: str, *lines: str) -> None:
        at = clock.stamp().removesuffix("Z")
        entries = [LogEntry(f"{at}{number:06d}Z", "stdout", line) for number, line in enumerate(lines)]
        self.house.logs.capture(log, entries)

    def end(self, run: Run, job: str, outputs: dict[str, Any] | None = None, *, problem: str | None = None) -> None:
        """The job has ended: well, with what it made, or with `problem`."""
        with self.house.db.write() as tx:
            attempt = runs.get_job(tx, SYSTEM, run.id, job).attempts[-1]
            course.stop(tx, attempt, Reason.EXIT_CODE if problem else Reason.FINISHED, problem or "")
        self.house.logs.seal(attempt.id)
        with self.house.db.write() as tx:
            course.finish(tx, attempt.id, outputs or {})
        runs.settle(self.house.db)

    def end_cancelled(self, run: Run) -> None:
        """What a cancelled run still had under way has stopped."""
        with self.house.db.write() as tx:
            stopping = [attempt for job in runs.get_run(tx, SYSTEM, run.id).jobs for attempt in job.attempts]
            for attempt in stopping:
                course.finish(tx, attempt.id, {})
        runs.settle(self.house.db)

    def dataset(self, project: Project, folder: Path, run: Run | None = None, name: str = "digits") -> Version:
        """A new version of the project's dataset `name` with the files of `folder`."""

        def add(tx: Tx, tree: Any) -> Version:
            owner = datasets.CATALOG.owner(datasets.for_output(tx, self.boss, name, project.id))
            made_by = {"run_id": run.id, "job": "prepare"} if run else {}
            return versions.add_committed(tx, owner, self.boss, tree, message="made", **made_by)

        return self._stored(folder, add)

    def model(self, project: Project, folder: Path, metrics: dict[str, float]) -> tuple[Model, Version]:
        with self.house.db.write() as tx:
            found = models.list_models(tx, self.boss, project_id=project.id).items
            made = (
                found[0]
                if found
                else models.create(tx, self.boss, name="digits", model_type="ONNX", project_id=project.id)
            )

        def add(tx: Tx, tree: Any) -> Version:
            return versions.add_committed(
                tx, models.CATALOG.owner(made), self.boss, tree, metadata={"metrics": metrics}
            )

        return made, self._stored(folder, add)

    def _stored(self, folder: Path, add: Any) -> Version:
        tree = self.house.store.put_tree(folder, move=False)
        with self.house.db.write() as tx:
            version = cast(Version, add(tx, tree))
        self.house.store.publish(tree)
        return version


@contextmanager
def running_dashboard(folder: Path) -> Iterator[Dashboard]:
    """The web over HTTP on 127.0.0.1, with real database, store, repositories and logs; nothing runs by itself."""
    config = Config(data_dir=folder, run_dir=folder / "run", host_name="gpu.test")
    config.run_dir.mkdir()
    with database(folder) as db:
        logs = LogStore(config.logs_dir)
        store = Store(config.store_dir, reserve_mib=1, floor_bytes=1 << 20)
        house = House(
            config=config,
            db=db,
            store=store,
            repos=Repos(config.repos_dir),
            engine=cast(Any, None),
            logs=logs,
            wake=lambda: None,
            instance="test",
            health=lambda: None,
            doctor=list,
        )
        boss, ana = person(db, "boss@x.org", Role.ADMIN), person(db, "ana@x.org")
        with db.write() as tx:
            machine.take_stock(tx, [])
        with _listening(house) as url:
            yield Dashboard(house, url, boss, ana)
        logs.close()
        store.close()


@contextmanager
def _listening(house: House) -> Iterator[str]:
    app = create_app(house)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, args=([listener],), name="uvicorn")
        thread.start()
        try:
            wait_until(lambda: server.started, 10, "uvicorn listens")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            app.close_streams()
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "the server did not stop"


@contextmanager
def chromium() -> Iterator[Browser]:
    assert Path(CHROMIUM).exists(), "Chromium is missing: apt-get install chromium"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def browsing(
    browser: Browser, size: tuple[int, int] = DESK, *, scripts: bool = True, expected: tuple[str, ...] = ()
) -> Iterator[Page]:
    """A page in a fresh profile. What its console complains about fails the test, but for the `expected` beginnings."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, java_script_enabled=scripts)
    page = context.new_page()
    page.set_default_timeout(10_000)
    said: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        yield page
    finally:
        context.close()
    unexpected = [each for each in said if not each.startswith(expected)]
    assert unexpected == [], unexpected


def sign_in(page: Page, board: Dashboard, email: str = "boss@x.org", password: str = "correct horse battery") -> None:
    page.goto(f"{board.url}/login")
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{board.url}/")


def setup_link(board: Dashboard) -> str:
    """An invitation's token, as an admin hands it over."""
    with board.house.db.write() as tx:
        return accounts.invite(tx, board.boss, "new@x.org", Role.MEMBER)[1]
