"""Real serving processes on real sockets, asked by the unmodified tritonclient and by hand."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from inference_help import (
    KEY,
    Replica,
    digest,
    get,
    identity,
    iris,
    listening,
    mixed,
    port_of,
    post,
    read_response,
    replica,
    slow,
    talk,
)
from tritonclient.utils import InferenceServerException
from waiting import wait_until

from appliance.errors import BadRequest, EngineBusy, EngineRefused
from appliance.inference import control
from appliance.inference.onnx import Model

FEATURES = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], np.float32)
INFER = "/v2/models/iris/infer"
ASK = json.dumps(
    {"inputs": [{"name": "features", "shape": [2, 4], "datatype": "FP32", "data": FEATURES.ravel().tolist()}]}
).encode()


def bearer() -> dict[str, str]:
    """Fresh for each call: tritonclient writes its own headers into the dictionary it is given."""
    return {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return iris(tmp_path_factory.mktemp("iris"))


@pytest.fixture(scope="module")
def serving(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replica, int]]:
    """An iris model behind one key, bodies up to 1 MiB."""
    with (
        listening() as sock,
        replica(tmp_path_factory.mktemp("serving"), model, "iris", keys=[digest(KEY)], max_body_mib=1) as one,
    ):
        one.serve_on(sock)
        yield one, port_of(sock)


@pytest.fixture
def port(serving: tuple[Replica, int]) -> int:
    return serving[1]


@contextlib.contextmanager
def client(port: int, base: str = "") -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}{base}") as one:
        yield one


def features(binary: bool = True, array: np.ndarray = FEATURES) -> triton.InferInput:
    tensor = triton.InferInput("features", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def expected(model: Path) -> list[np.ndarray]:
    return Model(model, "iris", "1", 1).run({"features": FEATURES}, ["label", "probabilities"])


# -- the field's client ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("base", ["", "/serving/dep1"])
def test_tritonclient_is_answered_in_every_form(
    port: int, model: Path, binary_in: bool, binary_out: bool | None, base: str
) -> None:
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "probabilities")]

    with client(port, base) as one:
        answer = one.infer("iris", [features(binary_in)], outputs=outputs, headers=bearer(), request_id="r1")

    label, probabilities = expected(model)
    assert np.array_equal(answer.as_numpy("label"), label)
    assert np.allclose(answer.as_numpy("probabilities"), probabilities, rtol=1e-6)
    assert answer.get_response()["id"] == "r1"


@pytest.mark.parametrize("sent", [None, "gzip", "deflate"])
@pytest.mark.parametrize("asked", [None, "gzip", "deflate"])
def test_tritonclient_may_compress_both_ways(port: int, sent: str | None, asked: str | None) -> None:
    many = np.tile(FEATURES, (100, 1))

    with client(port) as one:
        answer = one.infer(
            "iris",
            [features(array=many)],
            headers=bearer(),
            request_compression_algorithm=sent,
            response_compression_algorithm=asked,
        )

    assert answer.as_numpy("probabilities").shape == (200, 3)


def test_tritonclient_learns_what_the_model_is(port: int) -> None:
    with client(port) as one:
        assert one.is_server_live()
        assert one.is_server_ready()
        assert one.is_model_ready("iris", headers=bearer())
        assert one.is_model_ready("iris", "1", headers=bearer())
        server, model = one.get_server_metadata(headers=bearer()), one.get_model_metadata("iris", headers=bearer())
        config = one.get_model_config("iris", headers=bearer())
        index = one.get_model_repository_index(headers=bearer())
        before = one.get_inference_statistics("iris", headers=bearer())["model_stats"][0]["inference_count"]
        one.infer("iris", [features()], headers=bearer())
        after = one.get_inference_statistics(headers=bearer())["model_stats"][0]["inference_count"]

    assert "binary_tensor_data" in server["extensions"]
    assert model["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}]
    assert [output["name"] for output in model["outputs"]] == ["label", "probabilities"]
    assert config["input"] == [{"name": "features", "data_type": "TYPE_FP32", "dims": [-1, 4]}]
    assert index == [{"name": "iris", "version": "1", "state": "READY", "reason": ""}]
    assert after == before + 1


def test_tritonclient_may_ask_for_classes(port: int, model: Path) -> None:
    with client(port) as one:
        output = triton.InferRequestedOutput("probabilities", class_count=2)
        answer = one.infer("iris", [features()], outputs=[output], headers=bearer()).as_numpy("probabilities")

    assert answer.shape == (2, 2)
    assert [int(text.decode().split(":")[1]) for text in answer[:, 0]] == expected(model)[0].tolist()


def test_tritonclient_is_told_in_one_sentence_what_it_did_wrong(port: int) -> None:
    wrong = features(array=np.zeros((1, 5), np.float32))

    with client(port) as one, pytest.raises(InferenceServerException, match=r"takes shape \[-1, 4\]"):
        one.infer("iris", [wrong], headers=bearer())
    with client(port) as one, pytest.raises(InferenceServerException, match="There is no model 'other' here"):
        one.infer("other", [features()], headers=bearer())


def test_strings_halves_scalars_and_flags_go_through_in_both_forms(tmp_path: Path) -> None:
    arrays = {
        "a": ("INT32", np.arange(16, dtype=np.int32).reshape(1, 16)),
        "b": ("INT32", np.ones((1, 16), np.int32)),
        "texts": ("BYTES", np.array(["ä", "", "z" * 300], dtype=object)),
        "half": ("FP16", np.array([[1.5, -2]], np.float16)),
        "scalar": ("INT64", np.array(2**40, np.int64)),
        "flags": ("BOOL", np.array([True, False])),
    }

    with listening() as sock, replica(tmp_path / "r", mixed(tmp_path / "m"), "my model:1") as one:
        one.serve_on(sock)
        with client(port_of(sock)) as asked:
            for binary in (True, False):
                inputs = [triton.InferInput(name, list(array.shape), kind) for name, (kind, array) in arrays.items()]
                for tensor, (kind, array) in zip(inputs, arrays.values(), strict=True):
                    tensor.set_data_from_numpy(array, binary_data=binary or kind == "FP16")
                outputs = [
                    triton.InferRequestedOutput(name, binary_data=binary)
                    for name in ("sum", "texts_out", "half_out", "scalar_out", "flags_out")
                ]
                answer = asked.infer("my model:1", inputs, outputs=outputs)

                assert answer.as_numpy("sum").tolist() == [list(range(1, 17))]
                texts = [text.decode() if isinstance(text, bytes) else text for text in answer.as_numpy("texts_out")]
                assert texts == ["ä", "", "z" * 300]
                assert answer.as_numpy("half_out").tolist() == [[1.5, -2]]
                assert answer.as_numpy("scalar_out").tolist() == 2**40
                assert answer.as_numpy("flags_out").tolist() == [True, False]


def test_a_large_body_arrives_whole(tmp_path: Path) -> None:
    array = np.random.default_rng(1).random(3_000_000, np.float32)

    with listening() as sock, replica(tmp_path / "r", identity(tmp_path / "m")) as one:
        one.serve_on(sock)
        with client(port_of(sock)) as asked:
            tensor = triton.InferInput("x", [len(array)], "FP32").set_data_from_numpy(array)
            assert np.array_equal(asked.infer("m", [tensor]).as_numpy("y"), array)
        status, _, body = talk(
            port_of(sock), post("/v2/models/m/infer", array.tobytes(), "Inference-Header-Content-Length: 0\r\n")
        )

    assert status == 200
    assert body.endswith(array.tobytes())


# -- keys --------------------------------------------------------------------------------------------------------------


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize(
    "header, status",
    [
        ("", 401),
        (f"Authorization: Bearer {KEY}\r\n", 200),
        (f"authorization: bearer {KEY}\r\n", 200),
        (f"X-API-Key: {KEY}\r\n", 200),
        (f"Authorization: {basic(KEY)}\r\n", 200),
        (f"Authorization: Bearer {KEY}x\r\n", 401),
        ("Authorization: Bearer \r\n", 401),
        (f"Authorization: {KEY}\r\n", 401),
        (f"Authorization: Bearer {digest(KEY)}\r\n", 401),
        (f"Authorization: {basic('wrong')}\r\n", 401),
        ("Authorization: Basic %%%\r\n", 401),
        ("X-API-Key: ä\r\n", 401),
    ],
)
def test_only_a_right_key_opens(port: int, header: str, status: int) -> None:
    for request in (get("/v2", header), post(INFER, ASK, header), get("/serving/dep1/v2/models/iris", header)):
        found, _, body = talk(port, request)

        assert found == status
        assert status == 200 or "needs a key" in json.loads(body)["error"]


def test_health_is_open_and_nothing_else_is(port: int) -> None:
    assert talk(port, get("/v2/health/live"))[0] == 200
    assert talk(port, get("/serving/dep1/v2/health/ready"))[0] == 200
    for path in (
        "/",
        "/v2/health/live/",
        "/v2/health/live/../../models/iris",
        "/v2/%68ealth/live",
        "/serving/other/v2/health/live",
    ):
        assert talk(port, get(path))[0] == 401, path


def test_keys_are_swapped_while_it_serves(tmp_path: Path, model: Path) -> None:
    with listening() as sock, replica(tmp_path, model, "iris", keys=[digest("old")]) as one:
        one.serve_on(sock)
        old, new = get("/v2", "X-API-Key: old\r\n"), get("/v2", "X-API-Key: new\r\n")
        assert (talk(port_of(sock), old)[0], talk(port_of(sock), new)[0]) == (200, 401)

        control.configure(one.control, (digest("new"), digest("newer")))
        assert (talk(port_of(sock), old)[0], talk(port_of(sock), new)[0]) == (401, 200)

        control.configure(one.control, ())
        assert talk(port_of(sock), get("/v2"))[0] == 200


# -- HTTP by hand ------------------------------------------------------------------------------------------------------

AUTH = f"X-API-Key: {KEY}\r\n"
CHUNKED = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{AUTH}Transfer-Encoding: chunked\r\n\r\n".encode()


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


BAD = {
    "no such path": (get("/v3", AUTH), 404, "There is nothing at /v3"),
    "no such model": (get("/v2/models/x", AUTH), 404, "There is no model 'x' here"),
    "no such version": (get("/v2/models/iris/versions/9", AUTH), 404, "of version '9'"),
    "no such verb of a model": (get("/v2/models/iris/dance", AUTH), 404, "There is nothing at"),
    "another deployment's prefix": (get("/serving/other/v2", AUTH), 404, "There is nothing at"),
    "infer by GET": (get(INFER, AUTH), 405, "takes POST alone"),
    "metadata by POST": (post("/v2/models/iris", b"{}", AUTH), 405, "takes GET alone"),
    "another method": (b"DELETE /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 405, "DELETE is not allowed here"),
    "a path that is not UTF-8": (get("/v2/models/%ff", AUTH), 400, "not UTF-8"),
    "no JSON": (post(INFER, b"{", AUTH), 400, "not valid JSON"),
    "an empty body": (post(INFER, b"", AUTH), 400, "not valid JSON"),
    "a wrong header length": (
        post(INFER, ASK, AUTH + "Inference-Header-Content-Length: 9999\r\n"),
        400,
        "Inference-Header-Content-Length",
    ),
    "a body that is no gzip": (post(INFER, ASK, AUTH + "Content-Encoding: gzip\r\n"), 400, "not valid gzip"),
    "an unknown coding": (post(INFER, ASK, AUTH + "Content-Encoding: br\r\n"), 415, "gzip and deflate"),
    "a bomb": (post(INFER, gzip.compress(bytes(2**21)), AUTH + "Content-Encoding: gzip\r\n"), 413, "1 MiB"),
    "a body announced too large": (
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{AUTH}Content-Length: 2000000\r\n\r\n".encode(),
        413,
        "larger than 1 MiB",
    ),
    "a body chunked too large": (CHUNKED + chunked(bytes(1_200_000), 65536), 413, "larger than 1 MiB"),
    "a bad chunk": (CHUNKED + b"zz\r\n", 400, "hexadecimal"),
    "a head too large": (get("/v2", "X: " + "a" * 40000 + "\r\n"), 431, "32 KiB"),
    "a head without an end": (b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 40000, 431, "32 KiB"),
    "bare line feeds": (b"GET /v2 HTTP/1.1\nHost: x\n\n", 400, "CRLF"),
    "both framings": (
        post(INFER, ASK, AUTH + "Transfer-Encoding: chunked\r\n"),
        400,
        "neither beside Content-Length",
    ),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "CRLF, or a NUL"),
}


@pytest.mark.parametrize("request_bytes, status, words", BAD.values(), ids=BAD.keys())
def test_a_bad_request_gets_its_status_and_one_sentence(
    port: int, request_bytes: bytes, status: int, words: str
) -> None:
    found, headers, body = talk(port, request_bytes)

    sentence = json.loads(body)["error"]
    assert (found, headers["content-type"]) == (status, "application/json")
    assert words in sentence
    assert sentence.endswith(".")
    assert talk(port, get("/v2/health/ready"))[0] == 200


def test_a_request_hidden_in_a_refused_one_is_never_answered(port: int) -> None:
    hidden = get("/v2/health/live")
    smuggled = (
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{AUTH}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )

    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(smuggled.encode() + hidden)
        rest = bytearray()
        status, headers, _ = read_response(line, rest)

        assert (status, headers["connection"]) == (400, "close")
        with pytest.raises(EOFError):
            read_response(line, rest)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_chunked_body_is_read(port: int, size: int) -> None:
    assert talk(port, CHUNKED + chunked(ASK, size))[0] == 200


def test_requests_sent_at_once_are_answered_in_order(port: int) -> None:
    requests = [
        get("/v2/health/live"),
        post(INFER, ASK, AUTH),
        get("/v9", AUTH),
        CHUNKED + chunked(ASK, 9),
        get("/v2", AUTH),
    ]

    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(b"".join(requests * 20))
        line.shutdown(socket.SHUT_WR)
        rest = bytearray()
        found = [read_response(line, rest)[0] for _ in range(100)]

    assert found == [200, 200, 404, 200, 200] * 20


def test_a_request_may_come_byte_by_byte(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post(INFER, ASK, AUTH):
            line.send(bytes([byte]))

        assert read_response(line, bytearray())[0] == 200


def test_head_has_the_headers_alone_and_the_connection_goes_on(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        rest = bytearray()
        line.sendall(get("/v2", AUTH).replace(b"GET", b"HEAD"))
        status, headers, _ = read_response(line, rest, head_only=True)
        line.sendall(get("/v2", AUTH))
        _, _, body = read_response(line, rest)

    assert status == 200
    assert int(headers["content-length"]) == len(body)


def test_who_waits_to_be_told_to_go_on_is_told_or_refused(port: int) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(ASK)}\r\nExpect: 100-continue\r\n"

    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall((head + AUTH + "\r\n").encode())
        assert line.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.sendall(ASK)
        assert read_response(line, bytearray())[0] == 200
    assert talk(port, (head + "\r\n").encode())[0] == 401


def test_a_refused_body_is_read_past_and_the_connection_kept(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        rest = bytearray()
        line.sendall(post(INFER, bytes(200_000)) + get("/v2/health/live"))

        assert read_response(line, rest)[0] == 401
        assert read_response(line, rest)[0] == 200


def test_http_1_0_is_answered_and_closed_unless_it_asks(port: int) -> None:
    for keep in (False, True):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
            rest = bytearray()
            line.sendall(
                b"GET /v2/health/live HTTP/1.0\r\n" + (b"Connection: keep-alive\r\n" if keep else b"") + b"\r\n"
            )
            _, headers, _ = read_response(line, rest)

            assert headers["connection"] == ("keep-alive" if keep else "close")
            if not keep:
                assert line.recv(1) == b""


# -- its life ----------------------------------------------------------------------------------------------------------


def test_nobody_at_the_control_socket_is_engine_busy_and_a_link_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineBusy, match="Nobody answers"):
        control.status(tmp_path / "control.sock")

    elsewhere = tmp_path / ("long" * 40) / "elsewhere.sock"
    elsewhere.parent.mkdir()
    (tmp_path / "control.sock").symlink_to(elsewhere)
    with socket.socket(socket.AF_UNIX) as door:
        monkeypatch.chdir(elsewhere.parent)
        door.bind("elsewhere.sock")
        door.listen()
        assert stat.S_ISSOCK((tmp_path / "control.sock").stat().st_mode)
        with pytest.raises(EngineRefused, match="not a socket"):
            control.status(tmp_path / "control.sock")
    (tmp_path / "file").touch()
    with pytest.raises(EngineRefused, match="not a socket"):
        control.status(tmp_path / "file")


@pytest.mark.parametrize(
    "answer, error",
    [
        (b"nonsense\n", EngineRefused),
        (b"[1]\n", EngineRefused),
        (b"", EngineBusy),
        (b'{"state": "dancing"}\n', EngineRefused),
        (b'{"error": "no", "code": "BAD_REQUEST"}\n', BadRequest),
        (b"x" * 100_000, EngineRefused),
    ],
)
def test_a_container_that_lies_is_not_believed(tmp_path: Path, answer: bytes, error: type[Exception]) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "s"))
        door.listen()

        def lie() -> None:
            with door.accept()[0] as line:
                line.recv(1000)
                with contextlib.suppress(OSError):
                    line.sendall(answer)

        liar = threading.Thread(target=lie)
        liar.start()
        with pytest.raises(error):
            control.status(tmp_path / "s")
        liar.join()


def test_a_container_that_never_answers_does_not_hold_the_daemon_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "s"))
        door.listen()
        began = time.monotonic()

        with pytest.raises(EngineBusy):
            control.status(tmp_path / "s", timeout_s=0.2)

    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda folder: None, "There is no model in"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"nonsense"), "model.onnx cannot be served"),
        (lambda folder: (folder / "model.onnx").touch(), "model.onnx cannot be served"),
        (lambda folder: [(folder / name).touch() for name in ("a.onnx", "b.onnx")], "There are 2 .onnx files"),
    ],
)
def test_a_broken_model_says_so_in_one_sentence_and_takes_no_socket(
    tmp_path: Path, make: Callable[[Path], Any], words: str
) -> None:
    (tmp_path / "m").mkdir()
    make(tmp_path / "m")

    with replica(tmp_path / "r", tmp_path / "m") as one, listening() as sock:
        found = one.wait_for("failed")
        assert words in (found.error or "")
        assert str(tmp_path / "m") in (found.error or "")
        with pytest.raises(EngineRefused):
            control.listen(one.control, sock)
        control.drain(one.control)
        assert one.process.wait(10) == 0


@pytest.mark.parametrize("place", ["../secret", "link"])
def test_weights_outside_the_models_folder_are_not_read(tmp_path: Path, place: str) -> None:
    found = onnx.load(iris(tmp_path / "m") / "model.onnx")
    weight = found.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=place)
    (tmp_path / "m" / "model.onnx").write_bytes(found.SerializeToString())
    (tmp_path / "secret").write_bytes(bytes(256))
    (tmp_path / "m" / "link").symlink_to(tmp_path / "secret")

    with pytest.raises(EngineRefused, match=r"model\.onnx cannot be served: .*escapes model directory"):
        Model(tmp_path / "m", "m", "1", 1)


def test_onnx_runtime_keeps_no_telemetry(tmp_path: Path) -> None:
    """It would write a device id and what it wants to send below the home folder as soon as it is imported."""
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}

    subprocess.run(
        [sys.executable, "-c", "import appliance.inference.onnx"],
        cwd=Path(__file__).parents[1],
        env=environment,
        check=True,
        timeout=60,
    )

    assert list(tmp_path.rglob("*")) == []


def test_only_a_listening_tcp_socket_is_taken(serving: tuple[Replica, int]) -> None:
    with socket.socket() as plain, pytest.raises(BadRequest, match="one listening TCP socket"):
        control.listen(serving[0].control, plain)
    with pytest.raises(BadRequest, match="one listening TCP socket"):
        control.exchange(serving[0].control, {"do": "listen"}, timeout_s=2)
    with pytest.raises(BadRequest, match="knows status"):
        control.exchange(serving[0].control, {"do": "dance"}, timeout_s=2)


def test_the_same_socket_may_be_handed_in_again(tmp_path: Path, model: Path) -> None:
    with listening() as sock, replica(tmp_path, model, "iris") as one:
        one.serve_on(sock)
        one.serve_on(sock)

        assert one.status() is not None
        assert one.wait_for("serving").providers == ("CPUExecutionProvider",)
        assert all(talk(port_of(sock), post(INFER, ASK))[0] == 200 for _ in range(5))
        assert one.wait_for("serving").requests == 5


def test_a_client_that_came_before_any_replica_waits_and_is_answered(tmp_path: Path, model: Path) -> None:
    with listening() as sock, socket.create_connection(("127.0.0.1", port_of(sock)), timeout=30) as line:
        line.sendall(post(INFER, ASK))

        with replica(tmp_path, model, "iris") as one:
            one.serve_on(sock)
            assert read_response(line, bytearray())[0] == 200


@pytest.mark.parametrize("how", ["control", "signal"])
def test_draining_answers_what_is_in_flight_and_one_more_request_of_idle_connections(tmp_path: Path, how: str) -> None:
    ones = np.full((512, 512), 1 / 512, np.float32).tobytes()
    big = post("/v2/models/m/infer", ones, "Inference-Header-Content-Length: 0\r\n")

    with listening() as sock, replica(tmp_path / "r", slow(tmp_path / "m", 150)) as one:
        one.serve_on(sock)
        where = ("127.0.0.1", port_of(sock))
        with socket.create_connection(where, timeout=20) as busy, socket.create_connection(where, timeout=20) as idle:
            rest = bytearray()
            idle.sendall(get("/v2"))
            assert "connection" not in read_response(idle, rest)[1]
            busy.sendall(big)
            wait_until(lambda: one.wait_for("serving").inflight == 1, 5, "the request is being computed")

            if how == "signal":
                one.process.send_signal(signal.SIGTERM)
            else:
                control.drain(one.control)
                control.drain(one.control)
            one.wait_for("draining")

            status, headers, body = read_response(busy, bytearray())
            assert (status, headers["connection"]) == (200, "close")
            assert body.endswith(ones)
            assert one.process.poll() is None
            idle.sendall(get("/v2/models/m"))
            status, headers, _ = read_response(idle, rest)
            assert (status, headers["connection"]) == (200, "close")
            assert idle.recv(1) == b""
        assert one.process.wait(5) == 0


def test_an_idle_connection_holds_draining_up_to_its_deadline_and_no_longer(tmp_path: Path, model: Path) -> None:
    with listening() as sock, replica(tmp_path, model, "iris", drain_s=0.5) as one:
        one.serve_on(sock)
        with socket.create_connection(("127.0.0.1", port_of(sock))) as idle:
            idle.sendall(get("/v2"))
            read_response(idle, bytearray())
            began = time.monotonic()
            control.drain(one.control)

            assert one.process.wait(10) == 0
            assert 0.3 < time.monotonic() - began < 3


class Asker(threading.Thread):
    """Asks all the time, on a connection of its own for each request or on one that is kept; counts what went wrong."""

    def __init__(self, port: int, keep: bool) -> None:
        super().__init__()
        self.answered, self.wrong = 0, []
        self._port, self._keep, self._ended = port, keep, threading.Event()
        self.start()

    def run(self) -> None:
        line, rest = None, bytearray()
        while not self._ended.is_set():
            try:
                if line is None:
                    line, rest = socket.create_connection(("127.0.0.1", self._port), timeout=20), bytearray()
                line.sendall(post(INFER, ASK, "" if self._keep else "Connection: close\r\n"))
                status, headers, _ = read_response(line, rest)
                if status != 200:
                    self.wrong.append(status)
                self.answered += 1
            except (OSError, EOFError) as error:
                self.wrong.append(error)
                headers = {"connection": "close"}
            if headers.get("connection") == "close" and line is not None:
                line.close()
                line = None
        if line is not None:
            line.close()

    def stop(self) -> None:
        self._ended.set()
        self.join()


def test_a_roll_over_fails_not_one_request(tmp_path: Path, model: Path) -> None:
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(listening())
        old = stack.enter_context(replica(tmp_path / "0", model, "iris"))
        old.serve_on(sock)
        askers = [Asker(port_of(sock), keep) for keep in (True, True, False, False)]
        try:
            for turn in range(1, 4):
                before = [asker.answered for asker in askers]
                new = stack.enter_context(replica(tmp_path / str(turn), model, "iris"))
                new.serve_on(sock)
                control.drain(old.control)
                assert old.process.wait(10) == 0
                wait_until(
                    lambda before=before: all(a.answered > b + 20 for a, b in zip(askers, before, strict=True)),
                    10,
                    "every client goes on being answered",
                )
                old = new
        finally:
            for asker in askers:
                asker.stop()

    assert [asker.wrong for asker in askers] == [[], [], [], []]


def test_two_replicas_share_one_socket_and_one_that_dies_takes_no_waiting_client_along(
    tmp_path: Path, model: Path
) -> None:
    with (
        listening() as sock,
        replica(tmp_path / "a", model, "iris") as a,
        replica(tmp_path / "b", model, "iris") as b,
    ):
        a.serve_on(sock)
        b.serve_on(sock)

        def both() -> bool:
            assert talk(port_of(sock), post(INFER, ASK))[0] == 200
            return a.wait_for("serving").requests > 0 and b.wait_for("serving").requests > 0

        wait_until(both, 20, "both replicas were asked")
        os.kill(a.process.pid, signal.SIGKILL)
        a.process.wait()
        assert all(talk(port_of(sock), post(INFER, ASK))[0] == 200 for _ in range(20))


def test_a_dear_request_does_not_hold_up_a_cheap_one(tmp_path: Path) -> None:
    ones = np.full((512, 512), 1 / 512, np.float32).tobytes()

    with listening() as sock, replica(tmp_path / "r", slow(tmp_path / "m", 100)) as one:
        one.serve_on(sock)
        with socket.create_connection(("127.0.0.1", port_of(sock)), timeout=20) as busy:
            busy.sendall(post("/v2/models/m/infer", ones, "Inference-Header-Content-Length: 0\r\n"))
            wait_until(lambda: one.wait_for("serving").inflight == 1, 5, "the request is being computed")
            assert talk(port_of(sock), get("/v2/health/live"))[0] == 200
            assert one.wait_for("serving").inflight == 1
            assert read_response(busy, bytearray())[0] == 200


def test_requests_behind_a_dear_one_are_answered_in_order_though_the_client_has_half_closed(tmp_path: Path) -> None:
    ones = np.full((512, 512), 1 / 512, np.float32).tobytes()
    big = post("/v2/models/m/infer", ones, "Inference-Header-Content-Length: 0\r\n")

    with listening() as sock, replica(tmp_path / "r", slow(tmp_path / "m", 20)) as one:
        one.serve_on(sock)
        with socket.create_connection(("127.0.0.1", port_of(sock)), timeout=20) as line:
            line.sendall(big + get("/v2") * 3 + big + get("/v9"))
            line.shutdown(socket.SHUT_WR)
            rest = bytearray()
            answers = [read_response(line, rest) for _ in range(6)]

            assert [status for status, _, _ in answers] == [200, 200, 200, 200, 200, 404]
            assert [len(body) > len(ones) for _, _, body in answers] == [True, False, False, False, True, False]
            assert line.recv(1) == b""


def test_a_client_that_goes_away_harms_nobody(serving: tuple[Replica, int]) -> None:
    one, port = serving
    for data in (b"", b"GET", post(INFER, ASK, AUTH), post(INFER, ASK, AUTH)[:-5], CHUNKED + b"5\r\nab"):
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.sendall(data)

    assert talk(port, post(INFER, ASK, AUTH))[0] == 200
    wait_until(lambda: one.wait_for("serving").inflight == 0, 5, "nothing is left in flight")
