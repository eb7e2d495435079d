"""ONNX Runtime, and the only module that imports it.

What this keeps true: a `Model` that exists is loaded, has answered once where its shapes allow a trial, and speaks the
datatypes of `tensors`; anything else is one sentence that names the file. What runs it is told by the session itself
(`providers`): the list of the *available* ones claims CUDA on machines without a card. Weights kept beside the
model's file are read only from inside the model's folder.

Why one thread for each instance: `intra_op_num_threads` above 1 has ugly tails when the other cores are busy;
throughput comes from several instances, and ONNX Runtime releases the interpreter's lock while it runs.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# ONNX Runtime 1.32 gathers telemetry on Linux too, and would send it; it reads this when it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

from appliance.errors import BadRequest, EngineRefused, NotFound
from appliance.inference.protocol import Signature
from appliance.inference.tensors import DTYPES, Array, TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_TRIAL_LIMIT_ELEMENTS = 16 * 1024 * 1024
_DEAR_S = 0.05


class Model:
    """One loaded model. `run` may be called from several threads at once."""

    def __init__(self, path: Path, name: str, version: str, threads: int) -> None:
        self.path = find_file(path)
        self._session = _session(self.path, threads)
        self.signature = Signature(
            name=name,
            version=version,
            inputs=tuple(_spec(self.path, item) for item in self._session.get_inputs()),
            outputs=tuple(_spec(self.path, item) for item in self._session.get_outputs()),
        )
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())

    @property
    def on_gpu(self) -> bool:
        return "CUDAExecutionProvider" in self.providers

    def run(self, feeds: Mapping[str, Array], names: Sequence[str]) -> list[Array]:
        """The outputs `names`, in that order. Raises `BadRequest` when the model refuses what it was given."""
        try:
            answers = self._session.run(list(names), dict(feeds))
        except Exception as error:  # ONNX Runtime raises a dozen classes of its own, and RuntimeError
            raise BadRequest(
                f"Model {self.signature.name!r} could not compute this request: {_plain(error)}"
            ) from error
        return [np.asarray(answer) for answer in answers]

    def trial(self) -> float | None:
        """Seconds of a run on zeros with every free size 1, the best of some; None where the model does not take that."""
        shapes = {
            spec.name: tuple(max(size, 1) if size == -1 else size for size in spec.shape) for spec in self._inputs
        }
        if sum(int(np.prod(shape)) for shape in shapes.values()) > _TRIAL_LIMIT_ELEMENTS:
            return None
        feeds = {spec.name: _zeros(spec, shapes[spec.name]) for spec in self._inputs}
        names = [spec.name for spec in self.signature.outputs]
        try:
            first = self._timed(feeds, names)
            return first if first > _DEAR_S else min(self._timed(feeds, names) for _ in range(3))
        except BadRequest:
            return None

    def _timed(self, feeds: Mapping[str, Array], names: Sequence[str]) -> float:
        began = time.perf_counter()
        self.run(feeds, names)
        return time.perf_counter() - began

    @property
    def _inputs(self) -> tuple[TensorSpec, ...]:
        return self.signature.inputs


def find_file(path: Path) -> Path:
    """The model's file: `path` itself, or in that folder `model.onnx`, or `1/model.onnx`, or its only `*.onnx`.

    Raises `NotFound` in one sentence that says where it looked.
    """
    if path.is_file():
        return path
    for candidate in (path / "model.onnx", path / "1" / "model.onnx"):
        if candidate.is_file():
            return candidate
    found = sorted(path.glob("*.onnx"))
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(f"There are {len(found)} .onnx files in {path}; name the one to serve model.onnx.")
    raise NotFound(f"There is no model in {path}: it needs a file model.onnx, or 1/model.onnx, or one *.onnx.")


def _session(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    available = onnxruntime.get_available_providers()
    wanted = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    if "CUDAExecutionProvider" in wanted and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=wanted)
    except Exception as error:  # as above: no common base class but Exception
        raise EngineRefused(f"The model file {path} cannot be served: {_plain(error)}") from error


def _plain(error: Exception) -> str:
    """ONNX Runtime's own words as one sentence, without its codes and source positions."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"/\S*onnxruntime/\S+ ?|Error: (?=\S+\.cc:)|\S+\.cc:\d+ \w+ ", "", text)
    return text[:400].rstrip(". ") + "."


def _spec(path: Path, item: Any) -> TensorSpec:
    datatype = _DATATYPES.get(item.type)
    if datatype is None:
        raise EngineRefused(
            f"The model file {path} cannot be served: {item.name!r} is a {item.type}, which no tensor of the protocol"
            " can carry (scikit-learn models: convert with options={'zipmap': False})."
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in item.shape)
    return TensorSpec(name=item.name, datatype=datatype, shape=shape)


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.datatype == "BYTES":
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, DTYPES[spec.datatype])
