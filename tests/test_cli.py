"""The command line: what it prints, its exit codes, and signing in over TLS."""

from __future__ import annotations

import io
import json
import os
import pty
import resource
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from http_script import Script, events, scripted
from live_web import Live, live_web

from appliance import cli, clock, tls
from appliance.cli import terminal
from appliance.cli.terminal import Terminal, ago, size, span
from appliance.client import settings
from appliance.config import Config

APPLIANCE = [sys.executable, "-m", "appliance.cli"]


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without settings of anybody."""
    for name in ("APPLIANCE_URL", "APPLIANCE_API_KEY", "PAPERSPACE_API_KEY", "APPLIANCE_CA", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_COLOR", "GIT_CONFIG_GLOBAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("APPLIANCE_DATA_DIR", str(tmp_path / "no-data"))
    return tmp_path


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command in this process; `stdin` is what is written to it."""

    def call(*words: str, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            code = cli.main(words)
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return call


@pytest.fixture
def script(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    with scripted() as found:
        monkeypatch.setenv("APPLIANCE_URL", found.url)
        monkeypatch.setenv("APPLIANCE_API_KEY", "grad_key")
        yield found


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_web(tmp_path_factory.mktemp("web")) as found:
        yield found


@pytest.fixture
def ada(run: Run, web: Live, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line of an admin."""
    monkeypatch.setenv("APPLIANCE_URL", web.url)
    monkeypatch.setenv("APPLIANCE_API_KEY", web.admin)
    return run


# -- being asked -------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_help_comes_in_a_blink_and_loads_no_http() -> None:
    code = "import sys; from appliance.cli import main; main(['--help']); sys.exit('httpx' in sys.modules)"
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    assert min(times) < 0.15  # seconds of processor time; 0.04 when idle


@pytest.mark.fast
@pytest.mark.parametrize("noun", sorted(cli.NOUNS))
def test_every_command_explains_itself(run: Run, noun: str) -> None:
    done = run(noun, "--help")

    assert done.code == 0
    assert done.out.startswith(f"usage: appliance {noun}")


@pytest.mark.fast
@pytest.mark.parametrize("words", [["project", "list"], ["projects", "lst"], ["runs", "show"], []])
def test_a_command_that_is_not_understood_ends_with_2(run: Run, words: list[str]) -> None:
    assert run(*words).code == 2


@pytest.mark.fast
def test_without_a_server_it_ends_with_3_and_says_how_to_sign_in(run: Run) -> None:
    done = run("projects", "list")

    assert (done.code, done.out) == (3, "")
    assert "appliance login" in done.err


@pytest.mark.fast
@pytest.mark.parametrize(
    "status, code, exit_code", [(404, "NOT_FOUND", 4), (403, "FORBIDDEN", 5), (409, "CONFLICT", 1)]
)
def test_an_error_is_one_sentence_on_stderr_and_nothing_on_stdout(
    run: Run, script: Script, status: int, code: str, exit_code: int
) -> None:
    script.answer = lambda _: (status, {"code": code, "message": "There is none\x1b[31m.", "issues": []})

    done = run("projects", "show", "digits", "--json")

    assert done == Done(exit_code, "", "appliance: There is none\\x1b[31m.\n")


@pytest.mark.fast
def test_a_server_that_is_not_there_ends_with_6(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_URL", "http://127.0.0.1:9")

    assert run("projects", "list").code == 6


@pytest.mark.fast
def test_a_reader_that_goes_away_is_no_traceback(script: Script) -> None:
    names = [{"name": f"project-{number}", "id": "p", "dtCreated": None} for number in range(5000)]
    script.answer = lambda _: (200, {"items": names, "hasMore": False})

    done = subprocess.run(
        f"{sys.executable} -m appliance.cli projects list | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert "Traceback" not in done.stderr


# -- printing ----------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_root_on_the_server_needs_no_sign_in(
    run: Run, home: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APPLIANCE_URL")
    monkeypatch.delenv("APPLIANCE_API_KEY")
    monkeypatch.setenv("APPLIANCE_DATA_DIR", str(home))
    monkeypatch.setenv("APPLIANCE_HTTP_PORT", script.url.rpartition(":")[2])
    (home / "local-admin.key").write_text("grad_local\n")
    script.answer = lambda _: (200, {"items": [], "hasMore": False})

    assert run("projects", "list", "--json").json == []
    assert script.seen[0].headers["authorization"] == "Bearer grad_local"


@pytest.mark.fast
def test_a_table_in_a_pipe_is_whole_and_plain() -> None:
    out = io.StringIO()

    Terminal(out, io.StringIO(), as_json=False).table([], [{"NAME": "x" * 300, "STATE": "Failed"}], "")

    assert out.getvalue().splitlines()[1] == "x" * 300 + "  Failed"


@pytest.mark.fast
def test_on_a_terminal_a_table_is_cut_and_coloured_and_obeys_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"NAME": "x" * 300, "STATE": "Failed"}
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")

    def shown() -> str:
        leader, follower = pty.openpty()
        with os.fdopen(follower, "w") as out:
            Terminal(out, io.StringIO(), as_json=False).table([], [row], "")
            out.flush()
            text = ""
            while text.count("\n") < 2:  # a terminal hands over what it has, not what was written
                text += os.read(leader, 4096).decode()
        os.close(leader)
        return text.splitlines()[1]

    assert shown() == "x" * 31 + "…" + "  \x1b[31mFailed\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown() == "x" * 31 + "…  Failed"


@pytest.mark.fast
def test_times_and_sizes_read_as_people_say_them(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = clock.parse("2026-05-01T12:00:00.000Z")
    monkeypatch.setattr(clock, "now", lambda: moment)

    assert [
        ago(text)
        for text in ("2026-05-01T11:57:00.000Z", "2026-04-29T11:00:00.000Z", "2026-05-01T12:00:59.000Z", None, "?")
    ] == [
        "3 min ago",
        "2 d ago",
        "in 59 s",
        "",
        "?",
    ]
    assert [span(value) for value in (0.44, 9.96, 61, 3600, None)] == ["0.4 s", "10.0 s", "61 s", "60 min", ""]
    assert [size(value) for value in (0, 1023, "1536", 5 << 30, None)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB", ""]


@pytest.mark.fast
def test_wide_letters_do_not_shift_the_columns() -> None:
    assert terminal._padded("数据", 6) == "数据  "
    assert terminal._padded("数据集", 5) == "数据…"


# -- runs --------------------------------------------------------------------------------------------------------------


def a_run(phase: str, **jobs: str) -> dict[str, Any]:
    states = {name: {"phase": state, "started": None, "needs": [], "uses": "script@v1"} for name, state in jobs.items()}
    return {
        "id": 3,
        "uuid": "0f" * 4 + "-0000-0000-0000-000000000000",
        "workflowName": "train",
        "status": {"phase": phase, "jobs": states},
    }


def follow_script(phase: str) -> Callable[[Any], Any]:
    def answer(request: Any) -> Any:
        ended = a_run(phase, prepare="Succeeded", train=phase)
        if request.path.endswith("/runs?limit=200"):
            return 200, {"items": [ended], "hasMore": False}
        if "/logs/stream" in request.path:
            job = request.path.split("/")[5]
            line = {"line": 0, "at": "", "stream": "stdout", "message": f"{job} says\x1b[2J hello"}
            return events(request, ("line", line), ("end", {"phase": phase}))
        if request.path.endswith("/stream"):
            running = a_run("Running", prepare="Running", train="Running")
            return events(request, ("run", running), ("run", ended))
        return 200, ended

    return answer


@pytest.mark.fast
@pytest.mark.parametrize("phase, code", [("Succeeded", 0), ("Failed", 7), ("Canceled", 7)])
def test_following_a_run_prints_every_job_and_ends_with_its_fate(
    run: Run, script: Script, phase: str, code: int
) -> None:
    script.answer = follow_script(phase)

    done = run("runs", "logs", "train/3", "-f")

    assert done.code == code
    assert sorted(done.out.splitlines()) == [
        "prepare | prepare says\\x1b[2J hello",
        "train | train says\\x1b[2J hello",
    ]
    assert phase in done.err


@pytest.mark.fast
def test_following_with_json_prints_one_value_on_each_line(run: Run, script: Script) -> None:
    script.answer = follow_script("Succeeded")

    done = run("runs", "logs", "0f0f", "train", "-f", "--json")

    assert [json.loads(line)["job"] for line in done.out.splitlines()] == ["train"]


@pytest.mark.fast
def test_the_beginning_of_two_ids_means_neither(run: Run, script: Script) -> None:
    script.answer = lambda _: (200, {"items": [a_run("Failed"), a_run("Failed")], "hasMore": False})

    done = run("runs", "show", "0f")

    assert done.code == 1
    assert "write more of the id" in done.err


# -- signing in --------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> tls.Certificates:
    return tls.ensure(Config(data_dir=tmp_path / "server", host_name="box"))


@pytest.fixture
def secure(certificates: tls.Certificates) -> Iterator[Script]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    with scripted(context) as found:

        def answer(request: Any) -> tuple[int, Any]:
            if request.path == "/ca.crt":
                assert certificates.ca is not None
                return 200, certificates.ca.read_bytes()
            if request.headers.get("authorization") != "Bearer grad_good":
                return 401, {"code": "UNAUTHORIZED", "message": "The API key is wrong."}
            return 200, {"user": {"email": "ana@example.org"}, "items": [], "hasMore": False}

        found.answer = answer
        yield found


@pytest.mark.fast
def test_login_compares_the_fingerprint_then_keeps_key_and_certificate(
    run: Run, secure: Script, certificates: tls.Certificates
) -> None:
    done = run(
        "login",
        secure.url,
        "--fingerprint",
        certificates.fingerprint.lower(),
        "--key",
        "-",
        "--json",
        stdin="grad_good\n",
    )

    assert done.code == 0, done.err
    assert done.json["email"] == "ana@example.org"
    assert "grad_good" not in done.out + done.err
    assert run("projects", "list", "--json").json == []


@pytest.mark.fast
def test_login_with_another_fingerprint_sends_no_key(run: Run, secure: Script) -> None:
    done = run("login", secure.url, "--fingerprint", "00" * 32, "--key", "-", stdin="grad_good\n")

    assert done.code == 1
    assert "another certificate" in done.err
    assert {each.path for each in secure.seen} == {"/ca.crt"}


@pytest.mark.fast
def test_login_without_anybody_to_ask_trusts_nothing(run: Run, secure: Script, certificates: tls.Certificates) -> None:
    done = run("login", secure.url, "--key", "-", stdin="grad_good\n")

    assert done.code == 1
    assert certificates.fingerprint in done.err
    assert settings.servers()[0] == {}


@pytest.mark.fast
def test_a_certificate_for_another_name_is_not_trusted(
    run: Run, secure: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = secure.url.rpartition(":")[2]
    monkeypatch.setattr("socket.create_connection", _to(int(port)))

    done = run("login", "https://elsewhere.example.org", "--yes", "--key", "-", stdin="grad_good\n")

    assert done.code == 6
    assert "not made for the name 'elsewhere.example.org'" in done.err


def _to(port: int) -> Callable[..., Any]:
    import socket

    real = socket.create_connection
    return lambda _address, *rest, **more: real(("127.0.0.1", port), *rest, **more)


@pytest.mark.fast
def test_login_with_a_wrong_key_stores_nothing(run: Run, secure: Script) -> None:
    done = run("login", secure.url, "--yes", "--key", "-", stdin="grad_bad\n")

    assert done.code == 3
    assert settings.servers()[0] == {}


@pytest.mark.fast
def test_a_key_in_the_clear_to_another_machine_is_refused(run: Run) -> None:
    done = run("login", "http://gpu-server:8080", "--key", "-", stdin="grad_good\n")

    assert done.code == 1
    assert "in the clear" in done.err


@pytest.mark.fast
def test_git_learns_the_server_without_the_key_and_forgets_it(run: Run, home: Path, secure: Script) -> None:
    (home / ".gitconfig").write_text("[user]\n\tname = Ana\n")

    assert run("login", secure.url, "--yes", "--key", "-", stdin="grad_good\n").code == 0
    told = (home / ".gitconfig").read_text()
    asked = f"protocol=https\nhost={secure.url.removeprefix('https://')}\n\n"
    answer = subprocess.run(["git", "credential", "fill"], input=asked, capture_output=True, text=True, timeout=30)

    assert "grad_good" not in told
    assert "password=grad_good" in answer.stdout
    assert run("git-credential", "get", stdin="protocol=https\nhost=elsewhere\n\n").out == ""

    assert run("logout").code == 0
    assert "appliance" not in (home / ".gitconfig").read_text()
    assert "name = Ana" in (home / ".gitconfig").read_text()
    assert list(home.rglob("*.pem")) == [home / "server"] or not list((home / ".config").rglob("*.pem"))


# -- against the real application --------------------------------------------------------------------------------------


def test_projects_from_creation_to_deletion(ada: Run) -> None:
    made = ada("projects", "create", "cli-one", "--json")
    assert made.code == 0, made.err

    assert "cli-one" in ada("projects", "list").out
    assert ada("projects", "show", "cli-one", "--json").json["id"] == made.json["id"]
    assert "cli-two" in ada("projects", "rename", "cli-one", "cli-two").out
    asked = ada("projects", "delete", "cli-two")
    assert asked.code == 1
    assert "--yes" in asked.err
    assert ada("projects", "delete", "cli-two", "--yes").code == 0
    assert ada("projects", "show", "cli-two").code == 4


def test_a_dataset_goes_there_and_comes_back(ada: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "b.txt").write_text("two")
    (source / "a.txt").write_text("one")

    put = ada("datasets", "put", str(source), "cli-data", "-m", "first", "-t", "golden", "--json")
    assert put.code == 0, put.err
    (source / "a.txt").write_text("changed")
    assert ada("datasets", "put", str(source), "cli-data").code == 0

    assert ada("datasets", "get", "cli-data:golden", str(target)).code == 0
    assert (target / "a.txt").read_text() == "one"
    assert (target / "sub" / "b.txt").read_text() == "two"
    assert [each["path"] for each in ada("datasets", "files", "cli-data", "--json").json if each["kind"] == "file"] == [
        "a.txt",
        "sub/b.txt",
    ]
    assert ada("datasets", "diff", "cli-data", "1", "2").out.split() == ["PATH", "~", "a.txt"]
    assert [each["number"] for each in ada("datasets", "versions", "cli-data", "--json").json] == [2, 1]
    assert ada("datasets", "untag", "cli-data", "golden").code == 0
    assert ada("datasets", "delete", "cli-data", "--yes").code == 0


@pytest.mark.parametrize("noun", ["datasets", "models"])
def test_who_may_read_what_put_makes_is_chosen_and_said(
    ada: Run, web: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, noun: str
) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert ada("projects", "create", f"cli-put-{noun}").code == 0

    common = ada(noun, "put", str(tmp_path / "a.txt"), "cli-common")
    own = ada(noun, "put", str(tmp_path / "a.txt"), "cli-own", "-p", f"cli-put-{noun}")
    again = ada(noun, "put", str(tmp_path / "a.txt"), "cli-own", "-p", f"cli-put-{noun}", "--json")

    assert "every member" in common.err
    assert f"the people of cli-put-{noun} may read it" in own.err
    assert (again.json["number"], again.json["made"], again.err) == (2, None, "")
    lines = [line.split() for line in ada(noun, "show", "cli-own").out.splitlines()]
    assert ["versions", "2"] in lines
    monkeypatch.setenv("APPLIANCE_API_KEY", web.member)
    assert ada(noun, "show", "cli-common").code == 0
    assert ada(noun, "show", "cli-own").code == 4


def test_keys_and_members(ada: Run, web: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ada("keys", "create", "laptop", "--json").json
    assert key["key"].startswith("grad_")
    assert "laptop" in ada("keys", "list").out

    assert ada("keys", "revoke", "laptop", "-y").code == 0
    link = ada("members", "invite", "new@example.org", "--json").json["url"]
    assert "/accept?token=" in link
    assert "new@example.org" in ada("members", "invitations").out
    assert {"ada@example.org", "max@example.org"} <= set(ada("members", "list").out.split())

    monkeypatch.setenv("APPLIANCE_API_KEY", key["key"])
    assert ada("projects", "list").code == 3
    monkeypatch.setenv("APPLIANCE_API_KEY", web.member)
    assert ada("members", "invite", "other@example.org").code == 5


def test_a_run_without_a_push_and_its_end(ada: Run, tmp_path: Path) -> None:
    (tmp_path / "hello.yaml").write_text("jobs:\n  hello:\n    uses: script@v1\n    with:\n      script: echo hello\n")
    assert ada("projects", "create", "cli-runs").code == 0

    started = ada("runs", "start", "cli-runs", "--file", str(tmp_path / "hello.yaml"), "--json")
    assert started.code == 0, started.err
    run_id = started.json["uuid"]

    assert run_id[:8] in ada("runs", "list", "-p", "cli-runs").out
    shown = ada("runs", "show", run_id[:8])
    assert "script@v1" in shown.out
    assert ada("runs", "cancel", run_id).code == 0
    assert "hello" in ada("workflows", "list", "-p", "cli-runs").out


def test_login_with_a_password_makes_a_key(ada: Run, web: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    link = ada("members", "invite", "pat@example.org", "--json").json["url"]
    from appliance.client import Client

    with Client(web.url) as stranger:
        stranger.account.accept(link.partition("token=")[2], "correct horse battery", email="pat@example.org")
    monkeypatch.delenv("APPLIANCE_API_KEY")
    monkeypatch.delenv("APPLIANCE_URL")

    done = ada("login", web.url, "--email", "pat@example.org", "--password", "-", stdin="correct horse battery\n")

    assert done.code == 0, done.err
    (first,) = ada("keys", "list", "--json").json
    assert first["name"].count("@") == 1

    again = ada("login", web.url, "--email", "pat@example.org", "--password", "-", stdin="correct horse battery\n")
    assert again.code == 0, again.err
    (second,) = ada("keys", "list", "--json").json
    assert second["id"] != first["id"]

    given = ada("keys", "create", "given", "--json").json["key"]
    for _ in range(2):
        assert ada("login", web.url, "--key", "-", stdin=f"{given}\n").code == 0
        assert [each["name"] for each in ada("keys", "list", "--json").json] == ["given"]
    assert (
        ada("login", web.url, "--email", "pat@example.org", "--password", "-", stdin="correct horse battery\n").code
        == 0
    )
    assert {each["name"] for each in ada("keys", "list", "--json").json} == {"given", first["name"]}


def test_the_machine_and_its_doctor_answer(ada: Run) -> None:
    assert ada("machine", "--json").json["cpus"] >= 1
    assert ada("doctor", "--json").json[0] == {
        "check": "server",
        "state": "ok",
        "text": ada("doctor", "--json").json[0]["text"],
        "remedy": None,
    }
    assert ada("version", "--json").json["client"] == cli.importlib.import_module("appliance").__version__
