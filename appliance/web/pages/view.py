"""How a page is made: the templates, and words for times, sizes and states.

What this keeps true: every value is escaped (only what `Markup` says is not); a name that a template misspells is an error
and not an empty place; a form that was carried out answers with a redirect, so a reload repeats nothing.

Why not Litestar's template plugin: one function and one frozen environment are all that pages need, and they can be tested
without an application.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import MediaType, Response
from litestar.datastructures import Cookie
from litestar.response import Redirect
from markupsafe import Markup

from appliance import __version__, clock
from appliance.records import Version
from appliance.web.auth import find_actor
from appliance.web.errors import AnyRequest
from appliance.web.pages.static import address

_TONES = {
    "succeeded": "good",
    "serving": "good",
    "running": "busy",
    "active": "busy",
    "starting": "busy",
    "stopping": "busy",
    "rolling out": "busy",
    "draining": "busy",
    "failed": "bad",
    "problem": "bad",
    "quarantined": "bad",
    "warning": "warn",
    "ok": "good",
    "waiting": "warn",
    "admin": "accent",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HEADLINES = {
    400: "That did not work",
    401: "Sign in first",
    403: "Not allowed",
    404: "Not here",
    409: "Not now",
    429: "Too many tries",
    507: "The disk is full",
}


def when(at: str | None) -> Markup:
    """A time as `<time>`: how long ago for people, exactly in its title; a dash for none."""
    if at is None:
        return Markup('<span class="mute">–</span>')
    exact = f"{at[:10]} {at[11:19]} UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(at, exact, ago(at, clock.now()))


def ago(at: str, now: datetime) -> str:
    """`at` in words, seen from `now`; the date when it is more than a week away."""
    seconds = (now - clock.parse(at)).total_seconds()
    if abs(seconds) >= 7 * 86400:
        return at[:10]
    words = next(
        f"{int(abs(seconds) // size)} {unit}"
        for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (0.0001, ""))
        if abs(seconds) >= size or not unit
    )
    if abs(seconds) < 5:
        return "just now"
    return f"{words} ago" if seconds > 0 else f"in {words}"


def duration(start: str | None, end: str | None) -> str:
    """How long it took, or has taken until now; nothing before its start."""
    if start is None:
        return ""
    seconds = max(0.0, ((clock.parse(end) if end else clock.now()) - clock.parse(start)).total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, hours = divmod(int(seconds), 60)[0], int(seconds) // 3600
    return f"{hours} h {minutes % 60:02d} min" if hours else f"{minutes} min {int(seconds) % 60:02d} s"


def size(size_bytes: int) -> str:
    """A number of bytes with its unit, three digits or so."""
    value, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 100 else f"{value:.1f} {units[0]}"


def memory(mib: int) -> str:
    return size(mib << 20)


def tone(state: object) -> str:
    """The colour's name of a state; colour is never alone, the word stands beside it."""
    return _TONES.get(str(state), "still")


def branch(ref: str | None) -> str:
    """`refs/heads/main` as people say it; of a commit its beginning."""
    short = (ref or "").removeprefix("refs/heads/").removeprefix("refs/tags/")
    return short[:8] if _COMMIT.fullmatch(short) else short


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def number(value: object) -> str:
    """A metric, short: six significant digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def metrics_of(version: Version) -> dict[str, int | float]:
    """The numbers that the version's metadata calls metrics: by name, or listed as Gradient does; what is neither, is none."""
    told = version.metadata.get("metrics")
    if isinstance(told, list):
        told = {
            str(each["name"]): each.get("numberValue") for each in told if isinstance(each, dict) and "name" in each
        }
    if not isinstance(told, dict):
        return {}
    return {
        str(name): value
        for name, value in told.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def segment(text: object) -> str:
    """`text` as one segment of an address."""
    return quote(str(text), safe="")


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("appliance.web", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,  # a page is of one release: files that an update has replaced wait for the restart
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "when": when,
        "size": size,
        "memory": memory,
        "tone": tone,
        "branch": branch,
        "plural": plural,
        "number": number,
        "metrics_of": metrics_of,
        "segment": segment,
    }
    made.globals |= {"duration": duration, "static": address, "release": __version__}
    return made


_ENVIRONMENT = _environment()


def page(request: AnyRequest, template: str, *, status: int = 200, **values: Any) -> Response[str]:
    """The template as an answer; it knows who is signed in and where it is."""
    known = {"actor": find_actor(request), "path": request.scope["path"], "here": _here(request)}
    text = _ENVIRONMENT.get_template(template).render(**known, **values)
    return Response(text, status_code=status, media_type=MediaType.HTML)


def is_partial(request: AnyRequest) -> bool:
    """Whether htmx asks, which puts the answer into the page that is there."""
    return request.headers.get("hx-request") == "true"


def go(request: AnyRequest, url: str, cookies: list[Cookie] | None = None) -> Response[Any]:
    """After a form was carried out: on to `url`. Our script (which asks for JSON) is told where, a browser is redirected."""
    if "application/json" in request.headers.get("accept", ""):
        return Response({"location": url}, media_type=MediaType.JSON, cookies=cookies)
    return Redirect(url, status_code=303, cookies=cookies)


def own_path(url: str | None) -> str:
    """`url` if it is a path of ours to come back to, else the first page: a link must not lead elsewhere by our hand."""
    if not url or not url.startswith("/") or url[1:2] in ("/", "\\") or any(ord(sign) < 33 for sign in url):
        return "/"
    parts = urlsplit(url)
    return "/" if parts.scheme or parts.netloc else url


def error_page(request: AnyRequest, status: int, code: str, message: str) -> Response[Any] | None:
    """One sentence and a way on; a stranger is led to the sign-in. None (JSON) for a script of our pages."""
    if is_partial(request):
        return None
    if code == "UNAUTHORIZED" and request.method == "GET" and find_actor(request) is None:
        return Redirect(f"/login?next={quote(_here(request), safe='')}", status_code=303)
    values: Mapping[str, Any] = {"status": status, "code": code, "message": message}
    shown: dict[str, Any] = {**values, "headline": _HEADLINES.get(status, "Something went wrong")}
    known = {"actor": find_actor(request), "path": request.scope["path"], "here": _here(request)}
    return Response(
        _ENVIRONMENT.get_template("error.html").render(**known, **shown), status_code=status, media_type=MediaType.HTML
    )


def _here(request: AnyRequest) -> str:
    query = request.scope["query_string"].decode("latin-1")
    path = quote(request.scope["path"], safe="/:@-._~!$&'()*+,;=")
    return f"{path}?{query}" if query else path
