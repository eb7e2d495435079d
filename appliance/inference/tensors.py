"""A tensor's types and its two written forms: nested JSON lists, and raw little-endian bytes.

What this keeps true: a tensor leaves here with exactly the datatype and shape that its request names, or a
`BadRequest` says in one sentence which tensor is wrong and how. Numbers are never rounded or wrapped to fit: 300 is no
UINT8 and 1.5 no INT32. Raw views are aligned or copied, and always contiguous.

Formats: Open Inference Protocol v2 (`inference_rest.md`) and the binary tensor data extension; BYTES elements are
a 4-byte little-endian length and that many bytes. JSON knows no NaN and no infinity: a JSON answer writes null
for them, a binary one carries them as they are. BYTES are text here (UTF-8), as ONNX's strings are.

Why in its own module: both directions of both forms are functions of values, tested without a model or a server.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import BadRequest

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_TYPES: dict[str, set[type]] = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}}
_WORDS = {"b": "true or false", "u": "whole numbers", "i": "whole numbers", "f": "numbers"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model takes or gives under one name. A size of -1 in `shape` is free."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def check_shape(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    """Raises `BadRequest` unless `shape` is one that `spec` takes."""
    fits = len(shape) == len(spec.shape) and all(want in (-1, got) for want, got in zip(spec.shape, shape, strict=True))
    if not fits:
        raise BadRequest(
            f"Input {spec.name!r} takes shape {list(spec.shape)} (-1 is any size) but was given {list(shape)}."
        )


def from_json(spec: TensorSpec, shape: tuple[int, ...], data: Any) -> Array:
    """The tensor that `data`, flat or nested, writes in JSON."""
    if not isinstance(data, list):
        raise BadRequest(f"Input {spec.name!r}: data must be a list.")
    flat = _text_values(spec, data) if spec.datatype == "BYTES" else _numbers(spec, data)
    if flat.size != math.prod(shape):
        raise BadRequest(
            f"Input {spec.name!r} of shape {list(shape)} needs {math.prod(shape)} values but was given {flat.size}."
        )
    return flat.reshape(shape)


def _numbers(spec: TensorSpec, data: list[Any]) -> Array:
    """numpy is told the type and only shown numbers: left to guess, it makes a text array of gigabytes out of one long
    string among numbers, rounds `[2**63, 0]`, and takes "1" and true for 1."""
    dtype = DTYPES[spec.datatype]
    flat = _flat(spec, data)
    if not set(map(type, flat)) <= _TYPES[dtype.kind]:
        raise BadRequest(f"Input {spec.name!r} is {spec.datatype}: its data must be {_WORDS[dtype.kind]}.")
    if dtype.kind in "iu":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if flat and (min(flat) < low or max(flat) > high):
            raise BadRequest(f"Input {spec.name!r}: {spec.datatype} holds {low} to {high}, and a value is outside.")
    with np.errstate(over="ignore"):
        array: Array = np.array(flat, dtype)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequest(f"Input {spec.name!r}: a value is too large for {spec.datatype}.")
    return array


def _flat(spec: TensorSpec, data: list[Any]) -> list[Any]:
    """The values of lists in lists, which must all have the same lengths."""
    while list in (types := set(map(type, data))):
        if len(types) > 1 or len(set(map(len, data))) > 1:
            raise BadRequest(f"Input {spec.name!r}: the lists of its data have different lengths.")
        data = list(itertools.chain.from_iterable(data))
    return data


def _text_values(spec: TensorSpec, data: list[Any]) -> Array:
    flat = _flat(spec, data)
    if not set(map(type, flat)) <= {str}:
        raise BadRequest(f"Input {spec.name!r} is BYTES: its data must be strings.")
    return _texts(flat)


def _texts(items: list[str]) -> Array:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def from_bytes(spec: TensorSpec, shape: tuple[int, ...], raw: bytes | memoryview) -> Array:
    """The tensor whose raw bytes are `raw`: a view on them where they are aligned, else a copy."""
    if spec.datatype == "BYTES":
        texts = _texts(_strings(spec, bytes(raw)))
        if texts.size != math.prod(shape):
            raise BadRequest(
                f"Input {spec.name!r} of shape {list(shape)} needs {math.prod(shape)} strings but has {texts.size}."
            )
        return texts.reshape(shape)
    dtype = DTYPES[spec.datatype]
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) != wanted:
        raise BadRequest(
            f"Input {spec.name!r}, {spec.datatype} of shape {list(shape)}, needs {wanted} bytes but has {len(raw)}."
        )
    if dtype.kind == "b" and wanted and int(np.frombuffer(raw, np.uint8).max()) > 1:
        raise BadRequest(f"Input {spec.name!r} is BOOL: each byte must be 0 or 1.")
    array: Array = np.frombuffer(raw, dtype) if wanted else np.empty(0, dtype)
    return (array if array.flags.aligned else array.copy()).reshape(shape)


def _strings(spec: TensorSpec, raw: bytes) -> list[str]:
    texts, at = [], 0
    try:
        while at < len(raw):
            (size,) = struct.unpack_from("<I", raw, at)
            at += 4 + size
            if at > len(raw):
                raise BadRequest(f"Input {spec.name!r}: a string is longer than the bytes that are left.")
            texts.append(raw[at - size : at].decode())
    except struct.error as error:
        raise BadRequest(f"Input {spec.name!r}: its bytes end within a string's length.") from error
    except UnicodeDecodeError as error:
        raise BadRequest(f"Input {spec.name!r}: a string is not UTF-8, which is all that this model takes.") from error
    return texts


def to_bytes(array: Array) -> bytes | memoryview:
    """The raw form of an answer; a view where the memory is as it must be."""
    if array.dtype.kind in "OUS":
        parts = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
        return b"".join(struct.pack("<I", len(part)) + part for part in parts)
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data


def to_json(array: Array) -> Array | list[Any]:
    """What the JSON writer is given for `data`: a flat array it can write itself, or a list."""
    if array.dtype.kind in "OUS":
        return [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in array.ravel()]
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.astype(np.float32) if flat.dtype == np.float16 else flat


def datatype_of(array: Array) -> str:
    if array.dtype.kind in "OUS":
        return "BYTES"
    return next(name for name, dtype in DTYPES.items() if dtype == array.dtype)


def classify(array: Array, count: int, name: str) -> Array:
    """The `count` largest along the last axis as texts `value:index`, the largest first: the classification extension."""
    if array.ndim == 0 or array.dtype.kind in "OUSb":
        raise BadRequest(f"Output {name!r} cannot be classified: it has no axis of numbers.")
    count = min(count, array.shape[-1])
    rows = array.reshape(-1, array.shape[-1]) if array.size else array.reshape(0, array.shape[-1])
    whole = array.dtype.kind in "iu"
    texts = [
        f"{int(row[index])}:{index}" if whole else f"{float(row[index]):f}:{index}"
        for row in rows
        for index in np.argsort(-row.astype(np.float64), kind="stable")[:count]
    ]
    return _texts(texts).reshape((*array.shape[:-1], count))
