"""The repositories against the real git client, over a path and over HTTP, sealed from this machine's configuration."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from waiting import wait_until

from appliance.errors import ApplianceError, BadRequest, NotFound, PreconditionFailed, TooLarge
from appliance.repos import HttpAnswer, Repos, hook_server, http_backend

PROJECT = "p28rlnvnw51"
WORKFLOW = "on: push\njobs: {a: {uses: script@v1, with: {script: echo}}}\n"


class Git:
    """The user's git, in a folder of its own, with no configuration but what stands here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder.parent),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C.UTF-8",
            **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _PERSON.items()},
        }
        folder.mkdir(exist_ok=True)

    def run(self, *arguments: str, fails: bool = False, stdin: bytes | None = None) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.folder,
            env=self.env,
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
        assert (done.returncode != 0) == fails, text
        return text

    def commit(self, files: dict[str, str | bytes], message: str = "more") -> str:
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.run("add", "-A")
        self.run("commit", "-q", "--allow-empty", "-m", message)
        return self.run("rev-parse", "HEAD").strip()


_PERSON = {"NAME": "Ana", "EMAIL": "ana@example.org", "DATE": "2024-05-01T12:00:00+0000"}


@pytest.fixture
def repos(tmp_path: Path) -> Repos:
    made = Repos(tmp_path / "repos", hook_socket=tmp_path / "hook.sock")
    made.create(PROJECT)
    return made


@pytest.fixture
def git(tmp_path: Path) -> Git:
    client = Git(tmp_path / "work")
    client.run("init", "-q", "-b", "main")
    return client


Scope = dict[str, Any]


