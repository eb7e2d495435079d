"""A folder of bare repositories, `PROJECT.git` each: make, remove, look into.

What this keeps true: a repository is whole or not there (made aside, then renamed); its configuration is the one below,
whatever a push brings; what is read is bounded, links and submodules are named but never followed.

Why: see the package.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import secrets
import shutil
import stat
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dulwich.errors import NotGitRepository
from dulwich.objects import Commit
from dulwich.refs import DiskRefsContainer

from appliance import clock
from appliance.errors import BadRequest, Corrupt, NotFound, PreconditionFailed
from appliance.records import FileEntry
from appliance.repos import hook, watch
from appliance.repos.reader import Reader, git_environment
from appliance.repos.trees import entries, find, kind_of
from appliance.repos.wire import COMMITTER, HttpAnswer, http_backend

WORKFLOWS = ".gradient/workflows"
MAX_READ = 8 * 1024 * 1024
MAX_WORKFLOWS = 100
MAX_WORKFLOW_BYTES = 1024 * 1024
DEFAULT_PUSH_BYTES = 512 * 1024 * 1024

_HEADS = "refs/heads/"
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_REFLOG = re.compile(rb"[0-9a-f]{40} (?P<new>[0-9a-f]{40}) (?P<name>[^<]*?) <(?P<email>[^>]*)> .*")
_REFLOG_TAIL = 64 * 1024
_SHA = re.compile(r"[0-9a-f]{40}")
_SHORT = re.compile(r"[0-9a-f]{4,40}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+#=,%-]{0,254}")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class CommitInfo:
    """`message` is the subject alone. `at` is when it was committed, as `clock.stamp` writes it."""

    sha: str
    author: str
    message: str
    at: str


@dataclass(frozen=True)
class WorkflowFiles:
    """`files` are (path, bytes) by name; `notes` are sentences on what was left out."""

    files: tuple[tuple[str, bytes], ...]
    notes: tuple[str, ...]


class Repos:
    """The repositories in `folder`. `hook_socket` is where `hook_server` listens, for pushes that do not come by HTTP."""

    def __init__(
        self, folder: Path, *, hook_socket: Path | None = None, max_push_bytes: int = DEFAULT_PUSH_BYTES
    ) -> None:
        self.folder, self.hook_socket, self._max_push_bytes = folder.absolute(), hook_socket, max_push_bytes
        self._hooks = self.folder / ".hooks"
        self._changed = threading.Event()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        hook.install(self._hooks, hook_socket)
        for leftover in (*self.folder.glob(".new-*"), *self.folder.glob(".gone-*")):
            shutil.rmtree(leftover, ignore_errors=True)

    # -- make and remove -----------------------------------------------------------------------------------------------

    def path(self, project_id: str) -> Path:
        """Where the project's repository is or would be. Raises BadRequest for what cannot be a project's id."""
        if not _PROJECT.fullmatch(project_id):
            raise BadRequest(f"{project_id[:80]!r} is not a project's id.")
        return self.folder / f"{project_id}.git"

    def create(self, project_id: str) -> Path:
        """The project's repository is there and durable, with this release's configuration. May be called again."""
        path = self.path(project_id)
        if not path.exists():
            fresh = self.folder / f".new-{project_id}-{secrets.token_hex(4)}"
            _git("init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(fresh))
            self._configure(fresh)
            _sync(*fresh.rglob("*"), fresh)
            fresh.rename(path)
            _sync(self.folder)
            self._changed.set()
        else:
            self._configure(path)
        return path

    def remove(self, project_id: str) -> None:
        """The repository is gone. May be called again; a crash leaves a folder that the next start removes."""
        gone = self.folder / f".gone-{project_id}-{secrets.token_hex(4)}"
        with contextlib.suppress(FileNotFoundError):
            self.path(project_id).rename(gone)
            self._changed.set()
            shutil.rmtree(gone, ignore_errors=True)

    def projects(self) -> list[str]:
        """The ids of the projects that have a repository here."""
        return sorted(path.name.removesuffix(".git") for path in self.folder.glob("*.git") if path.is_dir())

    def _configure(self, path: Path) -> None:
        text = _CONFIG.format(hooks=_quoted(str(self._hooks)), max_push=self._max_push_bytes)
        fresh = path / "config.new"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path / "config")

    def maintain(self, project_id: str) -> None:
        """Packs are few again and what interrupted pushes left is gone. Slow; refs and history stay as they are."""
        path = self._there(project_id)
        _git(f"--git-dir={path}", "repack", "-d", "-q", "--geometric=2", timeout_s=3600)
        _git(f"--git-dir={path}", "prune", "--expire=1.day.ago", timeout_s=3600)

    # -- look into -----------------------------------------------------------------------------------------------------

    def refs(self, project_id: str) -> dict[str, str]:
        """Every branch and tag by its full name, and the sha it stands at (an annotated tag's own sha)."""
        found = {}
        try:
            container = DiskRefsContainer(bytes(self._there(project_id)))
            for name in container.allkeys():
                if name.startswith((b"refs/heads/", b"refs/tags/")):
                    sha = container.read_ref(name)
                    if sha and len(sha) == 40:
                        found[name.decode("utf-8", "replace")] = sha.decode()
        except (OSError, ValueError, NotGitRepository) as error:
            raise Corrupt(f"The refs of project {project_id} cannot be read: {error}.") from error
        return dict(sorted(found.items()))

    def default_branch(self, project_id: str) -> str:
        """What HEAD points at, such as `main`, whether or not there is a commit on it."""
        text = (self._there(project_id) / "HEAD").read_text(encoding="utf-8", errors="replace").strip()
        return text.removeprefix("ref: refs/heads/")

    def settle_head(self, project_id: str) -> str:
        """The default branch, which exists if any does: where HEAD names none, it takes `master` or the first there is."""
        named = self.default_branch(project_id)
        branches = [ref for ref in self.refs(project_id) if ref.startswith(_HEADS)]
        if not branches or _HEADS + named in branches:
            return named
        chosen = next((ref for ref in branches if ref == f"{_HEADS}master"), branches[0])
        _git(f"--git-dir={self._there(project_id)}", "symbolic-ref", "HEAD", chosen)
        return chosen.removeprefix(_HEADS)

    def pusher_of(self, project_id: str, ref: str, sha: str) -> str | None:
        """Who moved `ref` to `sha`, as git itself noted it: the address given to `http_backend`, or `root` for a push
        over a path or SSH (only root may write here). None when git's note is gone, as a deleted ref's is.
        """
        try:
            with (self._there(project_id) / "logs" / ref).open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - _REFLOG_TAIL))
                lines = file.read().splitlines()
        except (OSError, ValueError):
            return None
        for line in reversed(lines):
            found = _REFLOG.fullmatch(line)
            if found and found["new"] == sha.encode():
                http = found["name"].decode("utf-8", "replace") == COMMITTER
                return found["email"].decode("utf-8", "replace") if http else "root"
        return None

    def resolve(self, project_id: str, name: str) -> str:
        """The commit that a full or short ref name, `HEAD`, or a (short) sha means. Raises NotFound."""
        missing = NotFound(f"There is no branch, tag or commit {name[:100]!r} in project {project_id}.")
        refs = self.refs(project_id)
        if not _NAME.fullmatch(name):
            raise missing
        if name == "HEAD":
            name = f"refs/heads/{self.default_branch(project_id)}"
        known = next((refs[full] for full in (name, f"refs/heads/{name}", f"refs/tags/{name}") if full in refs), None)
        if known is None and not _SHORT.fullmatch(name):
            raise missing
        with self._reader(project_id) as reader:
            found = reader.info(f"{known or name}^{{commit}}")
        if found is None:
            raise missing
        return found[0]

    def commit(self, project_id: str, sha: str) -> CommitInfo:
        with self._reader(project_id) as reader:
            return _info(sha, reader.commit(_sha(sha)))

    def log(self, project_id: str, ref: str, limit: int = 50) -> list[CommitInfo]:
        """The newest `limit` commits that `ref` reaches, newest first."""
        start = self.resolve(project_id, ref)
        with self._reader(project_id) as reader:
            first = reader.commit(start)
            waiting = [(-first.commit_time, start, first)]
            seen, found = {start}, list[CommitInfo]()
            while waiting and len(found) < limit:
                _, sha, commit = heapq.heappop(waiting)
                found.append(_info(sha, commit))
                for parent in (parent.decode() for parent in commit.parents):
                    if parent not in seen:
                        seen.add(parent)
                        with contextlib.suppress(NotFound):
                            older = reader.commit(parent)
                            heapq.heappush(waiting, (-older.commit_time, parent, older))
        return found

    def list_dir(self, project_id: str, sha: str, path: str = "") -> list[FileEntry]:
        """What is in a folder of a commit, by name. A submodule has kind `submodule`; sizes are those of the contents."""
        with self._reader(project_id) as reader:
            mode, tree = find(reader, _sha(sha), path)
            if not stat.S_ISDIR(mode):
                raise BadRequest(f"{path!r} is not a folder.")
            return list(entries(reader, tree, path.strip("/")))

    def read(self, project_id: str, sha: str, path: str, limit: int = MAX_READ) -> bytes:
        """A file's bytes at a commit. Links are not followed. Raises NotFound, BadRequest, TooLarge."""
        with self._reader(project_id) as reader:
            mode, blob = find(reader, _sha(sha), path)
            if not stat.S_ISREG(mode):
                raise BadRequest(f"{path!r} is a {kind_of(mode)}, not a file.")
            return reader.contents(blob, limit)[1]

    def workflow_files(self, project_id: str, sha: str) -> WorkflowFiles:
        """The files of `.gradient/workflows` at a commit: `*.yaml` and `*.yml`, plain files of at most 1 MiB."""
        files, notes = [], []
        with self._reader(project_id) as reader:
            try:
                mode, tree = find(reader, _sha(sha), WORKFLOWS)
            except NotFound:
                return WorkflowFiles((), ())
            if not stat.S_ISDIR(mode):
                return WorkflowFiles((), (f"{WORKFLOWS} is a {kind_of(mode)}, not a folder; it is left out.",))
            listed = [one for one in entries(reader, tree, WORKFLOWS) if one.path.endswith((".yaml", ".yml"))]
            for entry in listed[:MAX_WORKFLOWS]:
                shown = _UNPRINTABLE.sub("?", entry.path)
                if entry.kind != "file":
                    notes.append(f"{shown} is a {entry.kind}, not a file; it is left out.")
                elif entry.size_bytes > MAX_WORKFLOW_BYTES:
                    notes.append(f"{shown} has {entry.size_bytes:,} bytes, more than a workflow may; it is left out.")
                else:
                    files.append((shown, reader.contents(str(entry.hash), MAX_WORKFLOW_BYTES)[1]))
            if len(listed) > MAX_WORKFLOWS:
                notes.append(f"{WORKFLOWS} has {len(listed)} files; only the first {MAX_WORKFLOWS} are read.")
        return WorkflowFiles(tuple(files), tuple(notes))

    # -- the world outside ---------------------------------------------------------------------------------------------

    def watch(self, stop: threading.Event) -> Iterator[str]:
        """The ids of projects whose refs may have moved, until `stop`: every project once at first, then as they move.

        A name too many is possible, one too few is not: compare `refs` with what was recorded.
        """
        return watch.watch(self.folder, self.projects, self._changed, stop)

    async def http_backend(
        self,
        project_id: str,
        *,
        method: str,
        path_info: str,
        query: str,
        content_type: str,
        headers: Mapping[str, str],
        body: AsyncIterator[bytes],
        user: str | None,
    ) -> HttpAnswer:
        """Smart HTTP for one repository; see `wire.http_backend`."""
        self._there(project_id)
        return await http_backend(
            self.folder,
            f"{project_id}.git",
            method=method,
            path_info=path_info,
            query=query,
            content_type=content_type,
            headers=headers,
            body=body,
            user=user,
            hook_socket=self.hook_socket,
        )

    def _there(self, project_id: str) -> Path:
        path = self.path(project_id)
        if not path.is_dir():
            raise NotFound(f"There is no repository of project {project_id}.")
        return path

    def _reader(self, project_id: str) -> Reader:
        return Reader(self._there(project_id))


