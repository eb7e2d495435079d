"""The daemon as a process: how soon it is there, what it needs at rest, what it tells systemd, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from journeys.stories import run_now, script
from running import APPLIANCED, Running
from waiting import wait_until

from appliance.daemon.lock import Lock
from appliance.daemon.loops import Loop
from appliance.daemon.notify import notify, watchdog_s
from appliance.errors import Conflict, DiskFull, DurabilityLost

pytestmark = pytest.mark.docker


class Systemd:
    """What systemd is to a service of Type=notify: a datagram socket on which it listens."""

    def __init__(self, path: Path, watchdog_s: float) -> None:
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def hears(self, within_s: float) -> str:
        self._socket.settimeout(within_s)
        return self._socket.recv(4096).decode()

    def drain(self) -> None:
        """What was said so far is forgotten."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(4096):
                pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(running: Running) -> Iterator[Systemd]:
    path = running.run_dir / "notify"
    path.unlink(missing_ok=True)
    played = Systemd(path, watchdog_s=0.6)
    yield played
    played.close()


@pytest.fixture(scope="module", autouse=True)
def project(running: Running) -> None:
    with running.client() as client:
        client.projects.create("p")


def test_it_is_there_in_under_two_seconds(running: Running) -> None:
    running.stop_daemon()
    began = time.monotonic()

    running.start_daemon()

    assert time.monotonic() - began < 2


def test_at_rest_it_needs_little_memory_and_hardly_any_processor(running: Running, record_property: object) -> None:
    pid = running.processes["run"].pid
    wait_until(running.is_healthy, 5, "it answers")
    # The first rounds of all loops (folders, networks, the gateway's configuration) are behind it.
    wait_until(lambda: _cpu_s(pid, over_s=1) < 0.02, 20, "it has come to rest")

    used_s = _cpu_s(pid, over_s=10)
    rss_mib = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    print(f"at rest: {used_s * 10:.2f} % of a core, {rss_mib:.0f} MiB")
    assert used_s < 0.2  # 2 %; 1 % is the aim, and a busy machine measures badly
    assert rss_mib < 150


def _cpu_s(pid: int, over_s: float) -> float:
    def now() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = now()
    time.sleep(over_s)  # a measurement over a span of time, not a wait for something
    return now() - before


def test_neither_onnxruntime_nor_numpy_is_in_it(running: Running) -> None:
    mapped = Path(f"/proc/{running.processes['run'].pid}/maps").read_text()

    assert "onnxruntime" not in mapped
    assert "numpy" not in mapped


# -- systemd -----------------------------------------------------------------------------------------------------------


def test_systemd_hears_when_it_is_ready_that_it_is_alive_and_when_it_stops(running: Running, systemd: Systemd) -> None:
    running.stop_daemon()
    running.begin_daemon(**systemd.environment)

    assert systemd.hears(10).splitlines()[0] == "READY=1"
    assert running._answers()
    began = time.monotonic()
    assert [systemd.hears(2) for _ in range(4)] == ["WATCHDOG=1"] * 4
    assert time.monotonic() - began < 4 * 0.6  # each within the limit, at half of it

    ending = running.processes["run"]
    ending.send_signal(signal.SIGTERM)
    said = systemd.hears(10)
    while said == "WATCHDOG=1":
        said = systemd.hears(10)
    assert said == "STOPPING=1"
    assert ending.wait(20) == 0
    running.start_daemon()


def test_a_daemon_that_stands_still_is_silent_so_that_systemd_restarts_it(running: Running, systemd: Systemd) -> None:
    running.stop_daemon()
    running.start_daemon(**systemd.environment)
    while systemd.hears(5) != "WATCHDOG=1":
        pass
    pid = running.processes["run"].pid

    os.kill(pid, signal.SIGSTOP)
    try:
        systemd.drain()
        with pytest.raises(TimeoutError):
            systemd.hears(1.2)
    finally:
        os.kill(pid, signal.SIGCONT)

    assert systemd.hears(5) == "WATCHDOG=1"
    wait_until(running.is_healthy, 5, "and goes on")


def test_without_systemd_nothing_is_sent_and_a_limit_meant_for_another_process_is_not_ours() -> None:
    notify("READY=1", {})
    notify("READY=1", {"NOTIFY_SOCKET": "/nowhere/at/all"})

    assert watchdog_s({}) is None
    assert watchdog_s({"WATCHDOG_USEC": "30000000"}) == 15
    assert watchdog_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    assert watchdog_s({"WATCHDOG_USEC": "soon"}) is None


# -- the end -----------------------------------------------------------------------------------------------------------


def test_asked_to_end_it_ends_with_0_in_seconds_and_leaves_containers_running(running: Running) -> None:
    with running.client() as client:
        run_id = client.runs.submit("p", spec_text=script("a", "sleep 2; echo done"), name="w")["uuid"]
    wait_until(lambda: running.rows("SELECT 1 FROM attempts WHERE state = 'running'"), 10, "the job runs")
    began = time.monotonic()

    code = running.stop_daemon()

    assert code == 0
    assert time.monotonic() - began < 5
    assert len(_running_containers(running)) == 1
    running.start_daemon()
    assert running.finished(run_id)["status"]["phase"] == "Succeeded"


def _running_containers(house: Running) -> list[str]:
    label = f"label=appliance.instance={house.instance()}"
    return subprocess.run(["docker", "ps", "-q", "--filter", label], capture_output=True, text=True).stdout.split()


