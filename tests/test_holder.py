"""The holder as a real process: sockets that outlive those who asked for them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inference_help import iris, port_of, post, read_response, replica
from waiting import wait_until

from appliance.errors import BadRequest, Conflict, EngineBusy, NotFound
from appliance.inference.control import HolderClient, exchange

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def holder(path: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "appliance.inference.holder", "--socket", str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: process.poll() is not None or _answers(path), 10, "the holder answers")
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _answers(path: Path) -> bool:
    try:
        HolderClient(path).list()
    except EngineBusy:
        return False
    return True


@pytest.fixture
def client(tmp_path: Path) -> Iterator[HolderClient]:
    with holder(tmp_path / "h.sock"):
        yield HolderClient(tmp_path / "h.sock")


def test_a_socket_opened_again_is_the_same_socket(client: HolderClient) -> None:
    first, port = client.open("dep1", "127.0.0.1", 0)
    again, same = client.open("dep1", "127.0.0.1", port)
    got = client.get("dep1")

    with first, again, got:
        assert port == same > 0
        assert {os.fstat(each.fileno()).st_ino for each in (first, again, got)} == {os.fstat(first.fileno()).st_ino}
        assert got.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert client.list() == {"dep1": ("127.0.0.1", port)}


def test_a_client_that_connects_while_nobody_serves_waits(client: HolderClient) -> None:
    opened, port = client.open("dep1", "127.0.0.1", 0)
    opened.close()

    with socket.create_connection(("127.0.0.1", port), timeout=5) as waiting:
        waiting.sendall(b"hello")
        with client.get("dep1") as got:
            got.setblocking(True)
            with got.accept()[0] as accepted:
                assert accepted.recv(5) == b"hello"


def test_a_closed_name_frees_its_port_and_may_be_closed_again(client: HolderClient) -> None:
    opened, port = client.open("dep1", "127.0.0.1", 0)
    opened.close()
    client.close("dep1")
    client.close("dep1")

    assert client.list() == {}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with pytest.raises(NotFound, match="No socket called 'dep1'"):
        client.get("dep1")


def test_a_busy_port_is_named_with_who_has_it(client: HolderClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = port_of(other)
        with pytest.raises(Conflict) as refused:
            client.open("dep1", "127.0.0.1", port)

    assert f"Port {port} on 127.0.0.1 is in use by" in refused.value.message
    assert f"(process {os.getpid()})" in refused.value.message


@pytest.mark.parametrize(
    "name, address, port, error, words",
    [
        ("dep1", "127.0.0.1", 70000, BadRequest, "is no port"),
        ("dep1", "127.0.0.1", -1, BadRequest, "is no port"),
        ("dep1", "localhost", 0, BadRequest, "is no IP address"),
        ("dep1", "192.0.2.1", 0, BadRequest, "has no address 192.0.2.1"),
        ("a/b", "127.0.0.1", 0, BadRequest, "cannot name a socket"),
        ("", "127.0.0.1", 0, BadRequest, "cannot name a socket"),
        ("a\nFDSTORE=1", "127.0.0.1", 0, BadRequest, "cannot name a socket"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_sentence(
    client: HolderClient, name: str, address: str, port: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        client.open(name, address, port)

    assert client.list() == {}


def test_a_name_does_not_move_to_another_port_unasked(client: HolderClient) -> None:
    client.open("dep1", "127.0.0.1", 0)[0].close()

    with pytest.raises(Conflict, match=r"already held on 127\.0\.0\.1"):
        client.open("dep1", "127.0.0.1", 1)


def test_nonsense_is_refused_and_a_client_that_dies_mid_line_harms_nobody(client: HolderClient, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="The holder knows"):
        exchange(tmp_path / "h.sock", {"do": "dance"}, timeout_s=2)
    for part in (b"", b'{"do"', b"x" * 10_000, b"[]\n\xff\n"):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(tmp_path / "h.sock"))
            with contextlib.suppress(BrokenPipeError):
                line.sendall(part)

    assert client.list() == {}


def test_many_clients_at_once_are_all_answered(client: HolderClient, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            line = stack.enter_context(socket.socket(socket.AF_UNIX))
            line.connect(str(tmp_path / "h.sock"))

        assert client.list() == {}


def test_another_user_is_not_answered(client: HolderClient, tmp_path: Path) -> None:
    client.open("dep1", "127.0.0.1", 0)[0].close()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "h.sock").chmod(0o666)
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(5)\n"
        "try:\n    s.sendall(b'{\"do\": \"list\"}\\n'); print(s.recv(100))\nexcept OSError:\n    print(b'')"
    )

    found = subprocess.run(
        ["/usr/bin/python3", "-c", script, str(tmp_path / "h.sock")],
        user=65534,
        group=65534,
        capture_output=True,
        text=True,
        check=True,
    )

    assert found.stdout.strip() == "b''"


def test_the_socket_file_is_for_its_owner_alone(client: HolderClient, tmp_path: Path) -> None:
    assert (tmp_path / "h.sock").stat().st_mode & 0o777 == 0o600


def test_a_second_holder_is_refused_and_a_dead_ones_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"
    with holder(path) as first, holder(path) as second:
        assert second.wait(10) == 1
        assert second.stderr is not None
        assert "Another holder already answers" in second.stderr.read()
        first.kill()
        first.wait()
        assert path.exists()

    with pytest.raises(EngineBusy):
        HolderClient(path).list()
    with holder(path):
        assert HolderClient(path).list() == {}


def test_the_hosts_half_loads_nothing_heavy() -> None:
    script = "import sys, appliance.inference.control, appliance.inference.holder; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert not {"numpy", "onnxruntime", "uvloop", "orjson", "asyncio"} & set(loaded.split())


def test_it_stays_small(tmp_path: Path) -> None:
    with holder(tmp_path / "h.sock") as process:
        status = Path(f"/proc/{process.pid}/status").read_text()

    resident_kib = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert resident_kib < 25 * 1024


def _datagram(door: socket.socket) -> tuple[bytes, list[int]]:
    text, numbers, _, _ = socket.recv_fds(door, 4096, 4)
    return text, numbers


def test_systemd_is_told_ready_fed_its_watchdog_and_given_the_sockets_to_keep(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10)
        with holder(tmp_path / "h.sock", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000"):
            seen = [_datagram(systemd)[0] for _ in range(3)]
            HolderClient(tmp_path / "h.sock").open("dep1", "127.0.0.1", 0)[0].close()
            kept = _next(systemd, lambda text: text.startswith(b"FDSTORE=1"))
            HolderClient(tmp_path / "h.sock").close("dep1")
            gone = _next(systemd, lambda text: text.startswith(b"FDSTOREREMOVE=1"))

    assert seen[0].startswith(b"READY=1")
    assert b"WATCHDOG=1" in seen
    assert kept[0] == b"FDSTORE=1\nFDNAME=dep1"
    assert len(kept[1]) == 1
    assert gone[0] == b"FDSTOREREMOVE=1\nFDNAME=dep1"
    os.close(kept[1][0])


def _next(door: socket.socket, wanted: Callable[[bytes], bool]) -> tuple[bytes, list[int]]:
    while True:
        found = _datagram(door)
        if wanted(found[0]):
            return found


def test_a_restarted_holder_has_the_sockets_that_systemd_kept(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept:
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid())\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'appliance.inference.holder', '--socket', sys.argv[2]])"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(kept.fileno()), str(tmp_path / "h.sock")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "dep1"},
            pass_fds=(kept.fileno(),),
        )
        try:
            wait_until(lambda: _answers(tmp_path / "h.sock"), 10, "the holder answers")
            assert HolderClient(tmp_path / "h.sock").list() == {"dep1": ("127.0.0.1", port_of(kept))}
        finally:
            process.kill()
            process.wait()


def test_a_killed_replica_and_a_gone_daemon_leave_the_socket_and_the_next_replica_answers(tmp_path: Path) -> None:
    model = iris(tmp_path / "m")
    ask = post("/v2/models/m/infer", bytes(16), "Inference-Header-Content-Length: 0\r\n")
    with holder(tmp_path / "h.sock"):
        opened, port = HolderClient(tmp_path / "h.sock").open("dep1", "127.0.0.1", 0)
        with replica(tmp_path / "a", model) as first, opened:
            first.serve_on(opened)
            first.process.kill()
            first.process.wait()

        with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
            line.sendall(ask)
            with replica(tmp_path / "b", model) as second, HolderClient(tmp_path / "h.sock").get("dep1") as again:
                second.serve_on(again)
                assert read_response(line, bytearray())[0] == 200
