"""HTTP as the SDK speaks it: one place for addresses, keys, retries, errors, pages and event streams.

What this keeps true: an error answer is raised as the class of `appliance.errors` that has its code; a request that may
be sent twice without harm (all but POST) is tried again when the connection breaks or the server is between two
lives, a POST only when it certainly never left; an event stream goes on after its last event when the connection breaks.
The key goes to this one server: redirects are not followed.

Why: a daemon that is restarted under a client should look like a short wait, not like an error.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from appliance import __version__, clock, errors
from appliance.client.settings import normal_url

DEFAULT_TIMEOUT_S = 60.0
Json = dict[str, Any]

_PAUSES_S = (0.1, 0.3, 1.0)
_STREAM_PAUSES_S = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
_STREAM_SILENCE_S = 60.0
_BETWEEN_LIVES = frozenset({502, 503, 504})
_NEVER_LEFT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_PAGE = 200


class Unreachable(errors.ApplianceError):
    """The server does not answer, or is not the one that its certificate should name."""

    code = "UNREACHABLE"


class TimedOut(errors.ApplianceError):
    """What was waited for did not happen in the time that the caller gave."""

    code = "TIMEOUT"


class Transport:
    """One server and one key. May be used by several threads; connections are kept until `close`."""

    def __init__(
        self, url: str, key: str | None, *, ca: Path | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.url = normal_url(url)
        self.key = key
        self.ca = ca
        headers = {"user-agent": f"appliance/{__version__}", "accept": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        else:  # a session's cookie is only honoured with a word on who sends it; see appliance/web/origin.py
            headers["origin"] = "{0.scheme}://{0.netloc}".format(urlsplit(self.url))
        self._http = httpx.Client(
            base_url=self.url,
            headers=_ascii(headers),
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            verify=_trust(self.url, ca),
            # A proxy never leads to this machine's own loopback.
            trust_env=not is_loopback(self.url),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=16),
        )

    def close(self) -> None:
        self._http.close()

    # -- one request ---------------------------------------------------------------------------------------------------

    def get(self, path: str, /, **query: Any) -> Any:
        return self.call("GET", path, query=query)

    def post(self, path: str, /, **body: Any) -> Any:
        return self.call("POST", path, body=_given(body))

    def put(self, path: str, /, **body: Any) -> Any:
        return self.call("PUT", path, body=_given(body))

    def patch(self, path: str, /, **body: Any) -> Any:
        return self.call("PATCH", path, body=_given(body))

    def delete(self, path: str, /) -> Any:
        return self.call("DELETE", path)

    def call(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """The JSON of the answer. Raises what the answer's code says, or Unreachable."""
        return _decoded(self.answer(method, path, query=query, body=body))

    def answer(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> httpx.Response:
        """The answer itself, with its headers; a successful one."""
        more = {} if body is None else {"json": body}
        return self._send(self._request(method, path, query, **more), again=method != "POST")

    def upload(self, path: str, source: Path) -> Any:
        """PUT a file's bytes as they are, without holding them in memory."""
        for attempt in range(len(_PAUSES_S) + 1):
            with source.open("rb") as file:
                request = self._request("PUT", path, content=file, headers={"content-type": "application/octet-stream"})
                try:
                    return _decoded(self._send(request, again=False))
                except Unreachable:
                    if attempt == len(_PAUSES_S):
                        raise
            time.sleep(_PAUSES_S[attempt])
        raise AssertionError("the last attempt returns or raises")

    def download(self, path: str, write: Callable[[bytes], object]) -> int:
        """Hand the body to `write` in pieces; its length. A connection that breaks raises Unreachable."""
        response = self._send(self._request("GET", path, headers={"accept": "*/*"}), again=True, stream=True)
        size = 0
        with contextlib.closing(response), self._translated():
            for piece in response.iter_bytes(1 << 20):
                write(piece)
                size += len(piece)
        return size

    # -- lists and streams ---------------------------------------------------------------------------------------------

    def pages(self, path: str, /, **query: Any) -> Iterator[Json]:
        """Each item of a list, page after page, as it is asked for. Gradient's bare arrays are one page."""
        after: str | None = None
        while True:
            page = self.get(path, **{"limit": _PAGE, **query, "after": after})
            if isinstance(page, list):
                yield from page
                return
            yield from page["items"]
            after = page.get("nextPage")
            if not page.get("hasMore") or after is None:
                return

    def events(self, path: str, query: Mapping[str, Any], silence_s: float) -> Iterator[tuple[str, Json]]:
        """The (name, data) of one connection's server-sent events, until either side ends it.

        `silence_s` without a byte (comments count) raises Unreachable.
        """
        timeout = httpx.Timeout(silence_s, connect=min(10.0, silence_s))
        request = self._request("GET", path, query, headers={"accept": "text/event-stream"}, timeout=timeout)
        response = self._send(request, again=False, stream=True)
        with contextlib.closing(response), self._translated():
            yield from parse_events(response.iter_lines())

    def follow(
        self,
        path: str,
        query: Callable[[], Mapping[str, Any]],
        *,
        deadline: float | None = None,
    ) -> Iterator[tuple[str, Json]]:
        """Events until `end`, over as many connections as it takes; `query()` says where to go on.

        Gives up with Unreachable after about 15 s without a single event, with TimedOut at `deadline` (clock.monotonic).
        """
        failures = 0
        while True:
            try:
                for name, data in self.events(path, query(), _silence(deadline)):
                    failures = 0
                    yield name, data
                    if name == "end":
                        return
            except (Unreachable, errors.EngineBusy):
                if failures >= len(_STREAM_PAUSES_S) and not _is_over(deadline):
                    raise
            if _is_over(deadline):
                raise TimedOut("It has not ended within the time that was given.")
            time.sleep(_STREAM_PAUSES_S[min(failures, len(_STREAM_PAUSES_S) - 1)])
            failures += 1

    # -- inside --------------------------------------------------------------------------------------------------------

    def _request(self, method: str, path: str, query: Mapping[str, Any] | None = None, **more: Any) -> httpx.Request:
        params = {name: _parameter(value) for name, value in (query or {}).items() if value is not None}
        return self._http.build_request(method, path, params=params or None, **more)

    def _send(self, request: httpx.Request, *, again: bool, stream: bool = False) -> httpx.Response:
        for pause in (*_PAUSES_S, None):
            try:
                response = self._http.send(request, stream=stream)
            except httpx.HTTPError as error:
                if pause is None or not (again or isinstance(error, _NEVER_LEFT)) or _is_certificate(error):
                    raise self._unreachable(error) from error
            else:
                if response.is_success:
                    return response
                if pause is None or not again or response.status_code not in _BETWEEN_LIVES:
                    raise _failure(response)
                response.close()
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        if _is_certificate(error):
            return Unreachable(
                f"The certificate of {self.url} is not trusted ({error}): run `appliance login {self.url}` to compare its "
                "fingerprint."
            )
        if isinstance(error, httpx.ConnectError):
            return Unreachable(f"{self.url} does not answer ({error}): check the address, and that the server runs.")
        return Unreachable(f"The connection to {self.url} broke ({error or type(error).__name__}): try again.")


def segment(text: str) -> str:
    """`text` as one segment of a path. Raises BadRequest for what would be another path."""
    if text in ("", ".", ".."):
        raise errors.BadRequest(f"{text!r} names nothing.")
    return quote(text, safe="")


def file_path(text: str) -> str:
    """A file's path within a version, quoted, with its slashes."""
    return quote(text, safe="/")


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_events(lines: Iterator[str]) -> Iterator[tuple[str, Json]]:
    """Server-sent events with JSON data (WHATWG HTML, section 9.2); an event that the stream's end cut off is dropped."""
    name, data = "message", list[str]()
    for line in lines:
        if not line:
            if data:
                yield name, json.loads("\n".join(data))
            name, data = "message", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)


