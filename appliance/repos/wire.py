"""Smart HTTP: one request becomes one `git http-backend`, with both bodies streamed.

What this keeps true: only the three requests of the smart protocol reach git, with an environment made here; no body is
held in memory; whatever happens (the client leaves, git hangs, the time is over) the process and its children end.
The body is what the server decoded, so no length or transfer coding is passed on: git reads until the end of its input.

Why: git's receive-pack checks a push before a ref moves; a server of our own would have to learn that again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import NotFound, PreconditionFailed, TooManyRequests
from appliance.repos.reader import git_environment, limits

COMMITTER = "pushed over HTTP"  # by this name git's own note of a moved ref tells a push of ours from root's
MEMORY_BYTES = 2 * 1024**3
CPU_S = 1800
TIME_S = 3600.0
GRACE_S = 5.0
MAX_RUNNING = 32
MAX_EARLY = 1024 * 1024
CHUNK = 64 * 1024

_LOG = logging.getLogger(__name__)
_SERVICES = ("git-upload-pack", "git-receive-pack")
_PROTOCOL = re.compile(r"version=[0-2]")
_running: set[int] = set()


@dataclass(frozen=True)
class HttpAnswer:
    """`body` gives the bytes as git writes them. Call `close` when done with it, read to the end or not."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: AsyncIterator[bytes]
    process: _Process

    async def close(self) -> None:
        """git has ended. May be called twice."""
        await self.process.end()


def service_of(path_info: str, query: str) -> str:
    """Which service a request asks for: `git-upload-pack` reads, `git-receive-pack` writes. Raises NotFound."""
    if path_info == "/info/refs" and query.startswith("service="):
        name = query.removeprefix("service=").split("&", 1)[0]
    else:
        name = path_info.removeprefix("/")
    if name not in _SERVICES:
        raise NotFound("This is no request of git's smart HTTP protocol.")
    return name


async def http_backend(
    root: Path,
    repository: str,
    *,
    method: str,
    path_info: str,
    query: str,
    content_type: str,
    headers: Mapping[str, str],
    body: AsyncIterator[bytes],
    user: str | None,
    hook_socket: Path | None = None,
    time_s: float = TIME_S,
) -> HttpAnswer:
    """Run git for one request to `root/repository`; returns when git has its header written and the body is used up.

    Only then may a web framework begin to answer: one that looks out for a client that leaves (Litestar's `Stream`)
    would take pieces of the body for itself. git writes next to nothing before it has read everything.

    `path_info` is what follows the repository in the URL; `user` is whom the hook names as the pusher. The caller has
    checked who may do what (`service_of`). Raises NotFound for any other request, TooManyRequests above 32 at once.
    """
    service = service_of(path_info, query)
    if method != ("GET" if path_info == "/info/refs" else "POST"):
        raise NotFound(f"git's smart HTTP protocol has no {method[:20]} {path_info}.")
    if len(_running) >= MAX_RUNNING:
        raise TooManyRequests("Too many pushes and fetches at once; try again in a moment.")
    environment = {
        **git_environment(),
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": f"/{repository}{path_info}",
        "REQUEST_METHOD": method,
        "QUERY_STRING": f"service={service}" if method == "GET" else "",
        "CONTENT_TYPE": content_type,
        "SERVER_PROTOCOL": "HTTP/1.1",
        **_from_headers(headers),
    }
    if user is not None:
        environment |= {
            "REMOTE_USER": user,
            "APPLIANCE_PUSHER": user,
            "GIT_COMMITTER_NAME": COMMITTER,
            "GIT_COMMITTER_EMAIL": user,
        }
    if hook_socket is not None:
        environment["APPLIANCE_HOOK_SOCKET"] = str(hook_socket)
    process = await _Process.start(environment, body, time_s)
    try:
        status, fields = await process.head()
        await process.fed()
    except BaseException:
        await process.end()
        raise
    return HttpAnswer(status, fields, process.rest(), process)


