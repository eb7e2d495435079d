"""The SDK on the wire: errors, retries, pages, streams that resume, folders there and back, settings."""

from __future__ import annotations

import ast
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
from http_script import Request, Script, events, scripted

import appliance.client
from appliance.client import Client, TimedOut, Unreachable, connect, files, printable, settings
from appliance.client.data import metrics_of, split_ref
from appliance.errors import BadRequest, Conflict, DiskFull, ImageNotFound, NotFound, Stale, Unauthorized

pytestmark = pytest.mark.fast


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted() as found:
        yield found


@pytest.fixture
def client(script: Script) -> Iterator[Client]:
    with Client(script.url, "grad_key") as found:
        yield found


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status, code, kind",
    [(404, "NOT_FOUND", NotFound), (507, "INSUFFICIENT_STORAGE", DiskFull), (422, "IMAGE_NOT_FOUND", ImageNotFound)],
)
def test_an_error_comes_back_as_its_own_class_with_its_sentence(
    script: Script, client: Client, status: int, code: str, kind: type[Exception]
) -> None:
    script.answer = lambda _: (status, {"code": code, "message": "Why.", "issues": [{"message": "One."}]})

    with pytest.raises(kind) as caught:
        client.projects.get("digits")

    assert str(caught.value) == "Why."
    assert caught.value.issues == ("One.",)  # type: ignore[attr-defined]


def test_a_conflict_is_a_conflict_and_not_one_of_its_kinds(script: Script, client: Client) -> None:
    script.answer = lambda _: (409, {"code": "CONFLICT", "message": "Not now."})

    with pytest.raises(Conflict) as caught:
        client.projects.create("digits")

    assert not isinstance(caught.value, Stale)


def test_a_code_that_this_client_does_not_know_keeps_its_name(script: Script, client: Client) -> None:
    script.answer = lambda _: (418, {"code": "TEAPOT", "message": "Short and stout."})

    with pytest.raises(appliance.errors.ApplianceError) as caught:
        client.machine.show()

    assert caught.value.code == "TEAPOT"


def test_a_page_of_somebody_else_is_no_appliance(script: Script, client: Client) -> None:
    script.answer = lambda _: (200, b"<html>router</html>")

    with pytest.raises(Unreachable, match="is that the address of an appliance"):
        client.machine.show()


def test_an_error_without_json_still_says_where(script: Script, client: Client) -> None:
    script.answer = lambda _: (401, b"<html>no</html>")

    with pytest.raises(Unauthorized, match="/v1/machine answered 401"):
        client.machine.show()


def test_a_key_with_a_line_break_is_refused_before_it_is_sent() -> None:
    with pytest.raises(Unauthorized, match="copy it again"):
        Client("http://127.0.0.1:1", "grad_key\n")


# -- retries -----------------------------------------------------------------------------------------------------------


def test_a_server_between_two_lives_is_asked_again(script: Script, client: Client) -> None:
    answers = iter([(502, b"<html>"), (503, b"<html>"), (200, {"version": "1"})])
    script.answer = lambda _: next(answers)

    assert client.machine.show() == {"version": "1"}


def test_a_post_is_not_sent_twice_when_the_answer_is_lost(script: Script, client: Client) -> None:
    script.answer = lambda _: None

    with pytest.raises(Unreachable, match="broke"):
        client.projects.create("digits")

    assert len(script.seen) == 1


def test_nobody_listening_is_said_with_the_address() -> None:
    with scripted() as gone:
        url = gone.url
    with Client(url) as client, pytest.raises(Unreachable, match=f"{url} does not answer"):
        client.machine.show()


def test_a_redirect_takes_the_key_nowhere(script: Script, client: Client) -> None:
    with scripted() as other:

        def redirect(request: Request) -> None:
            request.handler.send_response(302)
            request.handler.send_header("location", other.url)
            request.handler.send_header("content-length", "0")
            request.handler.end_headers()

        script.answer = redirect

        with pytest.raises(appliance.errors.ApplianceError):
            client.machine.show()

        assert other.seen == []


# -- lists and streams -------------------------------------------------------------------------------------------------


def test_a_list_goes_on_over_its_pages_and_asks_for_no_more_than_is_taken(script: Script, client: Client) -> None:
    def answer(request: Request) -> tuple[int, object]:
        after = int(parse_qs(urlsplit(request.path).query).get("after", ["0"])[0])
        return 200, {"items": [{"n": after}, {"n": after + 1}], "hasMore": after < 4, "nextPage": str(after + 2)}

    script.answer = answer

    assert [each["n"] for each in client.projects.list()] == [0, 1, 2, 3, 4, 5]
    script.seen.clear()
    assert next(iter(client.projects.list())) == {"n": 0}
    assert len(script.seen) == 1


