"""Reading objects: one `git cat-file` of limited memory at a time, asked for an object's size before its contents.

What this keeps true: no object larger than the caller's limit is ever in this process's memory, and no pack is parsed
in it. Every open reader is closed, whatever happens.

Why: a pack of a few kilobytes can hold an object of gigabytes; git's own process, not the daemon, meets it first.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from dulwich.errors import ObjectFormatException
from dulwich.objects import Blob, Commit, ShaFile, Tag, Tree

from appliance.errors import Corrupt, NotFound, TooLarge

MAX_NODE = 16 * 1024 * 1024
MEMORY_BYTES = 2 * 1024**3
CPU_S = 600
PIECE = 1024 * 1024
_TYPES: dict[bytes, type[ShaFile]] = {b"commit": Commit, b"tree": Tree, b"blob": Blob, b"tag": Tag}


def git_environment() -> dict[str, str]:
    """Nothing of this process's or this machine's configuration reaches git."""
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        # The repositories are the appliance's own, whoever of its users owns the files.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }


def limits(memory_bytes: int, cpu_s: int) -> list[str]:
    """The words before a command that give it hard limits (util-linux, in every Debian)."""
    return ["prlimit", f"--as={memory_bytes}", f"--cpu={cpu_s}", "--core=0", "--"]


class Reader:
    """An open repository. Use it in a `with`."""

    def __init__(self, path: Path) -> None:
        self._git = subprocess.Popen(
            [*limits(MEMORY_BYTES, CPU_S), "git", f"--git-dir={path}", "cat-file", "--batch-command"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=git_environment(),
        )
        assert self._git.stdin
        assert self._git.stdout
        self._in, self._out = self._git.stdin, self._git.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in.close()
        self._git.kill()
        self._git.wait()
        self._out.close()

    def info(self, name: str) -> tuple[str, str, int] | None:
        """Sha, type and size of what `name` means; None when it means nothing (or more than one thing)."""
        words = self._ask(f"info {name}").split()
        if len(words) != 3 or words[1].encode() not in _TYPES:
            return None
        return words[0], words[1], int(words[2])

    def contents(self, sha: str, limit: int) -> tuple[bytes, bytes]:
        """Type and bytes. Raises NotFound, and TooLarge above `limit` before a byte is read."""
        found = self.info(sha)
        if found is None:
            raise NotFound(f"There is no object {sha[:40]} in this repository.")
        if found[2] > limit:
            raise TooLarge(f"The object {found[0][:12]} has {found[2]:,} bytes; at most {limit:,} are read here.")
        self._ask(f"contents {found[0]}")
        data = self._out.read(found[2])
        self._out.read(1)
        if len(data) != found[2]:
            raise Corrupt(f"git could not read the object {found[0]}.")
        return found[1].encode(), data

    def stream(self, sha: str) -> tuple[int, Iterator[bytes]]:
        """Size and bytes, a piece at a time. Read them to the end before asking for anything else."""
        found = self.info(sha)
        if found is None:
            raise NotFound(f"There is no object {sha[:40]} in this repository.")
        self._ask(f"contents {found[0]}")
        return found[2], self._pieces(found[0], found[2])

    def _pieces(self, sha: str, left: int) -> Iterator[bytes]:
        while left:
            piece = self._out.read(min(left, PIECE))
            if not piece:
                raise Corrupt(f"git could not read the object {sha}.")
            left -= len(piece)
            yield piece
        self._out.read(1)

    def commit(self, sha: str) -> Commit:
        found = self._parsed(sha)
        if not isinstance(found, Commit):
            raise NotFound(f"{sha[:40]} is not a commit.")
        return found

    def tree(self, sha: str) -> Tree:
        found = self._parsed(sha)
        if not isinstance(found, Tree):
            raise NotFound(f"{sha[:40]} is not a folder.")
        return found

    def _parsed(self, sha: str) -> ShaFile:
        kind, data = self.contents(sha, MAX_NODE)
        try:
            parsed = _TYPES[kind].from_string(data)
            parsed.check()
        except (ObjectFormatException, ValueError, KeyError, AssertionError) as error:
            raise Corrupt(f"The object {sha[:40]} is not what git writes: {error}.") from error
        return parsed

    def _ask(self, line: str) -> str:
        try:
            self._in.write(line.encode() + b"\n")
            self._in.flush()
            answer = self._out.readline()
        except OSError as error:
            raise Corrupt(f"git ended while it read this repository: {error}.") from error
        if not answer:
            raise Corrupt("git ended while it read this repository.")
        return answer.decode("utf-8", "replace")
