"""A commit's files into a folder, for a job's checkout of the project's own repository: no network, no work tree, no hook.

What this keeps true: nothing is written outside the folder, whatever names the commit holds; links are made as links and
never followed; a submodule is an empty folder and an LFS pointer stays the small text that it is; memory stays at one
piece of one file.

Why: git's own checkout runs filters and hooks and has been led out of its folder before; this writes files and no more.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import Corrupt, DiskFull, TooLarge
from appliance.repos.reader import Reader

MAX_BYTES = 64 * 1024**3
MAX_LINK = 4096


def checkout(reader: Reader, tree: str, target: Path, max_bytes: int = MAX_BYTES) -> int:
    """`target`, an empty folder that nobody else writes to, holds the files of `tree`; returns their bytes.

    Modes are 0755 for executables and folders, 0644 for other files. Raises TooLarge above `max_bytes`, DiskFull,
    Corrupt for a name that git itself would never write; what was written so far stays for the caller to remove.
    """
    written = 0
    waiting = [(tree, target)]
    try:
        while waiting:
            folder, place = waiting.pop()
            for name, mode, sha in _items(reader, folder):
                path = place / name
                if stat.S_ISDIR(mode):
                    path.mkdir(mode=0o755)
                    waiting.append((sha, path))
                elif stat.S_ISLNK(mode):
                    path.symlink_to(os.fsdecode(reader.contents(sha, MAX_LINK)[1]))
                elif stat.S_ISREG(mode):
                    written += _write(reader, sha, path, 0o755 if mode & 0o100 else 0o644, max_bytes - written)
                else:
                    path.mkdir(mode=0o755)
    except FileExistsError as error:
        raise Corrupt(f"The commit holds {error.filename!r} twice, or the folder was not empty.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull("The disk is full; the checkout was not finished.") from error
        raise Corrupt(f"The commit cannot be written to a folder: {error}.") from error
    except ValueError as error:
        raise Corrupt(f"The commit holds a link that cannot be made: {error}.") from error
    return written


def _items(reader: Reader, tree: str) -> Iterator[tuple[str, int, str]]:
    for item in reader.tree(tree).items():
        assert item.path is not None
        assert item.mode is not None
        assert item.sha is not None
        name = os.fsdecode(item.path)
        if name in ("", ".", "..") or "/" in name or name.lower() == ".git":
            raise Corrupt(f"The commit holds the name {name!r}, which git never writes.")
        yield name, item.mode, item.sha.decode()


def _write(reader: Reader, sha: str, path: Path, mode: int, limit: int) -> int:
    size, pieces = reader.stream(sha)
    if size > limit:
        raise TooLarge(f"The checkout is larger than allowed: {path.name!r} would go over the limit.")
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(number, "wb") as file:  # noqa: PTH123  # a descriptor that was opened without following links
        os.fchmod(number, mode)
        for piece in pieces:
            file.write(piece)
    return size
