"""Signing in with a password, and the browser sessions that follow.

What this keeps true: a session's token has 256 random bits, is made anew at every sign-in, and only its SHA-256 is kept;
a session ends after hours without a request, after days in any case, and with its user. Wrong passwords cost the
guesser time: after five for one account from one peer each further try must wait twice as long, from 30 seconds to 15
minutes; after thirty for one account from anywhere, or from one peer for any account, a minute lies between two
tries. A try counts from its beginning, so a hundred at once are no way around that; success takes it back. An unknown
address is treated as a known one, to the millisecond: nothing is written for either.

Why: the long wait is for the peer and not for the account, so nobody can lock the admin out from the next desk.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from appliance import clock, events
from appliance.accounts import passwords
from appliance.accounts.users import actor_of, user_of
from appliance.db import Database, Reader, Row, Tx
from appliance.errors import DiskFull, TooManyRequests, Unauthorized
from appliance.records import Actor, User

FREE_TRIES = 5
FREE_TRIES_OF_ALL = 30
FIRST_WAIT_S = 30
LONGEST_WAIT_S = 900
REMEMBERED = 10_000
LONGEST_EMAIL = 254  # RFC 5321 leaves room for no longer one; no account has one
IDLE_HOURS = 12
MAX_DAYS = 7
_TOUCH_S = 60  # `seen_at` is written at most so often: one write a minute instead of one for each request
_WRONG = "The address or the password is wrong."
_LOG = logging.getLogger(__name__)
_told_at = -float(_TOUCH_S)


def digest(secret: str) -> str:
    """What is kept of a token: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True)
class _Failures:
    count: int
    at: datetime
    until: datetime


Wait = Callable[[int], int]


class _Guessers:
    """Who guessed wrong lately, in memory: a restart forgives, as do 15 quiet minutes. The oldest of many is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, _Failures] = {}

    def begin(self, tries: Mapping[str, Wait]) -> dict[str, _Failures | None]:
        """Count a try for each key as a wrong one, in one step; what stood there before. Raises TooManyRequests."""
        now = clock.now()
        with self._lock:
            before = {key: self._of.get(key) for key in tries}
            until = max((found.until for found in before.values() if found), default=now)
            if until > now:
                raise _wait(until)
            for key, wait in tries.items():
                self._of.pop(key, None)
                self._of[key] = _one_more(before[key], now, wait)
            self._expire(now)
        return before

    def forgive(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._of.pop(key, None)

    def take_back(self, key: str, before: _Failures | None) -> None:
        """The try was no wrong one; those that others made meanwhile still count."""
        with self._lock:
            found = self._of.get(key)
            if found is None:
                return
            count = before.count if before else 0
            if before and found.count == count + 1:
                self._of[key] = before
            elif found.count <= 1:
                del self._of[key]
            else:
                self._of[key] = replace(found, count=found.count - 1)

    def _expire(self, now: datetime) -> None:
        """The oldest come first, since each new try goes to the end."""
        while self._of:
            key, oldest = next(iter(self._of.items()))
            if len(self._of) <= REMEMBERED and _counts_still(oldest, now):
                return
            del self._of[key]


def _one_more(found: _Failures | None, now: datetime, wait: Wait) -> _Failures:
    count = (found.count if found and _counts_still(found, now) else 0) + 1
    return _Failures(count, now, now + timedelta(seconds=wait(count)))


def _counts_still(found: _Failures, now: datetime) -> bool:
    return now - max(found.at, found.until) < timedelta(seconds=LONGEST_WAIT_S)


_guessers = _Guessers()


def wait_s(failures: int) -> int:
    """Seconds to wait after so many wrong passwords for one account from one peer."""
    if failures < FREE_TRIES:
        return 0
    return int(min(FIRST_WAIT_S * 2 ** min(failures - FREE_TRIES, 10), LONGEST_WAIT_S))


def coarse_wait_s(failures: int) -> int:
    """Seconds to wait after so many for one account from anywhere, or from one peer for any account."""
    return 0 if failures < FREE_TRIES_OF_ALL else 60


def sign_in(db: Database, email: str, password: str, peer: str, *, max_days: int = MAX_DAYS) -> tuple[User, str]:
    """The user and a new session's token. Unauthorized (one sentence for all causes) or TooManyRequests with the wait."""
    email = email.strip().lower()
    both, account, origin = _keys(db, email, peer)
    if len(email) > LONGEST_EMAIL:
        _guessers.begin({origin: coarse_wait_s})
        raise Unauthorized(_WRONG)
    before = _guessers.begin({both: wait_s, account: coarse_wait_s, origin: coarse_wait_s})
    with db.read() as r:
        row = r.one("SELECT * FROM users WHERE email = ?", email)
    right = passwords.check_password(row["password"] if row else None, password)
    if not right or row is None or row["disabled_at"]:
        raise Unauthorized(_WRONG)
    _guessers.forgive((both, account))
    _guessers.take_back(origin, before[origin])
    return _signed_in(db, row, password, max_days)


def _keys(db: Database, email: str, peer: str) -> tuple[str, str, str]:
    """What tries are counted under: digests, as long for a long address as for a short one."""
    network = network_of(peer)
    return _key(db, email, network), _key(db, email, "*"), _key(db, "*", network)


def _key(db: Database, email: str, network: str) -> str:
    return hashlib.sha256(repr((str(db.path), email, network)).encode()).hexdigest()


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
        note_use(db, "UPDATE sessions SET seen_at = ? WHERE token_hash = ?", clock.stamp(now), row["token_hash"])
    return actor_of(user_of(row), "session")


def session_stands(db: Reader, token_hash: str) -> bool:
    """Whether the session, by the digest of its token, has not ended. No sign of life."""
    row = db.one("SELECT expires_at FROM sessions WHERE token_hash = ?", token_hash)
    return row is not None and clock.parse(row["expires_at"]) > clock.now()


def note_use(db: Database, sql: str, *values: Any) -> None:
    """Write down that a session or key was used. On a full disk it is not, since whoever comes may come to make room."""
    global _told_at
    try:
        with db.write() as tx:
            tx.run(sql, *values)
    except DiskFull as error:
        if clock.monotonic() - _told_at >= _TOUCH_S:
            _told_at = clock.monotonic()
            _LOG.warning("when sessions and keys were last used is not kept: %s", error.message)


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
            "UPDATE users SET password = ? WHERE id = ? AND password = ?",
            fresh,
            user.id,
            row["password"],
        )
        return user, open_session(tx, user, max_days=max_days)


def _wait(until: datetime) -> TooManyRequests:
    seconds = max(1, round((until - clock.now()).total_seconds()))
    wait = f"{seconds} seconds" if seconds < 120 else f"{round(seconds / 60)} minutes"
    return TooManyRequests(f"Too many wrong passwords; try again in {wait}.")
