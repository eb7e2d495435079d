"""The ledger: what of the machine is promised to which container.

What this keeps true: a lease is committed before its container exists; an exclusive card is in at most one lease that is
not released (a partial unique index says it again); leases together never hold more than the machine has. A lease ends in
two steps: `releasing` when its container has ended, `released` when nothing of it is left on its cards, else
`quarantined` with the reason.

Owns the tables `leases` and `lease_cards`.

Why: who holds what is decided in one place, in one transaction, and survives every restart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from appliance import clock, ids
from appliance.db import Reader, Row, Tx
from appliance.errors import Stale
from appliance.records import Lease, MachineType
from appliance.states import LEASE_MOVES, LeaseState


@dataclass(frozen=True)
class Held:
    """The sums of all leases that are not released; `cards` are the UUIDs in them."""

    cpus: float
    memory_mib: int
    cards: frozenset[str]


def grant(tx: Tx, container_id: str, owner_id: str, kind: MachineType, cards: Sequence[str] = ()) -> Lease:
    """The container holds that machine type and these cards (UUIDs) from now on. A card that is held is an IntegrityError."""
    lease_id = ids.new_id("le", 14)
    tx.insert(
        "leases",
        {
            "id": lease_id,
            "container_id": container_id,
            "owner_id": owner_id,
            "state": LeaseState.ACTIVE,
            "machine_type": kind.name,
            "cpus": kind.cpus,
            "memory_mib": kind.memory_mib,
            "created_at": clock.stamp(),
        },
    )
    for card in cards:
        tx.insert("lease_cards", {"lease_id": lease_id, "card": card})
    return get_lease(tx, lease_id)


def get_lease(db: Reader, lease_id: str) -> Lease:
    row = db.one("SELECT * FROM leases WHERE id = ?", lease_id)
    assert row is not None, f"no lease {lease_id}"
    return _lease(db, row)


def list_open(db: Reader) -> list[Lease]:
    """Every lease that is not released, the oldest first."""
    return [_lease(db, row) for row in db.all("SELECT * FROM leases WHERE state != 'released' ORDER BY created_at, id")]


def held(db: Reader) -> Held:
    """What cannot be given out now."""
    sums = db.one(
        "SELECT coalesce(sum(cpus), 0) AS cpus, coalesce(sum(memory_mib), 0) AS memory_mib FROM leases"
        " WHERE state IN ('active', 'releasing')"
    )
    assert sums is not None
    cards = frozenset(row["card"] for row in db.all("SELECT card FROM lease_cards WHERE held = 1"))
    return Held(float(sums["cpus"]), int(sums["memory_mib"]), cards)


def end(tx: Tx, lease_id: str) -> None:
    """The lease's container has ended; a lease without cards is released at once. Asked again: nothing happens."""
    lease = get_lease(tx, lease_id)
    if lease.state is not LeaseState.ACTIVE:
        return
    _move(tx, lease, LeaseState.RELEASING)
    if not lease.cards:
        _move(tx, get_lease(tx, lease_id), LeaseState.RELEASED)


def settle(tx: Tx, lease_id: str, busy: Collection[str], note: str | None = None) -> Lease:
    """A lease that is releasing is released, or quarantined when one of its cards is still `busy`.

    A quarantined one whose cards are empty at last is released.
    """
    lease = get_lease(tx, lease_id)
    still = [card for card in lease.cards if card in busy]
    if lease.state is LeaseState.RELEASING and still:
        text = note or f"Processes are left on {', '.join(still)} after the container ended."
        _move(tx, lease, LeaseState.QUARANTINED, note=text)
    elif lease.state in (LeaseState.RELEASING, LeaseState.QUARANTINED) and not still:
        _move(tx, lease, LeaseState.RELEASED)
    return get_lease(tx, lease_id)


def forget(tx: Tx, before: str) -> int:
    """Released leases that ended before that time are deleted; how many."""
    return tx.run("DELETE FROM leases WHERE state = 'released' AND ended_at < ?", before)


def _move(tx: Tx, lease: Lease, to: LeaseState, *, note: str | None = None) -> None:
    assert to in LEASE_MOVES[lease.state], f"a lease never goes from {lease.state} to {to}"
    moved = tx.run(
        "UPDATE leases SET state = ?, note = coalesce(?, note), ended_at = ? WHERE id = ? AND state = ?",
        to,
        note,
        clock.stamp() if to is LeaseState.RELEASED else None,
        lease.id,
        lease.state,
    )
    if not moved:
        raise Stale(f"The lease {lease.id} was moved by somebody else.")
    if to is LeaseState.RELEASED:
        tx.run("UPDATE lease_cards SET held = 0 WHERE lease_id = ?", lease.id)


def _lease(db: Reader, row: Row) -> Lease:
    cards = tuple(
        found["card"] for found in db.all("SELECT card FROM lease_cards WHERE lease_id = ? ORDER BY card", row["id"])
    )
    return Lease(**{**row, "state": LeaseState(row["state"])}, cards=cards)
