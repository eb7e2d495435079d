"""Showing how far the tour is: a line that lives on a terminal, plain lines elsewhere.

What this keeps true: each stage leaves one line with its time; nothing that a server sent reaches the terminal with its
control characters; a stage that fails leaves its line too.

Why a thread: a stage waits for a server most of its time, and a clock that stands still looks like a hang.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from appliance import clock
from appliance.client import printable

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_SHADES = " ░▒▓█"
_BRIGHTEST = 16
_SIDE = 8
_TICK_S = 0.1


class Stage:
    """What a stage has to say when it is done."""

    def __init__(self) -> None:
        self.text = ""

    def say(self, text: str) -> None:
        self.text = text


class Progress:
    """`seconds` holds the time of each stage that has ended."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_live = out.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = threading.Lock()
        self._now = ""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        stage, began, over = Stage(), clock.monotonic(), threading.Event()
        self._now = ""
        ticker = threading.Thread(target=self._tick, args=(name, began, over), daemon=True)
        if self._is_live:
            ticker.start()
        sign = "✗"
        try:
            yield stage
            sign = "✓"
        finally:
            over.set()
            if self._is_live:
                ticker.join()
            self.seconds[name] = round(clock.monotonic() - began, 3)
            self._print(f"{sign} {name:<12}{self.seconds[name]:7.1f} s  {stage.text}")

    def step(self, name: str, seconds: float | None, phase: str) -> None:
        """A part of the stage has ended."""
        sign = "·" if phase == "Succeeded" else "✗"
        took = f"{seconds:7.1f} s" if seconds is not None else " " * 9
        self._print(f"  {sign} {name:<10}{took}{'' if phase == 'Succeeded' else '  ' + phase}")

    def now(self, text: str) -> None:
        """What the stage waits for at the moment; seen on a terminal alone."""
        self._now = text

    def _tick(self, name: str, began: float, over: threading.Event) -> None:
        count = 0
        while not over.wait(_TICK_S):
            count += 1
            sign = _SPINNER[count % len(_SPINNER)]
            text = f"{sign} {name:<12}{clock.monotonic() - began:7.1f} s  {printable(self._now)}"
            with self._lock:
                self._out.write(f"\r\x1b[2K{text[: shutil.get_terminal_size().columns - 1]}")
                self._out.flush()

    def _print(self, text: str) -> None:
        with self._lock:
            self._out.write(("\r\x1b[2K" if self._is_live else "") + printable(text).rstrip() + "\n")
            self._out.flush()


def picture(pixels: tuple[int, ...]) -> str:
    """64 brightnesses from 0 to 16 as eight lines of blocks, two columns for a pixel."""
    shades = [_SHADES[round(min(max(value, 0), _BRIGHTEST) / _BRIGHTEST * (len(_SHADES) - 1))] * 2 for value in pixels]
    rows = ["".join(shades[start : start + _SIDE]) for start in range(0, len(shades), _SIDE)]
    return "\n".join(f"  {row}" for row in rows)
