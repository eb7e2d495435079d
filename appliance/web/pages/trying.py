"""Asking a deployment from its page: a request of the right shape to begin with, and the answer in a table.

What this keeps true: an example has the model's own shapes and types, so sending it as it stands is answered; an answer of
any size fills the page only so far. Passing it on is `asking`'s.

Why: whether a model answers what it should is the first question after a roll-out, and it needs no program.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from appliance.config import Config
from appliance.errors import BadRequest
from appliance.records import Deployment
from appliance.web import asking

_FILLED = 4096  # an example with more values than this is of no use in a text box
_SHOWN = 64
_FLOATS = ("FP16", "FP32", "FP64")


@dataclass(frozen=True)
class Output:
    """One tensor of an answer; `best` is the place of the greatest value where it looks like probabilities."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Any, ...]
    is_whole: bool
    best: int | None


def ask(config: Config, deployment: Deployment, text: str) -> dict[str, Any]:
    """The answer to one Open Inference request, given as JSON text."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The request is not JSON: {error}.") from error
    return dict(asking.infer(config, deployment, body))


def example(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A request that the model understands: every free dimension is 1, every value a zero (or a word)."""
    return {"inputs": [_example(each) for each in inputs]}


def _example(spec: Mapping[str, Any]) -> dict[str, Any]:
    shape = [1 if size < 0 else size for size in spec["shape"]]
    count = math.prod(shape)
    value: Any = "text" if spec["datatype"] == "BYTES" else False if spec["datatype"] == "BOOL" else 0
    data = [value] * count if count <= _FILLED else []
    return {"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": data}


def example_text(request: Mapping[str, Any]) -> str:
    """JSON with one line for each input's data, since 64 numbers below each other fill the page."""
    lines = []
    for each in request["inputs"]:
        head = json.dumps({key: each[key] for key in ("name", "datatype", "shape")})
        lines.append(f'    {head[:-1]},\n     "data": {json.dumps(each["data"])}}}')
    return '{\n  "inputs": [\n' + ",\n".join(lines) + "\n  ]\n}"


def grid_of(inputs: Sequence[Mapping[str, Any]]) -> int | None:
    """The side of a small square picture, where the one input is a row of its brightnesses; None otherwise."""
    if len(inputs) != 1 or inputs[0]["datatype"] not in _FLOATS or len(inputs[0]["shape"]) != 2:
        return None
    side = math.isqrt(max(0, inputs[0]["shape"][1]))
    return side if 4 <= side <= 16 and side * side == inputs[0]["shape"][1] else None


def outputs(answer: Mapping[str, Any]) -> list[Output]:
    """The answer's tensors as a page shows them."""
    return [_output(each) for each in answer.get("outputs", [])]


def _output(each: Mapping[str, Any]) -> Output:
    data = each.get("data", [])
    values = tuple(islice(data, _SHOWN))
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    looks_so = each["datatype"] in _FLOATS and 2 <= len(numbers) == len(data) and all(0 <= it <= 1 for it in numbers)
    best = max(range(len(numbers)), key=numbers.__getitem__) if looks_so else None
    return Output(each["name"], each["datatype"], tuple(each["shape"]), values, len(values) == len(data), best)
