"""The tables, as migrations that are only ever appended.

What this keeps true: each migration is one transaction; before pending ones run on a file that holds data, a copy is made
beside it; a released migration never changes (tests/test_schema.py freezes each by its hash); a file from a newer
release is refused. The law of states.py stands here again as CHECK constraints, so that no bug can write a state that
does not exist or an ending without its time.

Every table has one owning module (`OWNERS`) that alone writes it.

Why: the schema is what survives every other line of this program.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pysqlite3.dbapi2 as sqlite
import sqlite_utils

from appliance import clock
from appliance.errors import PreconditionFailed
from appliance.states import (
    ATTEMPT_FINAL,
    JOB_FINAL,
    RUN_FINAL,
    SPEC_FINAL,
    AttemptState,
    JobState,
    LeaseState,
    Reason,
    RunState,
    Seen,
    SpecState,
    VersionState,
    Want,
)

OWNERS = {
    "settings": "machine",
    "machine_types": "machine",
    "events": "events",
    "users": "accounts",
    "sessions": "accounts",
    "api_keys": "accounts",
    "invitations": "accounts",
    "projects": "projects",
    "collaborators": "projects",
    "versions": "versions",
    "tags": "versions",
    "tag_moves": "versions",
    "pins": "versions",
    "version_numbers": "versions",
    "datasets": "datasets",
    "models": "models",
    "containers": "containers",
    "leases": "leases",
    "lease_cards": "leases",
    "pushes": "pushes",
    "seen_refs": "pushes",
    "workflows": "runs",
    "runs": "runs",
    "jobs": "runs",
    "attempts": "runs",
    "deployments": "deployments",
    "deployment_specs": "deployments",
    "deployment_keys": "deployments",
}

migrations = sqlite_utils.Migrations("appliance")


def _one_of(column: str, states: Any) -> str:
    listed = ", ".join(f"'{state.value}'" for state in states)
    return f"CHECK ({column} IN ({listed}))"


def _ended(final: Any) -> str:
    listed = ", ".join(f"'{state.value}'" for state in sorted(final))
    return f"CHECK ((finished_at IS NOT NULL) = (state IN ({listed})))"


FIRST = f"""
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

CREATE TABLE machine_types (
  name TEXT PRIMARY KEY, cpus REAL NOT NULL CHECK (cpus > 0), memory_mib INTEGER NOT NULL CHECK (memory_mib > 0),
  cards INTEGER NOT NULL DEFAULT 0 CHECK (cards >= 0), card_name TEXT, alias_of TEXT) STRICT;

CREATE TABLE events (
  id INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, kind TEXT NOT NULL, project_id TEXT,
  subject TEXT NOT NULL, text TEXT NOT NULL) STRICT;
CREATE INDEX events_project ON events (project_id, id);

CREATE TABLE users (
  id TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE, password TEXT, role TEXT NOT NULL CHECK (role IN ('admin', 'member')),
  created_at TEXT NOT NULL, disabled_at TEXT) STRICT;

CREATE TABLE sessions (
  token_hash TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users ON DELETE CASCADE, created_at TEXT NOT NULL,
  seen_at TEXT NOT NULL, expires_at TEXT NOT NULL) STRICT;
CREATE INDEX sessions_user ON sessions (user_id);

CREATE TABLE api_keys (
  id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users ON DELETE CASCADE, name TEXT NOT NULL, prefix TEXT NOT NULL,
  hash TEXT NOT NULL UNIQUE, created_at TEXT NOT NULL, expires_at TEXT, last_used_at TEXT, revoked_at TEXT,
  run_id TEXT) STRICT;
CREATE INDEX api_keys_user ON api_keys (user_id);

CREATE TABLE invitations (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('setup', 'invite', 'reset')), token_hash TEXT NOT NULL UNIQUE,
  email TEXT, user_id TEXT REFERENCES users ON DELETE CASCADE, role TEXT NOT NULL CHECK (role IN ('admin', 'member')),
  created_by TEXT NOT NULL, created_at TEXT NOT NULL, expires_at TEXT NOT NULL, used_at TEXT) STRICT;

CREATE TABLE projects (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_by TEXT NOT NULL, created_at TEXT NOT NULL) STRICT;

CREATE TABLE collaborators (
  project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, user_id TEXT NOT NULL REFERENCES users ON DELETE CASCADE,
  added_at TEXT NOT NULL, PRIMARY KEY (project_id, user_id)) STRICT, WITHOUT ROWID;
CREATE INDEX collaborators_user ON collaborators (user_id);

CREATE TABLE versions (
  id TEXT PRIMARY KEY, owner_kind TEXT NOT NULL CHECK (owner_kind IN ('dataset', 'model')), owner_id TEXT NOT NULL,
  number INTEGER NOT NULL, state TEXT NOT NULL {_one_of("state", VersionState)}, root TEXT,
  file_count INTEGER NOT NULL DEFAULT 0, size_bytes INTEGER NOT NULL DEFAULT 0, added_bytes INTEGER NOT NULL DEFAULT 0,
  message TEXT NOT NULL DEFAULT '', metadata TEXT NOT NULL DEFAULT '{{}}', created_by TEXT NOT NULL,
  created_at TEXT NOT NULL, committed_at TEXT, run_id TEXT, job TEXT, origin TEXT UNIQUE,
  UNIQUE (owner_kind, owner_id, number),
  CHECK ((state = 'committed') = (committed_at IS NOT NULL)), CHECK ((state = 'committed') = (root IS NOT NULL))) STRICT;

