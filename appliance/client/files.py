"""Folders to and from a version: several files at once, none outside the folder, none half.

What this keeps true: what is sent is listed before the first byte leaves, so progress knows the whole; a file that comes
in appears under its name only when it is complete; a path that would lead out of the target folder (absolute, with
`..`, or through a symbolic link that lies there) is refused before anything is written. A symbolic link of a version is
made when it stays within the folder, after all files; what is not made is named.

Why: a list of files from a server is input like any other, and a laptop's home folder is near.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from appliance.errors import BadRequest, NotFound

WORKERS = 8
_KINDS = ("file", "symlink")
_LONGEST_LINK = 4096  # PATH_MAX


@dataclass(frozen=True)
class Done:
    """How far a transfer is. Bytes count when their file is complete."""

    files: int
    of_files: int
    bytes: int
    of_bytes: int


@dataclass(frozen=True)
class Local:
    """A file to send: where it lies, and its path in the version."""

    path: str
    source: Path
    size: int


Progress = Callable[[Done], None]
Writer = Callable[[bytes], object]


def collect(folder: Path) -> list[Local]:
    """Every file under `folder` by path, hidden ones too; or `folder` itself where it is one file.

    Raises NotFound, and BadRequest for what cannot be kept: links to folders, devices, names that are not UTF-8.
    """
    try:
        mode = folder.stat().st_mode
    except OSError as error:
        raise NotFound(f"There is no folder or file {folder}.") from error
    found = [_local(folder, folder.name)] if stat.S_ISREG(mode) else sorted(_walk(folder, folder), key=lambda f: f.path)
    if not found:
        raise BadRequest(f"There is no file in {folder}: a version holds at least one.")
    return found


def send(found: Sequence[Local], put: Callable[[Local], None], progress: Progress | None) -> None:
    """`put` each file, up to WORKERS at once. The first failure stops the rest and is raised."""
    _in_parallel(found, lambda each: each.size, put, progress)


def receive(
    wanted: Sequence[dict[str, Any]],
    folder: Path,
    load: Callable[[str, Writer], int],
    progress: Progress | None,
) -> list[dict[str, str]]:
    """Each of `wanted` ({path, kind, sizeBytes}) below `folder`, written by `load(path, write)`; what was left out.

    A folder comes with its files. What is left out is a {path, reason}: a link that leads elsewhere, or no known kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    root = folder.resolve()
    known = [each for each in wanted if each.get("kind", "file") in _KINDS]
    targets = {each["path"]: safe_target(root, each["path"]) for each in known}
    links: dict[str, str] = {}

    def take(each: dict[str, Any]) -> None:
        path, target = each["path"], targets[each["path"]]
        if each.get("kind") == "symlink":
            links[path] = _link_text(path, load)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(target, lambda write: load(path, write), executable=bool(each.get("executable")))

    _in_parallel(known, _size, take, progress)
    left = {path: _make_link(root, targets[path], text) for path, text in sorted(links.items())}
    kinds = {each["path"]: each.get("kind", "file") for each in wanted}
    others = {path: f"it is a {kind}" for path, kind in kinds.items() if kind not in (*_KINDS, "directory")}
    return [{"path": path, "reason": why} for path, why in {**left, **others}.items() if why]


def stays_inside(path: str, target: str) -> bool:
    """Whether a symbolic link at `path` of a version that says `target` leads to somewhere within the version.

    Only `..` at the beginning are followed: after a name, which may be another link, they lead nobody knows where.
    """
    parts = PurePosixPath(target).parts
    ups = len(parts) - len(names := [part for part in parts if part != ".."])
    at_first = parts[ups:] == tuple(names)
    return (
        bool(target) and "\0" not in target and target[0] != "/" and at_first and ups < len(PurePosixPath(path).parts)
    )


def safe_target(root: Path, path: str) -> Path:
    """Where `path` of a version lies below `root` (resolved). Raises BadRequest when that would be elsewhere."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise BadRequest(f"The server names a file {path!r}, which would lie outside the folder; nothing was written.")
    target = root.joinpath(*parts)
    if not target.parent.resolve().is_relative_to(root):
        raise BadRequest(
            f"{target.parent} leads out of {root} through a symbolic link: remove it, or choose another folder."
        )
    return target


def _write_whole(target: Path, load: Callable[[Writer], int], *, executable: bool) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".appliance-part-")
    try:
        with os.fdopen(handle, "wb") as file:
            load(file.write)
        Path(name).chmod(0o755 if executable else 0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _link_text(path: str, load: Callable[[str, Writer], int]) -> str:
    pieces = bytearray()

    def keep(piece: bytes) -> None:
        pieces.extend(piece)
        if len(pieces) > _LONGEST_LINK:
            raise BadRequest(f"The server says that {path!r} is a symbolic link, but it is too long for one.")

    load(path, keep)
    return os.fsdecode(bytes(pieces))


def _make_link(root: Path, target: Path, text: str) -> str | None:
    """`target` is a symbolic link that says `text`, or why it is not."""
    if not stays_inside(target.relative_to(root).as_posix(), text):
        return f"it is a symbolic link to {text!r}, which may lead out of the folder"
    made = target.parent / f".appliance-part-{secrets.token_hex(8)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.parent.resolve() != target.parent:
            return "it is a symbolic link below another one that lies there"
        made.symlink_to(text)
        made.replace(target)
    except OSError as error:
        made.unlink(missing_ok=True)
        return f"it is a symbolic link, which cannot be made ({error.strerror})"
    return None


def _walk(folder: Path, root: Path) -> Iterator[Local]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, root)
        else:
            yield _local(path, path.relative_to(root).as_posix())


def _local(source: Path, path: str) -> Local:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"The name of {path!r} is not UTF-8: rename it first.") from error
    try:
        found = source.stat()
    except OSError as error:
        raise BadRequest(f"{source} is a symbolic link that leads nowhere: remove it first.") from error
    if not stat.S_ISREG(found.st_mode):
        raise BadRequest(
            f"{source} is neither a file nor a folder (or a link to a folder), which a version cannot hold."
        )
    return Local(path, source, found.st_size)


def _size(entry: dict[str, Any]) -> int:
    return int(entry.get("sizeBytes") or 0)


def _in_parallel(
    items: Sequence[Any], size: Callable[[Any], int], work: Callable[[Any], object], progress: Progress | None
) -> None:
    whole = sum(map(size, items))
    lock, state = threading.Lock(), [0, 0]

    def one(item: Any) -> None:
        work(item)
        with lock:
            state[0] += 1
            state[1] += size(item)
            if progress:
                progress(Done(state[0], len(items), state[1], whole))

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="transfer") as pool:
        futures: list[Future[None]] = [pool.submit(one, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for each in futures:
                each.cancel()
    for each in done:
        each.result()
