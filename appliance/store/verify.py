"""Checking that the store holds what it says, object by object.

What this keeps true: `verify` changes nothing, stops at nothing, and names each damaged or missing object once for each
place where it is seen. Nodes are always read and checked against their hash; file contents only when `deep`.

Why: bit rot is found before it is needed, and the sentence says which file of which version to store again.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from appliance import errors
from appliance.store.objects import Objects
from appliance.store.tree import FOLDER, TAG, Node, Row, digits_of, path_of

_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Problem:
    """What is wrong with one object. `root` and `path` say where it was met; both None when no tree was walked."""

    object: str
    root: str | None
    path: str | None
    message: str


def verify(objects: Objects, roots: Iterable[str] | None, *, deep: bool) -> list[Problem]:
    """What is wrong with the trees `roots`, or with every object there is when None. Empty: all is well."""
    if roots is None:
        return list(_all_objects(objects, deep=deep))
    checked: dict[str, str | None] = {}
    return [problem for root in roots for problem in _tree(objects, root, checked, deep=deep)]


def _all_objects(objects: Objects, *, deep: bool) -> Iterator[Problem]:
    for fan, entry in objects.all():
        if not _NAME.fullmatch(entry.name) or not entry.name.startswith(fan):
            yield Problem(entry.name, None, None, f"{fan}/{entry.name} is not an object of the store.")
        elif not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            yield Problem(TAG + entry.name, None, None, f"The object {TAG}{entry.name} is not a plain file.")
        elif deep and (message := _content(objects, entry.name)):
            yield Problem(TAG + entry.name, None, None, message)


def _tree(objects: Objects, root: str, checked: dict[str, str | None], *, deep: bool) -> Iterator[Problem]:
    stack: list[tuple[tuple[bytes, ...], str]] = [((), digits_of(root))]
    seen: set[str] = set()
    while stack:
        parts, digits = stack.pop()
        if digits in seen:
            continue
        seen.add(digits)
        try:
            node = objects.node(digits)
            _check_totals(objects, node, digits)
        except errors.Corrupt as error:
            yield Problem(TAG + digits, root, path_of(parts), error.message)
            continue
        for row in node.rows:
            at = (*parts, row.name)
            if row.kind == FOLDER:
                stack.append((at, row.digits))
            elif message := _file(objects, row, checked, deep=deep):
                yield Problem(TAG + row.digits, root, path_of(at), message)


def _check_totals(objects: Objects, node: Node, digits: str) -> None:
    files = sum(row.kind != FOLDER for row in node.rows)
    for row in node.rows:
        if row.kind == FOLDER:
            try:
                inner = objects.node(row.digits)
            except errors.Corrupt:
                return  # reported on its own, when the walk comes to it
            if inner.size_bytes != row.size_bytes:
                raise errors.Corrupt(f"The directory {TAG}{digits} states a wrong size for {row.name!r}.")
            files += inner.file_count
    if node.file_count != files or node.size_bytes != sum(row.size_bytes for row in node.rows):
        raise errors.Corrupt(f"The directory {TAG}{digits} states wrong totals.")


def _file(objects: Objects, row: Row, checked: dict[str, str | None], *, deep: bool) -> str | None:
    if row.digits not in checked:
        checked[row.digits] = _content(objects, row.digits) if deep else None
    try:
        size_bytes = objects.size_of(row.digits)
    except errors.Corrupt as error:
        return error.message
    if size_bytes != row.size_bytes:
        return f"The object {TAG}{row.digits} has {size_bytes} bytes instead of {row.size_bytes}."
    return checked[row.digits]


def _content(objects: Objects, digits: str) -> str | None:
    try:
        for _ in objects.read(digits):
            pass
    except errors.Corrupt as error:
        return error.message
    return None
