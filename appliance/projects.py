"""Projects and who works in them.

What this keeps true: an admin sees every project; a member sees those they collaborate on and cannot tell the others from
missing ones. Within a project a collaborator may do everything, but for choosing collaborators and deleting the
project, which its creator and admins may.

Owns the tables `projects` and `collaborators`.

Why: every thing that belongs to a project asks `require` before anything else, so access has one rule in one place.
"""

from __future__ import annotations

from appliance import accounts, clock, events, ids
from appliance.db import Reader, Row, Tx
from appliance.errors import BadRequest, Conflict, Forbidden, NotFound
from appliance.records import Actor, Collaborator, Page, Project, Role, User

_SEEN = "(?1 OR EXISTS (SELECT 1 FROM collaborators c WHERE c.project_id = p.id AND c.user_id = ?2))"


def create(tx: Tx, actor: Actor, name: str) -> Project:
    """A new, empty project in which its creator works. Conflict when the name is taken, in whatever case."""
    name = ids.name(name, "project", not_like="p")
    _refuse_taken(tx, name)
    project = Project(ids.new_id("p"), name, actor.email, clock.stamp())
    tx.insert("projects", {"id": project.id, "name": name, "created_by": actor.email, "created_at": project.created_at})
    if accounts.find_user(tx, actor.user_id):
        _add(tx, project.id, actor.user_id)
    events.record(
        tx, actor, "project.created", project.id, f"{actor.email} made the project {name!r}.", project_id=project.id
    )
    return project


def find_project(db: Reader, actor: Actor, id_or_name: str) -> Project | None:
    """The project if it is there and the actor may see it."""
    row = db.one(
        f"SELECT p.* FROM projects p WHERE (p.id = ?3 OR p.name = ?3) AND {_SEEN} ORDER BY p.id = ?3 DESC",  # noqa: S608 - a literal of ours
        actor.is_admin,
        actor.user_id,
        id_or_name,
    )
    return _project_of(row) if row else None


def get_project(db: Reader, actor: Actor, id_or_name: str) -> Project:
    """By id or name. NotFound, also when the actor may not know of it."""
    project = find_project(db, actor, id_or_name)
    if project is None:
        raise NotFound(f"There is no project {id_or_name!r}, or you are not one of its collaborators.")
    return project


def require(db: Reader, actor: Actor, project_id: str) -> Project:
    """The project, as proof that the actor may work in it. NotFound otherwise."""
    return get_project(db, actor, project_id)


def may_see(db: Reader, actor: Actor, project_id: str) -> bool:
    """Whether the actor may work in the project of that id; a name is no id."""
    if actor.is_admin:
        return db.one("SELECT 1 AS found FROM projects WHERE id = ?", project_id) is not None
    return (
        db.one("SELECT 1 AS found FROM collaborators WHERE project_id = ? AND user_id = ?", project_id, actor.user_id)
        is not None
    )


def list_projects(db: Reader, actor: Actor, *, after: str | None = None, limit: int = 50) -> Page[Project]:
    """What the actor may see, newest first."""
    if limit < 1:
        raise BadRequest("limit must be at least 1.")
    created_at, _, project_id = (after or "~").partition("_")
    rows = db.all(
        f"SELECT p.* FROM projects p WHERE {_SEEN} AND (p.created_at, p.id) < (?3, ?4) "  # noqa: S608 - a literal of ours
        "ORDER BY p.created_at DESC, p.id DESC LIMIT ?5",
        actor.is_admin,
        actor.user_id,
        created_at,
        project_id,
        limit + 1,
    )
    items = tuple(_project_of(row) for row in rows[:limit])
    more = len(rows) > limit
    return Page(items, f"{items[-1].created_at}_{items[-1].id}" if more else None)