def error_of(code: str | None, message: str, issues: tuple[str, ...] = ()) -> errors.ApplianceError:
    """The error that has `code`; an unknown code keeps itself on the root of the tree."""
    found = _CLASSES.get(code or "")
    error = (found or errors.ApplianceError)(message, issues=issues)
    if found is None and code:
        error.code = code
    return error


def _classes(root: type[errors.ApplianceError]) -> dict[str, type[errors.ApplianceError]]:
    """Code to class; of several classes with one code the one that introduced it."""
    found = {root.code: root} if "code" in vars(root) else {}
    for child in root.__subclasses__():
        found = {**_classes(child), **found}
    return found


_CLASSES = _classes(errors.ApplianceError)
_BY_STATUS = {
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    409: "CONFLICT",
    413: "PAYLOAD_TOO_LARGE",
    429: "TOO_MANY_REQUESTS",
    502: Unreachable.code,
    503: Unreachable.code,
    504: Unreachable.code,
    507: "INSUFFICIENT_STORAGE",
}


def _failure(response: httpx.Response) -> errors.ApplianceError:
    with contextlib.closing(response):
        try:
            response.read()
            body = response.json()
        except (httpx.HTTPError, ValueError):
            body = None
    if not isinstance(body, dict) or not isinstance(body.get("message"), str):
        text = f"{response.request.url.copy_with(query=None)} answered {response.status_code} without saying why."
        return error_of(_BY_STATUS.get(response.status_code), text)
    issues = tuple(str(each.get("message", "")) for each in body.get("issues") or ())
    code = body.get("code")
    if response.status_code in _BETWEEN_LIVES and code != errors.EngineBusy.code:
        code = Unreachable.code  # nginx says so, in JSON, while the daemon is between two lives
    return error_of(code, body["message"], issues)


def _decoded(response: httpx.Response) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError as error:
        raise Unreachable(
            f"{response.request.url.copy_with(query=None)} did not answer with JSON: is that the address of an appliance?"
        ) from error


def _trust(url: str, ca: Path | None) -> ssl.SSLContext | bool:
    if not url.startswith("https:"):
        return False  # nothing to verify; a context costs 20 ms
    try:
        return ssl.create_default_context(cafile=str(ca) if ca else None)
    except OSError as error:
        raise Unreachable(
            f"The certificate file {ca} cannot be read ({error}): run `appliance login {url}`."
        ) from error


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _ascii(headers: dict[str, str]) -> dict[str, str]:
    if not all(value.isascii() and value.isprintable() for value in headers.values()):
        raise errors.Unauthorized("The API key has letters that no key has: copy it again.")
    return headers


def _given(body: dict[str, Any]) -> Json:
    return {name: value for name, value in body.items() if value is not None}


def _parameter(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _silence(deadline: float | None) -> float:
    return _STREAM_SILENCE_S if deadline is None else max(0.1, min(_STREAM_SILENCE_S, deadline - clock.monotonic()))


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and clock.monotonic() >= deadline
