"""Projects and their collaborators, on the real database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from web_support import Clock, database, person

from appliance import accounts, projects
from appliance.db import Database
from appliance.errors import BadRequest, Conflict, Forbidden, NotFound
from appliance.records import Role

pytestmark = pytest.mark.fast


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with database(tmp_path) as opened:
        yield opened


def test_a_project_is_seen_by_its_creator_by_admins_and_by_nobody_else(db: Database) -> None:
    ana, bob, boss = person(db, "ana@x.org"), person(db, "bob@x.org"), person(db, "boss@x.org", Role.ADMIN)

    with db.write() as tx:
        made = projects.create(tx, ana, "digits")

    with db.read() as r:
        assert projects.get_project(r, ana, made.id) == made
        assert projects.get_project(r, boss, "digits") == made
        assert projects.may_see(r, bob, made.id) is False
        with pytest.raises(NotFound) as hidden:
            projects.get_project(r, bob, "digits")
        with pytest.raises(NotFound) as missing:
            projects.get_project(r, bob, "nothing")
        assert str(hidden.value).replace("digits", "nothing") == str(missing.value)
        assert projects.list_projects(r, bob).items == ()


@pytest.mark.parametrize("name", ["", "a b", "-a", "../x", "a/b", "x" * 101])
def test_a_name_that_could_not_be_a_folder_is_refused(db: Database, name: str) -> None:
    ana = person(db, "ana@x.org")

    with db.write() as tx, pytest.raises(BadRequest):
        projects.create(tx, ana, name)


def test_a_name_is_taken_in_every_case_also_by_a_project_that_one_may_not_see(db: Database) -> None:
    ana, bob = person(db, "ana@x.org"), person(db, "bob@x.org")
    with db.write() as tx:
        projects.create(tx, ana, "Digits")

    with db.write() as tx, pytest.raises(Conflict):
        projects.create(tx, bob, "digits")


def test_lists_come_in_pages_newest_first(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Clock(monkeypatch)
    ana = person(db, "ana@x.org")
    with db.write() as tx:
        for number in range(5):
            projects.create(tx, ana, f"p{number}")
            time.forward(seconds=number % 2)

    names: list[str] = []
    after = None
    with db.read() as r:
        for _ in range(3):
            page = projects.list_projects(r, ana, after=after, limit=2)
            names += [each.name for each in page.items]
            after = page.next_page

    assert after is None
    assert sorted(names) == ["p0", "p1", "p2", "p3", "p4"]
    assert names[0] == "p4"


def test_a_collaborator_may_rename_but_not_choose_collaborators(db: Database) -> None:
    ana, bob, eve = (person(db, f"{name}@x.org") for name in ("ana", "bob", "eve"))
    with db.write() as tx:
        made = projects.create(tx, ana, "digits")
        projects.add_collaborator(tx, ana, made.id, bob.user_id)
        projects.add_collaborator(tx, ana, made.id, "bob@x.org")

    with db.write() as tx:
        assert projects.rename(tx, bob, made.id, "Digits").name == "Digits"
    with db.write() as tx, pytest.raises(Forbidden):
        projects.add_collaborator(tx, bob, made.id, eve.user_id)
    with db.write() as tx, pytest.raises(Forbidden):
        projects.remove_collaborator(tx, bob, made.id, ana.user_id)
    with db.write() as tx, pytest.raises(NotFound):
        projects.rename(tx, eve, made.id, "mine")
    with db.read() as r:
        assert [each.user.email for each in projects.list_collaborators(r, bob, made.id)] == ["ana@x.org", "bob@x.org"]


def test_a_collaborator_may_leave_and_then_sees_nothing(db: Database) -> None:
    ana, bob = person(db, "ana@x.org"), person(db, "bob@x.org")
    with db.write() as tx:
        made = projects.create(tx, ana, "digits")
        projects.add_collaborator(tx, ana, made.id, bob.user_id)

    with db.write() as tx:
        projects.remove_collaborator(tx, bob, made.id, bob.user_id)

    with db.read() as r:
        assert not projects.may_see(r, bob, made.id)
    with db.write() as tx, pytest.raises(NotFound):
        projects.remove_collaborator(tx, ana, made.id, bob.user_id)


def test_a_removed_member_leaves_their_projects_to_the_admins(db: Database) -> None:
    ana, boss = person(db, "ana@x.org"), person(db, "boss@x.org", Role.ADMIN)
    with db.write() as tx:
        made = projects.create(tx, ana, "digits")

    with db.write() as tx:
        accounts.remove_user(tx, boss, ana.user_id)

    with db.read() as r:
        assert projects.get_project(r, boss, "digits") == made
        assert projects.list_collaborators(r, boss, made.id) == []
    with db.write() as tx:
        projects.delete_row(tx, made.id)
    with db.read() as r:
        assert projects.find_project(r, boss, made.id) is None


def test_a_project_named_like_anothers_id_opens_nothing(db: Database) -> None:
    bob, eve = person(db, "bob@example.org"), person(db, "eve@example.org")
    with db.write() as tx:
        hidden = projects.create(tx, bob, "hidden")
        with pytest.raises(BadRequest, match="looks like an id"):
            projects.create(tx, eve, hidden.id)
        own = projects.create(tx, eve, "own")
        tx.run("UPDATE projects SET name = ? WHERE id = ?", hidden.id, own.id)

        assert not projects.may_see(tx, eve, hidden.id)
        assert projects.may_see(tx, bob, hidden.id)