def _application(repos: Repos) -> Callable[..., Any]:
    async def application(scope: Scope, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        project, _, rest = scope["path"].removeprefix("/").partition(".git")
        try:
            answer = await repos.http_backend(
                project,
                method=scope["method"],
                path_info=rest,
                query=scope["query_string"].decode(),
                content_type=headers.get("content-type", ""),
                headers=headers,
                body=_body(receive),
                user="ana@example.org",
            )
        except ApplianceError as error:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": str(error).encode()})
            return
        fields = [(name.lower().encode(), value.encode()) for name, value in answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        sending = asyncio.create_task(_send(answer, send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await answer.close()

    return application


async def _send(answer: HttpAnswer, send: Callable[[Any], Any]) -> None:
    async for part in answer.body:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _left(receive: Callable[[], Any]) -> None:
    """As web frameworks do while they answer; whatever of the request's body comes here is lost."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Callable[[], Any]) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left")
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


@pytest.fixture
def url(repos: Repos) -> Iterator[str]:
    """The repositories over HTTP, without any sign-in: who may is the web's question."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(_application(repos), log_level="error", ws="none", lifespan="off", loop="asyncio")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    wait_until(lambda: server.started, 10, "the test's HTTP server listens")
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/{PROJECT}.git"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
    listener.close()


@pytest.fixture(params=["path", "http"])
def remote(request: pytest.FixtureRequest, repos: Repos) -> str:
    """Where the client pushes to, once over each road."""
    return str(repos.path(PROJECT)) if request.param == "path" else request.getfixturevalue("url")


# -- pushes ------------------------------------------------------------------------------------------------------------


def test_a_push_moves_the_ref_and_its_files_can_be_read(repos: Repos, git: Git, remote: str) -> None:
    sha = git.commit({"a.txt": "hello", ".gradient/workflows/train.yaml": WORKFLOW}, "The first\n\nbody")

    git.run("push", "-q", remote, "main")

    assert repos.refs(PROJECT) == {"refs/heads/main": sha}
    assert repos.read(PROJECT, sha, "a.txt") == b"hello"
    assert repos.workflow_files(PROJECT, sha).files == ((".gradient/workflows/train.yaml", WORKFLOW.encode()),)
    info = repos.commit(PROJECT, sha)
    assert (info.author, info.message, info.at) == ("Ana <ana@example.org>", "The first", "2024-05-01T12:00:00.000Z")


def test_what_was_pushed_can_be_cloned_whole_and_shallow(repos: Repos, git: Git, remote: str, tmp_path: Path) -> None:
    git.commit({"a.txt": "1"})
    sha = git.commit({"a.txt": "2"})
    git.run("push", "-q", remote, "main")

    git.run("clone", "-q", remote, str(tmp_path / "whole"))
    address = remote if remote.startswith("http") else f"file://{remote}"
    git.run("clone", "-q", "--depth=1", address, str(tmp_path / "shallow"))

    assert (tmp_path / "whole" / "a.txt").read_text() == "2"
    assert Git(tmp_path / "shallow").run("rev-list", "HEAD").split() == [sha]


@pytest.mark.fast
def test_force_pushes_tags_and_deleted_branches_show_in_the_refs(repos: Repos, git: Git, remote: str) -> None:
    first = git.commit({"a.txt": "1"})
    git.run("tag", "-a", "v1", "-m", "one")
    git.run("push", "-q", remote, "main", "main:topic", "v1")

    git.run("commit", "-q", "--amend", "-m", "another")
    assert "rejected" in git.run("push", remote, "main", fails=True)
    git.run("push", "-q", "--force", remote, "main")
    git.run("push", "-q", remote, "--delete", "topic")

    refs = repos.refs(PROJECT)
    assert set(refs) == {"refs/heads/main", "refs/tags/v1"}
    assert refs["refs/heads/main"] == git.run("rev-parse", "HEAD").strip() != first
    assert repos.resolve(PROJECT, "v1") == first


def test_a_push_above_a_mebibyte_comes_chunked_and_arrives_whole(repos: Repos, git: Git, url: str) -> None:
    content = os.urandom(3 * 1024 * 1024)
    sha = git.commit({"big.bin": content})

    git.run("push", "-q", url, "main")

    assert repos.read(PROJECT, sha, "big.bin") == content


def test_a_dozen_pushes_in_a_row_each_arrive_once(repos: Repos, git: Git, tmp_path: Path) -> None:
    told: list[tuple[str, str | None, str | None]] = []

    def on_push(project: str, updates: list[Any], pusher: str) -> list[str]:
        told.extend(updates)
        return []

    with hook_server(tmp_path / "hook.sock", on_push):
        shas = [git.commit({"n": str(number)}) for number in range(12)]
        pushes = [
            subprocess.Popen(
                ["git", "push", "-q", str(repos.path(PROJECT)), f"{sha}:refs/heads/b{number}"],
                cwd=git.folder,
                env=git.env,
            )
            for number, sha in enumerate(shas)
        ]
        assert [push.wait(60) for push in pushes] == [0] * 12

    assert sorted(told) == sorted((f"refs/heads/b{number}", None, sha) for number, sha in enumerate(shas))
    assert repos.refs(PROJECT) == dict(sorted((f"refs/heads/b{number}", sha) for number, sha in enumerate(shas)))


@pytest.mark.fast
def test_a_push_above_the_limit_is_refused_with_a_sentence_and_leaves_nothing(tmp_path: Path, git: Git) -> None:
    repos = Repos(tmp_path / "small", max_push_bytes=1024 * 1024)
    path = repos.create(PROJECT)
    git.commit({"big.bin": os.urandom(2 * 1024 * 1024)})

    answer = git.run("push", str(path), "main", fails=True)

    assert "pack exceeds maximum allowed size (1024.00 KiB)" in answer
    assert repos.refs(PROJECT) == {}
    assert [one for one in (path / "objects").rglob("*") if one.is_file()] == []


def test_a_push_above_the_limit_over_http_is_told_the_same_sentence(repos: Repos, git: Git, url: str) -> None:
    smaller = Repos(repos.folder, max_push_bytes=1024 * 1024)
    smaller.create(PROJECT)
    git.commit({"big.bin": os.urandom(8 * 1024 * 1024)})

    answer = git.run("push", url, "main", fails=True)

    assert "pack exceeds maximum allowed size (1024.00 KiB)" in answer
    assert repos.refs(PROJECT) == {}


# -- the hook ----------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_the_pusher_sees_the_daemons_lines_and_the_daemon_sees_who_pushed_what(
    repos: Repos, git: Git, remote: str, tmp_path: Path
) -> None:
    told: list[Any] = []

    def on_push(project: str, updates: list[Any], pusher: str) -> Iterator[str]:
        told.append((project, updates, pusher))
        yield "run 1: https://appliance.test/runs/1"
        yield "bad \x1b[31m line"

    sha = git.commit({"a": "1"})
    with hook_server(tmp_path / "hook.sock", on_push):
        answer = git.run("push", remote, "main")

    assert "remote: run 1: https://appliance.test/runs/1" in answer
    assert "remote: bad ?[31m line" in answer
    assert told[0][:2] == (PROJECT, [("refs/heads/main", None, sha)])
    assert (told[0][2] == "ana@example.org") == remote.startswith("http")


def test_a_push_while_the_daemon_is_down_is_kept_and_says_so(repos: Repos, git: Git, remote: str) -> None:
    sha = git.commit({"a": "1"})

    answer = git.run("push", remote, "main")

    assert "remote: the appliance is not running; the push is kept and its workflows start when it is" in answer
    assert repos.refs(PROJECT) == {"refs/heads/main": sha}


def test_a_push_is_kept_when_taking_it_up_fails(
    repos: Repos, git: Git, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def on_push(project: str, updates: list[Any], pusher: str) -> Iterator[str]:
        yield "first"
        raise RuntimeError("broken")

    sha = git.commit({"a": "1"})
    with hook_server(tmp_path / "hook.sock", on_push):
        answer = git.run("push", str(repos.path(PROJECT)), "main")

    assert "remote: the push is kept, but its workflows could not be started yet" in answer
    assert repos.refs(PROJECT) == {"refs/heads/main": sha}
    assert "could not be taken up" in caplog.text


def test_garbage_on_the_hook_socket_harms_nobody(tmp_path: Path) -> None:
    told: list[Any] = []
    with hook_server(tmp_path / "hook.sock", lambda *push: told.append(push) or ["fine"]):
        for garbage in (b"", b"{}\n", b"[1,2]\n", b"\xff\n", b'{"project": 1, "updates": [1], "pusher": ""}\n'):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "hook.sock"))
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b""
    assert told == []
    assert not (tmp_path / "hook.sock").exists()


def test_a_hook_socket_that_cannot_be_made_says_where() -> None:
    with (
        pytest.raises(PreconditionFailed, match="Cannot listen for pushes on /nowhere/"),
        hook_server(Path("/nowhere/hook.sock"), lambda *_: []),
    ):
        pass


def test_no_hook_of_a_users_runs(repos: Repos, git: Git, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hook = repos.path(PROJECT) / "hooks" / "post-receive"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\ntouch {canary}\n")
    hook.chmod(0o755)
    git.commit({"hooks/post-receive": hook.read_text()})

    git.run("push", "-q", str(repos.path(PROJECT)), "main")

    assert not canary.exists()


# -- hostile content ---------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_links_and_submodules_are_named_but_never_followed(repos: Repos, git: Git) -> None:
    folder = git.folder / ".gradient" / "workflows"
    folder.mkdir(parents=True)
    (folder / "link.yaml").symlink_to("/etc/passwd")
    (git.folder / "out").symlink_to("/etc")
    git.run("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},.gradient/workflows/sub.yaml")
    git.run("add", "out", ".gradient/workflows/link.yaml")
    (folder / "big.yaml").write_bytes(b"#" * 1024 * 1025)
    (folder / "good.yml").write_text(WORKFLOW)
    git.run("add", ".gradient/workflows/big.yaml", ".gradient/workflows/good.yml")
    git.run("commit", "-q", "-m", "links")
    sha = git.run("rev-parse", "HEAD").strip()
    git.run("push", "-q", str(repos.path(PROJECT)), "main")

    found = repos.workflow_files(PROJECT, sha)

    assert found.files == ((".gradient/workflows/good.yml", WORKFLOW.encode()),)
    assert [note.split(" ", 1)[1][:14] for note in found.notes] == [
        "has 1,049,600 ",
        "is a symlink, ",
        "is a submodule",
    ]
    kinds = {entry.path: entry.kind for entry in repos.list_dir(PROJECT, sha)}
    assert kinds == {".gradient": "directory", "out": "symlink"}
    with pytest.raises(BadRequest, match="symlink, not a file"):
        repos.read(PROJECT, sha, "out")
    with pytest.raises(NotFound):
        repos.read(PROJECT, sha, "out/passwd")


@pytest.mark.parametrize("name", ["../../x", "HEAD.lock", "refs/../../x", "a..b", "a b", "x\n", "@{0}", ".git/config"])
def test_a_ref_with_a_wrong_name_is_refused_and_no_file_appears(repos: Repos, git: Git, name: str) -> None:
    sha = git.commit({"a": "1"})
    before = {path for path in repos.folder.parent.rglob("*") if "work" not in path.parts}
    line = f"{'0' * 40} {sha} refs/heads/{name}".encode() + b"\0report-status"
    pack = subprocess.run(
        ["git", "pack-objects", "--stdout", "--revs"],
        input=sha.encode(), cwd=git.folder, env=git.env, capture_output=True, check=True,
    ).stdout  # fmt: skip

    answer = subprocess.run(
        ["git", "receive-pack", str(repos.path(PROJECT))],
        input=b"%04x" % (len(line) + 4) + line + b"0000" + pack, env=git.env, capture_output=True, timeout=30, check=False,
    )  # fmt: skip

    assert repos.refs(PROJECT) == {}, answer
    appeared = {path for path in repos.folder.parent.rglob("*") if "work" not in path.parts} - before
    assert all("objects" in path.parts for path in appeared)


def test_a_branch_that_looks_like_an_option_is_stored_inert(repos: Repos, git: Git) -> None:
    sha = git.commit({"a": "1"})

    git.run("push", "-q", str(repos.path(PROJECT)), "main:refs/heads/-x", "main:refs/heads/--upload-pack=x")

    assert repos.refs(PROJECT) == {"refs/heads/--upload-pack=x": sha, "refs/heads/-x": sha}
    assert repos.resolve(PROJECT, "refs/heads/-x") == sha
    with pytest.raises(NotFound):
        repos.resolve(PROJECT, "-x")


def test_a_tree_that_holds_dot_git_is_refused(repos: Repos, git: Git) -> None:
    blob = git.run("hash-object", "-w", "--stdin", stdin=b"x").strip()
    raw = b"100644 .git\0" + bytes.fromhex(blob)
    tree = git.run("hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=raw).strip()
    commit = git.run("commit-tree", tree, "-m", "evil").strip()

    answer = git.run("push", str(repos.path(PROJECT)), f"{commit}:refs/heads/main", fails=True)

    assert "hasDotgit" in answer
    assert repos.refs(PROJECT) == {}


def test_a_push_of_very_many_refs_is_refused_with_a_sentence(repos: Repos, git: Git) -> None:
    sha = git.commit({"a": "1"})
    git.run("update-ref", "--stdin", stdin=b"".join(b"create refs/x/%d %s\n" % (n, sha.encode()) for n in range(5001)))

    answer = git.run("push", "-q", str(repos.path(PROJECT)), "refs/x/*:refs/tags/*", fails=True)

    assert "remote: a push may move at most 5000 refs; push fewer at once" in answer
    assert repos.refs(PROJECT) == {}


def test_a_huge_object_in_a_small_pack_is_never_read_into_memory(repos: Repos, git: Git) -> None:
    with (git.folder / "zeros").open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    sha = git.commit({})
    git.run("push", "-q", str(repos.path(PROJECT)), "main")
    pack = next((repos.path(PROJECT) / "objects" / "pack").glob("*.pack"))
    assert pack.stat().st_size < 2 * 1024 * 1024

    with pytest.raises(TooLarge, match="has 67,108,864 bytes; at most 8,388,608"):
        repos.read(PROJECT, sha, "zeros")

    assert repos.list_dir(PROJECT, sha)[0].size_bytes == 64 * 1024 * 1024


# -- the wire ----------------------------------------------------------------------------------------------------------


def _request(url: str, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    host = url.removeprefix("http://").partition("/")[0]
    connection = http.client.HTTPConnection(host, timeout=30)
    with contextlib.closing(connection):
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, fields)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_a_gzipped_request_is_understood(repos: Repos, git: Git, url: str) -> None:
    sha = git.commit({"a": "1"})
    git.run("push", "-q", url, "main")
    wants = f"0032want {sha}\n".encode() + b"0000" + b"0009done\n"

    status, answer = _request(
        url,
        "POST",
        f"/{PROJECT}.git/git-upload-pack",
        gzip.compress(wants),
        Content_Type="application/x-git-upload-pack-request",
        Content_Encoding="gzip",
    )

    assert status == 200
    assert answer.startswith(b"0008NAK\nPACK")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/HEAD"),
        ("GET", "/config"),
        ("GET", "/objects/info/packs"),
        ("GET", "/info/refs"),
        ("GET", "/info/refs?service=git-evil"),
        ("GET", "/../other.git/info/refs?service=git-upload-pack"),
        ("GET", "/git-upload-pack"),
        ("POST", "/info/refs?service=git-upload-pack"),
        ("PUT", "/git-receive-pack"),
    ],
)
def test_only_the_smart_protocols_three_requests_reach_git(url: str, method: str, path: str) -> None:
    status, _ = _request(url, method, f"/{PROJECT}.git{path}")

    assert status == 404


def test_a_client_that_leaves_in_the_middle_leaves_no_process_and_no_ref(repos: Repos, git: Git, url: str) -> None:
    host, port = url.removeprefix("http://").partition("/")[0].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(
            f"POST /{PROJECT}.git/git-receive-pack HTTP/1.1\r\nHost: {host}\r\n"
            "Content-Type: application/x-git-receive-pack-request\r\nTransfer-Encoding: chunked\r\n\r\n"
            "4\r\n00ff\r\n".encode()
        )
        wait_until(lambda: _git_processes(repos), 10, "git runs for the request")

    wait_until(lambda: not _git_processes(repos), 10, "git has ended after its client left")
    assert repos.refs(PROJECT) == {}


def _git_processes(repos: Repos) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            if b"http-backend" in words or str(repos.folder).encode() in words:
                found.append(path.parent.name)
    return found


def test_a_client_that_leaves_a_download_leaves_no_process(repos: Repos, git: Git, url: str) -> None:
    sha = git.commit({"big.bin": os.urandom(16 * 1024 * 1024)})
    git.run("push", "-q", str(repos.path(PROJECT)), "main")
    wants = f"0032want {sha}\n".encode() + b"0000" + b"0009done\n"
    host, port = url.removeprefix("http://").partition("/")[0].split(":")

    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(
            f"POST /{PROJECT}.git/git-upload-pack HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(wants)}\r\n"
            "Content-Type: application/x-git-upload-pack-request\r\n\r\n".encode()
            + wants
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 200")

    wait_until(lambda: not _git_processes(repos), 10, "git has ended after its client left")


def test_git_is_ended_when_its_time_is_over(repos: Repos) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def ask() -> int:
        answer = await http_backend(
            repos.folder,
            f"{PROJECT}.git",
            method="POST",
            path_info="/git-receive-pack",
            query="",
            content_type="application/x-git-receive-pack-request",
            headers={},
            body=never(),
            user="ana",
            time_s=0.2,
        )
        async with contextlib.aclosing(answer.body):  # type: ignore[type-var]
            text = b"".join([part async for part in answer.body])
        await answer.close()
        assert b"git gave no answer" in text or answer.status == 200
        return answer.status

    asyncio.run(ask())

    assert _git_processes(repos) == []


# -- reading -----------------------------------------------------------------------------------------------------------


def test_the_log_is_newest_first_and_merges_are_walked_once(repos: Repos, git: Git) -> None:
    for number in range(5):
        git.env["GIT_COMMITTER_DATE"] = f"2024-05-01T12:00:0{number}+0000"
        git.commit({"a": str(number)}, f"number {number}")
    git.run("checkout", "-q", "-b", "side", "HEAD~2")
    git.env["GIT_COMMITTER_DATE"] = "2024-05-01T12:00:07+0000"
    git.commit({"b": "1"}, "side")
    git.run("checkout", "-q", "main")
    git.env["GIT_COMMITTER_DATE"] = "2024-05-01T12:00:08+0000"
    git.run("merge", "-q", "--no-ff", "-m", "merged", "side")
    git.run("push", "-q", str(repos.path(PROJECT)), "main")

    messages = [commit.message for commit in repos.log(PROJECT, "main")]

    assert messages == ["merged", "side", *(f"number {number}" for number in (4, 3, 2, 1, 0))]
    assert len(repos.log(PROJECT, "HEAD", limit=2)) == 2


@pytest.mark.fast
def test_names_and_short_shas_resolve_and_anything_else_is_not_found(repos: Repos, git: Git) -> None:
    sha = git.commit({"a": "1"})
    git.run("push", "-q", str(repos.path(PROJECT)), "main", "main:feature/x")

    for name in ("main", "refs/heads/main", "feature/x", "HEAD", sha, sha[:8]):
        assert repos.resolve(PROJECT, name) == sha
    for name in ("", "nothing", "-x", "main~1", "main:a", "@{0}", "HEAD^{tree}", "main\nHEAD", "0" * 40, "refs/heads"):
        with pytest.raises(NotFound, match="no branch, tag or commit"):
            repos.resolve(PROJECT, name)


def test_the_default_branch_is_one_that_exists(repos: Repos, git: Git) -> None:
    git.commit({"a": "1"})
    assert repos.settle_head(PROJECT) == "main"
    git.run("push", "-q", str(repos.path(PROJECT)), "main:alpha", "main:master")

    assert repos.settle_head(PROJECT) == "master"
    git.run("push", "-q", str(repos.path(PROJECT)), "main:main")
    assert repos.settle_head(PROJECT) == repos.default_branch(PROJECT) == "master"


def test_a_name_that_is_no_utf8_is_listed_and_harmless(repos: Repos, git: Git) -> None:
    (git.folder / os.fsdecode(b"caf\xe9")).write_text("x")
    sha = git.commit({})
    git.run("push", "-q", str(repos.path(PROJECT)), "main")

    assert [entry.path for entry in repos.list_dir(PROJECT, sha)] == ["caf\ufffd"]
    for path in ("caf\ufffd", "caf\udce9", "\ud800", "caf\0", "caf\n"):
        with pytest.raises(NotFound):
            repos.read(PROJECT, sha, path)


def test_a_file_or_folder_that_is_not_there_is_named(repos: Repos, git: Git) -> None:
    sha = git.commit({"folder/a.txt": "1"})
    git.run("push", "-q", str(repos.path(PROJECT)), "main")

    with pytest.raises(NotFound, match="There is no 'folder/b'"):
        repos.read(PROJECT, sha, "folder/b")
    with pytest.raises(BadRequest, match="directory, not a file"):
        repos.read(PROJECT, sha, "folder")
    with pytest.raises(BadRequest, match="not a folder"):
        repos.list_dir(PROJECT, sha, "folder/a.txt")
    with pytest.raises(BadRequest, match="full sha"):
        repos.read(PROJECT, "main", "folder")
    with pytest.raises(NotFound, match="not a commit"):
        repos.commit(PROJECT, git.run("rev-parse", "HEAD^{tree}").strip())


def test_a_repository_without_workflows_has_none(repos: Repos, git: Git) -> None:
    sha = git.commit({"a": "1"})
    git.run("push", "-q", str(repos.path(PROJECT)), "main")

    assert repos.workflow_files(PROJECT, sha).files == ()


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_create_and_remove_may_be_repeated_and_ids_are_checked(tmp_path: Path, git: Git) -> None:
    repos = Repos(tmp_path / "repos")
    path = repos.create("p1")
    sha = git.commit({"a": "1"})
    git.run("push", "-q", str(path), "main")

    assert repos.create("p1") == path
    assert repos.refs("p1") == {"refs/heads/main": sha}
    assert repos.default_branch("p1") == "main"
    repos.remove("p1")
    repos.remove("p1")
    assert repos.projects() == []
    with pytest.raises(NotFound, match="no repository of project p1"):
        repos.refs("p1")
    for bad in ("", "../x", "a/b", ".hooks", "a.git"):
        with pytest.raises(BadRequest, match="not a project's id"):
            repos.create(bad)


def test_leftovers_of_a_crash_are_gone_after_the_next_start(tmp_path: Path) -> None:
    Repos(tmp_path / "repos").create("p1")
    (tmp_path / "repos" / ".new-p2-x").mkdir()
    (tmp_path / "repos" / ".gone-p3-x").mkdir()

    again = Repos(tmp_path / "repos")

    assert sorted(path.name for path in again.folder.iterdir()) == [".hooks", "p1.git"]


def test_maintenance_leaves_one_pack_and_every_commit(repos: Repos, git: Git) -> None:
    for number in range(4):
        sha = git.commit({"a": str(number)})
        git.run("push", "-q", str(repos.path(PROJECT)), "main")

    repos.maintain(PROJECT)

    assert len(list((repos.path(PROJECT) / "objects" / "pack").glob("*.pack"))) == 1
    assert len(repos.log(PROJECT, sha)) == 4


def test_the_watch_names_every_project_once_and_then_those_that_moved(repos: Repos, git: Git) -> None:
    repos.create("p2")
    stop, seen = threading.Event(), list[str]()
    thread = threading.Thread(target=lambda: seen.extend(_noted(repos.watch(stop), seen)))
    thread.start()
    wait_until(lambda: sorted(seen) == sorted([PROJECT, "p2"]), 10, "each project is named once at first")

    git.commit({"a": "1"})
    seen.clear()
    git.run("push", "-q", str(repos.path(PROJECT)), "main")
    wait_until(lambda: seen, 10, "the push is noticed")
    assert set(seen) == {PROJECT}

    seen.clear()
    repos.create("p3")
    wait_until(lambda: "p3" in seen, 10, "a new repository is watched")
    seen.clear()
    git.run("push", "-q", str(repos.path("p3")), "main")
    wait_until(lambda: "p3" in seen, 10, "a push to the new repository is noticed")
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def _noted(ids: Iterator[str], seen: list[str]) -> list[str]:
    for one in ids:
        seen.append(one)
    return []


def test_git_itself_notes_who_moved_a_ref(repos: Repos, git: Git) -> None:
    first = git.commit({"a": "1"})
    git.run("push", "-q", str(repos.path(PROJECT)), "main")

    assert repos.pusher_of(PROJECT, "refs/heads/main", first) == "root"
    assert repos.pusher_of(PROJECT, "refs/heads/main", "1" * 40) is None
    assert repos.pusher_of(PROJECT, "refs/heads/none", first) is None


def test_the_daemon_is_told_of_as_many_refs_as_the_guard_admits(repos: Repos, git: Git, tmp_path: Path) -> None:
    sha = git.commit({"a": "1"})
    git.run("update-ref", "--stdin", stdin=b"".join(b"create refs/x/%d %s\n" % (n, sha.encode()) for n in range(5000)))
    told: list[Any] = []

    with hook_server(tmp_path / "hook.sock", lambda _project, updates, _pusher: told.extend(updates) or ()):
        git.run("push", "-q", str(repos.path(PROJECT)), "refs/x/*:refs/tags/*")

    assert len(told) == 5000
