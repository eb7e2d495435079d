"""One request to one response: routes, keys, execution, counters. Knows a model and HTTP's words, no socket.

What this keeps true: everything but the two health questions needs a key when the deployment has keys; keys are known
only as SHA-256 and compared in constant time, all of them. Every refusal is `{"error": sentence}`. A model whose run is
measured under 300 µs is run at once; a dearer one on a thread of its own, one for each instance, so that it
never holds up the others' small requests.

Why measured: the hand-over to a thread costs some 20 µs, more than the whole run of a small model.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

import appliance
from appliance.errors import ApplianceError
from appliance.inference import protocol
from appliance.inference.connection import Done
from appliance.inference.onnx import Model
from appliance.inference.protocol import Ask
from appliance.inference.tensors import Array
from appliance.inference.wire import Head, Refusal, Response, compress, decompress

INLINE_BELOW_S = 300e-6
DEFECT = "The serving process met an error of its own; its log says more."
_OPEN = frozenset(("/v2/health/live", "/v2/health/ready"))
_STATUS = {"NOT_FOUND": 404, "UNAUTHORIZED": 401, "PAYLOAD_TOO_LARGE": 413, "BAD_REQUEST": 400, "PARSE_ERROR": 400}
_CHALLENGE = b'WWW-Authenticate: Bearer realm="deployment"\r\n'


class Counters:
    """What was asked since the start, for `status` and the statistics extension. Times in nanoseconds or as named."""

    def __init__(self) -> None:
        self.requests = 0
        self.failures = 0
        self.inflight = 0
        self.success_ns = 0
        self.fail_ns = 0
        self.infer_ns = 0
        self.last_ms = 0
        self._recent_s: deque[float] = deque(maxlen=1024)

    def finish(self, began: float, infer_s: float, *, failed: bool) -> None:
        """Count one inference that began at `began` (`perf_counter`) and ends now."""
        took = time.perf_counter() - began
        self.requests += 1
        self.inflight -= 1
        self.last_ms = time.time_ns() // 1_000_000
        if failed:
            self.failures += 1
            self.fail_ns += int(took * 1e9)
            return
        self.success_ns += int(took * 1e9)
        self.infer_ns += int(infer_s * 1e9)
        self._recent_s.append(took)

    def latency_ms(self) -> dict[str, float]:
        """Median and tails of the last 1,024 inferences that succeeded; empty when there were none."""
        ordered = sorted(self._recent_s)
        if not ordered:
            return {}
        return {
            name: round(ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000, 3)
            for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        }


class Service:
    """One deployment's answers. `admit` and `answer` are called on the loop's thread; `done` is called on it too."""

    def __init__(
        self,
        model: Model,
        *,
        deployment: str,
        keys: tuple[str, ...],
        instances: int,
        max_body_bytes: int,
        call_soon: Callable[..., Any],
    ) -> None:
        self.model = model
        self.counters = Counters()
        self.max_body_bytes = max_body_bytes
        self._prefix = f"/serving/{deployment}"
        self._keys = tuple(key.lower().encode() for key in keys)
        self._instances = instances
        self._pool = ThreadPoolExecutor(instances, thread_name_prefix="instance")
        self._call_soon = call_soon
        self._costs_s: dict[int, float] = {}
        self._seed = model.trial()
        self._clock = time.perf_counter if model.on_gpu else time.thread_time

    def set_keys(self, keys: tuple[str, ...]) -> None:
        """From the next request on these keys (SHA-256, hex) are the ones that open; none at all opens to everybody."""
        self._keys = tuple(key.lower().encode() for key in keys)

    def admit(self, head: Head) -> Response | None:
        """The refusal that can be given before the body was read; None when the body should be read."""
        if head.method not in ("GET", "HEAD", "POST"):
            return protocol.error(405, f"{head.method} is not allowed here.", b"Allow: GET, HEAD, POST\r\n")
        if self._keys and self._route(head.path) not in _OPEN and not self._has_key(head.headers):
            return protocol.error(
                401, "This deployment needs a key: send it as `Authorization: Bearer KEY`.", _CHALLENGE
            )
        if head.length is not None and head.length > self.max_body_bytes:
            limit = self.max_body_bytes // (1024 * 1024)
            return protocol.error(413, f"The body is larger than {limit} MiB, the limit of this deployment.")
        return None

    def answer(self, head: Head, body: bytes | memoryview, done: Done) -> None:
        """Answer one request that was admitted: `done` is called exactly once, now or later."""
        accept = head.headers.get("accept-encoding", "")
        finish: Done = done if not accept else lambda response: done(compress(response, accept))
        try:
            body = decompress(body, head.headers.get("content-encoding", ""), self.max_body_bytes)
            response = self._dispatch(head, body, finish)
        except Refusal as refusal:
            response = protocol.error(refusal.status, refusal.message, refusal.headers)
        except ApplianceError as error:
            response = protocol.error(_STATUS.get(error.code, 500), error.message)
        if response is not None:
            finish(response)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- routes --------------------------------------------------------------------------------------------------------

    def _route(self, path: str) -> str:
        return path[len(self._prefix) :] if path.startswith(self._prefix + "/") else path

    def _dispatch(self, head: Head, body: bytes | memoryview, done: Done) -> Response | None:
        match _words(self._route(head.path)):
            case ["v2"] | ["v2", ""]:
                return _read(head, protocol.server_metadata(appliance.__version__))
            case ["v2", "health", "live" | "ready"]:
                return _read(head, None)
            case ["v2", "models", "stats"]:
                return _read(head, self._statistics())
            case ["v2", "models", name, "versions", version, *rest]:
                return self._of_model(head, body, done, name, version, rest)
            case ["v2", "models", name, *rest]:
                return self._of_model(head, body, done, name, None, rest)
            case ["v2", "repository", "index"]:
                _only(head, "POST")
                return _json(protocol.repository_index(self.model.signature, body))
        raise Refusal(404, f"There is nothing at {head.path}; ask /v2 what there is.")

    def _of_model(
        self, head: Head, body: bytes | memoryview, done: Done, name: str, version: str | None, rest: Sequence[str]
    ) -> Response | None:
        signature = self.model.signature
        if name != signature.name or version not in (None, signature.version):
            asked = f"{name!r}" if version is None else f"{name!r} of version {version!r}"
            raise Refusal(404, f"There is no model {asked} here; this is {signature.name!r} {signature.version!r}.")
        match rest:
            case []:
                return _read(head, protocol.model_metadata(signature))
            case ["ready"]:
                return _read(head, None)
            case ["config"]:
                config = protocol.model_config(signature, instances=self._instances, gpu=self.model.on_gpu)
                return _read(head, config)
            case ["stats"]:
                return _read(head, self._statistics())
            case ["infer"]:
                _only(head, "POST")
                return self._infer(head, body, done)
        raise Refusal(404, f"There is nothing at {head.path}; ask /v2/models/{signature.name} what there is.")

    def _statistics(self) -> dict[str, Any]:
        count, signature = self.counters, self.model.signature
        good = count.requests - count.failures
        durations = {
            "success": {"count": good, "ns": count.success_ns},
            "fail": {"count": count.failures, "ns": count.fail_ns},
            "queue": {"count": good, "ns": 0},
            "compute_input": {"count": good, "ns": 0},
            "compute_infer": {"count": good, "ns": count.infer_ns},
            "compute_output": {"count": good, "ns": 0},
        }
        model = {
            "name": signature.name,
            "version": signature.version,
            "last_inference": count.last_ms,
            "inference_count": good,
            "execution_count": good,
            "inference_stats": durations,
            "batch_stats": [],
        }
        return {"model_stats": [model]}

    # -- inference -----------------------------------------------------------------------------------------------------

    def _infer(self, head: Head, body: bytes | memoryview, done: Done) -> Response | None:
        began = time.perf_counter()
        self.counters.inflight += 1
        try:
            ask = protocol.parse_infer(self.model.signature, body, head.headers.get(protocol.HEADER_LENGTH))
            size_class = sum(feed.size for feed in ask.feeds.values()).bit_length()
            if self._cost_s(size_class) >= INLINE_BELOW_S:
                self._hand_over(ask, size_class, began, done)
                return None
            return self._finished(ask, size_class, began, *self._run(ask))
        except Exception:
            self.counters.finish(began, 0.0, failed=True)
            raise

    def _run(self, ask: Ask) -> tuple[list[Array], float]:
        """The outputs, and what the run cost: on a processor its own time there, for the time on the wall holds the
        wait for the interpreter's lock, and a cheap model that once went to a thread would look dear ever after."""
        began = self._clock()
        arrays = self.model.run(ask.feeds, [wanted.name for wanted in ask.wanted])
        return arrays, self._clock() - began

    def _hand_over(self, ask: Ask, size_class: int, began: float, done: Done) -> None:
        def back(future: Future[tuple[list[Array], float]]) -> None:
            if not future.cancelled():
                self._call_soon(self._after, future, ask, size_class, began, done)

        self._pool.submit(self._run, ask).add_done_callback(back)

    def _after(
        self, future: Future[tuple[list[Array], float]], ask: Ask, size_class: int, began: float, done: Done
    ) -> None:
        try:
            response = self._finished(ask, size_class, began, *future.result())
        except ApplianceError as error:
            self.counters.finish(began, 0.0, failed=True)
            response = protocol.error(_STATUS.get(error.code, 500), error.message)
        except Exception as error:  # a defect of ours, or memory ran out: whoever asked must not wait for ever
            self.counters.finish(began, 0.0, failed=True)
            print(f"A request could not be answered: {error!r}", file=sys.stderr, flush=True)
            response = protocol.error(500, DEFECT)
        done(response)

    def _finished(self, ask: Ask, size_class: int, began: float, arrays: list[Array], infer_s: float) -> Response:
        response = protocol.render_infer(self.model.signature, ask, arrays)
        old = self._costs_s.get(size_class, self._seed or infer_s)
        self._costs_s[size_class] = old + 0.1 * (infer_s - old)
        self.counters.finish(began, infer_s, failed=False)
        return response

    def _cost_s(self, size_class: int) -> float:
        """What a run of this size costs: as measured, else as the trial at load took, else dear."""
        measured = self._costs_s.get(size_class)
        if measured is not None:
            return measured
        return self._seed if self._seed is not None else INLINE_BELOW_S

    # -- keys ----------------------------------------------------------------------------------------------------------

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        right = False
        for key in _offered(headers):
            digest = hashlib.sha256(key).hexdigest().encode()
            for known in self._keys:
                right |= hmac.compare_digest(digest, known)
        return right


