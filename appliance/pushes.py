"""Pushes: each move of a branch or a tag counts once, and starts the workflows that ask for it.

What this keeps true: a move is recorded when it is told by git's hook, and in any case when the refs differ from those
last recorded (at the daemon's start, on a watched change), so none is lost while the daemon is down; a recorded push
that was not taken up (a crash between) is taken up at the next start; a broken workflow never refuses a push, it makes a
failed run that says file, line and key.

Order of effects: git moves the ref; the row `pushes` with the ref as seen; the runs; the push is handled.

Owns the tables `pushes` and `seen_refs`.

Why: refs are the truth; a hook may be lost, a comparison is not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath

from appliance import accounts, clock, ids, projects, runs, workflows
from appliance.config import Config
from appliance.db import Database, Reader, Row, Tx
from appliance.errors import ApplianceError, ParseError
from appliance.records import SYSTEM, Actor, Page, Push, Role, Run
from appliance.repos import Repos
from appliance.store import failpoints

Update = tuple[str, str | None, str | None]
UNKNOWN = "unknown"
_SHOWN_PROBLEMS = 5
_one_at_a_time = threading.Lock()


def told(db: Database, project_id: str, updates: Sequence[Update], pusher: str) -> list[Push]:
    """Record the moves that git's hook tells of. A move that was recorded already (by a comparison) is none."""
    found = []
    with _one_at_a_time, db.write() as tx:
        seen = _seen(tx, project_id)
        for ref, old, new in updates:
            if ref.startswith(("refs/heads/", "refs/tags/")) and seen.get(ref) == old and old != new:
                found.append(_record(tx, project_id, ref, old, new, pusher))
    failpoints.hit("push.recorded")
    return found


def unseen(db: Database, repos: Repos, project_id: str) -> dict[str, str | None]:
    """The refs that are not where they were last seen, and where they are now (None: gone)."""
    refs = repos.refs(project_id)
    with db.read() as reader:
        if projects.find_project(reader, SYSTEM, project_id) is None:
            return {}
        seen = _seen(reader, project_id)
    return {ref: refs.get(ref) for ref in {*refs, *seen} if refs.get(ref) != seen.get(ref)}


def record(db: Database, repos: Repos, project_id: str, moves: Mapping[str, str | None]) -> list[Push]:
    """Record those of `moves` (what `unseen` said some time ago) that are still so: no hook told of them.

    Who moved a ref is git's own note; where that is gone, nobody is known, and nobody may do nothing.
    """
    with _one_at_a_time:
        now = unseen(db, repos, project_id)
        still = {ref: new for ref, new in moves.items() if ref in now and now[ref] == new}
        if not still:
            return []
        pushers = {ref: new and repos.pusher_of(project_id, ref, new) for ref, new in still.items()}
        with db.write() as tx:
            seen = _seen(tx, project_id)
            moved = [
                _record(tx, project_id, ref, seen.get(ref), new, pushers[ref] or UNKNOWN)
                for ref, new in sorted(still.items())
            ]
        failpoints.hit("push.recorded")
        return moved


def unhandled(db: Reader) -> list[Push]:
    """The pushes whose runs were not all started, the oldest first."""
    return [_push(row) for row in db.all("SELECT * FROM pushes WHERE handled_at IS NULL ORDER BY rowid")]


def start_runs(db: Database, repos: Repos, config: Config, push: Push) -> Iterator[str]:
    """Start what the push asks for; the lines that its pusher is shown. May be called again after a crash."""
    repos.settle_head(push.project_id)
    if push.new is not None:
        yield from _start(db, repos, config, push)
    failpoints.hit("push.started")
    with db.write() as tx:
        tx.run("UPDATE pushes SET handled_at = ? WHERE id = ? AND handled_at IS NULL", clock.stamp(), push.id)
    failpoints.hit("push.handled")


