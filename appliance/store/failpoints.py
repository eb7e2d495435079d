"""Named places at which a test may end the process or make the disk fail.

What this keeps true: without a plan `hit` does nothing; only a test arms one. Each call of the store that changes the
disk has its name just before it, so that "killed at every hit" is "killed between any two effects"; each row of the main
path, from a push to an answer, has its name just after it.

Why: what a crash leaves behind is a promise of FORMAT.md, and a promise that is not swept is a hope.
"""

from __future__ import annotations

from collections.abc import Callable

_plan: Callable[[str], None] | None = None


def hit(name: str) -> None:
    """The effect called `name` is about to happen."""
    if _plan is not None:
        _plan(name)


def arm(plan: Callable[[str], None] | None) -> None:
    """From now on each hit calls `plan` with its name; None ends that. What it raises is raised at the hit."""
    global _plan
    _plan = plan