def _offered(headers: Mapping[str, str]) -> list[bytes]:
    """The keys that the request offers: Bearer, the password of Basic, X-API-Key."""
    offered = []
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        offered.append(value.strip().encode("latin-1"))
    elif scheme.lower() == "basic":
        try:
            offered.append(base64.b64decode(value.strip(), validate=True).partition(b":")[2])
        except (binascii.Error, ValueError):
            return []
    if "x-api-key" in headers:
        offered.append(headers["x-api-key"].encode("latin-1"))
    return offered


@lru_cache(maxsize=256)
def _words(path: str) -> tuple[str, ...]:
    """The path's parts, each decoded by itself, so that an escaped slash within a name stays in it."""
    try:
        return tuple(unquote_to_bytes(part).decode() for part in path.split("/")[1:])
    except UnicodeDecodeError as error:
        raise Refusal(400, "The path is not UTF-8.") from error


def _only(head: Head, method: str) -> None:
    if head.method != method:
        raise Refusal(405, f"{head.path} takes {method} alone.", b"Allow: %b\r\n" % method.encode())


def _read(head: Head, document: Any) -> Response:
    if head.method == "POST":
        raise Refusal(405, f"{head.path} takes GET alone.", b"Allow: GET, HEAD\r\n")
    return Response(200, content_type=b"text/plain") if document is None else _json(document)


def _json(document: Any) -> Response:
    return Response(200, (protocol.dump(document),))
