"""What the tests of serving share: small real models, real serving processes, a plain socket client."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from waiting import wait_until

from appliance.errors import EngineBusy
from appliance.inference import control

KEY = "dk_right"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] = ()) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path / "model.onnx")
    return path


def info(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def iris(path: Path) -> Path:
    """4 → 16 → 3 and softmax: `label` INT64 [n] and `probabilities` FP32 [n,3] from `features` FP32 [n,4]."""
    rng = np.random.default_rng(7)
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in (("w1", (4, 16)), ("b1", (16,)), ("w2", (16, 3)), ("b2", (3,)))
    ]
    nodes = [
        helper.make_node("Gemm", ["features", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"], axis=-1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=-1, keepdims=0),
    ]
    return save(
        path,
        nodes,
        [info("features", TensorProto.FLOAT, ["n", 4])],
        [info("label", TensorProto.INT64, ["n"]), info("probabilities", TensorProto.FLOAT, ["n", 3])],
        weights,
    )


def mixed(path: Path) -> Path:
    """Two inputs and every kind of trouble: `sum` = `a` INT32 [1,16] + `b`; `texts`, `half`, `scalar`, `flags` come back."""
    passed = (
        ("texts", TensorProto.STRING, ["t"]),
        ("half", TensorProto.FLOAT16, ["h", 2]),
        ("scalar", TensorProto.INT64, []),
        ("flags", TensorProto.BOOL, ["f"]),
    )
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"])]
    nodes += [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in passed]
    inputs = [info(name, TensorProto.INT32, [1, 16]) for name in "ab"]
    return save(
        path,
        nodes,
        inputs + [info(name, kind, shape) for name, kind, shape in passed],
        [info("sum", TensorProto.INT32, [1, 16])] + [info(f"{name}_out", kind, shape) for name, kind, shape in passed],
    )


def identity(path: Path) -> Path:
    """`y` = `x`, FP32 of any length."""
    return save(
        path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [info("x", TensorProto.FLOAT, ["n"])],
        [info("y", TensorProto.FLOAT, ["n"])],
    )


def slow(path: Path, rounds: int = 60) -> Path:
    """`y` FP32 [512,512] from `x` [512,512] by so many products: tens of milliseconds."""
    names = ["x", *(f"m{index}" for index in range(rounds - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "x"], [b]) for a, b in itertools.pairwise(names)]
    shape = [512, 512]
    return save(path, nodes, [info("x", TensorProto.FLOAT, shape)], [info("y", TensorProto.FLOAT, shape)])


@dataclass
class Replica:
    """One real serving process."""

    process: subprocess.Popen[bytes]
    control: Path

    def status(self) -> control.ServingStatus | None:
        try:
            return control.status(self.control)
        except EngineBusy:
            assert self.process.poll() is None, "the serving process ended"
            return None

    def wait_for(self, *states: str) -> control.ServingStatus:
        def seen() -> control.ServingStatus | None:
            found = self.status()
            return found if found is not None and found.state in states else None

        found = wait_until(seen, 20, f"the serving process is {states}")
        assert found is not None
        return found

    def serve_on(self, sock: socket.socket) -> None:
        self.wait_for("ready", "serving")
        control.listen(self.control, sock)


@contextlib.contextmanager
def replica(folder: Path, model: Path, name: str = "m", **config: Any) -> Iterator[Replica]:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"deployment": "dep1", "model": name, "path": str(model), "drain_s": 5, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    arguments = ["--control", str(folder / "control.sock"), "--config", str(folder / "config.json")]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "appliance.inference.serve", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        yield Replica(process, folder / "control.sock")
    finally:
        process.kill()
        process.wait()


def listening() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    sock.setblocking(False)
    return sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def read_response(
    line: socket.socket, rest: bytearray, *, head_only: bool = False
) -> tuple[int, dict[str, str], bytes]:
    """The next response on a connection; `rest` keeps what came behind it. Raises EOFError when there is none."""

    def more() -> None:
        part = line.recv(65536)
        if not part:
            raise EOFError(bytes(rest))
        rest.extend(part)

    while b"\r\n\r\n" not in rest:
        more()
    end = rest.index(b"\r\n\r\n")
    first, *lines = bytes(rest[:end]).decode("latin-1").split("\r\n")
    del rest[: end + 4]
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
    size = 0 if head_only else int(headers.get("content-length", 0))
    while len(rest) < size:
        more()
    body = bytes(rest[:size])
    del rest[:size]
    return int(first.split(" ")[1]), headers, body


def talk(port: int, data: bytes, *, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Send bytes on a connection of their own and read one response."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(data)
        return read_response(line, bytearray(), head_only=head_only)


def post(path: str, body: bytes, headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()
