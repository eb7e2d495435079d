"""Container rows: what is wanted of each, and what was last seen of it.

What this keeps true: a container is one-shot (it is replaced, never started again); `want` goes from running to gone,
`seen` only forward; the owner (a job's attempt, a deployment's replica) is told of each change exactly once in the
transaction that notes it, by whoever calls `saw`.

Owns the table `containers`.

Why: notebooks, runs and deployments decide what they want and what an ending means; carrying it out is one mechanism.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from appliance import clock
from appliance.db import Reader, Row, Tx
from appliance.errors import NotFound
from appliance.records import Container, ContainerSpec, Mount
from appliance.states import SEEN_MOVES, Seen, Want


def add(
    tx: Tx, spec: ContainerSpec, *, owner_id: str, project_id: str, machine_type: str, grace_s: float = 10.0
) -> Container:
    """A container is wanted. It waits for a lease, then the reconciler makes it. Asked again: the one that is there."""
    if tx.one("SELECT 1 AS found FROM containers WHERE id = ?", spec.id) is None:
        tx.insert(
            "containers",
            {
                "id": spec.id,
                "kind": spec.kind,
                "owner_id": owner_id,
                "project_id": project_id,
                "spec": json.dumps(asdict(spec)),
                "machine_type": machine_type,
                "want": Want.RUNNING,
                "seen": Seen.ABSENT,
                "grace_s": grace_s,
                "created_at": clock.stamp(),
            },
        )
    return get_container(tx, spec.id)


def get_container(db: Reader, container_id: str) -> Container:
    row = db.one("SELECT * FROM containers WHERE id = ?", container_id)
    if row is None:
        raise NotFound(f"There is no container {container_id!r}.")
    return _container(row)


def find_container(db: Reader, container_id: str | None) -> Container | None:
    row = db.one("SELECT * FROM containers WHERE id = ?", container_id)
    return None if row is None else _container(row)


def list_open(db: Reader) -> list[Container]:
    """Everything that is or may be in the engine, the oldest first."""
    return [
        _container(row) for row in db.all("SELECT * FROM containers WHERE seen != 'removed' ORDER BY created_at, id")
    ]


def list_of(db: Reader, owner_id: str) -> list[Container]:
    """The containers of one owner, the oldest first."""
    return [
        _container(row)
        for row in db.all("SELECT * FROM containers WHERE owner_id = ? ORDER BY created_at, id", owner_id)
    ]


def list_kept(db: Reader, owner_id: str) -> list[Container]:
    """Those of one owner that are or may be in the engine, the oldest first."""
    return [
        _container(row)
        for row in db.all(
            "SELECT * FROM containers WHERE owner_id = ? AND seen != 'removed' ORDER BY created_at, id", owner_id
        )
    ]


def list_waiting(db: Reader) -> list[tuple[Container, str, str | None]]:
    """What is wanted and has no lease yet, with its machine type and the reason it was last told, the oldest first."""
    rows = db.all(
        "SELECT * FROM containers WHERE want = 'running' AND seen = 'absent' AND lease_id IS NULL ORDER BY created_at, id"
    )
    return [(_container(row), row["machine_type"], row["wait"]) for row in rows]


def leased(tx: Tx, container_id: str, lease_id: str, cards: tuple[str, ...]) -> Container:
    """The container has its lease: it may be made."""
    spec = replace(get_container(tx, container_id).spec, lease_id=lease_id, cards=cards)
    tx.run(
        "UPDATE containers SET lease_id = ?, spec = ?, wait = NULL WHERE id = ? AND lease_id IS NULL",
        lease_id,
        json.dumps(asdict(spec)),
        container_id,
    )
    return get_container(tx, container_id)


def note_wait(tx: Tx, container_id: str, why: str) -> None:
    """The sentence that says why it has no lease yet."""
    tx.run("UPDATE containers SET wait = ? WHERE id = ? AND wait IS NOT ?", why, container_id, why)


def wait_of(db: Reader, container_id: str | None) -> str | None:
    value = db.value("SELECT wait FROM containers WHERE id = ?", container_id)
    return None if value is None else str(value)


def want_gone(tx: Tx, container_id: str, *, keep_until: str | None = None) -> None:
    """It is stopped (if it runs), and removed at `keep_until` or at once. Asked again: nothing happens."""
    tx.run(
        "UPDATE containers SET want = ?, keep_until = coalesce(keep_until, ?) WHERE id = ? AND want = ?",
        Want.GONE,
        keep_until,
        container_id,
        Want.RUNNING,
    )


def remove_now(tx: Tx, container_id: str) -> None:
    """It is wanted gone, and not kept any longer: who owned it is deleted. Missing: nothing happens."""
    tx.run("UPDATE containers SET want = ?, keep_until = NULL WHERE id = ?", Want.GONE, container_id)


def remove_of_project(tx: Tx, project_id: str) -> None:
    """None of the project's containers is kept any longer."""
    tx.run("UPDATE containers SET want = ?, keep_until = NULL WHERE project_id = ?", Want.GONE, project_id)


def saw(
    tx: Tx,
    container_id: str,
    seen: Seen,
    *,
    engine_id: str | None = None,
    exit_code: int | None = None,
    out_of_memory: bool = False,
    error: str | None = None,
    started_at: str | None = None,
    finished_at: str | None = None,
) -> bool:
    """Note what was seen; False when that is no news (it never goes back)."""
    container = get_container(tx, container_id)
    if seen is container.seen or seen not in SEEN_MOVES[container.seen]:
        return False
    ended = seen in (Seen.EXITED, Seen.REMOVED)
    tx.run(
        "UPDATE containers SET seen = ?, engine_id = coalesce(?, engine_id), exit_code = coalesce(?, exit_code),"
        " out_of_memory = max(out_of_memory, ?), error = coalesce(error, ?), started_at = coalesce(started_at, ?),"
        " finished_at = coalesce(finished_at, ?) WHERE id = ? AND seen = ?",
        seen,
        engine_id,
        exit_code,
        int(out_of_memory),
        error,
        started_at or (clock.stamp() if seen is Seen.RUNNING else None),
        (finished_at or clock.stamp()) if ended else None,
        container_id,
        container.seen,
    )
    return True


def keep_until(db: Reader, container_id: str) -> str | None:
    value = db.value("SELECT keep_until FROM containers WHERE id = ?", container_id)
    return None if value is None else str(value)


def forget(tx: Tx, before: str) -> int:
    """Rows of containers that were removed before that time are deleted; how many."""
    return tx.run("DELETE FROM containers WHERE seen = 'removed' AND finished_at < ?", before)


def _container(row: Row) -> Container:
    fields: dict[str, Any] = {key: row[key] for key in Container.__dataclass_fields__ if key in row}
    return Container(
        **{
            **fields,
            "spec": _spec(json.loads(row["spec"])),
            "want": Want(row["want"]),
            "seen": Seen(row["seen"]),
            "out_of_memory": bool(row["out_of_memory"]),
        }
    )


def _spec(fields: dict[str, Any]) -> ContainerSpec:
    return ContainerSpec(
        **{
            **fields,
            "command": None if fields["command"] is None else tuple(fields["command"]),
            "entrypoint": None if fields["entrypoint"] is None else tuple(fields["entrypoint"]),
            "mounts": tuple(Mount(**mount) for mount in fields["mounts"]),
            "cards": tuple(fields["cards"]),
        }
    )
