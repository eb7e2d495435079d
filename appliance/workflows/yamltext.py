"""YAML text to a tree of nodes that remember their lines; nothing in it is interpreted beyond YAML 1.2's core schema.

What this keeps true: a scalar keeps its source text, so `1.10` is the text `1.10` wherever a text is wanted, and the key
`on` is the text `on`. Aliases, anchors, tags, merge keys, equal keys and second documents are refused, as is anything
above the limits below, so the work done is linear in a bounded input. Whatever is refused names its line.

Why: PyYAML's own loader reads `on:` as True, lets the last of two equal keys win and follows alias bombs; its event
stream (libyaml's parser where it is built in) does none of that and says where each event stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_EVENTS = 20_000

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
# YAML 1.2.2, section 10.3.2: the core schema's tag resolution.
_KINDS = (
    ("null", re.compile(r"~|null|Null|NULL|")),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")),
    ("float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")),
)


@dataclass(frozen=True)
class Scalar:
    """`text` as it was written; `kind` is null, bool, int, float or str by the core schema (quoted is always str)."""

    text: str
    kind: str
    line: int | None


@dataclass(frozen=True)
class Listing:
    items: tuple[Node, ...]
    line: int | None


@dataclass(frozen=True)
class Table:
    """Keys in the order of the text. A table's line is that of the key which it belongs to."""

    entries: dict[str, Entry]
    line: int | None


@dataclass(frozen=True)
class Entry:
    line: int | None
    value: Node


Node = Scalar | Listing | Table


class YamlProblem(Exception):
    """The first thing that is wrong with the text. Only `workflows` sees it; it becomes a `ParseError` there."""

    def __init__(self, line: int | None, key: str, sentence: str) -> None:
        super().__init__(sentence)
        self.line, self.key, self.sentence = line, key, sentence


@dataclass
class _Open:
    """A collection whose end has not been met yet."""

    line: int
    is_table: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    key: str | None = None
    key_line: int = 0


def load(text: str | bytes) -> Node:
    """The one document in `text`. Raises `YamlProblem`; takes under 200 ms for anything within the limits."""
    source = _decoded(text)
    stack: list[_Open] = []
    root: Node | None = None
    documents = 0
    for count, event in enumerate(_events(source), 1):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if count > MAX_EVENTS:
            raise YamlProblem(line, _path(stack), f"has more than {MAX_EVENTS} elements; split the file.")
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise YamlProblem(line, "", "begins a second document ('---'); one file holds one workflow.")
        if not isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            continue
        done = _step(event, line, stack)
        if done is not None:
            root = _attach(stack, done) or root
    if root is None or (isinstance(root, Scalar) and root.kind == "null"):
        raise YamlProblem(1, "", "is empty; a workflow has at least a job under 'jobs:'.")
    return root


def scalar_kind(text: str) -> str:
    """What an unquoted scalar is by the core schema."""
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(text)), "str")


def _decoded(text: str | bytes) -> str:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if len(raw) > MAX_BYTES:
        sentence = f"is larger than {MAX_BYTES // 1024} KiB ({len(raw):,} bytes); move long scripts into files."
        raise YamlProblem(1, "", sentence)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise YamlProblem(line, "", "is not UTF-8 text; save the file as UTF-8.") from error
    if text.startswith("\ufeff"):
        raise YamlProblem(1, "", "begins with a byte order mark; save the file as UTF-8 without one.")
    control = _CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise YamlProblem(line, "", f"holds the control character U+{ord(control[0]):04X}; remove it.")
    return text


def _events(source: str) -> Iterator[yaml.Event]:
    try:  # events only: nothing is ever constructed from them
        yield from yaml.parse(source, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise YamlProblem(line, "", _syntax_sentence(source, error)) from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise YamlProblem(1, "", f"is not valid YAML: {error}.") from error


def _syntax_sentence(source: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    lines = source.split("\n")
    written = lines[mark.line] if mark and mark.line < len(lines) else ""
    indent = written[: len(written) - len(written.lstrip())]
    if "\t" in indent or (mark and written[mark.column : mark.column + 1] == "\t"):
        return "has a tab where YAML wants spaces; indent with spaces only."
    context = f", {error.context}" if error.context else ""
    return f"is not valid YAML: {error.problem}{context}."


def _step(event: Any, line: int, stack: list[_Open]) -> Node | None:
    """The node that `event` completes, if it completes one."""
    if isinstance(event, yaml.CollectionEndEvent):
        done = stack.pop()
        if done.is_table:
            return Table(done.entries, done.line)
        return Listing(tuple(done.items), done.line)
    _refuse_indirection(event, line, stack)
    parent = stack[-1] if stack else None
    if parent and parent.is_table and parent.key is None:
        _take_key(parent, event, line, _path(stack))
        return None
    if isinstance(event, yaml.ScalarEvent):
        plain = event.style in (None, "")
        return Scalar(event.value, scalar_kind(event.value) if plain else "str", line)
    if len(stack) >= MAX_DEPTH:
        raise YamlProblem(line, "", f"is nested more than {MAX_DEPTH} levels deep.")
    starts_at = parent.key_line if parent and parent.is_table else line
    stack.append(_Open(starts_at, isinstance(event, yaml.MappingStartEvent)))
    return None


def _refuse_indirection(event: Any, line: int, stack: list[_Open]) -> None:
    if isinstance(event, yaml.AliasEvent):
        raise YamlProblem(
            line, _path(stack), f"uses the alias '*{str(event.anchor)[:40]}'; aliases are not allowed here."
        )
    if event.anchor is not None:
        raise YamlProblem(line, _path(stack), f"sets the anchor '&{event.anchor[:40]}'; anchors are not allowed here.")
    if event.tag is not None:
        raise YamlProblem(line, _path(stack), f"has the tag '{event.tag[:40]}'; tags are not allowed here.")


def _take_key(table: _Open, event: Any, line: int, path: str) -> None:
    if not isinstance(event, yaml.ScalarEvent):
        raise YamlProblem(line, path, "has a list or table as a key; keys are plain words.")
    name: str = event.value or ""
    if not name:
        raise YamlProblem(line, path, "has an empty key; write a word before ':'.")
    dotted = f"{path}.{name[:80]}" if path else name[:80]
    if name == "<<" and event.style in (None, ""):
        raise YamlProblem(line, path, "uses the merge key '<<'; write the keys out.")
    if name in table.entries:
        first = table.entries[name].line
        raise YamlProblem(line, dotted, f"stands here a second time (first on line {first}); keep one.")
    table.key, table.key_line = name, line


def _attach(stack: list[_Open], node: Node) -> Node | None:
    """Put `node` into the innermost open collection; the node itself when it is the root."""
    if not stack:
        return node
    parent = stack[-1]
    if not parent.is_table:
        parent.items.append(node)
    else:
        assert parent.key is not None
        parent.entries[parent.key] = Entry(parent.key_line, node)
        parent.key = None
    return None


def _path(stack: list[_Open]) -> str:
    """The dotted path of the node that comes next; of its table, where a key comes next."""
    parts = [(one.key or "")[:80] if one.is_table else str(len(one.items)) for one in stack]
    return ".".join(part for part in parts if part)
