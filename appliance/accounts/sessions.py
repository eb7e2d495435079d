"""Signing in with a password, and the browser sessions that follow.

What this keeps true: a session's token has 256 random bits, is made anew at every sign-in, and only its SHA-256 is kept;
a session ends after hours without a request, after days in any case, and with its user. Wrong passwords cost the
guesser time: after five for one account from one peer each further try must wait twice as long, from 30 seconds to 15
minutes; after thirty in a row from anywhere, a minute lies between two tries. An unknown address behaves as a known one.

Why: the wait is for the peer and not for the account, so nobody can lock the admin out from the next desk.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from appliance import clock, events
from appliance.accounts import passwords
from appliance.accounts.users import actor_of, user_of
from appliance.db import Database, Row, Tx
from appliance.errors import TooManyRequests, Unauthorized
from appliance.records import Actor, User

FREE_TRIES = 5
FREE_TRIES_OF_ALL = 30
FIRST_WAIT_S = 30
LONGEST_WAIT_S = 900
REMEMBERED = 10_000
IDLE_HOURS = 12
MAX_DAYS = 7
_TOUCH_S = 60  # `seen_at` is written at most so often: one write a minute instead of one for each request


def digest(secret: str) -> str:
    """What is kept of a token: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass
class _Failures:
    count: int
    until: datetime


class _Guessers:
    """Who guessed wrong lately, in memory: a restart forgives. The oldest of more than REMEMBERED is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[tuple[str, str, str], _Failures] = {}

    def wait_until(self, key: tuple[str, str, str]) -> datetime | None:
        with self._lock:
            found = self._of.get(key)
            return found.until if found and found.until > clock.now() else None

    def failed(self, key: tuple[str, str, str]) -> None:
        with self._lock:
            found = self._of.pop(key, None)
            count = (found.count if found else 0) + 1
            self._of[key] = _Failures(count, clock.now() + timedelta(seconds=wait_s(count)))
            while len(self._of) > REMEMBERED:
                del self._of[next(iter(self._of))]

    def forgive(self, key: tuple[str, str, str]) -> None:
        with self._lock:
            self._of.pop(key, None)


_guessers = _Guessers()


def wait_s(failures: int) -> int:
    """Seconds to wait after so many wrong passwords in a row."""
    if failures < FREE_TRIES:
        return 0
    return int(min(FIRST_WAIT_S * 2 ** min(failures - FREE_TRIES, 10), LONGEST_WAIT_S))


def sign_in(db: Database, email: str, password: str, peer: str, *, max_days: int = MAX_DAYS) -> tuple[User, str]:
    """The user and a new session's token. Unauthorized (one sentence for all causes) or TooManyRequests with the wait."""
    email = email.strip().lower()
    key = (str(db.path), email, network_of(peer))
    until = _guessers.wait_until(key)
    if until:
        raise _wait(until)
    with db.read() as r:
        row = r.one("SELECT * FROM users WHERE email = ?", email)
    locked = clock.parse(row["locked_until"]) if row and row["locked_until"] else None
    if locked and locked > clock.now():
        raise _wait(locked)
    right = passwords.check_password(row["password"] if row else None, password)
    if not right or row is None or row["disabled_at"]:
        _guessers.failed(key)
        if row:
            _count_failure(db, row["id"])
        raise Unauthorized("The address or the password is wrong.")
    _guessers.forgive(key)
    return _signed_in(db, row, password, max_days)


def open_session(tx: Tx, user: User, *, max_days: int = MAX_DAYS) -> str:
    """A new session's token, which is in the database only as a hash."""
    token = secrets.token_urlsafe(32)
    now = clock.now()
    tx.insert(
        "sessions",
        {
            "token_hash": digest(token),
            "user_id": user.id,
            "created_at": clock.stamp(now),
            "seen_at": clock.stamp(now),
            "expires_at": clock.stamp(now + timedelta(days=max_days)),
        },
    )
    tx.run("DELETE FROM sessions WHERE expires_at < ?", clock.stamp(now))
    events.record(tx, actor_of(user, "session"), "session.opened", user.id, f"{user.email} signed in.")
    return token


def session_actor(db: Database, token: str, *, idle_hours: int = IDLE_HOURS) -> Actor | None:
    """Who holds `token`; None when it is unknown, has ended or its user may not enter. Counts as a sign of life."""
    with db.read() as r:
        row = r.one(
            "SELECT u.*, s.token_hash, s.seen_at, s.expires_at FROM sessions s JOIN users u ON u.id = s.user_id "
            "WHERE s.token_hash = ?",
            digest(token),
        )
    now = clock.now()
    if row is None or row["disabled_at"] or clock.parse(row["expires_at"]) <= now:
        return None
    unseen = now - clock.parse(row["seen_at"])
    if unseen > timedelta(hours=idle_hours):
        return None
    if unseen > timedelta(seconds=_TOUCH_S):
        with db.write() as tx:
            tx.run("UPDATE sessions SET seen_at = ? WHERE token_hash = ?", clock.stamp(now), row["token_hash"])
    return actor_of(user_of(row), "session")


def end_session(tx: Tx, token: str) -> None:
    """The token no longer opens anything. Unknown: nothing happens."""
    row = tx.one("SELECT u.* FROM sessions s JOIN users u ON u.id = s.user_id WHERE token_hash = ?", digest(token))
    if row and tx.run("DELETE FROM sessions WHERE token_hash = ?", digest(token)):
        user = user_of(row)
        events.record(tx, actor_of(user, "session"), "session.ended", user.id, f"{user.email} signed out.")


def end_sessions(tx: Tx, user: User) -> None:
    """All browsers of the user must sign in again."""
    if tx.run("DELETE FROM sessions WHERE user_id = ?", user.id):
        events.record(
            tx, actor_of(user, "session"), "session.ended", user.id, f"{user.email} was signed out everywhere."
        )


def network_of(peer: str) -> str:
    """Whom we count as one peer: an IPv4 address, the /64 of an IPv6 address, else the text."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return peer
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address), 64), strict=False))


def _signed_in(db: Database, row: Row, password: str, max_days: int) -> tuple[User, str]:
    fresh = passwords.hash_password(password) if passwords.is_outdated(row["password"]) else row["password"]
    user = user_of(row)
    with db.write() as tx:
        tx.run(
            "UPDATE users SET failures = 0, locked_until = NULL, password = ? WHERE id = ? AND password = ?",
            fresh,
            user.id,
            row["password"],
        )
        return user, open_session(tx, user, max_days=max_days)


def _count_failure(db: Database, user_id: str) -> None:
    until = clock.stamp(clock.now() + timedelta(seconds=60))
    with db.write() as tx:
        tx.run(
            "UPDATE users SET failures = failures + 1, locked_until = CASE WHEN failures + 1 >= ? THEN ? END WHERE id = ?",
            FREE_TRIES_OF_ALL,
            until,
            user_id,
        )


def _wait(until: datetime) -> TooManyRequests:
    seconds = max(1, round((until - clock.now()).total_seconds()))
    wait = f"{seconds} seconds" if seconds < 120 else f"{round(seconds / 60)} minutes"
    return TooManyRequests(f"Too many wrong passwords for this account; try again in {wait}.")