CREATE TABLE tags (
  owner_kind TEXT NOT NULL, owner_id TEXT NOT NULL, name TEXT NOT NULL,
  version_id TEXT NOT NULL REFERENCES versions ON DELETE CASCADE, moved_at TEXT NOT NULL, moved_by TEXT NOT NULL,
  PRIMARY KEY (owner_kind, owner_id, name)) STRICT, WITHOUT ROWID;
CREATE INDEX tags_version ON tags (version_id);

CREATE TABLE tag_moves (
  id INTEGER PRIMARY KEY, owner_kind TEXT NOT NULL, owner_id TEXT NOT NULL, name TEXT NOT NULL, from_version TEXT,
  to_version TEXT, moved_at TEXT NOT NULL, moved_by TEXT NOT NULL) STRICT;

CREATE TABLE version_numbers (
  owner_kind TEXT NOT NULL, owner_id TEXT NOT NULL, last INTEGER NOT NULL, PRIMARY KEY (owner_kind, owner_id))
  STRICT, WITHOUT ROWID;

CREATE TABLE pins (
  version_id TEXT NOT NULL REFERENCES versions, holder TEXT NOT NULL, text TEXT NOT NULL,
  PRIMARY KEY (version_id, holder)) STRICT, WITHOUT ROWID;
CREATE INDEX pins_holder ON pins (holder);

CREATE TABLE datasets (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, description TEXT, is_public INTEGER NOT NULL DEFAULT 0,
  project_id TEXT REFERENCES projects, created_by TEXT NOT NULL, created_at TEXT NOT NULL, modified_at TEXT NOT NULL) STRICT;
CREATE INDEX datasets_project ON datasets (project_id);

CREATE TABLE models (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, model_type TEXT NOT NULL, description TEXT, is_public INTEGER NOT NULL DEFAULT 0,
  project_id TEXT REFERENCES projects, created_by TEXT NOT NULL, created_at TEXT NOT NULL, modified_at TEXT NOT NULL) STRICT;
CREATE UNIQUE INDEX models_name ON models (ifnull(project_id, ''), name);

CREATE TABLE containers (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('attempt', 'replica')), owner_id TEXT NOT NULL,
  project_id TEXT NOT NULL, spec TEXT NOT NULL, machine_type TEXT NOT NULL,
  want TEXT NOT NULL {_one_of("want", Want)}, seen TEXT NOT NULL {_one_of("seen", Seen)}, grace_s REAL NOT NULL,
  keep_until TEXT, engine_id TEXT, exit_code INTEGER, out_of_memory INTEGER NOT NULL DEFAULT 0, error TEXT,
  created_at TEXT NOT NULL, started_at TEXT, finished_at TEXT, lease_id TEXT, wait TEXT, told INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX containers_open ON containers (seen) WHERE seen != 'removed';
CREATE INDEX containers_owner ON containers (owner_id);

CREATE TABLE leases (
  id TEXT PRIMARY KEY, container_id TEXT NOT NULL, owner_id TEXT NOT NULL, state TEXT NOT NULL {_one_of("state", LeaseState)},
  machine_type TEXT NOT NULL, cpus REAL NOT NULL, memory_mib INTEGER NOT NULL, created_at TEXT NOT NULL, ended_at TEXT,
  note TEXT, CHECK ((ended_at IS NOT NULL) = (state = 'released'))) STRICT;
CREATE INDEX leases_open ON leases (state) WHERE state != 'released';
CREATE UNIQUE INDEX leases_container ON leases (container_id) WHERE state != 'released';

CREATE TABLE lease_cards (
  lease_id TEXT NOT NULL REFERENCES leases ON DELETE CASCADE, card TEXT NOT NULL, held INTEGER NOT NULL DEFAULT 1,
  PRIMARY KEY (lease_id, card)) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX one_lease_a_card ON lease_cards (card) WHERE held = 1;

CREATE TABLE pushes (
  id TEXT PRIMARY KEY, project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, ref TEXT NOT NULL, old TEXT, new TEXT,
  pusher TEXT NOT NULL, at TEXT NOT NULL, handled_at TEXT) STRICT;
CREATE INDEX pushes_open ON pushes (handled_at) WHERE handled_at IS NULL;

CREATE TABLE seen_refs (
  project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, ref TEXT NOT NULL, sha TEXT NOT NULL,
  PRIMARY KEY (project_id, ref)) STRICT, WITHOUT ROWID;

CREATE TABLE workflows (
  id TEXT PRIMARY KEY, project_id TEXT NOT NULL REFERENCES projects ON DELETE CASCADE, name TEXT NOT NULL, path TEXT,
  spec_text TEXT, runs_made INTEGER NOT NULL DEFAULT 0, created_at TEXT NOT NULL, modified_at TEXT NOT NULL,
  UNIQUE (project_id, name)) STRICT;