def _from_headers(headers: Mapping[str, str]) -> dict[str, str]:
    given = {name.lower(): value for name, value in headers.items()}
    found = {}
    if given.get("content-encoding", "").lower() in ("gzip", "x-gzip"):
        found["HTTP_CONTENT_ENCODING"] = "gzip"
    if _PROTOCOL.fullmatch(given.get("git-protocol", "")):
        found["GIT_PROTOCOL"] = given["git-protocol"]
    return found


class _Process:
    """A running `git http-backend`: a task feeds it, one collects what it complains of, one ends it when time is over."""

    def __init__(self, git: asyncio.subprocess.Process, body: AsyncIterator[bytes], time_s: float) -> None:
        self._git = git
        self._complaint = b""
        self._mute = False
        self._stopping: asyncio.Task[None] | None = None
        _running.add(git.pid)
        self._tasks = [
            asyncio.create_task(self._feed(body)),
            asyncio.create_task(self._listen()),
            asyncio.create_task(self._watch(time_s)),
        ]

    @classmethod
    async def start(cls, environment: dict[str, str], body: AsyncIterator[bytes], time_s: float) -> _Process:
        try:
            git = await asyncio.create_subprocess_exec(
                *limits(MEMORY_BYTES, CPU_S),
                "git",
                "http-backend",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,
                limit=MAX_EARLY,
            )
        except OSError as error:
            raise PreconditionFailed(f"git cannot be started: {error}.") from error
        return cls(git, body, time_s)

    async def head(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        """The CGI header. A 500 with a sentence when git died without one."""
        assert self._git.stdout
        try:
            raw = await self._git.stdout.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            _LOG.warning("git http-backend gave no answer: %s", self._complaint.decode("utf-8", "replace"))
            self._mute = True
            return 500, (("Content-Type", "text/plain; charset=utf-8"),)
        status, fields = 200, []
        for line in raw.decode("latin-1").split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "status":
                status = int(value.split()[0])
            elif name and name.lower() not in ("transfer-encoding", "content-length", "connection"):
                fields.append((name, value.strip()))
        return status, tuple(fields)

    async def fed(self) -> None:
        """The body was read to its end, or nobody will."""
        await asyncio.wait(self._tasks[:1])

    async def rest(self) -> AsyncGenerator[bytes, None]:
        assert self._git.stdout
        try:
            if self._mute:
                yield b"git gave no answer; the appliance's log says why.\n"
            while part := await self._git.stdout.read(CHUNK):
                yield part
        finally:
            await self.end()

    async def end(self) -> None:
        """The process group has ended and nothing waits for it; politely first, so that git removes its quarantine.

        May be called twice, and by several at once: each returns when git has ended.
        """
        if self._stopping is None:
            current = asyncio.current_task()
            for task in self._tasks:
                if task is not current:
                    task.cancel()
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        assert self._git.stdout
        try:
            if self._git.stdout.at_eof() and await self._gone():
                return
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._git.pid, number)
                if await self._gone():
                    return
        finally:
            _running.discard(self._git.pid)
            transport = self._git._transport  # type: ignore[attr-defined]  # the only way to close its pipes at once
            transport.close()

    async def _gone(self) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._git.wait(), GRACE_S)
        return self._git.returncode is not None

    async def _feed(self, body: AsyncIterator[bytes]) -> None:
        """Give git the body. Once git wants no more of it, read on, so that the client comes to read git's answer."""
        assert self._git.stdin
        wanted = True
        try:
            async for part in body:
                if wanted and part:
                    try:
                        self._git.stdin.write(part)
                        await self._git.stdin.drain()
                    except (BrokenPipeError, ConnectionResetError):
                        wanted = False
            self._git.stdin.close()
        except Exception as error:
            _LOG.info("a client left while it was sending: %s", error)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._git.pid, signal.SIGTERM)

    async def _listen(self) -> None:
        assert self._git.stderr
        while part := await self._git.stderr.read(CHUNK):
            self._complaint = (self._complaint + part)[-4096:]

    async def _watch(self, time_s: float) -> None:
        await asyncio.sleep(time_s)
        _LOG.warning("git http-backend took longer than %.0f s and is ended", time_s)
        await self.end()
