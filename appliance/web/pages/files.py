"""A version's files as a page shows them: one folder at a time, and small, safe previews.

What this keeps true: a preview reads at most 128 KiB (an image at most 4 MiB) and is text that the template escapes, or an
image whose bytes are those of a known raster format; nothing that somebody stored is ever a page, script or SVG of ours.

Why by content and not by name: a file called `photo.png` may be HTML, and the browser would believe its bytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from appliance.errors import ApplianceError, BadRequest
from appliance.records import FileEntry
from appliance.store import Store

TEXT_BYTES = 128 * 1024
IMAGE_BYTES = 4 * 1024 * 1024
PER_PAGE = 500
_ROWS, _COLUMNS = 50, 40
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


@dataclass(frozen=True)
class Preview:
    """What can be shown of a file: `kind` is text, table, image or none; `is_whole` unless it was cut off."""

    kind: str
    text: str = ""
    rows: tuple[tuple[str, ...], ...] = ()
    is_whole: bool = True
    note: str | None = None


def crumbs(path: str) -> list[tuple[str, str]]:
    """Name and path of each folder on the way to `path`."""
    parts = [part for part in path.split("/") if part]
    return [(part, "/".join(parts[: i + 1])) for i, part in enumerate(parts)]


def listing(store: Store, root: str, folder: str, after: str | None) -> tuple[list[FileEntry], str | None]:
    """A folder's entries, folders first, and where the next page begins."""
    found = store.files(root, folder, recursive=False, after=after, limit=PER_PAGE + 1)
    more = found[PER_PAGE - 1].path if len(found) > PER_PAGE else None
    return sorted(found[:PER_PAGE], key=lambda each: (each.kind != "directory", each.path)), more


def preview(store: Store, root: str, entry: FileEntry) -> Preview:
    """The beginning of the file, as it can be shown."""
    if entry.kind != "file":
        return Preview("none", note="This is a link; its target is not followed.")
    head = _head(store, root, entry, TEXT_BYTES)
    if image_type(head) is not None:
        if entry.size_bytes <= IMAGE_BYTES:
            return Preview("image")
        return Preview("none", note="The image is larger than 4 MiB; download it.")
    is_whole = entry.size_bytes <= TEXT_BYTES
    text = _text(head, is_whole)
    if text is None:
        return Preview("none", note="These are binary data; download the file to look at it.")
    if entry.path.endswith((".csv", ".tsv")):
        rows = _table(text, "\t" if entry.path.endswith(".tsv") else ",")
        if rows:
            return Preview("table", rows=rows, is_whole=is_whole and len(rows) < _ROWS)
    return Preview("text", text=text, is_whole=is_whole)


def image(store: Store, root: str, entry: FileEntry) -> tuple[bytes, str]:
    """A small image's bytes and their real type. BadRequest for everything else."""
    if entry.kind == "file" and entry.size_bytes <= IMAGE_BYTES:
        content = _head(store, root, entry, IMAGE_BYTES)
        kind = image_type(content)
        if kind is not None:
            return content, kind
    raise BadRequest("This is no image that can be shown here; download the file.")


def image_type(head: bytes) -> str | None:
    """The media type of a raster image, by its first bytes."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _head(store: Store, root: str, entry: FileEntry, limit: int) -> bytes:
    return b"".join(store.read(root, entry.path, length=min(limit, entry.size_bytes)))


def _text(head: bytes, is_whole: bool) -> str | None:
    if b"\x00" in head:
        return None
    try:
        return head.decode()
    except UnicodeDecodeError as error:
        cut_in_a_sign = not is_whole and error.start > len(head) - 4
        return head[: error.start].decode() if cut_in_a_sign else None


def _table(text: str, delimiter: str) -> tuple[tuple[str, ...], ...]:
    rows: Iterator[list[str]] = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        return tuple(tuple(row[:_COLUMNS]) for row in islice(rows, _ROWS))
    except (csv.Error, ApplianceError):
        return ()
