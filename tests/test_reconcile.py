"""Rows against sightings: every case of the plan, and the loop on an engine that forgets, breaks and refuses."""

from __future__ import annotations

import pytest

from appliance.reconcile import LOST, Make, Note, Remove, Step, Stop, plan
from appliance.records import Container, ContainerSpec, Sighting
from appliance.states import Seen, Want

pytestmark = pytest.mark.fast

NOW, PAST, FUTURE = "2026-05-01T12:00:00.000Z", "2026-05-01T11:00:00.000Z", "2026-05-01T13:00:00.000Z"


def row(seen: Seen, want: Want = Want.RUNNING, lease: str | None = "le") -> Container:
    spec = ContainerSpec("c", "replica", "serving", "image", None, None, {}, (), 1, 512)
    return Container("c", "replica", "o", "p", spec, want, seen, 7.0, None, None, False, None, NOW, None, None, lease)


def sighting(seen: Seen, container: str = "c") -> Sighting:
    return Sighting(container, "e", "le", seen, 0 if seen is Seen.EXITED else None, False, NOW, None, None)


def kinds(steps: list[Step]) -> list[object]:
    return [step.seen if isinstance(step, Note) else type(step) for step in steps]


@pytest.mark.parametrize(
    ("seen", "want", "lease", "sighted", "keep", "due"),
    [
        # made once it has its lease, and made again as long as it is not sighted
        (Seen.ABSENT, Want.RUNNING, None, None, None, []),
        (Seen.ABSENT, Want.RUNNING, "le", None, None, [Make]),
        (Seen.ABSENT, Want.RUNNING, "le", Seen.CREATED, None, [Seen.CREATED, Make]),
        (Seen.CREATED, Want.RUNNING, "le", Seen.CREATED, None, [Make]),
        # what happened while nobody looked is noted
        (Seen.ABSENT, Want.RUNNING, "le", Seen.RUNNING, None, [Seen.RUNNING]),
        (Seen.ABSENT, Want.RUNNING, "le", Seen.EXITED, None, [Seen.EXITED]),
        (Seen.RUNNING, Want.RUNNING, "le", Seen.RUNNING, None, []),
        (Seen.RUNNING, Want.RUNNING, "le", Seen.EXITED, None, [Seen.EXITED]),
        # an ended one is kept while it is wanted, or until its time
        (Seen.EXITED, Want.RUNNING, "le", Seen.EXITED, None, []),
        (Seen.EXITED, Want.GONE, "le", Seen.EXITED, FUTURE, []),
        (Seen.EXITED, Want.GONE, "le", Seen.EXITED, PAST, [Remove]),
        (Seen.EXITED, Want.GONE, "le", Seen.EXITED, None, [Remove]),
        (Seen.EXITED, Want.GONE, "le", None, FUTURE, [Seen.REMOVED]),
        # what is wanted gone is stopped, or was never there
        (Seen.RUNNING, Want.GONE, "le", Seen.RUNNING, None, [Stop]),
        (Seen.ABSENT, Want.GONE, None, None, None, [Seen.REMOVED]),
        (Seen.ABSENT, Want.GONE, "le", Seen.CREATED, None, [Seen.CREATED, Remove]),
        (Seen.RUNNING, Want.GONE, "le", None, None, [Seen.REMOVED]),
        # gone without having been asked to
        (Seen.RUNNING, Want.RUNNING, "le", None, None, [Seen.REMOVED]),
        (Seen.CREATED, Want.RUNNING, "le", None, None, [Seen.REMOVED]),
    ],
)
def test_a_row_and_a_sighting(
    seen: Seen, want: Want, lease: str | None, sighted: Seen | None, keep: str | None, due: list[object]
) -> None:
    sightings = [] if sighted is None else [sighting(sighted)]

    steps = plan([row(seen, want, lease)], sightings, {} if keep is None else {"c": keep}, NOW)

    assert kinds(steps) == due


def test_a_container_that_somebody_removed_is_noted_with_the_sentence() -> None:
    (step,) = plan([row(Seen.RUNNING)], [], {}, NOW)

    assert isinstance(step, Note)
    assert step.error == LOST


def test_a_container_of_ours_without_a_row_is_removed() -> None:
    assert plan([], [sighting(Seen.RUNNING, "stray")], {}, NOW) == [Remove("stray")]


def test_what_is_in_hand_is_left_alone() -> None:
    assert plan([row(Seen.ABSENT)], [sighting(Seen.RUNNING, "stray")], {}, NOW, in_hand={"c", "stray"}) == []


def test_a_stop_has_the_rows_grace() -> None:
    assert plan([row(Seen.RUNNING, Want.GONE)], [sighting(Seen.RUNNING)], {}, NOW) == [Stop("c", 7.0)]
