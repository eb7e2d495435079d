"""Users, passwords, sessions, keys and links, on the real database."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from web_support import PASSWORD, Clock, database, person

from appliance import accounts, events
from appliance.accounts import passwords, sessions
from appliance.db import Database
from appliance.errors import BadRequest, Conflict, DiskFull, Forbidden, NotFound, TooManyRequests, Unauthorized
from appliance.records import Role

pytestmark = pytest.mark.fast


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with database(tmp_path) as opened:
        yield opened


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_right_password_opens_a_session_and_a_wrong_one_does_not(db: Database) -> None:
    ana = person(db, "ana@example.org")

    user, token = accounts.sign_in(db, " Ana@Example.org ", PASSWORD, "10.0.0.1")

    actor = accounts.session_actor(db, token)
    assert actor is not None
    assert (user.id, actor.user_id, actor.via) == (ana.user_id, ana.user_id, "session")
    with pytest.raises(Unauthorized):
        accounts.sign_in(db, "ana@example.org", "something else", "10.0.0.1")


def test_on_a_full_disk_whoever_has_a_key_or_a_session_still_gets_in(
    tmp_path: Path, time: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        with database(disk) as db:
            ana = person(db, "ana@example.org")
            _, token = accounts.sign_in(db, "ana@example.org", PASSWORD, "10.0.0.1")
            with db.write() as tx:
                secret = accounts.create_key(tx, ana, "laptop")[1]
            time.forward(minutes=10)
            with suppress(OSError), (disk / "large").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

            with pytest.raises(DiskFull), db.write() as tx:
                tx.insert("settings", {"name": "t", "value": "x" * 10_000})
            by_key, by_session = accounts.key_actor(db, secret), accounts.session_actor(db, token)

            assert by_key is not None
            assert by_session is not None
            assert by_key.user_id == by_session.user_id == ana.user_id
            assert caplog.text.count("last used is not kept") <= 1
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_an_unknown_address_is_told_the_same_as_a_wrong_password(db: Database) -> None:
    person(db, "ana@example.org")

    with pytest.raises(Unauthorized) as wrong:
        accounts.sign_in(db, "ana@example.org", "not the password", "10.0.0.1")
    with pytest.raises(Unauthorized) as unknown:
        accounts.sign_in(db, "bob@example.org", "not the password", "10.0.0.1")

    assert str(wrong.value) == str(unknown.value)


def test_each_sign_in_makes_a_new_token_and_none_is_in_the_database(db: Database, tmp_path: Path) -> None:
    ana = person(db, "ana@example.org")
    tokens = [accounts.sign_in(db, "ana@example.org", PASSWORD, "10.0.0.1")[1] for _ in range(2)]
    with db.write() as tx:
        _, secret = accounts.create_key(tx, ana, "laptop")

    stolen = b"".join(file.read_bytes() for file in tmp_path.iterdir())

    assert len(set(tokens)) == 2
    for text in (*tokens, secret, PASSWORD):
        assert text.encode() not in stolen


def test_guessing_from_one_place_must_wait_longer_and_longer_while_others_still_sign_in(
    db: Database, time: Clock
) -> None:
    person(db, "ana@example.org")

    def guess(peer: str) -> None:
        accounts.sign_in(db, "ana@example.org", "a wrong password", peer)

    for _ in range(sessions.FREE_TRIES):
        with pytest.raises(Unauthorized):
            guess("10.0.0.66")
    with pytest.raises(TooManyRequests) as refused:
        guess("10.0.0.66")
    assert "30 seconds" in str(refused.value)
    time.forward(seconds=31)
    with pytest.raises(Unauthorized):
        guess("10.0.0.66")
    with pytest.raises(TooManyRequests) as refused:
        guess("10.0.0.66")
    assert "60 seconds" in str(refused.value)

    assert accounts.sign_in(db, "ana@example.org", PASSWORD, "10.0.0.1")


def test_guessing_an_account_that_does_not_exist_waits_as_well(db: Database) -> None:
    for _ in range(sessions.FREE_TRIES):
        with pytest.raises(Unauthorized):
            accounts.sign_in(db, "nobody@example.org", "a wrong password", "10.0.0.66")

    with pytest.raises(TooManyRequests):
        accounts.sign_in(db, "nobody@example.org", "a wrong password", "10.0.0.66")


def test_guessing_from_many_places_is_slowed_for_all_of_them(
    db: Database, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "FREE_TRIES_OF_ALL", 8)  # each try costs 50 ms
    person(db, "ana@example.org")
    for number in range(sessions.FREE_TRIES_OF_ALL):
        with pytest.raises(Unauthorized):
            accounts.sign_in(db, "ana@example.org", "a wrong password", f"10.0.1.{number}")

    with pytest.raises(TooManyRequests):
        accounts.sign_in(db, "ana@example.org", PASSWORD, "10.0.2.1")
    time.forward(seconds=61)

    assert accounts.sign_in(db, "ana@example.org", PASSWORD, "10.0.2.1")


def test_a_burst_of_guesses_gets_no_more_tries_than_one_after_the_other(db: Database) -> None:
    person(db, "ana@example.org")

    def guess(_: int) -> type[Exception]:
        with pytest.raises((Unauthorized, TooManyRequests)) as refused:
            accounts.sign_in(db, "ana@example.org", "a wrong password", "10.0.0.66")
        return refused.type

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(guess, range(20)))

    assert answers.count(Unauthorized) == sessions.FREE_TRIES
    assert answers.count(TooManyRequests) == 20 - sessions.FREE_TRIES


def test_signing_in_often_is_no_guessing(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "FREE_TRIES_OF_ALL", 3)
    person(db, "ana@example.org")

    for _ in range(7):
        assert accounts.sign_in(db, "ana@example.org", PASSWORD, "10.0.0.1")


def test_long_and_many_addresses_take_no_memory_for_long(
    db: Database, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessers = sessions._Guessers()
    monkeypatch.setattr(sessions, "_guessers", guessers)
    for number in range(3):
        with pytest.raises(Unauthorized, match="address or the password"):
            accounts.sign_in(db, f"{number}" + "a" * 1_000_000 + "@example.org", "a wrong password", "10.0.0.66")
    for number in range(3):
        with pytest.raises(Unauthorized):
            accounts.sign_in(db, f"user{number}@example.org", "a wrong password", "10.0.0.67")

    assert len(guessers._of) == 1 + 3 * 2 + 1
    assert {len(key) for key in guessers._of} == {64}

    time.forward(minutes=20)
    with pytest.raises(Unauthorized):
        accounts.sign_in(db, "ana@example.org", "a wrong password", "10.0.0.68")
    assert len(guessers._of) == 3


def test_guessing_many_accounts_from_one_place_is_slowed_and_forgotten_after_a_quiet_while(
    db: Database, time: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "FREE_TRIES_OF_ALL", 8)
    person(db, "ana@example.org")
    for number in range(sessions.FREE_TRIES_OF_ALL):
        with pytest.raises(Unauthorized):
            accounts.sign_in(db, f"user{number}@example.org", "a wrong password", "10.0.0.66")

    with pytest.raises(TooManyRequests):
        accounts.sign_in(db, "ana@example.org", PASSWORD, "10.0.0.66")
    time.forward(minutes=20)
    with pytest.raises(Unauthorized):
        accounts.sign_in(db, "ana@example.org", "a wrong password", "10.0.0.66")

    assert accounts.sign_in(db, "ana@example.org", PASSWORD, "10.0.0.66")


def test_a_v6_peer_is_its_network() -> None:
    assert sessions.network_of("2001:db8::1") == sessions.network_of("2001:db8::ffff")
    assert sessions.network_of("10.0.0.1") != sessions.network_of("10.0.0.2")


@pytest.mark.parametrize("failures, wait", [(4, 0), (5, 30), (6, 60), (9, 480), (10, 900), (500, 900)])
def test_the_wait_doubles_up_to_a_quarter_of_an_hour(failures: int, wait: int) -> None:
    assert sessions.wait_s(failures) == wait


def test_a_session_ends_when_idle_in_any_case_after_a_week_and_by_signing_out(db: Database, time: Clock) -> None:
    ana = person(db, "ana@example.org")
    user = _user(db, ana.user_id)
    with db.write() as tx:
        idle, busy, left = (accounts.open_session(tx, user) for _ in range(3))

    with db.write() as tx:
        accounts.end_session(tx, left)
    assert accounts.session_actor(db, left) is None
    for _ in range(15):
        assert accounts.session_actor(db, busy) is not None
        time.forward(hours=11)

    assert accounts.session_actor(db, idle) is None
    assert accounts.session_actor(db, busy) is not None
    time.forward(hours=4)
    assert accounts.session_actor(db, busy) is None


def test_a_key_looks_as_promised_acts_as_its_user_and_is_shown_once(db: Database) -> None:
    ana = person(db, "ana@example.org", Role.ADMIN)

    with db.write() as tx:
        key, secret = accounts.create_key(tx, ana, "laptop")

    start, key_id, rest = secret.split("_", 2)
    assert (start, len(key_id), len(rest)) == ("grad", 8, 43)
    actor = accounts.key_actor(db, secret)
    assert actor is not None
    assert (actor.user_id, actor.role, actor.via) == (ana.user_id, Role.ADMIN, "key")
    with db.read() as r:
        [listed] = accounts.list_keys(r, ana)
    assert listed.id == key.id
    assert listed.last_used_at
    assert accounts.key_actor(db, secret[:-1] + ("a" if secret[-1] != "a" else "b")) is None
    assert accounts.key_actor(db, "grad_nonsense") is None


def test_a_revoked_or_expired_key_opens_nothing(db: Database, time: Clock) -> None:
    ana, bob = person(db, "ana@example.org"), person(db, "bob@example.org")
    with db.write() as tx:
        key, secret = accounts.create_key(tx, ana, "laptop")
        time_limit = time.now.replace(microsecond=0)
        _, short = accounts.create_key(tx, ana, "one hour", expires_at=time_limit)

    with db.write() as tx, pytest.raises(NotFound):
        accounts.revoke_key(tx, bob, key.id)
    assert accounts.key_actor(db, secret)
    with db.write() as tx:
        accounts.revoke_key(tx, ana, key.id)

    assert accounts.key_actor(db, secret) is None
    assert accounts.key_actor(db, short) is None


def test_removing_or_disabling_a_member_ends_sessions_and_keys_at_once(db: Database) -> None:
    boss = person(db, "boss@example.org", Role.ADMIN)
    for verb in (accounts.disable_user, accounts.remove_user):
        member = person(db, f"{verb.__name__}@example.org")
        with db.write() as tx:
            session = accounts.open_session(tx, accounts.get_user(tx, member.user_id))
            _, key = accounts.create_key(tx, member, "laptop")

        with db.write() as tx:
            verb(tx, boss, member.user_id)

        assert accounts.session_actor(db, session) is None
        assert accounts.key_actor(db, key) is None
        with pytest.raises(Unauthorized):
            accounts.sign_in(db, member.email, PASSWORD, "10.0.0.1")


def test_the_last_admin_stays_and_stays_admin(db: Database) -> None:
    boss = person(db, "boss@example.org", Role.ADMIN)
    with db.write() as tx:
        accounts.local_admin_key(tx)

    for change in (
        lambda tx: accounts.remove_user(tx, boss, boss.user_id),
        lambda tx: accounts.disable_user(tx, boss, boss.user_id),
        lambda tx: accounts.set_role(tx, boss, boss.user_id, Role.MEMBER),
    ):
        with db.write() as tx, pytest.raises(Conflict):
            change(tx)

    other = person(db, "other@example.org")
    with db.write() as tx:
        accounts.set_role(tx, boss, other.user_id, Role.ADMIN)
        accounts.remove_user(tx, boss, boss.user_id)
    with db.read() as r:
        assert accounts.has_admin(r)


def test_only_admins_change_people(db: Database) -> None:
    ana, bob = person(db, "ana@example.org"), person(db, "bob@example.org")

    for change in (
        lambda tx: accounts.remove_user(tx, ana, bob.user_id),
        lambda tx: accounts.set_role(tx, ana, ana.user_id, Role.ADMIN),
        lambda tx: accounts.invite(tx, ana, "eve@example.org", Role.ADMIN),
        lambda tx: accounts.reset_link(tx, ana, bob.user_id),
        lambda tx: accounts.list_invitations(tx, ana),
    ):
        with db.write() as tx, pytest.raises(Forbidden):
            change(tx)


def test_the_setup_link_makes_the_first_admin_once(db: Database) -> None:
    with db.write() as tx:
        old = accounts.setup_token(tx)
        token = accounts.setup_token(tx)

    with pytest.raises(NotFound):
        accounts.accept(db, old, "eve@example.org", PASSWORD)
    with pytest.raises(BadRequest):
        accounts.accept(db, token, "ana@example.org", "short")
    with pytest.raises(BadRequest):
        accounts.accept(db, token, None, PASSWORD)
    user = accounts.accept(db, token, "ana@example.org", PASSWORD)

    assert user.role is Role.ADMIN
    assert accounts.sign_in(db, "ana@example.org", PASSWORD, "10.0.0.1")
    with pytest.raises(NotFound):
        accounts.accept(db, token, "eve@example.org", PASSWORD)
    with db.write() as tx, pytest.raises(Conflict):
        accounts.setup_token(tx)


def test_two_who_use_one_link_at_once_make_one_account(db: Database) -> None:
    with db.write() as tx:
        token = accounts.setup_token(tx)
    outcomes: list[str] = []

    def use(email: str) -> None:
        try:
            outcomes.append(accounts.accept(db, token, email, PASSWORD).email)
        except NotFound:
            outcomes.append("refused")

    threads = [threading.Thread(target=use, args=(f"{name}@example.org",)) for name in ("ana", "eve")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes.count("refused") == 1


def test_an_invitation_brings_its_own_address_and_role_and_can_be_withdrawn(db: Database, time: Clock) -> None:
    boss = person(db, "boss@example.org", Role.ADMIN)
    with db.write() as tx:
        _, token = accounts.invite(tx, boss, "Bob@example.org", Role.MEMBER)
        withdrawn, lost = accounts.invite(tx, boss, "eve@example.org", Role.ADMIN)
        accounts.withdraw_invitation(tx, boss, withdrawn.id)
        _, late = accounts.invite(tx, boss, "late@example.org", Role.MEMBER)

    bob = accounts.accept(db, token, "else@example.org", PASSWORD)

    assert (bob.email, bob.role) == ("bob@example.org", Role.MEMBER)
    with pytest.raises(NotFound):
        accounts.accept(db, lost, None, PASSWORD)
    time.forward(days=7, seconds=1)
    with pytest.raises(NotFound):
        accounts.accept(db, late, None, PASSWORD)
    with db.read() as r:
        assert accounts.list_invitations(r, boss) == []


def test_a_reset_link_sets_a_new_password_and_ends_the_sessions(db: Database) -> None:
    boss, bob = person(db, "boss@example.org", Role.ADMIN), person(db, "bob@example.org")
    _, session = accounts.sign_in(db, "bob@example.org", PASSWORD, "10.0.0.1")
    with db.write() as tx:
        link, token = accounts.reset_link(tx, boss, bob.user_id)

    with db.read() as r:
        assert accounts.invitation(r, token).email == "bob@example.org"
    accounts.accept(db, token, None, "a new password of bob")

    assert link.kind == "reset"
    assert accounts.session_actor(db, session) is None
    assert accounts.sign_in(db, "bob@example.org", "a new password of bob", "10.0.0.1")
    with pytest.raises(Unauthorized):
        accounts.sign_in(db, "bob@example.org", PASSWORD, "10.0.0.2")


def test_the_local_admins_key_is_renewed_each_time_and_counts_as_no_admin(db: Database) -> None:
    with db.write() as tx:
        first = accounts.local_admin_key(tx)
    with db.write() as tx:
        second = accounts.local_admin_key(tx)

    assert accounts.key_actor(db, first) is None
    actor = accounts.key_actor(db, second)
    assert actor is not None
    assert actor.is_admin
    with db.read() as r:
        assert not accounts.has_admin(r)
        assert accounts.list_users(r, actor) == []
    with db.write() as tx, pytest.raises(Conflict):
        accounts.remove_user(tx, actor, actor.user_id)


def test_a_hash_with_old_parameters_is_renewed_at_sign_in(db: Database) -> None:
    import argon2

    ana = person(db, "ana@example.org")
    old = argon2.PasswordHasher(memory_cost=1024, time_cost=1, parallelism=1).hash(PASSWORD)
    with db.write() as tx:
        tx.run("UPDATE users SET password = ? WHERE id = ?", old, ana.user_id)

    accounts.sign_in(db, "ana@example.org", PASSWORD, "10.0.0.1")

    with db.read() as r:
        assert not passwords.is_outdated(r.value("SELECT password FROM users WHERE id = ?", ana.user_id))


def test_every_change_is_told_with_its_actor(db: Database) -> None:
    boss = person(db, "boss@example.org", Role.ADMIN)
    with db.write() as tx:
        _, token = accounts.invite(tx, boss, "bob@example.org", Role.MEMBER)
    bob = accounts.accept(db, token, None, PASSWORD)
    with db.write() as tx:
        accounts.remove_user(tx, boss, bob.id)

    with db.read() as r:
        told = [(event.kind, event.actor) for event in events.list_events(r)]

    assert told == [
        ("user.removed", "boss@example.org"),
        ("user.created", "bob@example.org"),
        ("user.invited", "boss@example.org"),
        ("user.created", "system"),
    ]


def _user(db: Database, user_id: str) -> accounts.users.User:
    with db.read() as r:
        return accounts.get_user(r, user_id)
