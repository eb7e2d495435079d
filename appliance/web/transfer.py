"""Bytes in and out, streamed: uploads into a stage, downloads with ranges, a version as a tar archive.

What this keeps true: no body is held in memory; whoever reads slowly holds no thread, and whoever sends slowly at most
eight, so that the threads last for everybody; what somebody stored is never shown as a page of ours (attachment, sandbox,
octet-stream).

Why: a dataset is larger than memory, and its files are other people's.
"""

from __future__ import annotations

import asyncio
import re
import tarfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote

from litestar.concurrency import sync_to_thread
from litestar.response import Stream

from appliance import clock
from appliance.errors import BadRequest, TooManyRequests
from appliance.records import FileEntry, Version
from appliance.store import Store
from appliance.web.auth import who
from appliance.web.errors import AnyRequest

PIECE = 1 << 20
UPLOADS_EACH = 8
PATIENCE_S = 20.0
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_PAGE = 1000
_BROKEN = "The upload broke off before its end; nothing was kept."
T = TypeVar("T")


class OutsideOfFile(BadRequest):
    """The part that was asked for is not in the file (HTTP's 416)."""

    status = 416


async def receive(request: AnyRequest, pool: Executor, take: Callable[[Iterator[bytes]], T]) -> T:
    """What `take` makes of the body's pieces, which come as the client sends them. A body that breaks off is a BadRequest.

    TooManyRequests when eight uploads of the user are under way and none ends within twenty seconds.
    When this is cancelled (the daemon stops), the thread that waits for the next piece is let go.
    """
    loop = asyncio.get_running_loop()
    asked: list[Future[tuple[bytes, bool]]] = []
    stopped = threading.Event()

    def pieces() -> Iterator[bytes]:
        more = True
        while more and not stopped.is_set():
            asked[:] = [asyncio.run_coroutine_threadsafe(_piece(request), loop)]
            try:
                piece, more = asked[0].result()
            except CancelledError as error:
                raise BadRequest(_BROKEN) from error
            if piece:
                yield piece
        if more:
            raise BadRequest(_BROKEN)

    async with _place(request):
        try:
            return await loop.run_in_executor(pool, take, pieces())
        except asyncio.CancelledError:
            stopped.set()
            for each in asked:
                each.cancel()
            raise


@asynccontextmanager
async def _place(request: AnyRequest) -> AsyncIterator[None]:
    """One of the user's places for uploads, as long as it lasts; whoever waits for one holds no thread."""
    places: dict[str, asyncio.Semaphore] = request.app.state.uploading
    mine = places.setdefault(who(request)[1].user_id, asyncio.Semaphore(UPLOADS_EACH))
    try:
        async with asyncio.timeout(PATIENCE_S):
            await mine.acquire()
    except TimeoutError as error:
        raise TooManyRequests(
            f"{UPLOADS_EACH} of your uploads are under way, the most at once; wait until one ends, then send it again."
        ) from error
    try:
        yield
    finally:
        mine.release()


async def _piece(request: AnyRequest) -> tuple[bytes, bool]:
    """Some of the body, about PIECE bytes so that threads are not changed for every packet; and whether more comes."""
    found = bytearray()
    while len(found) < PIECE:
        message: Any = await request.receive()
        if message["type"] == "http.disconnect":
            raise BadRequest(_BROKEN)
        found += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(found), False
    return bytes(found), True


def part_of(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """First byte and length of a single range; None for the whole file (no header, or one that asks for several parts)."""
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        length = min(int(match[2]), size_bytes)
        return (size_bytes - length, length) if length else _outside(size_bytes)
    first = int(match[1])
    last = min(int(match[2]), size_bytes - 1) if match[2] else size_bytes - 1
    if match[2] and int(match[2]) < first:
        return None
    return (first, last - first + 1) if first < size_bytes else _outside(size_bytes)


def _outside(size_bytes: int) -> tuple[int, int]:
    raise OutsideOfFile(f"The file has {size_bytes} bytes; the part that was asked for lies outside of it.")


def download(store: Store, root: str, entry: FileEntry, range_header: str | None) -> Stream:
    """One file, or a part of it, as a download."""
    part = part_of(range_header, entry.size_bytes)
    first, length = part or (0, entry.size_bytes)
    chunks = store.read(root, entry.path, offset=first, length=length)
    headers = {**_as_attachment(entry.path.rpartition("/")[2]), "Accept-Ranges": "bytes", "Content-Length": str(length)}
    if entry.hash:
        headers["ETag"] = f'"{entry.hash}"'
    if part is not None:
        headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{entry.size_bytes}"
    return Stream(
        pieces_of(chunks),
        status_code=200 if part is None else 206,
        headers=headers,
        media_type="application/octet-stream",
    )


def archive(store: Store, version: Version, name: str) -> Stream:
    """Everything in the version as a tar archive, made while it is sent."""
    assert version.root is not None
    chunks = _tar(store, version.root, clock.parse(version.committed_at or version.created_at).timestamp())
    return Stream(pieces_of(chunks), headers=_as_attachment(f"{name}.tar"), media_type="application/x-tar")


async def pieces_of(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """`chunks`, each taken in a thread when the client is ready for it."""
    while (chunk := await sync_to_thread(next, chunks, None)) is not None:
        yield chunk


def _tar(store: Store, root: str, mtime: float) -> Iterator[bytes]:
    after: str | None = None
    while entries := store.files(root, after=after, limit=_PAGE):
        for entry in entries:
            yield from _tar_entry(store, root, entry, mtime)
        after = entries[-1].path
    yield bytes(2 * tarfile.BLOCKSIZE)


def _tar_entry(store: Store, root: str, entry: FileEntry, mtime: float) -> Iterator[bytes]:
    head = tarfile.TarInfo(entry.path)
    head.mtime = int(mtime)
    if entry.kind == "directory":
        head.type, head.mode = tarfile.DIRTYPE, 0o755
    elif entry.kind == "symlink":
        head.type, head.linkname = tarfile.SYMTYPE, b"".join(store.read(root, entry.path)).decode("utf-8", "replace")
    else:
        head.size, head.mode = entry.size_bytes, 0o755 if entry.executable else 0o644
    yield head.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    if entry.kind == "file":
        yield from store.read(root, entry.path)
        yield bytes(-entry.size_bytes % tarfile.BLOCKSIZE)


def _as_attachment(name: str) -> dict[str, str]:
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name) or "download"
    exact = quote(name.encode("utf-8", "replace"))
    return {
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
