"""The doctor: what it finds on this machine, well and ill, with real processes and files."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import pytest

from appliance import clock, doctor, tls
from appliance.config import Config
from appliance.doctor import Finding, examine, worst
from appliance.gateway import Gateway

pytestmark = pytest.mark.fast


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    return Config(
        data_dir=data,
        run_dir=tmp_path / "run",
        log_dir=tmp_path / "log",
        docker_socket=tmp_path / "docker.sock",
        https_address="127.0.0.1",
        https_port=free_port(),
        http_port=free_port(),
        service_user="root",
        free_floor_mib=1,
    )


@pytest.fixture
def gateway(config: Config) -> Iterator[Gateway]:
    gateway = Gateway(config)
    gateway.write([])
    gateway.start_if_absent()
    yield gateway
    gateway.stop()


def look(config: Config, name: str) -> list[Finding]:
    return examine(config, [name])


def test_a_machine_on_which_nothing_runs_gets_a_remedy_for_everything_that_is_not_well(config: Config) -> None:
    findings = examine(config)

    assert worst(findings) == "problem"
    assert {each.check for each in findings} == set(doctor.CHECKS)
    assert all((each.remedy is None) == (each.state == "ok") for each in findings)
    assert all(each.text.endswith((".", "]", ")")) or each.check == "nginx" for each in findings)


def test_looking_changes_nothing(config: Config) -> None:
    before = sorted(config.data_dir.rglob("*"))

    examine(config)

    assert sorted(config.data_dir.rglob("*")) == before
    assert not config.run_dir.exists()


def test_an_engine_that_is_away_is_a_problem_that_hides_no_other(config: Config) -> None:
    (engine,) = look(config, "engine")

    assert engine.state == "problem"
    assert str(config.docker_socket) in engine.text
    assert [each.state for each in look(config, "sqlite")] == ["ok"]
    assert [each.state for each in look(config, "git")] == ["ok"]


def test_our_nginx_is_known_and_accepts_its_configuration(config: Config, gateway: Gateway) -> None:
    assert [each.state for each in look(config, "nginx")] == ["ok"]
    assert [each.state for each in look(config, "ports")] == ["ok", "ok"]


def test_a_port_that_somebody_else_has_is_named_with_the_holder(config: Config) -> None:
    with socket.create_server(("127.0.0.1", config.https_port)):
        https, http = look(config, "ports")

    assert f"is held by process {os.getpid()}" in https.text
    assert "Nobody listens" in http.text


def test_a_configuration_that_somebody_broke_is_shown_with_nginx_own_words(config: Config, gateway: Gateway) -> None:
    gateway.conf_path.write_text(gateway.conf_path.read_text() + "nonsense;\n")

    (finding,) = look(config, "nginx")

    assert finding.state == "problem"
    assert 'unknown directive "nonsense"' in finding.text


class Healthy(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b'{"message": "the disk is full"}')

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (503, "warning")])
def test_the_daemon_is_asked_over_its_own_socket(config: Config, status: int, state: str) -> None:
    config.run_dir.mkdir()
    server = UnixStreamServer(str(config.daemon_socket), type("Handler", (Healthy,), {"status": status}))
    thread = threading.Thread(target=server.handle_request)
    thread.start()

    (finding,) = look(config, "daemon")
    thread.join()
    server.server_close()

    assert finding.state == state
    assert state == "ok" or "the disk is full" in finding.text


def test_a_socket_that_nobody_serves_is_a_daemon_that_is_away(config: Config) -> None:
    config.run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(config.daemon_socket))

    assert "Connection refused" in look(config, "daemon")[0].text


def test_a_full_disk_says_what_it_stops(config: Config) -> None:
    (finding,) = look(replace(config, free_floor_mib=2**30), "disk")

    assert (finding.state, finding.text.endswith("Uploads and outputs are refused.")) == ("problem", True)


def test_files_that_others_can_read_come_with_the_command_that_closes_them(config: Config) -> None:
    config.local_admin_key.write_text("secret")
    config.local_admin_key.chmod(0o644)

    (finding,) = look(config, "permissions")

    assert finding.state == "problem"
    assert finding.remedy == f"chmod go= {config.local_admin_key}"


@pytest.mark.parametrize(("days", "state"), [(0, "ok"), (390, "warning"), (400, "problem")])
def test_a_certificate_is_told_of_before_it_expires(
    config: Config, days: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls.ensure(config)
    moment = clock.now() + timedelta(days=days)
    monkeypatch.setattr(clock, "now", lambda: moment)

    (finding,) = look(config, "certificates")

    assert finding.state == state


def test_a_clock_that_went_back_is_seen_by_the_files(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config.log_dir.mkdir()
    moment = clock.now() - timedelta(days=1)
    monkeypatch.setattr(clock, "now", lambda: moment)

    (finding,) = look(config, "clock")

    assert finding.state == "problem"


def test_a_pool_that_holds_our_own_address_would_cut_the_machine_off(config: Config) -> None:
    (finding,) = look(replace(config, network_pool="127.0.0.0/16"), "network")

    assert finding.state == "problem"
    assert "127.0.0.1" in finding.text


def test_a_check_that_cannot_be_made_is_a_finding_and_no_crash(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Config) -> Iterator[Finding]:
        raise ZeroDivisionError("by zero")
        yield

    monkeypatch.setitem(doctor.CHECKS, "git", broken)

    (finding,) = look(config, "git")

    assert finding.state == "problem"
    assert "ZeroDivisionError" in finding.text
