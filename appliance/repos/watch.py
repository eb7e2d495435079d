"""Which repositories' refs moved, by watching the `refs` folders alone.

What this keeps true: git takes a lock file below `refs` for every ref that it moves, packed or not, so nothing that git
does to a ref is missed; objects are not watched, so a large push costs no events.

Why: a push over a path or SSH while the daemon's hook socket is away must still be seen at once, without polling.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import watchfiles

STEP_MS = 200
DEBOUNCE_MS = 400
FIRST_MS = 300


@dataclass(frozen=True)
class _Either:
    """What watchfiles asks whether to end: the caller's stop, or a repository made or removed."""

    stop: threading.Event
    changed: threading.Event

    def is_set(self) -> bool:
        return self.stop.is_set() or self.changed.is_set()


def watch(
    folder: Path, projects: Callable[[], list[str]], changed: threading.Event, stop: threading.Event
) -> Iterator[str]:
    """Each project once when the set of repositories has changed (so a move between two watches is found), then as moved."""
    while not stop.is_set():
        changed.clear()
        known = projects()
        paths = [folder / f"{project}.git" / "refs" for project in known]
        notices = watchfiles.watch(
            *[path for path in paths if path.is_dir()] or [folder / ".hooks"],
            watch_filter=None,
            stop_event=_Either(stop, changed),
            step=STEP_MS,
            debounce=DEBOUNCE_MS,
            rust_timeout=FIRST_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            ignore_permission_denied=True,
        )
        begun = False
        for batch in notices:
            if not begun:  # only now is it certain that the kernel tells: a move before this moment is in the refs
                begun = True
                yield from known
            yield from sorted({moved for _, path in batch if (moved := _project(folder, path))})


def _project(folder: Path, path: str) -> str | None:
    parts = Path(path).relative_to(folder).parts
    return parts[0].removesuffix(".git") if parts and parts[0].endswith(".git") else None
