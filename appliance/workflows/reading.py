"""A cursor over nodes that collects what is wrong instead of stopping at it.

What this keeps true: each problem is one sentence with line and dotted key; reading goes on after a problem with None,
so one look at a file finds all of them; the work for one file is bounded (`MAX_PROBLEMS`, `MAX_SUGGESTIONS`).

Why: a person who fixes a workflow wants all the mistakes at once, each with its line.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from appliance.errors import ParseError
from appliance.workflows.yamltext import Listing, Node, Scalar, Table

MAX_PROBLEMS = 50
MAX_SUGGESTIONS = 20

_UNFIT = re.compile("[\0\ud800-\udfff]")


class Enough(Exception):
    """So many problems that more would help nobody."""


@dataclass
class Problems:
    """What is wrong with one text."""

    path: str
    found: list[tuple[int, str]] = field(default_factory=list)
    suggestions: int = 0

    def add(self, line: int | None, key: str, sentence: str) -> None:
        """Raises `Enough` at the limit. What a text smuggles in (line ends, terminal codes) becomes `?`."""
        where = [self.path, *([f"line {line}"] if line else []), *([short(key, 300)] if key else [])]
        written = f"{', '.join(where)}: {sentence}"
        self.found.append((line or 0, "".join(letter if letter.isprintable() else "?" for letter in written)))
        if len(self.found) >= MAX_PROBLEMS:
            raise Enough

    def suggest(self, word: str, known: Iterable[str]) -> str:
        """` (did you mean 'x'?)`, or nothing. Bounded, since comparing words costs."""
        self.suggestions += 1
        if self.suggestions > MAX_SUGGESTIONS or len(word) > 100:
            return ""
        spelled = {one.lower(): one for one in known}
        near = difflib.get_close_matches(word.lower(), list(spelled), n=1, cutoff=0.6)
        return f" (did you mean {spelled[near[0]]!r}?)" if near else ""

    def error(self) -> ParseError:
        """The first problem (by line) as the message, all of them as issues."""
        sentences = tuple(sentence for _, sentence in sorted(self.found, key=lambda one: one[0]))
        return ParseError(sentences[0], issues=sentences)


@dataclass(frozen=True)
class Spot:
    """A node, where it stands, and what it is called. `line` is that of its key."""

    problems: Problems
    key: str
    line: int | None
    node: Node

    def say(self, sentence: str) -> None:
        self.problems.add(self.line, self.key, sentence)

    @property
    def is_empty(self) -> bool:
        return isinstance(self.node, Scalar) and self.node.kind == "null"

    @property
    def is_text(self) -> bool:
        return isinstance(self.node, Scalar) and self.node.kind != "null"

    @property
    def is_table(self) -> bool:
        return isinstance(self.node, Table)

    @property
    def has_nothing(self) -> bool:
        """Null, or a list or table without entries."""
        if isinstance(self.node, Scalar):
            return self.is_empty
        return not (self.node.entries if isinstance(self.node, Table) else self.node.items)

    def table(self, what: str = "a table of keys and values") -> dict[str, Spot]:
        """Its entries; empty for null, and after a problem."""
        if self.is_empty:
            return {}
        if not isinstance(self.node, Table):
            self.say(f"must be {what}, not {_kind(self.node)}.")
            return {}
        prefix = f"{self.key}." if self.key else ""
        return {
            name: Spot(self.problems, prefix + short(name), entry.line, entry.value)
            for name, entry in self.node.entries.items()
        }

    def keys(self, known: Collection[str], what: str = "a table of keys and values") -> dict[str, Spot]:
        """Its entries of `known` keys; every other key is a problem."""
        entries = self.table(what)
        for name in list(entries):
            if name not in known:
                hint = self.problems.suggest(name, known) or f"; known here: {', '.join(known)}"
                entries.pop(name).say(f"is not a known key{hint}.")
        return entries

    def text(self) -> str | None:
        """Its source text, a number's or a truth value's too."""
        if isinstance(self.node, Scalar) and self.node.kind != "null":
            if not _UNFIT.search(self.node.text):
                return self.node.text
            self.say("holds a character that no text may have (NUL, or half of a surrogate pair).")
        elif self.is_empty:
            self.say('has no value; write one ("" for an empty text).')
        else:
            self.say(f"must be a text, not {_kind(self.node)}.")
        return None

    def full_text(self, limit: int = 1000) -> str | None:
        """A text that is not empty, on one line, of at most `limit` letters, without foreign expressions."""
        text = self.text()
        if text is None:
            return None
        if not text.strip():
            self.say("is empty; write a value.")
        elif len(text) > limit:
            self.say(f"is longer than {limit} letters.")
        elif any(ord(letter) < 32 for letter in text):
            self.say("must be on one line.")
        elif "${{" in text:
            self.say(
                "holds an expression '${{ … }}'; here a reference is a bare dotted path, "
                "as in workflow.inputs.NAME or JOB.outputs.NAME."
            )
        else:
            return text
        return None

    def texts(self) -> tuple[str, ...]:
        """A list of texts, or one text alone. Nothing after a problem."""
        if self.is_text:
            one = self.full_text()
            return (one,) if one is not None else ()
        return tuple(text for item in self.items() if (text := item.full_text()) is not None)

    def items(self) -> tuple[Spot, ...]:
        if self.is_empty:
            return ()
        if not isinstance(self.node, Listing):
            self.say(f"must be a list, not {_kind(self.node)}.")
            return ()
        return tuple(
            Spot(self.problems, f"{self.key}.{index}", item.line or self.line, item)
            for index, item in enumerate(self.node.items)
        )

    def number(self, low: int, high: int, what: str) -> int | None:
        """A whole number within [low, high]; `1e3` and `2.0` count as whole."""
        if isinstance(self.node, Scalar) and self.node.kind in ("int", "float") and len(self.node.text) < 30:
            value = _number(self.node.text)
            if value is not None and value == int(value) and low <= value <= high:
                return int(value)
        self.say(f"must be {what}, a whole number from {low} to {high}.")
        return None

    def truth(self) -> bool:
        if isinstance(self.node, Scalar) and self.node.kind == "bool":
            return self.node.text.lower() == "true"
        self.say("must be true or false.")
        return False


def short(text: str, limit: int = 100) -> str:
    """`text` for a sentence: one line, of a bearable length."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def quoted(text: str) -> str:
    return f"'{short(text, 80)}'"


def _number(text: str) -> float | None:
    try:
        value = float(int(text, 0)) if text.startswith(("0x", "0o")) else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _kind(node: Node) -> str:
    if isinstance(node, Table):
        return "a table"
    if isinstance(node, Listing):
        return "a list"
    return f"the {'text' if node.kind == 'str' else 'value'} {quoted(node.text)}"