def list_pushes(db: Reader, actor: Actor, project_id: str, *, after: str | None = None, limit: int = 50) -> Page[Push]:
    """The newest first."""
    project = projects.require(db, actor, project_id)
    rows = db.all(
        "SELECT rowid AS cursor, * FROM pushes WHERE project_id = ? AND rowid < ? ORDER BY rowid DESC LIMIT ?",
        project.id,
        ids.cursor(after),
        limit + 1,
    )
    more = str(rows[limit - 1]["cursor"]) if len(rows) > limit else None
    return Page(tuple(_push(row) for row in rows[:limit]), more)


def _start(db: Database, repos: Repos, config: Config, push: Push) -> Iterator[str]:
    assert push.new is not None
    try:
        commit = repos.commit(push.project_id, repos.resolve(push.project_id, push.new))
        files = repos.workflow_files(push.project_id, commit.sha)
    except ApplianceError as error:
        yield f"appliance: {error.message}"
        return
    yield from files.notes
    known: dict[str, str] = {}
    for path, data in files.files:
        name = _name_of(path)
        if known.setdefault(name, path) != path:
            yield f"{name}: {path} never runs, because {known[name]} makes the same workflow; rename one of the two"
            continue
        problems: tuple[str, ...] = ()
        plan = None
        try:
            plan = workflows.parse(data, path)
            if not workflows.triggers_on(plan, push.ref):
                continue
        except ParseError as error:
            problems = (error.message, *(issue for issue in error.issues if issue != error.message))
        with db.write() as tx:
            actor = _actor(tx, push.pusher)
            try:
                run = runs.start(
                    tx,
                    actor,
                    project_id=push.project_id,
                    name=name,
                    path=path,
                    spec_text=data.decode("utf-8", "replace"),
                    plan=plan,
                    problem="\n".join(problems[:_SHOWN_PROBLEMS]) or None,
                    ref=push.ref,
                    commit=commit.sha,
                    commit_message=commit.message,
                    push_id=push.id,
                )
            except ApplianceError as error:
                run = None
                refusal = error.message
            project = projects.get_project(tx, SYSTEM, push.project_id)
        if run is None:
            yield f"{name}: {refusal}"
            continue
        state = "failed" if run.message else "started"
        yield f"{name}: run {run.number} {state}: {run_url(config, project.name, name, run)}"
        yield from (f"  {line}" for line in (run.message or "").splitlines())


def run_url(config: Config, project: str, workflow: str, run: Run) -> str:
    """The run's page on the dashboard."""
    return f"{config.dashboard_urls()[0]}/projects/{project}/runs/{workflow}/{run.number}"


def _name_of(path: str) -> str:
    """The workflow's name: its file's, with what a name cannot hold made a '-'."""
    stem = PurePosixPath(path).stem
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in stem)
    return kept.strip("._-")[:100] or "workflow"


def _actor(db: Reader, pusher: str) -> Actor:
    """Who pushed: an account's address over HTTP; a login name over a path or SSH, which only root's can be."""
    if "@" not in pusher and pusher != UNKNOWN:
        pusher = accounts.LOCAL_ADMIN
    user = accounts.find_user(db, pusher)
    if user is not None:
        return accounts.actor_of(user, "git")
    return Actor("", pusher, Role.MEMBER, "git")


def _seen(db: Reader, project_id: str) -> dict[str, str]:
    return {row["ref"]: row["sha"] for row in db.all("SELECT ref, sha FROM seen_refs WHERE project_id = ?", project_id)}


def _record(tx: Tx, project_id: str, ref: str, old: str | None, new: str | None, pusher: str) -> Push:
    if new is None:
        tx.run("DELETE FROM seen_refs WHERE project_id = ? AND ref = ?", project_id, ref)
    else:
        tx.run(
            "INSERT INTO seen_refs VALUES (?, ?, ?) ON CONFLICT (project_id, ref) DO UPDATE SET sha = excluded.sha",
            project_id,
            ref,
            new,
        )
    push = Push(ids.new_id("pu", 14), project_id, ref, old, new, pusher, clock.stamp())
    tx.insert("pushes", asdict(push))
    return push


def _push(row: Row) -> Push:
    return Push(**{key: row[key] for key in Push.__dataclass_fields__})
