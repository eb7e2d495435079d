"""Passwords: hashed with argon2id, never stored, never compared in any other way.

What this keeps true: at most two hashes are computed at once (each takes 46 MiB), so that signing in cannot be used to
exhaust the machine; checking the password of somebody who does not exist takes as long as checking a real one.

Why: the parameters are OWASP's second choice (m=46 MiB, t=1, p=1), some 50 ms of one core.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import argon2

from appliance.errors import BadRequest, TooManyRequests

SHORTEST = 10
LONGEST = 1000
AT_ONCE = 2
_PATIENCE_S = 10.0

_hasher = argon2.PasswordHasher(memory_cost=47104, time_cost=1, parallelism=1)
_slots = threading.BoundedSemaphore(AT_ONCE)
# The hash of a random text that nobody kept, with the same parameters.
_NOBODY = "$argon2id$v=19$m=47104,t=1,p=1$pKiF5LdE8ip/6CFfjR9Yrg$4YqP1g8z3YsvSj7Z68fMN1PWzTDRNSkuzwyG8rLHwkM"


def hash_password(password: str) -> str:
    """What may be stored of `password`. BadRequest when it is too short."""
    if len(password) < SHORTEST:
        raise BadRequest(f"The password is too short; use at least {SHORTEST} characters.")
    if len(password) > LONGEST:
        raise BadRequest(f"The password is too long; use at most {LONGEST} characters.")
    if len(set(password)) < 4:
        raise BadRequest("The password repeats the same few characters; use a longer mix of words.")
    with _slot():
        return _hasher.hash(password)


def check_password(stored: str | None, password: str) -> bool:
    """Whether `password` is the one; always as slow, also when there is none stored."""
    with _slot():
        try:
            return _hasher.verify(stored or _NOBODY, password[: LONGEST + 1]) and stored is not None
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False


def is_outdated(stored: str) -> bool:
    """Whether it was hashed with other parameters than today's."""
    return _hasher.check_needs_rehash(stored)


@contextmanager
def _slot() -> Iterator[None]:
    if not _slots.acquire(timeout=_PATIENCE_S):
        raise TooManyRequests("Too many people are signing in at once; try again in a few seconds.")
    try:
        yield
    finally:
        _slots.release()
