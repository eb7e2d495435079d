"""The only map from an error to an HTTP status, and the only shape of an error answer.

What this keeps true: every error is `{code, message}` with `issues` where several things are wrong, and nothing else (the
published Gradient client refuses any other key); a defect is answered with a number that the log has, never with a trace.

Why: Gradient's clients print `message` alone, so the one sentence must say it all.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable
from typing import Any

from litestar import MediaType, Request, Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    SerializationException,
    ValidationException,
)
from litestar.types import Scope, Send

from appliance.errors import ApplianceError, DurabilityLost, ParseError

STATUS = {
    "PARSE_ERROR": 400,
    "BAD_REQUEST": 400,
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "NOT_FOUND": 404,
    "METHOD_NOT_SUPPORTED": 405,
    "CONFLICT": 409,
    "PRECONDITION_FAILED": 412,
    "PAYLOAD_TOO_LARGE": 413,
    "ENGINE_REFUSED": 422,
    "IMAGE_NOT_FOUND": 422,
    "TOO_MANY_REQUESTS": 429,
    "INTERNAL_SERVER_ERROR": 500,
    "CORRUPT": 500,
    "DURABILITY_LOST": 500,
    "ENGINE_BUSY": 503,
    "INSUFFICIENT_STORAGE": 507,
}
_CODES = {400: "BAD_REQUEST", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "NOT_FOUND", 405: "METHOD_NOT_SUPPORTED"}
_CODES |= {413: "PAYLOAD_TOO_LARGE", 429: "TOO_MANY_REQUESTS", 503: "INTERNAL_SERVER_ERROR"}

_LOG = logging.getLogger(__name__)
AnyRequest = Request[Any, Any, Any]
ErrorPage = Callable[[AnyRequest, int, str, str], "Response[Any] | None"]


class JsonRequest(Request[Any, Any, Any]):
    """A request whose JSON body, whatever bytes it has, is read or is a ParseError (Litestar 2.25 lets two others out)."""

    async def json(self) -> Any:
        try:
            return await super().json()
        except RecursionError as error:
            raise ParseError("The body's JSON is nested too deeply.") from error
        except (SerializationException, UnicodeDecodeError) as error:
            raise ParseError("The body is not JSON (UTF-8).") from error


def answer(request: AnyRequest, error: Exception) -> Response[Any]:
    """The answer to `error`: a page for a person in a browser, JSON for everyone else. A lost write ends the daemon."""
    if isinstance(error, DurabilityLost):
        request.app.state.house.fail(error)
    status, body, headers = describe(error, request.scope)
    page: ErrorPage | None = request.app.state.get("error_page")
    if page is not None and wants_page(request):
        shown = page(request, status, body["code"], body["message"])
        if shown is not None:
            return shown
    return Response(body, status_code=status, media_type=MediaType.JSON, headers=headers)


def describe(error: Exception, scope: Scope) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and further headers for `error`."""
    if isinstance(error, ApplianceError):
        body: dict[str, Any] = {"code": error.code, "message": error.message}
        if error.issues:
            body["issues"] = [{"message": issue} for issue in error.issues]
        return getattr(error, "status", STATUS.get(error.code, 500)), body, dict(getattr(error, "headers", {}))
    if isinstance(error, HTTPException):
        return _of_litestar(error, scope)
    number = secrets.token_hex(4)
    _LOG.error("defect %s in %s %s", number, scope.get("method"), scope.get("path"), exc_info=error)
    sentence = f"Something went wrong on the server; its log says what, under the number {number}."
    return 500, {"code": "INTERNAL_SERVER_ERROR", "message": sentence}, {}


def wants_page(request: AnyRequest) -> bool:
    """Whether a person looks at the answer: a browser, and not one of its scripts calling the API or git."""
    path = request.scope["path"]
    return not path.startswith(("/v1", "/git/", "/schema")) and "text/html" in request.headers.get("accept", "")


async def send(send: Send, status: int, code: str, message: str) -> None:
    """Answer from outside of Litestar, in the same shape."""
    body = json.dumps({"code": code, "message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _of_litestar(error: HTTPException, scope: Scope) -> tuple[int, dict[str, Any], dict[str, str]]:
    status = error.status_code
    code = _CODES.get(status, "BAD_REQUEST" if status < 500 else "INTERNAL_SERVER_ERROR")
    headers = {key: value for key, value in (error.headers or {}).items() if key.lower() in ("allow", "retry-after")}
    body: dict[str, Any] = {"code": code, "message": _sentence(error, status, scope)}
    issues = _issues(error)
    if len(issues) > 1:
        body["issues"] = [{"message": issue} for issue in issues]
    return status, body, headers


def _sentence(error: HTTPException, status: int, scope: Scope) -> str:
    method, path = scope.get("method"), scope.get("path", "")[:200]
    if isinstance(error, MethodNotAllowedException):
        return f"{method} is not possible on {path}."
    if status == 404:
        return f"There is nothing at {path}."
    if status == 413:
        return "The request's body is larger than this address takes."
    issues = _issues(error)
    if issues:
        return issues[0]
    return f"The request cannot be read: {error.detail or 'it is malformed'}."


def _issues(error: HTTPException) -> list[str]:
    if not isinstance(error, ValidationException) or not isinstance(error.extra, list):
        return []
    found = []
    for each in error.extra:
        if isinstance(each, dict):
            where = {"body": "The body's", "query": "The query's"}.get(str(each.get("source", "body")), "The request's")
            key = each.get("key")
            what = str(each.get("message", "is not valid")).rstrip(".")
            found.append(f"{where} field {key!r}: {what}." if key and key != "data" else f"The body: {what}.")
    return found