def rename(tx: Tx, actor: Actor, project_id: str, name: str) -> Project:
    """The project has another name; its id and its repository stay."""
    project = require(tx, actor, project_id)
    name = ids.name(name, "project", not_like="p")
    if name == project.name:
        return project
    if name.lower() != project.name.lower():
        _refuse_taken(tx, name)
    tx.run("UPDATE projects SET name = ? WHERE id = ?", name, project.id)
    text = f"{actor.email} renamed the project {project.name!r} to {name!r}."
    events.record(tx, actor, "project.renamed", project.id, text, project_id=project.id)
    return require(tx, actor, project.id)


def list_collaborators(db: Reader, actor: Actor, project_id: str) -> list[Collaborator]:
    """Who works in the project, in the order they came. Admins see every project without being listed."""
    project = require(db, actor, project_id)
    rows = db.all(
        "SELECT u.*, c.added_at FROM collaborators c JOIN users u ON u.id = c.user_id WHERE c.project_id = ? "
        "ORDER BY c.added_at, u.email",
        project.id,
    )
    return [_collaborator_of(project.id, row) for row in rows]


def add_collaborator(tx: Tx, actor: Actor, project_id: str, user_id: str) -> Collaborator:
    """The user (id or address) works in the project. Twice is once."""
    project = require_owner(tx, actor, project_id)
    user = accounts.get_user(tx, user_id)
    if user.email == accounts.LOCAL_ADMIN:
        raise Conflict(f"{user.email} is root on this server and sees every project.")
    if _add(tx, project.id, user.id):
        text = f"{actor.email} added {user.email} to {project.name!r}."
        events.record(tx, actor, "project.collaborator", project.id, text, project_id=project.id)
    return next(each for each in list_collaborators(tx, actor, project.id) if each.user.id == user.id)


def remove_collaborator(tx: Tx, actor: Actor, project_id: str, user_id: str) -> None:
    """The user no longer sees the project, unless they are an admin. Anyone may leave; others are removed by its owner."""
    project = require(tx, actor, project_id)
    user = accounts.find_user(tx, user_id)
    if user is None or user.id != actor.user_id:
        require_owner(tx, actor, project_id)
    if user is None or not tx.run(
        "DELETE FROM collaborators WHERE project_id = ? AND user_id = ?", project.id, user.id
    ):
        raise NotFound(f"{user_id!r} is not a collaborator of {project.name!r}.")
    text = f"{actor.email} removed {user.email} from {project.name!r}."
    events.record(tx, actor, "project.collaborator", project.id, text, project_id=project.id)


def require_owner(db: Reader, actor: Actor, project_id: str) -> Project:
    """The project, as proof that the actor may delete it and choose who works in it. NotFound or Forbidden otherwise."""
    project = require(db, actor, project_id)
    if not (actor.is_admin or actor.email == project.created_by):
        raise Forbidden(f"Only the creator of {project.name!r} or an admin may do this.")
    return project


def delete_row(tx: Tx, project_id: str) -> None:
    """The row and the list of collaborators are gone; removal.py looks after everything that hangs on it."""
    tx.run("DELETE FROM projects WHERE id = ?", project_id)


def _add(tx: Tx, project_id: str, user_id: str) -> bool:
    if tx.one("SELECT 1 FROM collaborators WHERE project_id = ? AND user_id = ?", project_id, user_id):
        return False
    tx.insert("collaborators", {"project_id": project_id, "user_id": user_id, "added_at": clock.stamp()})
    return True


def _refuse_taken(db: Reader, name: str) -> None:
    if db.one("SELECT 1 FROM projects WHERE lower(name) = lower(?)", name):
        raise Conflict(f"There is already a project {name!r}; choose another name.")


def _project_of(row: Row) -> Project:
    return Project(row["id"], row["name"], row["created_by"], row["created_at"])


def _collaborator_of(project_id: str, row: Row) -> Collaborator:
    user = User(row["id"], row["email"], Role(row["role"]), row["created_at"], row["disabled_at"])
    return Collaborator(project_id, user, row["added_at"])
