"""What has to be done so that the engine shows what the rows want: rows and sightings to steps. Pure.

What this keeps true: a row whose container is neither sighted nor was ever made is made when it has its lease; what is
sighted without a row is stopped and removed (it is of this instance: the engine shows no other); nothing is ever started
a second time; steps that are due are found again at every look until they are done.

Why: the whole behaviour after any crash can be read here as a table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from appliance.records import Container, Sighting
from appliance.states import Seen, Want

LOST = "Its container is gone; somebody removed it, or the engine lost it."


@dataclass(frozen=True)
class Make:
    """Create the container and start it."""

    container: Container


@dataclass(frozen=True)
class Note:
    """Something was seen that the row does not know; `error` says why when it is an ending without an exit."""

    container: Container
    seen: Seen
    sighting: Sighting | None
    error: str | None = None


@dataclass(frozen=True)
class Stop:
    """TERM, the grace in seconds, KILL."""

    container_id: str
    grace_s: float


@dataclass(frozen=True)
class Remove:
    container_id: str


Step = Make | Note | Stop | Remove


def plan(
    rows: Sequence[Container],
    sightings: Sequence[Sighting],
    keep_until: Mapping[str, str],
    now: str,
    *,
    in_hand: Collection[str] = (),
) -> list[Step]:
    """The steps that are due. `keep_until` says until when ended containers stay; `in_hand` are being worked on."""
    seen = {sighting.id: sighting for sighting in sightings}
    steps: list[Step] = []
    for row in rows:
        if row.id not in in_hand:
            steps += _steps(row, seen.get(row.id), keep_until.get(row.id), now)
    known = {row.id for row in rows}
    for sighting in sightings:
        if sighting.id not in known and sighting.id not in in_hand:
            steps.append(Remove(sighting.id))
    return steps


def _steps(row: Container, sighting: Sighting | None, keep: str | None, now: str) -> list[Step]:
    if sighting is None:
        return _unsighted(row)
    steps: list[Step] = []
    if sighting.seen is not row.seen and row.seen is not Seen.EXITED:
        steps.append(Note(row, sighting.seen, sighting))
    match sighting.seen, row.want:
        case Seen.CREATED, Want.RUNNING:
            steps.append(Make(row))
        case Seen.CREATED, Want.GONE:
            steps.append(Remove(row.id))
        case Seen.RUNNING, Want.GONE:
            steps.append(Stop(row.id, row.grace_s))
        case Seen.EXITED, Want.GONE if keep is None or keep <= now:
            steps.append(Remove(row.id))
        case _:
            pass
    return steps


def _unsighted(row: Container) -> list[Step]:
    match row.seen, row.want:
        case Seen.ABSENT, Want.RUNNING:
            return [Make(row)] if row.lease_id is not None else []
        case Seen.ABSENT, Want.GONE:
            return [Note(row, Seen.REMOVED, None)]
        case Seen.EXITED, _:
            return [Note(row, Seen.REMOVED, None)]
        case ((Seen.CREATED | Seen.RUNNING), Want.GONE):
            return [Note(row, Seen.REMOVED, None)]
        case ((Seen.CREATED | Seen.RUNNING), Want.RUNNING):
            return [Note(row, Seen.REMOVED, None, LOST)]
    return []
