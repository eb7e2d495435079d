"""The HTML pages and the static files: what `app` adds to the API.

Why apart: the API must not depend on how its pages look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar import Response
from litestar.types import ControllerRouterHandler

from appliance.web.errors import AnyRequest

HANDLERS: Sequence[ControllerRouterHandler] = ()


def error_page(request: AnyRequest, status: int, code: str, message: str) -> Response[Any] | None:
    """The page that tells a person about an error (or leads a stranger to the sign-in); None leaves it to JSON."""
    del request, status, code, message
    return None