# fsync=all with one pack for each push (unpackLimit) costs a handful of syncs whatever the push holds. The three
# `receive.fsck` lines let old histories in whose flaws harm nothing; everything else that fsck finds refuses the push.
_CONFIG = """[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = true
\thooksPath = {hooks}
\tfsync = all
\tpackedGitLimit = 256m
\tbigFileThreshold = 16m
\tlogAllRefUpdates = always
[receive]
\tfsckObjects = true
\tmaxInputSize = {max_push}
\tunpackLimit = 1
\tautogc = false
\tdenyDeletes = false
\tdenyNonFastForwards = false
[receive "fsck"]
\tzeroPaddedFilemode = warn
\tmissingSpaceBeforeDate = warn
\tbadTimezone = warn
[http]
\treceivepack = true
\tuploadpack = true
\tgetanyfile = false
[pack]
\twindowMemory = 128m
\tthreads = 2
[gc]
\tauto = 0
[maintenance]
\tauto = false
"""


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _sync(*paths: Path) -> None:
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _git(*arguments: str, timeout_s: float = 60) -> None:
    try:
        done = subprocess.run(
            ["git", *arguments], env=git_environment(), capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError as error:
        raise PreconditionFailed("git is not installed; install it (apt-get install git).") from error
    except subprocess.TimeoutExpired as error:
        raise PreconditionFailed(f"git {arguments[0]} took longer than {timeout_s:.0f} s.") from error
    if done.returncode:
        raise Corrupt(f"git {' '.join(arguments[:2])} failed: {done.stderr.strip()[:500]}")


def _sha(text: str) -> str:
    if not _SHA.fullmatch(text):
        raise BadRequest(f"{text[:80]!r} is not a commit's full sha.")
    return text


def _info(sha: str, commit: Commit) -> CommitInfo:
    subject = commit.message.decode("utf-8", "replace").strip().split("\n", 1)[0]
    try:
        at = datetime.fromtimestamp(commit.commit_time, UTC)
    except (OverflowError, ValueError, OSError):
        at = datetime.fromtimestamp(0, UTC)
    author = commit.author.decode("utf-8", "replace")
    return CommitInfo(sha, _UNPRINTABLE.sub("?", author)[:300], _UNPRINTABLE.sub("?", subject)[:500], clock.stamp(at))
