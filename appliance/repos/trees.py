"""What stands where in a commit: a path to an object, a folder to its entries.

What this keeps true: links and submodules are named and never followed; names that are not UTF-8 are shown with U+FFFD
and cannot be asked for; a folder of more than `MAX_ENTRIES` is refused.

Why: see the package.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from appliance.errors import NotFound, TooLarge
from appliance.records import FileEntry
from appliance.repos.reader import Reader

MAX_ENTRIES = 20_000


def find(reader: Reader, sha: str, path: str) -> tuple[int, str]:
    """Mode and sha of what stands at `path`; the root folder for an empty path."""
    mode, found = stat.S_IFDIR, reader.commit(sha).tree.decode()
    for part in (part for part in path.split("/") if part):
        if not stat.S_ISDIR(mode):
            raise NotFound(f"There is no {path!r} in commit {sha[:12]}.")
        try:
            mode, raw = reader.tree(found)[part.encode("utf-8", "replace")]
        except KeyError as error:
            raise NotFound(f"There is no {path!r} in commit {sha[:12]}.") from error
        found = raw.decode()
    return mode, found


def entries(reader: Reader, tree: str, prefix: str) -> Iterator[FileEntry]:
    items = reader.tree(tree).items()
    if len(items) > MAX_ENTRIES:
        raise TooLarge(f"The folder {prefix or '/'} has {len(items):,} entries; at most {MAX_ENTRIES:,} are read here.")
    for item in items:
        assert item.path is not None
        assert item.mode is not None
        assert item.sha is not None
        name = item.path.decode("utf-8", "replace")
        kind = kind_of(item.mode)
        info = reader.info(item.sha.decode()) if kind in ("file", "symlink") else None
        yield FileEntry(
            path=f"{prefix}/{name}" if prefix else name,
            kind=kind,
            size_bytes=info[2] if info else 0,
            executable=kind == "file" and bool(item.mode & 0o100),
            hash=item.sha.decode(),
        )


def kind_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISREG(mode):
        return "file"
    return "symlink" if stat.S_ISLNK(mode) else "submodule"
