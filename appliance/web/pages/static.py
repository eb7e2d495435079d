"""The files that pages load: our style and scripts, and what `install.sh --assets` copied from npm.

What this keeps true: only files that were in the folder at the first question are served, by an exact name; an address
carries its content's digest, so a browser keeps the file for ever and never shows an old one.

Why not a static mount: every route declares its permission, and a mount would follow whatever appears in the folder.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from litestar import Response
from litestar.params import FromPath

from appliance.errors import NotFound
from appliance.web.routes import get

FOLDER = Path(__file__).parent.parent / "static"
_TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_FOR_EVER = "public, max-age=31536000, immutable"


@functools.cache
def _digests() -> dict[str, str]:
    """Each file's name below the folder, and the beginning of its content's digest."""
    files = (path for path in FOLDER.rglob("*") if path.is_file() and path.suffix in _TYPES)
    return {str(path.relative_to(FOLDER)): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files}


def address(name: str) -> str:
    """Where the page finds the file of that name."""
    digest = _digests().get(name)
    assert digest is not None, f"there is no static file {name!r}; run ./install.sh --assets"
    return f"/static/{digest}/{name}"


@get("/static/{digest:str}/{name:path}", perm="public", opt={"blind": True}, include_in_schema=False)
def file(digest: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    name = name.lstrip("/")
    if _digests().get(name) != digest:
        raise NotFound("There is no such file; reload the page.")
    content = (FOLDER / name).read_bytes()
    return Response(content, media_type=_TYPES[Path(name).suffix], headers={"cache-control": _FOR_EVER})


HANDLERS = [file]
