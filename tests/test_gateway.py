"""The door, with a real nginx, real TLS and a real HTTP server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import uvicorn
from waiting import wait_until
from websockets.sync.client import connect

from appliance import ports
from appliance.config import Config
from appliance.errors import PreconditionFailed
from appliance.gateway import Facts, Gateway, Route, render

FACTS = Facts(
    certificate=Path("/t/server.crt"),
    key=Path("/t/server.key"),
    fingerprint="AA",
    ca_pem="PEM\n",
    user="u g",
    ipv6=False,
)


async def application(scope, receive, send):
    """Says what reached it; answers slowly on /slow; gives a websocket's words back."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        return
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = [[name.decode(), value.decode()] for name, value in scope["headers"]]
    answer = json.dumps({"path": scope["raw_path"].decode(), "headers": headers, "size": len(body)}).encode()
    cookie = (b"set-cookie", b"theirs=1")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), cookie]})
    if scope["path"].endswith("/slow"):
        for _ in range(20):
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
            await asyncio.sleep(0.05)
    await send({"type": "http.response.body", "body": answer})


@contextlib.contextmanager
def serving(**where) -> Iterator[None]:
    server = uvicorn.Server(
        uvicorn.Config(
            application, log_level="error", proxy_headers=False, lifespan="off", ws="websockets-sansio", **where
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, 10, "the server behind nginx")
    yield
    server.should_exit = True
    thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def new_config(folder: Path) -> Config:
    return Config(
        data_dir=folder / "data",
        run_dir=folder / "run",
        log_dir=folder / "log",
        https_address="127.0.0.1",
        https_port=free_port(),
        http_port=free_port(),
        service_user="root",
        max_upload_mib=32,
    )


@dataclass
class Door:
    config: Config
    gateway: Gateway

    @property
    def secure(self) -> str:
        return f"https://127.0.0.1:{self.config.https_port}"

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.config.tls_dir / "ca.crt"))

    def ask(self, path: str, method: str = "GET", **options) -> httpx.Response:
        return httpx.request(method, self.secure + path, verify=self.trust(), **options)


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    folder = Path(tempfile.mkdtemp(prefix="gateway-"))  # short: a Unix socket's path has at most 107 characters
    config = new_config(folder)
    gateway = Gateway(config, header_timeout_s=1)
    gateway.write([])
    with serving(uds=str(config.daemon_socket)):
        assert gateway.start_if_absent()
        yield Door(config, gateway)
        gateway.stop()
    shutil.rmtree(folder)


# -- what the daemon is told -------------------------------------------------------------------------------------------


def test_the_daemon_is_told_who_asks_by_nginx_and_never_by_the_client(door: Door) -> None:
    lies = {
        "X-Forwarded-For": "6.6.6.6",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Host": "evil",
        "Forwarded": "for=6.6.6.6",
        "X-Real-IP": "6.6.6.6",
        "X-Original-URL": "/v1/users",
        "Upgrade": "h2c",
    }

    told = door.ask("/projects/a%2Fb?x=%20y", headers=lies).json()

    headers = dict(told["headers"])
    assert told["path"] == "/projects/a%2Fb"
    assert headers["host"] == headers["x-forwarded-host"] == f"127.0.0.1:{door.config.https_port}"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "https"
    assert not {"forwarded", "x-real-ip", "x-original-url", "upgrade"} & headers.keys()


def test_https_speaks_http2_and_gives_the_same_answer_as_plain_http_on_loopback(door: Door) -> None:
    context = door.trust()
    context.set_alpn_protocols(["h2", "http/1.1"])
    raw = socket.create_connection(("127.0.0.1", door.config.https_port))
    with context.wrap_socket(raw, server_hostname="localhost") as secure:
        protocol, version = secure.selected_alpn_protocol(), secure.version()

    plain = httpx.get(f"{door.config.local_url}/health").json()

    assert (protocol, version) == ("h2", "TLSv1.3")
    assert dict(plain["headers"])["x-forwarded-proto"] == "http"
    assert plain["path"] == "/health"


def test_plain_http_on_the_https_port_is_sent_to_https(door: Door) -> None:
    answer = httpx.get(f"http://127.0.0.1:{door.config.https_port}/a?b=c")

    assert answer.status_code == 308
    assert answer.headers["location"] == f"{door.secure}/a?b=c"


def test_the_certificate_of_the_authority_can_be_fetched_on_both_ports(door: Door) -> None:
    ours = (door.config.tls_dir / "ca.crt").read_text()

    for answer in (door.ask("/ca.crt"), httpx.get(f"{door.config.local_url}/ca.crt")):
        assert answer.text == ours
        assert answer.headers["content-type"] == "application/x-x509-ca-cert"


