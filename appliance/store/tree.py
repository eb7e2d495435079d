"""Directory nodes: their bytes (FORMAT.md, section 4), and walking, finding and comparing trees made of them.

What this keeps true: `decode` accepts exactly what `encode` writes, so a directory has one node and one hash. Everything
here is a function of values and of `load`, which gives the node of a hash; nothing here touches the disk.

Why: listing, diff, collection and views are all the same walk, and equal hashes let each of them skip what is equal.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from appliance import errors
from appliance.records import FileEntry

TAG = "b3:"
FILE, EXECUTABLE, FOLDER, LINK = "f", "x", "d", "l"
KINDS = {FILE: "file", EXECUTABLE: "file", FOLDER: "directory", LINK: "symlink"}

_HEAD = re.compile(rb"appliance-tree 1 (0|[1-9][0-9]*) (0|[1-9][0-9]*) (0|[1-9][0-9]*)\n")
_ROW = re.compile(rb"([fxdl]) (0|[1-9][0-9]*) ([0-9a-f]{64})\t([^/\0]{1,255})\0")
_ROOT = re.compile(r"b3:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of a directory. `digits` is its hash without the tag."""

    name: bytes
    kind: str
    size_bytes: int
    digits: str


@dataclass(frozen=True, slots=True)
class Node:
    """One directory: rows sorted by name, and the totals of everything beneath it that is not a directory."""

    rows: tuple[Row, ...]
    file_count: int
    size_bytes: int


Load = Callable[[str], Node]


def digits_of(root: str) -> str:
    """The 64 digits of a tagged root; raises BadRequest for anything else."""
    if not _ROOT.fullmatch(root):
        raise errors.BadRequest(f"{root[:80]!r} is not the name of a tree: it is b3: and 64 hexadecimal digits.")
    return root[len(TAG) :]


def node_of(rows: Iterable[Row], files_beneath: int) -> Node:
    """The node of `rows` in any order; `files_beneath` are those in its subdirectories."""
    ordered = tuple(sorted(rows, key=_name))
    here = sum(row.kind != FOLDER for row in ordered)
    return Node(ordered, here + files_beneath, sum(row.size_bytes for row in ordered))


def encode(node: Node) -> bytes:
    """The bytes of `node`."""
    head = b"appliance-tree 1 %d %d %d\n" % (len(node.rows), node.file_count, node.size_bytes)
    rows = (b"%s %d %s\t%s\0" % (r.kind.encode(), r.size_bytes, r.digits.encode(), r.name) for r in node.rows)
    return head + b"".join(rows)


def decode(data: bytes, digits: str) -> Node:
    """The node whose bytes are `data`; raises Corrupt, naming `digits`, for anything that `encode` does not write."""
    head = _HEAD.match(data)
    if head is None:
        raise errors.Corrupt(f"The object b3:{digits} is not a directory node of a version that this release knows.")
    rows = tuple(
        Row(m[4], m[1].decode(), int(m[2]), m[3].decode())
        for m in _ROW.finditer(data, head.end())
        if m[4] not in (b".", b"..")
    )
    node = Node(rows, int(head[2]), int(head[3]))
    sorted_once = all(a.name < b.name for a, b in pairwise(rows))
    if int(head[1]) != len(rows) or not sorted_once or encode(node) != data:
        raise errors.Corrupt(f"The object b3:{digits} is not a well-formed directory node.")
    return node


def parts_of(path: str) -> tuple[bytes, ...]:
    """The names along a path inside a tree; the root is `()`. Slashes at the ends are ignored."""
    stripped = path.strip("/")
    return tuple(os.fsencode(part) for part in stripped.split("/")) if stripped else ()


def path_of(parts: Iterable[bytes]) -> str:
    return os.fsdecode(b"/".join(parts))


def entry_of(parts: tuple[bytes, ...], row: Row) -> FileEntry:
    """The record of `row`, which lies at `parts`."""
    return FileEntry(path_of(parts), KINDS[row.kind], row.size_bytes, row.kind == EXECUTABLE, TAG + row.digits)


def _name(row: Row) -> bytes:
    return row.name


def find(load: Load, root: str, parts: tuple[bytes, ...]) -> Row:
    """The row at `parts`; for `()` one that stands for the root. Raises NotFound."""
    found = Row(b"", FOLDER, 0, root)
    for depth, name in enumerate(parts):
        rows = load(found.digits).rows if found.kind == FOLDER else ()
        place = bisect_left(rows, name, key=_name)
        if place == len(rows) or rows[place].name != name:
            raise errors.NotFound(f"There is no {path_of(parts[: depth + 1])!r} in this version.")
        found = rows[place]
    return found


def walk(
    load: Load, top: str, base: tuple[bytes, ...] = (), *, recursive: bool = True, after: tuple[bytes, ...] = ()
) -> Iterator[tuple[tuple[bytes, ...], Row]]:
    """Every entry beneath the node `top` (which lies at `base`), a directory before its contents, names in byte order.

    Only what follows `after` in that order; directories that lie wholly before it are not read.
    """
    stack = [(base, iter(load(top).rows))]
    while stack:
        prefix, rows = stack[-1]
        row = next(rows, None)
        if row is None:
            stack.pop()
            continue
        parts = (*prefix, row.name)
        if parts > after:
            yield parts, row
        if recursive and row.kind == FOLDER and parts >= after[: len(parts)]:
            stack.append((parts, iter(load(row.digits).rows)))


def compare(
    load: Load, old: str, new: str
) -> tuple[list[FileEntry], list[tuple[FileEntry, FileEntry]], list[FileEntry]]:
    """What was added, changed (old, new) and removed from node `old` to node `new`. Equal nodes are not read.

    A path that was a directory and no longer is (or the reverse) counts as removed and added, with all its contents.
    """
    added: list[FileEntry] = []
    changed: list[tuple[FileEntry, FileEntry]] = []
    removed: list[FileEntry] = []
    stack: list[tuple[tuple[bytes, ...], str, str]] = [((), old, new)] if old != new else []
    while stack:
        base, left, right = stack.pop()
        before = {row.name: row for row in load(left).rows}
        now = {row.name: row for row in load(right).rows}
        for name in sorted(before.keys() | now.keys()):
            parts, a, b = (*base, name), before.get(name), now.get(name)
            if a == b:
                continue
            if a and b and a.kind == b.kind == FOLDER:
                stack.append((parts, a.digits, b.digits))
            elif a and b and FOLDER not in (a.kind, b.kind):
                changed.append((entry_of(parts, a), entry_of(parts, b)))
            else:
                removed.extend(_all_of(load, parts, a))
                added.extend(_all_of(load, parts, b))
    return added, changed, removed


def _all_of(load: Load, parts: tuple[bytes, ...], row: Row | None) -> Iterator[FileEntry]:
    if row is None:
        return
    yield entry_of(parts, row)
    if row.kind == FOLDER:
        for beneath, inner in walk(load, row.digits, parts):
            yield entry_of(beneath, inner)


def reach(load: Load, roots: Iterable[str]) -> set[str]:
    """The digits of every object that `roots` (digits) need. Each node is read once, however many trees share it.

    Nodes are remembered apart from files: a file may have the very bytes of a node, and must not hide its children.
    """
    nodes: set[str] = set()
    files: set[str] = set()
    stack = list(roots)
    while stack:
        digits = stack.pop()
        if digits in nodes:
            continue
        nodes.add(digits)
        for row in load(digits).rows:
            if row.kind == FOLDER:
                stack.append(row.digits)
            else:
                files.add(row.digits)
    return nodes | files
