"""Open Inference Protocol v2 over HTTP: what a request asks, and how its answer is written. Pure.

What this keeps true: an `Ask` holds one tensor of the right datatype and a fitting shape for every input of the model,
and only outputs that the model has; anything else is a `BadRequest` of one sentence. `EXTENSIONS` names what is
implemented here and nothing more.

Sources: kserve/open-inference-protocol `inference_rest.md`; Triton's protocol extensions binary_tensor_data,
classification, parameters, model_configuration, statistics, model_repository (its index). Where Triton answers 500 to
a body that is not JSON, this answers 400, for the fault is the client's. Not implemented, and said so when asked:
shared memory, sequences.

Why no framework's models: a dictionary checked by hand costs microseconds, and its sentences name the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from appliance.errors import BadRequest
from appliance.inference.tensors import (
    DTYPES,
    Array,
    TensorSpec,
    check_shape,
    classify,
    datatype_of,
    from_bytes,
    from_json,
    to_bytes,
    to_json,
)
from appliance.inference.wire import Response

EXTENSIONS = ("classification", "binary_tensor_data", "parameters", "statistics", "model_configuration")
HEADER_LENGTH = "inference-header-content-length"
_BINARY = b"application/octet-stream"


@dataclass(frozen=True, slots=True)
class Signature:
    """What one loaded model takes and gives, and what it is called."""

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str = "onnxruntime_onnx"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output that is asked for, in which form; `classes` above 0 asks for the largest so many of its last axis."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """One inference request, understood and checked."""

    id: str | None
    feeds: Mapping[str, Array]
    wanted: tuple[Wanted, ...]


# -- asking ------------------------------------------------------------------------------------------------------------


def parse_infer(signature: Signature, body: bytes | memoryview, json_length: str | None) -> Ask:
    """Understand an infer request's body. `json_length` is the header Inference-Header-Content-Length, if it came.

    With the value 0 the whole body is the one input's raw bytes. Raises `BadRequest`.
    """
    length = _json_length(json_length, len(body))
    if json_length is not None and length == 0:
        return _raw_ask(signature, body)
    document = _document(body[:length])
    feeds = _feeds(signature, document.get("inputs"), memoryview(body)[length:])
    return Ask(id=_id(document), feeds=feeds, wanted=_wanted(signature, document))


def _json_length(header: str | None, size: int) -> int:
    if header is None:
        return size
    if not header.isascii() or not header.isdigit() or len(header) > 18 or int(header) > size:
        raise BadRequest(f"Inference-Header-Content-Length must be a number up to the body's size, {size} bytes.")
    return int(header)


def _document(text: bytes | memoryview) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The request is not valid JSON: {error}.") from error
    if not isinstance(document, dict):
        raise BadRequest("The request must be a JSON object with the member inputs.")
    return document


def _id(document: Mapping[str, Any]) -> str | None:
    found = document.get("id")
    if found is not None and not isinstance(found, str):
        raise BadRequest("The request's id must be a string.")
    return found


def _raw_ask(signature: Signature, body: bytes | memoryview) -> Ask:
    if len(signature.inputs) != 1:
        raise BadRequest(
            f"A raw binary request needs a model with one input; {signature.name!r} has {len(signature.inputs)}."
        )
    spec = signature.inputs[0]
    shape = _raw_shape(spec, len(body))
    every = tuple(Wanted(output.name, binary=True) for output in signature.outputs)
    return Ask(id=None, feeds={spec.name: from_bytes(spec, shape, body)}, wanted=every)


def _raw_shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    free = spec.shape.count(-1)
    if spec.datatype == "BYTES" or free > 1:
        raise BadRequest(f"A raw binary request cannot tell the shape of input {spec.name!r}, {list(spec.shape)}.")
    fixed = math.prod(size for size in spec.shape if size != -1) * DTYPES[spec.datatype].itemsize
    return tuple((size // fixed if fixed else 0) if dim == -1 else dim for dim in spec.shape)


def _feeds(signature: Signature, inputs: Any, binary: memoryview) -> dict[str, Array]:
    if not isinstance(inputs, list):
        raise BadRequest("The request must have inputs, a list of tensors.")
    specs = {spec.name: spec for spec in signature.inputs}
    feeds: dict[str, Array] = {}
    at = 0
    for item in inputs:
        spec, shape = _input(signature, specs, item)
        if spec.name in feeds:
            raise BadRequest(f"Input {spec.name!r} is given twice.")
        size = _binary_size(spec, item)
        if size is None:
            feeds[spec.name] = from_json(spec, shape, item.get("data"))
            continue
        if at + size > len(binary):
            raise BadRequest(f"Input {spec.name!r} announces {size} bytes but only {len(binary) - at} are left.")
        feeds[spec.name] = from_bytes(spec, shape, binary[at : at + size])
        at += size
    if at != len(binary):
        raise BadRequest(f"{len(binary) - at} bytes behind the JSON belong to no input.")
    missing = [name for name in specs if name not in feeds]
    if missing:
        raise BadRequest(f"Model {signature.name!r} also needs the input {', '.join(map(repr, missing))}.")
    return feeds


def _input(signature: Signature, specs: Mapping[str, TensorSpec], item: Any) -> tuple[TensorSpec, tuple[int, ...]]:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise BadRequest("Each input must be a JSON object with name, shape, datatype and data.")
    spec = specs.get(item["name"])
    if spec is None:
        raise BadRequest(
            f"Model {signature.name!r} has no input {item['name']!r}; its inputs are {', '.join(map(repr, specs))}."
        )
    if item.get("datatype") != spec.datatype:
        raise BadRequest(f"Input {spec.name!r} is {spec.datatype} but was given as {item.get('datatype')!r}.")
    shape = item.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise BadRequest(f"Input {spec.name!r}: shape must be a list of whole numbers from 0.")
    check_shape(spec, tuple(shape))
    return spec, tuple(shape)


def _parameters(item: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    found = item.get("parameters") or {}
    if not isinstance(found, dict):
        raise BadRequest(f"{what}: parameters must be a JSON object.")
    if "shared_memory_region" in found:
        raise BadRequest(f"{what}: shared memory is not implemented here; send the data in the request.")
    return found


def _binary_size(spec: TensorSpec, item: Mapping[str, Any]) -> int | None:
    size = _parameters(item, f"Input {spec.name!r}").get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise BadRequest(f"Input {spec.name!r}: binary_data_size must be a whole number from 0.")
    if "data" in item:
        raise BadRequest(f"Input {spec.name!r} has both data and binary_data_size; give one.")
    return size


def _wanted(signature: Signature, document: Mapping[str, Any]) -> tuple[Wanted, ...]:
    binary = _flag(_parameters(document, "The request"), "binary_data_output", False)
    outputs = document.get("outputs")
    if outputs is None or outputs == []:
        return tuple(Wanted(spec.name, binary) for spec in signature.outputs)
    if not isinstance(outputs, list):
        raise BadRequest("The request's outputs must be a list.")
    names = [spec.name for spec in signature.outputs]
    wanted: dict[str, Wanted] = {}
    for item in outputs:
        name = item.get("name") if isinstance(item, dict) else None
        if name not in names:
            raise BadRequest(
                f"Model {signature.name!r} has no output {name!r}; its outputs are {', '.join(map(repr, names))}."
            )
        parameters = _parameters(item, f"Output {name!r}")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise BadRequest(f"Output {name!r}: classification must be a whole number from 1.")
        wanted[name] = Wanted(name, _flag(parameters, "binary_data", binary), classes)
    return tuple(wanted.values())


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"The parameter {name} must be true or false.")
    return value


# -- answering ---------------------------------------------------------------------------------------------------------


def dump(document: Any) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def render_infer(signature: Signature, ask: Ask, arrays: list[Array]) -> Response:
    """The answer, `arrays` being in the order of `ask.wanted`: JSON, with raw bytes behind it where they were wanted."""
    outputs, raw = [], []
    for wanted, plain in zip(ask.wanted, arrays, strict=True):
        array = classify(plain, wanted.classes, wanted.name) if wanted.classes else plain
        output: dict[str, Any] = {"name": wanted.name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if wanted.binary:
            part = to_bytes(array)
            raw.append(part)
            output["parameters"] = {"binary_data_size": len(part)}
        else:
            output["data"] = to_json(array)
        outputs.append(output)
    head: dict[str, Any] = {} if ask.id is None else {"id": ask.id}
    text = dump(head | {"model_name": signature.name, "model_version": signature.version, "outputs": outputs})
    if not raw:
        return Response(200, (text,))
    return Response(200, (text, *raw), _BINARY, b"Inference-Header-Content-Length: %d\r\n" % len(text))


def error(status: int, sentence: str, headers: bytes = b"") -> Response:
    return Response(status, (dump({"error": sentence}),), headers=headers)


def server_metadata(server_version: str) -> dict[str, Any]:
    return {"name": "appliance", "version": server_version, "extensions": list(EXTENSIONS)}


def model_metadata(signature: Signature) -> dict[str, Any]:
    def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]

    return {
        "name": signature.name,
        "versions": [signature.version],
        "platform": signature.platform,
        "inputs": tensors(signature.inputs),
        "outputs": tensors(signature.outputs),
    }


def model_config(signature: Signature, *, instances: int, gpu: bool) -> dict[str, Any]:
    """The model's configuration in the words of Triton's ModelConfig. The shapes are whole: `max_batch_size` is 0."""

    def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "data_type": _config_type(spec), "dims": list(spec.shape)} for spec in specs]

    return {
        "name": signature.name,
        "platform": signature.platform,
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [int(signature.version)] if signature.version.isdigit() else []}},
        "max_batch_size": 0,
        "input": tensors(signature.inputs),
        "output": tensors(signature.outputs),
        "instance_group": [{"name": signature.name, "kind": "KIND_GPU" if gpu else "KIND_CPU", "count": instances}],
        "default_model_filename": "model.onnx",
    }


def _config_type(spec: TensorSpec) -> str:
    return "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"


def repository_index(signature: Signature, body: bytes | memoryview) -> list[dict[str, Any]]:
    """The one model that is here. The request may ask for ready models alone; this one is."""
    document = _document(body) if len(body) else {}
    _flag(document, "ready", False)
    return [{"name": signature.name, "version": signature.version, "state": "READY", "reason": ""}]