def test_gradients_bare_arrays_are_lists_like_the_others(script: Script, client: Client) -> None:
    script.answer = lambda _: (200, [{"id": "a"}])

    assert list(client.workflows.list("p1")) == [{"id": "a"}]


def test_a_followed_log_resumes_after_its_last_line_and_tells_none_twice(script: Script, client: Client) -> None:
    lines = [{"line": number, "at": "", "stream": "stdout", "message": f"m{number}"} for number in range(6)]

    def answer(request: Request) -> None:
        after = int(parse_qs(urlsplit(request.path).query)["after"][0])
        # Each connection breaks after two lines, and begins with one that was sent before.
        part = [("line", line) for line in lines[max(0, after) : after + 3]]
        events(request, *part, *([("end", {"phase": "Succeeded"})] if after + 3 >= 6 else []))

    script.answer = answer

    found = [line["message"] for line in client.runs.logs_follow("u", "train")]

    assert found == ["m0", "m1", "m2", "m3", "m4", "m5"]
    assert len(script.seen) == 3


def test_a_followed_run_outlives_a_restart_of_the_daemon(script: Script, client: Client) -> None:
    down = (502, {"code": "INTERNAL_SERVER_ERROR", "message": "The daemon does not answer."})
    answers: Iterator[tuple[int, object] | str] = iter(["Running", down, down, "Succeeded"])

    def answer(request: Request) -> tuple[int, object] | None:
        found = next(answers)
        if not isinstance(found, str):
            return found
        events(request, ("run", {"uuid": "u", "status": {"phase": found}}))
        return None

    script.answer = answer

    assert [run["status"]["phase"] for run in client.runs.follow("u")] == ["Running", "Succeeded"]


def test_a_stream_that_was_cut_within_an_event_drops_that_event_alone(script: Script, client: Client) -> None:
    cuts = iter([b'event: run\ndata: {"uuid": "u", "st', None])

    def answer(request: Request) -> None:
        cut = next(cuts)
        if cut is None:
            events(request, ("run", {"uuid": "u", "status": {"phase": "Succeeded"}}))
        else:
            events(request)
            request.handler.wfile.write(cut)

    script.answer = answer

    assert [run["status"]["phase"] for run in client.runs.follow("u")] == ["Succeeded"]


def test_waiting_for_a_run_ends_when_the_time_is_over(script: Script, client: Client) -> None:
    script.answer = lambda request: events(request, ("run", {"uuid": "u", "status": {"phase": "Running"}}))

    with pytest.raises(TimedOut):
        client.runs.wait("u", timeout_s=0.3)


def test_a_log_that_nobody_may_see_is_an_error_and_not_an_endless_wait(script: Script, client: Client) -> None:
    script.answer = lambda _: (404, {"code": "NOT_FOUND", "message": "No such job."})

    with pytest.raises(NotFound, match="No such job"):
        list(client.runs.logs_follow("u", "train"))


# -- folders -----------------------------------------------------------------------------------------------------------


