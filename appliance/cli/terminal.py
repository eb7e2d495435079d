"""Printing: tables for people, JSON for programs.

What this keeps true: whatever a server sent is printed without its control characters; on a terminal a table's lines are
cut to its width, in a pipe they are whole; colours appear on a terminal alone and never with NO_COLOR
(https://no-color.org). Times are relative in tables and exact in JSON.

Why: a table that wraps cannot be read, and one that is cut in a pipe loses what the next program wants.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from appliance import clock

if TYPE_CHECKING:
    from appliance.client.files import Done

_COLOURS = {
    "green": ("Succeeded", "serving", "healthy", "committed", "ok", "yes", "free", "ready"),
    "red": ("Failed", "Error", "failed", "error", "problem", "quarantined"),
    "yellow": ("Pending", "pending", "starting", "warning", "uncommitted", "draining"),
    "cyan": ("Running", "running", "active"),
    "dim": ("Canceled", "Omitted", "Skipped", "retired", "asleep", "off", "no"),
}
_ANSI = {"green": "32", "red": "31", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}
_COLOUR_OF = {word: colour for colour, words in _COLOURS.items() for word in words}
_SHORTEST = 8


class Terminal:
    def __init__(self, out: TextIO, err: TextIO, *, as_json: bool) -> None:
        self.out, self.err, self.as_json = out, err, as_json
        self.colours = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._progress = 0

    # -- answers -------------------------------------------------------------------------------------------------------

    def json(self, value: Any) -> None:
        # Escaped to ASCII, so that no control character of C1 or of writing direction passes either.
        print(json.dumps(value, indent=2 if self.out.isatty() else None), file=self.out, flush=True)

    def json_line(self, value: Any) -> None:
        """One of several values, on a line of its own."""
        print(json.dumps(value), file=self.out, flush=True)

    def say(self, text: str) -> None:
        """A line of an answer to a person; nothing with --json."""
        if not self.as_json:
            print(printable(text), file=self.out, flush=True)

    def answer(self, value: Any, text: str) -> None:
        """`value` with --json, else the sentence."""
        if self.as_json:
            self.json(value)
        else:
            self.say(text)

    def table(self, items: Any, rows: Sequence[Mapping[str, Any]], empty: str) -> None:
        """`items` as JSON, or `rows` (column to text, the same columns each) as a table."""
        if self.as_json:
            self.json(items)
        elif not rows:
            self.note(empty)
        else:
            for line in self._lines(rows):
                print(line, file=self.out)

    def fields(self, item: Any, pairs: Mapping[str, Any]) -> None:
        """`item` as JSON, or name and value in two columns; pairs without a value are left out."""
        if self.as_json:
            self.json(item)
            return
        shown = {name: printable(value) for name, value in pairs.items() if value not in (None, "")}
        width = max(map(len, shown), default=0)
        for name, value in shown.items():
            print(f"{self._painted(name.ljust(width), 'dim')}  {self._state(value, value)}", file=self.out)

    def line(self, text: str, label: str = "") -> None:
        """One line of a log, with the name of whose it is."""
        head = self._painted(f"{printable(label)} | ", "dim") if label else ""
        print(head + printable(text), file=self.out, flush=True)

    # -- beside the answer ---------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A sentence to the person, on stderr."""
        print(printable(text), file=self.err, flush=True)

    def ask(self, question: str) -> str:
        print(question, end="", file=self.err, flush=True)
        return sys.stdin.readline()

    def progress(self, done: Done) -> None:
        """How far a transfer is: one line that is written over, on a terminal alone."""
        if not self.err.isatty():
            return
        text = f"{done.files} of {done.of_files} files, {size(done.bytes)} of {size(done.of_bytes)}"
        end = "\n" if done.files == done.of_files else ""
        print(f"\r{text:<{self._progress}}", end=end, file=self.err, flush=True)
        self._progress = len(text)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _lines(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        columns = list(rows[0])
        cells = [[printable("" if row[name] is None else row[name]) for name in columns] for row in rows]
        widths = [max(_width(text) for text in column) for column in zip(columns, *cells, strict=True)]
        if self.out.isatty():
            _fit(widths, shutil.get_terminal_size().columns)
        heads = "  ".join(_padded(name, width) for name, width in zip(columns, widths, strict=True)).rstrip()
        lines = [self._painted(heads, "bold")]
        for row in cells:
            padded = [self._state(text, _padded(text, width)) for text, width in zip(row, widths, strict=True)]
            lines.append("  ".join(padded).rstrip())
        return lines

    def _state(self, text: str, shown: str) -> str:
        return self._painted(shown, _COLOUR_OF[text]) if text in _COLOUR_OF else shown

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{_ANSI[colour]}m{text}\x1b[0m" if self.colours else text


def printable(text: object) -> str:
    """The SDK's `printable`; loaded late, because the SDK brings httpx and `--help` should come at once."""
    from appliance.client.text import printable

    return printable(text)


def ago(stamp: str | None) -> str:
    """`3 min ago`; empty for no time, the text itself for what is no time."""
    if not stamp:
        return ""
    try:
        seconds = (clock.now() - clock.parse(stamp)).total_seconds()
    except (ValueError, TypeError):
        return stamp
    if abs(seconds) < 5:
        return "now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def span(seconds: float | None) -> str:
    """A duration in its largest unit: `0.4 s`, `12 s`, `3 min`, `5 h`, `2 d`."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, unit, length in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit:.0f} {length}"
    return f"{seconds // 86_400:.0f} d"


def between(started: str | None, finished: str | None) -> str:
    """How long it took, or has taken until now."""
    if not started:
        return ""
    end = clock.parse(finished) if finished else clock.now()
    return span(max(0.0, (end - clock.parse(started)).total_seconds()))


def size(count: int | str | None) -> str:
    """Bytes in binary units: `512 B`, `1.5 KiB`."""
    if count in (None, ""):
        return ""
    amount, unit = float(count or 0), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def _fit(widths: list[int], room: int) -> None:
    """Make the widest columns narrower until the line fits, none below _SHORTEST."""
    while sum(widths) + 2 * (len(widths) - 1) > room and max(widths) > _SHORTEST:
        widths[widths.index(max(widths))] -= 1


def _padded(text: str, width: int) -> str:
    if _width(text) > width:
        while text and _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Columns on a terminal; East Asian wide letters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