def test_a_websocket_passes(door: Door) -> None:
    with connect(f"wss://127.0.0.1:{door.config.https_port}/live", ssl=door.trust()) as socket_:
        socket_.send("word")

        assert socket_.recv(timeout=5) == "word"


def test_a_large_body_passes_where_files_and_packs_are_sent_and_nowhere_else(door: Door) -> None:
    large = b"x" * (20 * 1024 * 1024)

    assert door.ask("/tour.git/git-receive-pack", "POST", content=large).json()["size"] == len(large)
    assert door.ask("/v1/datasets/d/versions/v/files/a.bin", "PUT", content=large).json()["size"] == len(large)
    refused = door.ask("/v1/projects", "POST", content=large)

    assert (refused.status_code, refused.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_a_stranger_can_leave_a_mebibyte_on_the_disk_and_nothing_in_memory(door: Door) -> None:
    small, large = b"x" * 900_000, b"x" * 1_100_000

    statuses = {
        (path, len(body)): door.ask(path, "POST", content=body).status_code
        for path in ("/login", "/v1/auth/login", "/v1/projects/p/runs", "/deployments/d/try")
        for body in (small, large)
    }

    assert [where for where, status in statuses.items() if status == 413] == [
        ("/login", len(large)),
        ("/v1/auth/login", len(large)),
    ]
    assert door.ask("/v1/projects/p/runs", "POST", content=bytes(10 * 1024 * 1024 + 1)).status_code == 413
    assert list(door.config.run_dir.rglob("client_body")) == []
    assert list(door.config.log_dir.rglob("client_body")) != []


def test_a_header_that_never_ends_is_cut_off(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.config.http_port)) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-")
        slow.settimeout(5)
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            while slow.recv(1000):
                pass

    assert 0.5 < time.monotonic() - began < 4


# -- deployments -------------------------------------------------------------------------------------------------------


def test_a_deployment_gets_its_path_and_key_but_neither_cookie_nor_the_right_to_set_one(door: Door) -> None:
    port = free_port()
    with serving(host="127.0.0.1", port=port):
        settle(door.gateway, [Route("dsr1", port)])
        headers = {"Authorization": "Bearer k", "Cookie": "ours=1"}

        def answered() -> httpx.Response | None:
            answer = door.ask("/serving/dsr1/v2/models/m/infer", headers=headers)
            return answer if answer.status_code == 200 else None  # a worker of before the reload may still take it

        answer = wait_until(answered, 5, "the route")

    headers = dict(answer.json()["headers"])
    assert answer.json()["path"] == "/v2/models/m/infer"
    assert headers["authorization"] == "Bearer k"
    assert "cookie" not in headers
    assert "set-cookie" not in answer.headers
    assert answer.headers["content-security-policy"] == "sandbox"


def test_a_deployment_that_is_away_and_one_that_never_was_are_answered_in_json(door: Door) -> None:
    settle(door.gateway, [Route("dsr2", free_port())])

    away = wait_until(lambda: away_answer(door), 5, "the route")
    unknown = door.ask("/serving/nobody/v2")

    assert away.json()["code"] == "SERVICE_UNAVAILABLE"
    assert (unknown.status_code, unknown.json()["code"]) == (404, "NOT_FOUND")


def away_answer(door: Door) -> httpx.Response | None:
    answer = door.ask("/serving/dsr2/v2")
    return answer if answer.status_code == 503 else None


def settle(gateway: Gateway, routes: list[Route]) -> None:
    wait_until(lambda: gateway.write(routes) == 0, 5, "nginx was told")


# -- reloads -----------------------------------------------------------------------------------------------------------


