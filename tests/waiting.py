"""Waiting in tests: always for a named thing, never for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(probe: Callable[[], T], within_s: float, what: str, every_s: float = 0.02) -> T:
    """The first truthy answer of `probe`; fails the test, naming `what`, when there is none within `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what} (last answer: {answer!r})")
        time.sleep(every_s)