def test_after_a_failed_fsync_it_ends_with_70_and_the_next_one_finds_everything(running: Running) -> None:
    writes = script("a", "echo kept > /outputs/out/a", "{out: {type: dataset, with: {ref: d}}}")
    running.stop_daemon()
    running.start_daemon(APPLIANCE_FAILPOINT="fsync=EIO")
    with running.client() as client:
        run_id = client.runs.submit("p", spec_text=writes, name="w")["uuid"]
    process = running.processes["run"]

    wait_until(lambda: process.poll() is not None, 20, "it ends")

    assert running.processes.pop("run").returncode == 70
    assert "could not make" in (running.log / "run.log").read_text()
    assert running.rows("SELECT 1 FROM versions WHERE run_id = ?", run_id) == []
    running.start_daemon()
    assert running.finished(run_id)["status"]["phase"] == "Succeeded"
    with running.client() as client:
        assert client.datasets.read("d", "latest", "a") == b"kept\n"


def test_every_line_of_its_log_is_a_json_object(running: Running) -> None:
    lines = [line for line in (running.log / "run.log").read_text().splitlines() if line]

    said = [json.loads(line) for line in lines]

    assert {"at", "level", "logger", "message"} <= set.intersection(*(set(one) for one in said))
    assert any(one["message"].startswith("ready after") for one in said)


def test_other_users_reach_neither_data_nor_sockets(running: Running) -> None:
    modes = {name: stat.S_IMODE((running.run_dir / name).stat().st_mode) for name in ("daemon.sock", "admin.sock")}

    assert modes == {"daemon.sock": 0o660, "admin.sock": 0o600}
    assert stat.S_IMODE(running.data.stat().st_mode) == 0o700
    for name in ("appliance.db", "local-admin.key"):
        assert stat.S_IMODE((running.data / name).stat().st_mode) == 0o600


# -- what root does on the server --------------------------------------------------------------------------------------


@pytest.fixture(params=["up", "down"])
def either(running: Running, request: pytest.FixtureRequest) -> Iterator[Running]:
    """The appliance with its daemon, and without."""
    if request.param == "down":
        running.stop_daemon()
    yield running
    if request.param == "down":
        running.start_daemon()


def test_a_setup_link_is_printed_whether_the_daemon_runs_or_not(either: Running) -> None:
    first = either.admin("admin", "setup-link")

    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(f"https://localhost:{either.https_port}/accept?token=")


def test_an_admin_is_made_whether_the_daemon_runs_or_not_and_a_short_password_is_refused(
    either: Running, request: pytest.FixtureRequest
) -> None:
    email = f"{request.node.callspec.params['either']}@example.org"

    refused = either.admin("admin", "create", email, input_text="short\n")
    made = either.admin("admin", "create", email, input_text="correct horse battery\n")
    again = either.admin("admin", "create", email, input_text="correct horse battery\n")

    assert refused.returncode == 1
    assert refused.stderr.startswith("applianced: ")
    assert len(refused.stderr.strip().splitlines()) == 1
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(f"{email} is an admin and can sign in at https://")
    assert again.returncode == 1
    assert email in again.stderr
    assert either.rows("SELECT role FROM users WHERE email = ?", email) == [{"role": "admin"}]


def test_setup_may_be_run_again_and_changes_nothing(either: Running) -> None:
    key = either.key

    done = [either.admin("setup") for _ in range(2)]

    assert [one.returncode for one in done] == [0, 0]
    assert "is in place" in done[0].stdout
    assert either.key == key


def test_a_lost_local_key_is_made_anew(either: Running) -> None:
    (either.data / "local-admin.key").unlink()

    done = either.admin("setup")

    assert "is new" in done.stdout
    if either.processes.get("run"):
        with either.client() as client:
            assert [one["name"] for one in client.projects.list()] == ["p"]


def test_the_doctor_answers_in_json_whether_the_daemon_runs_or_not(either: Running) -> None:
    done = either.admin("doctor", "--json")

    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert all({"check", "state", "text", "remedy"} <= set(finding) for finding in findings.values())
    assert all(finding["remedy"] for finding in findings.values() if finding["state"] != "ok")
    problems = [finding for finding in findings.values() if finding["state"] == "problem"]
    assert done.returncode == (1 if problems else 0)
    is_up = "run" in either.processes
    assert any("daemon" in finding["check"] for finding in problems) is not is_up, findings


def test_a_configuration_that_cannot_be_is_refused_in_a_sentence(running: Running, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("https_prot = 1\n")

    done = subprocess.run([str(APPLIANCED), "--config", str(wrong), "run"], capture_output=True, text=True, timeout=20)

    assert done.returncode == 1
    assert "https_port" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# -- its parts ---------------------------------------------------------------------------------------------------------


def test_the_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    first.take()

    with pytest.raises(Conflict, match=rf"in use by another applianced \(process {os.getpid()}\)"):
        second.take()

    first.release()
    first.release()
    second.take()
    second.release()


def test_a_loop_goes_on_after_a_failure_later_each_time_and_ends_the_daemon_only_after_a_lost_write() -> None:
    ticks: list[float] = []
    ended: list[BaseException] = []

    def tick() -> float | None:
        ticks.append(time.monotonic())
        match len(ticks):
            case 1:
                raise DiskFull("no room")
            case 2:
                raise ValueError("a defect")
            case 3:
                return None
            case _:
                raise DurabilityLost("a lost write")

    loop = Loop("t", tick, 60, ended.append)
    loop.start()
    wait_until(lambda: len(ticks) >= 3, 5, "it came round again")
    loop.wake()
    wait_until(lambda: ended, 5, "it said so")
    loop.stop()

    assert ticks[1] - ticks[0] >= 0.2
    assert ticks[2] - ticks[1] >= 0.4
    assert not loop.is_dead()


def test_a_run_after_all_of_this_succeeds(running: Running) -> None:
    assert run_now(running, "p", script("a", "echo still here"))["status"]["phase"] == "Succeeded"