def test_twenty_reloads_drop_no_request(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.gateway._RELOAD_EVERY_S", 0.05)
    done, failures, answers, again = threading.Event(), [], [], []

    def ask_all_the_time() -> None:
        with httpx.Client(base_url=door.secure, verify=door.trust()) as client:
            while not done.is_set():
                try:
                    answers.append(client.get("/").status_code)
                except httpx.RemoteProtocolError:  # an idle connection was closed as we asked: HTTP says to ask again
                    again.append(1)
                except httpx.HTTPError as error:
                    failures.append(repr(error))

    asker = threading.Thread(target=ask_all_the_time)
    asker.start()
    with httpx.stream("GET", door.secure + "/slow", verify=door.trust()) as slow:
        for number in range(20):
            settle(door.gateway, [Route(f"dsr{number}", 9400 + number)])
        long = b"".join(slow.iter_bytes())
    done.set()
    asker.join()

    assert not failures
    assert set(answers) == {200}
    assert len(again) <= 20
    assert len(long) > 20_000


def test_the_same_routes_in_another_order_cause_no_reload(door: Door) -> None:
    settle(door.gateway, [Route("a", 9401), Route("b", 9402)])
    before = door.gateway.conf_path.stat().st_mtime_ns

    assert door.gateway.write([Route("b", 9402), Route("a", 9401)]) == 0
    assert door.gateway.conf_path.stat().st_mtime_ns == before


def test_a_new_daemon_reloads_nothing_that_stands_already(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    routes = [Route("one", 9401)]
    settle(door.gateway, routes)
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))

    another = Gateway(door.gateway._config, header_timeout_s=door.gateway._header_timeout_s)

    assert another.write(routes) == 0
    assert sent == []


def test_many_changes_at_once_are_one_reload(door: Door) -> None:
    settle(door.gateway, [Route("a", 9401)])

    waits = [door.gateway.write([Route("a", 9401 + number)]) for number in range(1, 4)]

    assert all(0 < wait <= 1 for wait in waits)
    settle(door.gateway, [Route("a", 9404)])


# -- when things are missing -------------------------------------------------------------------------------------------


def test_a_daemon_that_is_away_is_said_in_json_to_programs_and_in_html_to_people(tmp_path: Path) -> None:
    door = Door(config := new_config(tmp_path), Gateway(config))
    door.gateway.write([])
    door.gateway.start_if_absent()

    program = door.ask("/v1/projects")
    person = door.ask("/projects", headers={"Accept": "text/html,*/*;q=0.8"})
    door.gateway.stop()

    assert (program.status_code, program.json()["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert program.headers["content-type"] == "application/json"
    assert "applianced doctor" in program.json()["message"]
    assert (person.status_code, person.headers["content-type"]) == (503, "text/html")
    assert door.gateway.pid() is None


def test_a_busy_port_is_named_with_who_holds_it(tmp_path: Path) -> None:
    config = new_config(tmp_path)
    gateway = Gateway(config)
    gateway.write([])
    with socket.create_server(("127.0.0.1", config.http_port)), pytest.raises(PreconditionFailed) as refusal:
        gateway.start_if_absent()

    assert f"Port {config.http_port} (http_port) is held by process" in refusal.value.message
    assert "pytest" in refusal.value.message
    assert gateway.pid() is None


def test_ports_that_are_ours_already_are_not_busy(door: Door) -> None:
    Gateway(door.config).check_ports()


def test_starting_twice_starts_one(door: Door) -> None:
    before = door.gateway.pid()

    assert not Gateway(door.config).start_if_absent()
    assert door.gateway.pid() == before


def test_a_user_that_does_not_exist_is_said_before_nginx_is_asked(tmp_path: Path) -> None:
    config = replace(new_config(tmp_path), service_user="nobody-of-that-name")

    with pytest.raises(PreconditionFailed, match="There is no user 'nobody-of-that-name'"):
        Gateway(config).write([])


def test_a_configuration_that_nginx_refuses_is_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    gateway = Gateway(replace(new_config(tmp_path), https_address="203.0.113.77"))

    with pytest.raises(PreconditionFailed) as refusal:
        gateway.write([])

    assert "203.0.113.77" in refusal.value.message
    assert not gateway.conf_path.exists()
    assert [entry.name for entry in gateway.conf_path.parent.iterdir()] == [".lock"]


# -- the pure part -----------------------------------------------------------------------------------------------------


def test_a_configuration_without_ipv6_or_an_authority_names_neither() -> None:
    text = render([], Config(), replace(FACTS, ca_pem=None))

    assert "[::1]" not in text
    assert "ca.crt" not in text
    assert "listen 0.0.0.0:8443 ssl http2" in text


def test_a_deployment_on_every_address_is_asked_on_loopback() -> None:
    text = render([Route("d", 9400)], Config(deployment_address="0.0.0.0"), FACTS)

    assert "server 127.0.0.1:9400" in text


def test_a_route_whose_id_could_be_configuration_is_a_defect() -> None:
    with pytest.raises(ValueError, match="not a deployment's id"):
        render([Route("a; }", 9400)], Config(), FACTS)


def test_a_listener_is_found_by_its_port_and_gone_with_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        found = ports.find_listener(port)

    assert found is not None
    assert "python" in str(found)
    assert ports.find_listener(port) is None
