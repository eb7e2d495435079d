"""A page that lists the API, made from its OpenAPI description without any script, so it works with no internet."""

from __future__ import annotations

from html import escape
from typing import Any

from litestar.openapi.plugins import OpenAPIRenderPlugin

from appliance.web.errors import AnyRequest


class SchemaPage(OpenAPIRenderPlugin):
    """Every path and method with its first line of description."""

    def render(self, request: AnyRequest, openapi_schema: dict[str, Any]) -> bytes:
        del request
        rows = "".join(
            f"<tr><td><code>{method.upper()}</code></td><td><code>{escape(path)}</code></td>"
            f"<td>{escape((each.get('description') or each.get('summary') or '').splitlines()[0])}</td></tr>"
            for path, methods in sorted(openapi_schema.get("paths", {}).items())
            for method, each in methods.items()
            if isinstance(each, dict)
        )
        return (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>The API</title></head><body>"
            "<h1>The API</h1><p>The whole description, for programs: <a href='/schema/openapi.json'>openapi.json</a></p>"
            f"<table>{rows}</table></body></html>"
        ).encode()
