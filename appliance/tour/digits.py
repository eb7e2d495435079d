"""One held-out digit, and asking a deployment for it with the unmodified Triton client.

What this keeps true: the digit comes from the dataset version that the run made, so the model cannot have seen it; numpy
and tritonclient are imported only when the question is put.

Why tritonclient: it is what programs in the field call models with, and it was not written to please this server.
"""

from __future__ import annotations

import csv
import io
import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appliance import clock
from appliance.errors import ApplianceError, NotFound

PIXELS = 64
_TIMEOUT_S = 30.0
_NEW_KEY_S = 5.0


class NoAnswer(ApplianceError):
    """The deployment did not answer, or not with what a classifier of digits answers."""

    code = "NO_ANSWER"


@dataclass(frozen=True)
class Sample:
    """A digit: its label, and its 64 brightnesses from 0 to 16, row by row."""

    label: int
    pixels: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    label: int
    probability: float


def choose(content: bytes, digit: int | None) -> Sample:
    """A digit out of held-out.csv: the first of that value, or any. Raises NotFound."""
    rows = csv.reader(io.StringIO(content.decode()))
    next(rows, None)
    found = [Sample(int(row[0]), tuple(int(value) for value in row[1:])) for row in rows if len(row) == PIXELS + 1]
    if digit is not None:
        found = [each for each in found if each.label == digit][:1]
    if not found:
        raise NotFound("held-out.csv of the dataset version has no such digit.")
    return secrets.choice(found)


def ask(endpoint: str, model: str, key: str, sample: Sample, ca: Path | None) -> Answer:
    """The deployment's answer for `sample`. Raises NoAnswer."""
    import numpy
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    image = triton.InferInput("image", [1, PIXELS], "FP32")
    image.set_data_from_numpy(numpy.array([sample.pixels], dtype=numpy.float32))
    try:
        client = triton.InferenceServerClient(**_address(endpoint, ca))
        try:
            answer = _infer(client, model, image, key)
            label = int(answer.as_numpy("label")[0])
            return Answer(label, round(float(answer.as_numpy("probability")[0][label]), 6))
        finally:
            client.close()
    except (InferenceServerException, OSError, TypeError, IndexError) as error:
        raise NoAnswer(f"The deployment at {endpoint} gave no answer: {error}") from error


def _infer(client: Any, model: str, image: Any, key: str) -> Any:
    """The answer. A key that was made a moment ago is known to every replica within a second: until then 401 is no no."""
    from tritonclient.utils import InferenceServerException

    until = clock.monotonic() + _NEW_KEY_S
    while True:
        try:
            # The client writes into the mapping that it is given: a fresh one for each call.
            return client.infer(model, [image], headers={"Authorization": f"Bearer {key}"})
        except InferenceServerException as error:
            if error.status() != "401" or clock.monotonic() > until:
                raise
            time.sleep(0.1)


def _address(endpoint: str, ca: Path | None) -> dict[str, Any]:
    """tritonclient wants the address without its scheme."""
    parts = urlsplit(endpoint)
    found: dict[str, Any] = {
        "url": parts.netloc + parts.path.rstrip("/"),
        "connection_timeout": _TIMEOUT_S,
        "network_timeout": _TIMEOUT_S,
    }
    if parts.scheme == "https":
        found |= {"ssl": True, "ssl_context_factory": _context(ca)}
    return found


def _context(ca: Path | None) -> Callable[[], ssl.SSLContext]:
    return lambda: ssl.create_default_context(cafile=str(ca) if ca else None)
