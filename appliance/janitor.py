"""Takes away what nothing needs any more: bytes, logs, folders, old rows, repositories of projects that are gone.

What this keeps true: only what no row names is removed, and rows are gone before bytes; what is kept for a time is kept
that long. A round may be cut off anywhere and begun again.

Why: everybody else writes rows and leaves; that deleting frees the disk is this loop's promise.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

from appliance import clock, containers, events, leases, projects, runs, versions
from appliance.db import Reader
from appliance.errors import ApplianceError
from appliance.records import SYSTEM
from appliance.runs import Workshop
from appliance.store import remove_folder

_LOG = logging.getLogger(__name__)
_EVENTS_KEPT_DAYS = 365
_ROWS_KEPT_DAYS = 30
_DAY_S = 24 * 3600.0


class Janitor:
    """Held by one loop; remembers which roots were live when it last collected."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._live: frozenset[str] | None = None
        self._maintained_at = clock.monotonic()
        self._sealed: set[str] = set()

    def tick(self) -> None:
        """One round. Costs next to nothing while nothing was deleted."""
        self._collect_store()
        self._forget_rows()
        self._remove_folders()
        self._remove_logs()
        self._seal_logs()
        self._remove_repositories()
        self._maintain_repositories()

    def _collect_store(self) -> None:
        """Bytes that no version names go; only when a version went since the last round (or at the first)."""
        with self._shop.db.read() as reader:
            live = frozenset(versions.live_roots(reader))
        if self._live is not None and not self._live - live:
            self._live = live
            return
        done = self._shop.store.collect(self._live_roots, keep_views=self._pinned_roots)
        self._live = live
        if done.objects:
            _LOG.info("collected %d objects, %d bytes", done.objects, done.size_bytes)

    def _live_roots(self) -> Iterable[str]:
        with self._shop.db.read() as reader:
            return versions.live_roots(reader)

    def _pinned_roots(self) -> Iterable[str]:
        with self._shop.db.read() as reader:
            return versions.pinned_roots(reader)

    def _forget_rows(self) -> None:
        now = clock.now()
        with self._shop.db.read() as reader:
            due = reader.value(
                "SELECT EXISTS (SELECT 1 FROM containers WHERE seen = 'removed' AND finished_at < ?1)"
                " OR EXISTS (SELECT 1 FROM leases WHERE state = 'released' AND ended_at < ?1)"
                " OR EXISTS (SELECT 1 FROM events WHERE at < ?2)",
                clock.stamp(now - timedelta(days=_ROWS_KEPT_DAYS)),
                clock.stamp(now - timedelta(days=_EVENTS_KEPT_DAYS)),
            )
        if not due:
            return
        with self._shop.db.write() as tx:
            containers.forget(tx, clock.stamp(now - timedelta(days=_ROWS_KEPT_DAYS)))
            leases.forget(tx, clock.stamp(now - timedelta(days=_ROWS_KEPT_DAYS)))
            events.forget(tx, clock.stamp(now - timedelta(days=_EVENTS_KEPT_DAYS)))

    def _remove_folders(self) -> None:
        """Folders of attempts and runs that have ended, and of versions that are committed or gone."""
        config = self._shop.config
        self._remove_others(config.work_dir, lambda reader: {attempt.id for attempt in runs.open_attempts(reader)})
        self._remove_others(config.volumes_dir, lambda reader: set(runs.open_run_ids(reader)))
        self._remove_others(config.staging_dir, versions.open_ids)

    def _remove_others(self, folder: Path, read_kept: Callable[[Reader], set[str]]) -> None:
        """What lies in `folder` and is of nothing that `read_kept` names is gone.

        The entries are listed before the rows are read, and rows are made before their folders: so what is made while
        this runs, however long a removal takes, is either not listed or named.
        """
        found = _entries(folder)
        with self._shop.db.read() as reader:
            kept = read_kept(reader)
        for path in found:
            if _owner_of(path) not in kept:
                remove_folder(path)

    def _remove_logs(self) -> None:
        """Logs of runs and replicas that were deleted, and those older than the retention."""
        found = _entries(self._shop.config.logs_dir)
        oldest = clock.stamp(clock.now() - timedelta(days=self._shop.config.log_retention_days))
        with self._shop.db.read() as reader:
            kept = {
                row["id"]
                for row in reader.all(
                    "SELECT id FROM attempts WHERE finished_at IS NULL OR finished_at >= ?1"
                    " UNION SELECT id FROM containers WHERE kind = 'replica' AND (finished_at IS NULL OR finished_at >= ?1)",
                    oldest,
                )
            }
        for path in found:
            if path.name not in kept:
                with contextlib.suppress(OSError):
                    self._shop.logs.remove(path.name)

    def _seal_logs(self) -> None:
        """Logs of what has ended are sealed (a crash may have come between), so that whoever follows one sees its end."""
        with self._shop.db.read() as reader:
            ended = reader.all(
                "SELECT id FROM attempts WHERE finished_at IS NOT NULL"
                " UNION SELECT id FROM containers WHERE kind = 'replica' AND seen = 'removed'"
            )
        open_ones = {row["id"] for row in ended} - self._sealed
        for path in _entries(self._shop.config.logs_dir):
            if path.name in open_ones:
                self._shop.logs.seal(path.name)
        self._sealed |= open_ones

    def _remove_repositories(self) -> None:
        with self._shop.db.read() as reader:
            gone = [
                project_id
                for project_id in self._shop.repos.projects()
                if projects.find_project(reader, SYSTEM, project_id) is None
            ]
        for project_id in gone:
            self._shop.repos.remove(project_id)

    def _maintain_repositories(self) -> None:
        """Once a day each repository's packs are made few again: every push leaves one, and git's own gc is off."""
        if clock.monotonic() - self._maintained_at < _DAY_S:
            return
        self._maintained_at = clock.monotonic()
        for project_id in self._shop.repos.projects():
            with contextlib.suppress(ApplianceError):
                self._shop.repos.maintain(project_id)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _owner_of(path: Path) -> str:
    """Whose it is: the folder of a version is its own, and so are the unfinished uploads that lie beside it."""
    name = path.name
    return name[1 : name.index(".part-")] if name.startswith(".") and ".part-" in name else name
