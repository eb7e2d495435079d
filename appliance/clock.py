"""The only clock. Tests replace it; nothing else in the package reads the time.

Times that are kept or shown are UTC, ISO 8601 with milliseconds and `Z`, as Gradient's v1 API writes them, so they sort
as text. Durations are measured on the monotonic clock, which no time server can turn back.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """This moment, UTC."""
    return datetime.now(UTC)


def stamp(moment: datetime | None = None) -> str:
    """`moment` (default: now) as `2024-05-01T12:00:00.000Z`."""
    moment = moment or now()
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def parse(text: str) -> datetime:
    """The moment that `stamp` wrote."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def monotonic() -> float:
    """Seconds on a clock that only goes forward; the zero is of no meaning."""
    return time.monotonic()
