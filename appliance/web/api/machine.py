"""/health, /v1/machine, /v1/doctor, /v1/storage-providers: how the server is."""

from __future__ import annotations

from typing import Any

from litestar import MediaType, Response

from appliance.web.auth import house_of
from appliance.web.errors import AnyRequest
from appliance.web.routes import get


@get(["/health", "/v1/health"], perm="public", opt={"blind": True})
def health(request: AnyRequest) -> Response[Any]:
    """`HEALTHY`, or 503 and the sentence that says what is wrong."""
    problem = house_of(request).health()
    if problem is not None:
        body = {"code": "INTERNAL_SERVER_ERROR", "message": problem}
        return Response(body, status_code=503)
    return Response(b'"HEALTHY"', media_type=MediaType.JSON)


HANDLERS = [health]
