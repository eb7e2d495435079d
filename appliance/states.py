"""Every state machine, as data: one enum and one table of allowed moves each. Nothing else spells a state.

What this keeps true: a move is forward only (but for a deployment's spec, which may sleep and wake); whatever ends
passes through `stopping` with a `Reason`, and the reason alone decides the final state (`final_of`). The schema repeats
these lists as CHECK constraints; tests/test_schema.py compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import assert_never


class JobState(StrEnum):
    BLOCKED = "blocked"
    READY = "ready"
    ACTIVE = "active"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


class RunState(StrEnum):
    """A run is the sum of its jobs; it has no life of its own."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    QUEUED = "queued"
    LEASED = "leased"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Want(StrEnum):
    RUNNING = "running"
    GONE = "gone"


class Seen(StrEnum):
    ABSENT = "absent"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    REMOVED = "removed"


class VersionState(StrEnum):
    UNCOMMITTED = "uncommitted"
    COMMITTED = "committed"


class SpecState(StrEnum):
    PENDING = "pending"
    STARTING = "starting"
    SERVING = "serving"
    ASLEEP = "asleep"
    DRAINING = "draining"
    RETIRED = "retired"
    FAILED = "failed"


class LeaseState(StrEnum):
    ACTIVE = "active"
    RELEASING = "releasing"
    RELEASED = "released"
    QUARANTINED = "quarantined"


class Reason(StrEnum):
    """Why something is stopping. The only input to its final state."""

    FINISHED = "finished"
    EXIT_CODE = "exit_code"
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    OUTPUT_MISSING = "output_missing"
    OUTPUT_REFUSED = "output_refused"
    INPUT_MISSING = "input_missing"
    IMAGE = "image"
    ENGINE = "engine"
    LOST = "lost"
    BAD_WORKFLOW = "bad_workflow"
    ACTION = "action"
    DISK_FULL = "disk_full"


JOB_MOVES: Mapping[JobState, frozenset[JobState]] = {
    JobState.BLOCKED: frozenset({JobState.READY, JobState.SKIPPED, JobState.CANCELLED}),
    JobState.READY: frozenset({JobState.ACTIVE, JobState.CANCELLED, JobState.FAILED}),
    JobState.ACTIVE: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.SKIPPED: frozenset(),
}

RUN_MOVES: Mapping[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset({RunState.RUNNING, RunState.FAILED, RunState.CANCELLED}),
    RunState.RUNNING: frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
}

ATTEMPT_MOVES: Mapping[AttemptState, frozenset[AttemptState]] = {
    AttemptState.QUEUED: frozenset({AttemptState.LEASED, AttemptState.STOPPING}),
    AttemptState.LEASED: frozenset({AttemptState.RUNNING, AttemptState.STOPPING}),
    AttemptState.RUNNING: frozenset({AttemptState.STOPPING}),
    AttemptState.STOPPING: frozenset({AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.CANCELLED}),
    AttemptState.SUCCEEDED: frozenset(),
    AttemptState.FAILED: frozenset(),
    AttemptState.CANCELLED: frozenset(),
}

SEEN_MOVES: Mapping[Seen, frozenset[Seen]] = {
    Seen.ABSENT: frozenset({Seen.CREATED, Seen.RUNNING, Seen.EXITED, Seen.REMOVED}),
    Seen.CREATED: frozenset({Seen.RUNNING, Seen.EXITED, Seen.REMOVED}),
    Seen.RUNNING: frozenset({Seen.EXITED, Seen.REMOVED}),
    Seen.EXITED: frozenset({Seen.REMOVED}),
    Seen.REMOVED: frozenset(),
}

VERSION_MOVES: Mapping[VersionState, frozenset[VersionState]] = {
    VersionState.UNCOMMITTED: frozenset({VersionState.COMMITTED}),
    VersionState.COMMITTED: frozenset(),
}

SPEC_MOVES: Mapping[SpecState, frozenset[SpecState]] = {
    SpecState.PENDING: frozenset({SpecState.STARTING, SpecState.RETIRED, SpecState.FAILED}),
    SpecState.STARTING: frozenset({SpecState.SERVING, SpecState.DRAINING, SpecState.FAILED}),
    SpecState.SERVING: frozenset({SpecState.ASLEEP, SpecState.DRAINING}),
    SpecState.ASLEEP: frozenset({SpecState.SERVING, SpecState.DRAINING}),
    SpecState.DRAINING: frozenset({SpecState.RETIRED}),
    SpecState.RETIRED: frozenset(),
    SpecState.FAILED: frozenset(),
}

LEASE_MOVES: Mapping[LeaseState, frozenset[LeaseState]] = {
    LeaseState.ACTIVE: frozenset({LeaseState.RELEASING}),
    LeaseState.RELEASING: frozenset({LeaseState.RELEASED, LeaseState.QUARANTINED}),
    LeaseState.QUARANTINED: frozenset({LeaseState.RELEASED}),
    LeaseState.RELEASED: frozenset(),
}

JOB_FINAL = frozenset(state for state, moves in JOB_MOVES.items() if not moves)
RUN_FINAL = frozenset(state for state, moves in RUN_MOVES.items() if not moves)
ATTEMPT_FINAL = frozenset(state for state, moves in ATTEMPT_MOVES.items() if not moves)
SPEC_FINAL = frozenset(state for state, moves in SPEC_MOVES.items() if not moves)


def final_of(reason: Reason) -> AttemptState:
    """The state in which an attempt ends that stopped for `reason`."""
    match reason:
        case Reason.FINISHED:
            return AttemptState.SUCCEEDED
        case Reason.CANCELLED:
            return AttemptState.CANCELLED
        case (
            Reason.EXIT_CODE
            | Reason.OUT_OF_MEMORY
            | Reason.TIMEOUT
            | Reason.OUTPUT_MISSING
            | Reason.OUTPUT_REFUSED
            | Reason.INPUT_MISSING
            | Reason.IMAGE
            | Reason.ENGINE
            | Reason.LOST
            | Reason.BAD_WORKFLOW
            | Reason.ACTION
            | Reason.DISK_FULL
        ):
            return AttemptState.FAILED
    assert_never(reason)


def gradient_phase(state: JobState | RunState) -> str:
    """The word that Gradient's API uses for it (its `phase`)."""
    return {
        "pending": "Pending",
        "running": "Running",
        "blocked": "Pending",
        "ready": "Pending",
        "active": "Running",
        "succeeded": "Succeeded",
        "failed": "Failed",
        "cancelled": "Canceled",
        "skipped": "Omitted",
    }[state.value]