class Versions:
    """Just enough of the API to put a folder into a version, kept in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.links: set[str] = set()
        self.committed = self.deleted = False
        self.refuse: str | None = None
        self.lock = threading.Lock()

    def __call__(self, request: Request) -> tuple[int, object]:
        path = unquote(urlsplit(request.path).path)
        name = path.partition("/files/")[2]
        with self.lock:
            if request.method == "PUT" and name:
                if name == self.refuse:
                    return 507, {"code": "INSUFFICIENT_STORAGE", "message": "The disk is full."}
                self.files[name] = request.body
            elif request.method == "GET" and name:
                return 200, self.files[name]
            elif request.method == "PUT":
                self.committed = True
            elif request.method == "DELETE":
                self.deleted = True
            elif path.endswith("/files"):
                items = [
                    {"path": each, "kind": "symlink" if each in self.links else "file", "sizeBytes": len(data)}
                    for each, data in self.files.items()
                ]
                return 200, {"items": items, "hasMore": False}
        return 200, {"id": "ds1", "version": "v1", "number": 1}


def test_a_folder_goes_there_and_comes_back_the_same(script: Script, client: Client, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a b" / "ü").mkdir(parents=True)
    (source / "a b" / "ü" / "x#?%.bin").write_bytes(os.urandom(300_000))
    (source / ".hidden").write_bytes(b"")
    (source / "link").symlink_to(".hidden")
    script.answer = versions = Versions()
    steps: list[files.Done] = []

    client.datasets.put("digits", source, progress=steps.append)
    client.datasets.fetch("digits", target)

    assert versions.committed
    assert {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()} == set(versions.files)
    assert (target / "a b/ü/x#?%.bin").read_bytes() == (source / "a b/ü/x#?%.bin").read_bytes()
    assert (steps[-1].files, steps[-1].of_files, steps[-1].bytes) == (3, 3, 300_000)


def test_a_put_that_fails_commits_nothing_and_leaves_no_version(script: Script, client: Client, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    script.answer = versions = Versions()
    versions.refuse = "b"

    with pytest.raises(DiskFull):
        client.datasets.put("digits", tmp_path)

    assert (versions.committed, versions.deleted) == (False, True)


@pytest.mark.parametrize("path", ["../out", "/etc/cron.d/x", "a/../../out", "", "a\0b"])
def test_a_server_cannot_write_outside_the_folder(script: Script, client: Client, tmp_path: Path, path: str) -> None:
    script.answer = versions = Versions()
    versions.files = {"fine": b"1", path: b"2"}

    with pytest.raises(BadRequest):
        client.datasets.fetch("digits", tmp_path / "target")

    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


def test_a_link_in_the_folder_leads_nothing_outside(script: Script, client: Client, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "sub").symlink_to(tmp_path / "outside")
    script.answer = versions = Versions()
    versions.files = {"sub/file": b"1"}

    with pytest.raises(BadRequest, match="symbolic link"):
        client.datasets.fetch("digits", tmp_path / "target")

    assert list((tmp_path / "outside").iterdir()) == []


def test_links_come_along_when_they_stay_in_the_folder_and_are_named_when_they_do_not(
    script: Script, client: Client, tmp_path: Path
) -> None:
    kept = {"latest": b"a/b/weights", "a/b/up": b"../../a", "a/self": b"./b"}
    left = {"passwd": b"/etc/passwd", "a/out": b"../../x", "up": b"..", "trick": b"a/b/up/../../../x", "none": b""}
    script.answer = versions = Versions()
    versions.files = {"a/b/weights": b"1", **kept, **left}
    versions.links = {*kept, *left}
    target = tmp_path / "target"

    for _ in range(2):
        found = client.datasets.fetch("digits", target)

        links = {
            path.relative_to(target).as_posix(): os.fsencode(path.readlink())
            for path in target.rglob("*")
            if path.is_symlink()
        }
        assert links == {**kept, "a/self": b"b"}
        assert {each["path"] for each in found["leftOut"]} == set(left)
    assert (target / "latest").read_bytes() == b"1"


@pytest.mark.parametrize("tag", ["7", "latest", "a b", ""])
def test_a_tag_that_cannot_be_is_refused_before_anything_is_sent(
    script: Script, client: Client, tmp_path: Path, tag: str
) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(BadRequest):
        client.datasets.put("digits", tmp_path, tags=["fine", tag])

    assert script.seen == []


def test_a_download_that_breaks_leaves_the_old_file(script: Script, client: Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    versions = Versions()
    versions.files = {"file": b"new and longer"}

    def answer(request: Request) -> tuple[int, object] | None:
        if not request.path.endswith("/files/file"):
            return versions(request)
        request.handler.send_response(200)
        request.handler.send_header("content-length", "14")
        request.handler.end_headers()
        request.handler.wfile.write(b"new")
        return None

    script.answer = answer

    with pytest.raises(Unreachable):
        client.datasets.fetch("digits", tmp_path)

    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


def test_what_no_version_can_hold_is_named_before_anything_is_sent(
    script: Script, client: Client, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(BadRequest, match="pipe"):
        client.datasets.put("digits", tmp_path)

    assert script.seen == []


# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_environment_wins_over_what_login_stored(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    settings.store(settings.Settings("https://stored:8443", "grad_stored", None), home)

    assert settings.find(home) == settings.Settings("https://stored:8443", "grad_stored", None)
    found = settings.find({**home, "APPLIANCE_URL": "http://127.0.0.1:8080/v1/", "PAPERSPACE_API_KEY": "grad_env"})
    assert found == settings.Settings("http://127.0.0.1:8080", "grad_env", None)


def test_a_key_of_paperspace_goes_only_where_the_environment_says_so(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "PAPERSPACE_API_KEY": "paperspace"}
    settings.store(settings.Settings("https://stored:8443", "grad_stored", None), home)

    def key(**more: str) -> str | None:
        found = settings.find({**home, **more})
        return found.key if found else None

    assert key() == "grad_stored"
    assert key(APPLIANCE_URL="https://stored:8443") == "grad_stored"
    assert key(APPLIANCE_API_KEY="grad_env") == "grad_env"
    assert key(APPLIANCE_URL="https://elsewhere", APPLIANCE_API_KEY="grad_env") == "grad_env"
    assert key(APPLIANCE_URL="https://elsewhere") == "paperspace"


def test_a_stored_key_goes_to_its_own_server_alone(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    settings.store(settings.Settings("https://stored:8443", "grad_stored", None), home)

    found = settings.find({**home, "APPLIANCE_URL": "https://elsewhere"})

    assert found is not None
    assert found.key is None


def test_the_stored_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = settings.store(settings.Settings("https://stored", "grad_x", None), {"HOME": str(tmp_path)})

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_forgetting_one_server_keeps_the_other(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    settings.store(settings.Settings("https://one", "grad_1", None), home)
    settings.store(settings.Settings("https://two", "grad_2", None), home)

    assert settings.forget("https://two", home)

    assert settings.servers(home)[1] == "https://one"
    assert not settings.forget("https://two", home)


@pytest.mark.parametrize("text", ["", "ftp://x", "http://", "https://user:pw@host", "https://host:port"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        settings.normal_url(text)


def test_a_host_and_port_alone_mean_https() -> None:
    assert settings.normal_url("gpu-server:8443") == "https://gpu-server:8443"
    assert settings.normal_url("https://[::1]:8443/v1/") == "https://[::1]:8443"


def test_without_a_server_connect_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("APPLIANCE_URL", "APPLIANCE_API_KEY", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(Unauthorized, match="appliance login"):
        connect()


# -- small things ------------------------------------------------------------------------------------------------------


def test_text_of_others_cannot_steer_a_terminal() -> None:
    assert printable("a\x1b[2Jb\r\nc\u202e\x9b") == "a\\x1b[2Jb\\x0d\\x0ac\\u202e\\x9b"
    assert printable("Grüße\t✓") == "Grüße\t✓"


def test_references_and_metrics_are_read_as_gradient_writes_them() -> None:
    assert split_ref("digits") == ("digits", "latest")
    assert split_ref("digits:3") == ("digits", "3")
    with pytest.raises(BadRequest):
        split_ref("digits:")
    assert metrics_of({"metadata": {"metrics": [{"name": "accuracy", "numberValue": 0.5}]}}) == {"accuracy": 0.5}
    assert metrics_of({"metadata": {"metrics": {"accuracy": 0.5}}}) == {"accuracy": 0.5}
    assert metrics_of({"metadata": None}) == {}


def test_the_sdk_works_where_nothing_of_the_server_is_installed() -> None:
    """In a process that cannot import any of it."""
    banned = ["litestar", "docker", "sqlite3", "pysqlite3", "dulwich", "onnxruntime", "numpy", "appliance.config"]
    code = (
        "import sys\n"
        f"for name in {banned!r}: sys.modules[name] = None\n"
        "import appliance.client\n"
        "assert not [n for n, found in sys.modules.items() if found and n.startswith('appliance.') and n.split('.')[1] not in"
        " ('client', 'errors', 'clock', 'ids', 'states', 'records')]"
    )

    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


def test_every_verb_of_the_sdk_says_what_it_returns() -> None:
    """Annotated everywhere, so that an editor in a notebook can complete what follows."""
    for path in Path(appliance.client.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.returns is not None, f"{path.name}: {node.name}"


def test_the_key_is_sent_as_a_bearer_and_a_stranger_names_its_origin(script: Script) -> None:
    script.answer = lambda _: (200, {})
    with Client(script.url, "grad_key") as client, Client(script.url) as stranger:
        client.machine.show()
        stranger.account.sign_in("ana@example.org", "secret")

    assert script.seen[0].headers["authorization"] == "Bearer grad_key"
    assert "origin" not in script.seen[0].headers
    assert script.seen[1].headers["origin"] == script.url
    assert json.loads(script.seen[1].body) == {"email": "ana@example.org", "password": "secret"}


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    script.answer = lambda _: (200, {"version": "1"})

    with Client(script.url, "grad_key") as client:
        assert client.machine.show() == {"version": "1"}


def test_httpx_is_the_only_thing_beyond_the_standard_library() -> None:
    assert httpx.__version__ >= "0.28"
    found = set()
    for path in Path(appliance.client.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    assert found - set(sys.stdlib_module_names) == {"httpx", "appliance"}