CREATE TABLE runs (
  id TEXT PRIMARY KEY, workflow_id TEXT NOT NULL REFERENCES workflows ON DELETE CASCADE, project_id TEXT NOT NULL,
  number INTEGER NOT NULL, state TEXT NOT NULL {_one_of("state", RunState)}, message TEXT, ref TEXT, "commit" TEXT,
  commit_message TEXT, spec_text TEXT NOT NULL, inputs TEXT NOT NULL DEFAULT '{{}}', started_by TEXT NOT NULL, push_id TEXT,
  cancel_asked_by TEXT, created_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
  UNIQUE (workflow_id, number), UNIQUE (workflow_id, push_id), {_ended(RUN_FINAL)}) STRICT;
CREATE INDEX runs_project ON runs (project_id, created_at);
CREATE INDEX runs_open ON runs (state) WHERE finished_at IS NULL;

CREATE TABLE jobs (
  id TEXT PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, name TEXT NOT NULL, position INTEGER NOT NULL,
  uses TEXT NOT NULL, needs TEXT NOT NULL, state TEXT NOT NULL {_one_of("state", JobState)}, reason TEXT, message TEXT,
  outputs TEXT NOT NULL DEFAULT '{{}}', created_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
  UNIQUE (run_id, name), {_ended(JOB_FINAL)}) STRICT;

CREATE TABLE attempts (
  id TEXT PRIMARY KEY, job_id TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, number INTEGER NOT NULL,
  state TEXT NOT NULL {_one_of("state", AttemptState)}, reason TEXT {_one_of("reason", Reason)}, message TEXT,
  exit_code INTEGER, container_id TEXT, created_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
  deadline_at TEXT, UNIQUE (job_id, number), {_ended(ATTEMPT_FINAL)}) STRICT;
CREATE INDEX attempts_open ON attempts (state) WHERE finished_at IS NULL;
CREATE INDEX attempts_container ON attempts (container_id);

CREATE TABLE deployments (
  id TEXT PRIMARY KEY, project_id TEXT NOT NULL REFERENCES projects, name TEXT NOT NULL, enabled INTEGER NOT NULL DEFAULT 1,
  port INTEGER NOT NULL UNIQUE, created_by TEXT NOT NULL, created_at TEXT NOT NULL, UNIQUE (project_id, name)) STRICT;

CREATE TABLE deployment_specs (
  id TEXT PRIMARY KEY, deployment_id TEXT NOT NULL REFERENCES deployments ON DELETE CASCADE, number INTEGER NOT NULL,
  state TEXT NOT NULL {_one_of("state", SpecState)}, config TEXT NOT NULL, model_version_id TEXT NOT NULL,
  replicas INTEGER NOT NULL, error TEXT, run_id TEXT, origin TEXT UNIQUE, created_by TEXT NOT NULL, created_at TEXT NOT NULL,
  applied_at TEXT, healthy_at TEXT, finished_at TEXT, UNIQUE (deployment_id, number), {_ended(SPEC_FINAL)}) STRICT;
CREATE INDEX specs_open ON deployment_specs (state) WHERE finished_at IS NULL;

CREATE TABLE deployment_keys (
  id TEXT PRIMARY KEY, deployment_id TEXT NOT NULL REFERENCES deployments ON DELETE CASCADE, name TEXT NOT NULL,
  prefix TEXT NOT NULL, hash TEXT NOT NULL, created_at TEXT NOT NULL, revoked_at TEXT) STRICT;
CREATE INDEX deployment_keys_of ON deployment_keys (deployment_id)
"""


@migrations()
def m0001_first(db: sqlite_utils.Database) -> None:
    for statement in FIRST.split(";\n"):
        db.execute(statement)


def migrate(path: Path) -> list[str]:
    """Bring the file at `path` to the newest schema; the names of the migrations that ran.

    A file with data is first copied to `PATH.before-NAME`. Raises PreconditionFailed when the file was written by a newer
    release: an older program must not touch it.
    """
    connection = sqlite.connect(str(path), isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")
        database = sqlite_utils.Database(connection)
        known = {migration.name for migration in migrations._migrations}
        applied = {migration.name for migration in migrations.applied(database)}
        if applied - known:
            newest = max(applied - known)
            raise PreconditionFailed(
                f"{path} was written by a newer release (its schema has {newest!r}); install that release again, or "
                f"restore a backup that this one made."
            )
        pending = [migration.name for migration in migrations.pending(database)]
        if pending and applied:
            backup = path.with_name(f"{path.name}.before-{pending[0]}-{clock.stamp().replace(':', '')}")
            connection.execute("VACUUM INTO ?", (str(backup),))
        migrations.apply(database)
        return pending
    except sqlite.DatabaseError as error:
        raise PreconditionFailed(
            f"{path} cannot be read as the appliance's database ({error}); restore a backup or move the file away."
        ) from error
    finally:
        connection.close()
