"""What happened, in sentences for people. Written in the transaction of the thing itself, so neither is without the other.

Owns the table `events`.

Why: the activity page, the audit question "who did that" and the first look at a failure are one list.
"""

from __future__ import annotations

from appliance import clock
from appliance.db import Reader, Tx
from appliance.records import Actor, Event


def record(tx: Tx, actor: Actor, kind: str, subject: str, text: str, *, project_id: str | None = None) -> None:
    """Note that `actor` did something: `kind` such as `run.started`, `subject` the id of what it is about."""
    tx.insert(
        "events",
        {
            "at": clock.stamp(),
            "actor": actor.email,
            "kind": kind,
            "project_id": project_id,
            "subject": subject,
            "text": text,
        },
    )


def list_events(
    db: Reader, *, project_id: str | None = None, before: int | None = None, limit: int = 50
) -> list[Event]:
    """The newest events first, of one project or of all."""
    rows = db.all(
        "SELECT * FROM events WHERE (?1 IS NULL OR project_id = ?1) AND (?2 IS NULL OR id < ?2) ORDER BY id DESC LIMIT ?3",
        project_id,
        before,
        limit,
    )
    return [Event(**row) for row in rows]


def forget(tx: Tx, before: str) -> int:
    """Delete events older than the time `before`; how many went."""
    return tx.run("DELETE FROM events WHERE at < ?", before)
