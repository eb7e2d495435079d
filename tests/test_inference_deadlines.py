"""Slow clients against the real connections of a server in this process, with deadlines short enough to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import threading
from collections.abc import Iterator

import pytest
import uvloop
from inference_help import get, listening, port_of, read_response

from appliance.inference import connection, http
from appliance.inference.connection import Done
from appliance.inference.http import Server
from appliance.inference.wire import Head, Response

LARGE = bytes(32 * 1024 * 1024)


class Echo:
    """Answers every path with itself, and `/large` with more than a socket's buffers hold."""

    max_body_bytes = 1024

    def admit(self, head: Head) -> Response | None:
        return None

    def answer(self, head: Head, body: bytes | memoryview, done: Done) -> None:
        done(Response(200, (LARGE if head.path == "/large" else head.path.encode(),)))


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name in ("HEAD_DEADLINE_S", "BODY_DEADLINE_S", "LINGER_DEADLINE_S"):
        monkeypatch.setattr(connection, name, 0.2)
    monkeypatch.setattr(connection, "IDLE_DEADLINE_S", 0.6)
    monkeypatch.setattr(connection, "WRITE_DEADLINE_S", 1.0)
    monkeypatch.setattr(http, "SWEEP_S", 0.05)
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 3)
    loop, sock = uvloop.new_event_loop(), listening()
    where = port_of(sock)
    server = Server(Echo(), loop)
    loop.call_soon(server.listen, sock)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield where
    asyncio.run_coroutine_threadsafe(server.drain(0.1), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
    ids=["head", "body", "chunk"],
)
def test_who_does_not_finish_a_request_is_told_and_let_go(port: int, sent: bytes) -> None:
    with connect(port) as line:
        line.sendall(sent)
        status, headers, body = read_response(line, bytearray())

        assert (status, headers["connection"]) == (408, "close")
        assert "did not arrive in time" in json.loads(body)["error"]
        assert line.recv(1) == b""


def test_who_says_nothing_is_let_go_without_a_word(port: int) -> None:
    with connect(port) as line:
        assert line.recv(1) == b""


def test_who_does_not_read_the_answer_is_cut_off(port: int) -> None:
    with connect(port) as line:
        line.sendall(get("/large"))
        for _ in range(3):
            outwait_an_idle_one(port)

        with pytest.raises((ConnectionResetError, EOFError)):
            read_response(line, bytearray())


def outwait_an_idle_one(port: int) -> None:
    """Lets the idle deadline pass, by a connection that meets it."""
    with connect(port) as other:
        other.sendall(get("/small"))
        assert read_response(other, bytearray())[2] == b"/small"
        assert other.recv(1) == b""


def test_who_reads_in_time_gets_the_large_answer_whole(port: int) -> None:
    with connect(port) as line:
        line.sendall(get("/large"))

        assert read_response(line, bytearray())[2] == LARGE


def test_a_last_answer_is_not_cut_off_while_it_is_still_being_read(port: int) -> None:
    with connect(port) as line:
        line.sendall(get("/large", "Connection: close\r\n"))
        outwait_an_idle_one(port)

        assert read_response(line, bytearray())[2] == LARGE
        assert line.recv(1) == b""


def test_when_too_much_is_held_of_unfinished_bodies_the_next_is_refused_and_the_others_go_on(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HELD_LIMIT_BYTES", 0)  # so that four bodies of the largest size are the limit
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 6)
    monkeypatch.setattr(connection, "BODY_DEADLINE_S", 5.0)
    head = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 1024\r\n\r\n"

    lines = [connect(port) for _ in range(5)]
    for line in lines[:4]:
        line.sendall(head + bytes(1023))
    lines[4].sendall(head.replace(b"/b", b"/late") + bytes(1023))
    refused = select.select(lines, [], [], 5)[0]
    assert len(refused) == 1
    assert read_response(refused[0], bytearray())[0] == 503

    for line in lines:
        if line not in refused:
            line.sendall(b"x")
            assert read_response(line, bytearray())[0] == 200
        line.close()


def test_when_all_places_are_taken_the_next_waits_until_one_is_free(port: int) -> None:
    idle = [connect(port) for _ in range(3)]
    for line in idle:
        line.sendall(get("/"))
        read_response(line, bytearray())

    with connect(port) as late:
        late.sendall(get("/late"))
        assert read_response(late, bytearray())[2] == b"/late"
    for line in idle:
        line.close()


def test_a_client_that_sends_on_and_reads_nothing_is_not_buffered_without_end(port: int) -> None:
    sent = 0

    with connect(port) as line:
        line.sendall(get("/large"))
        line.settimeout(1)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while sent < 64 * 1024 * 1024:
                sent += line.send(get("/small") * 1000)

    assert sent < 64 * 1024 * 1024


def test_a_body_may_follow_while_the_last_answer_is_still_read(port: int) -> None:
    with connect(port) as line:
        line.sendall(get("/large") + b"POST /next HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
        outwait_an_idle_one(port)
        line.sendall(bytes(500) + get("/last"))
        rest = bytearray()

        assert [read_response(line, rest)[2] for _ in range(3)] == [LARGE, b"/next", b"/last"]


def test_many_small_requests_to_a_client_that_reads_late_are_all_answered_in_order(port: int) -> None:
    """The answers fill the buffers, the connection stops reading, and goes on when the client reads."""
    count = 100_000
    sent = b"".join(get(f"/{number}") for number in range(count))

    with connect(port) as line:

        def send() -> None:
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        rest = bytearray()
        for number in range(count):
            assert read_response(line, rest)[2] == b"/%d" % number
        sender.join()
        assert line.recv(1) == b""
