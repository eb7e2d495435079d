"""Which server, as whom: the environment, then what `appliance login` stored.

What this keeps true: the file is `config.json` in `$XDG_CONFIG_HOME/appliance` (default `~/.config/appliance`), 0600 in a
folder that is 0700, replaced in one step; it holds several servers and which of them is the current one. Order, first
wins: arguments, `APPLIANCE_URL` with `APPLIANCE_API_KEY` and `APPLIANCE_CA`, the file. A stored key is only ever sent to
the server that it was stored for. `PAPERSPACE_API_KEY`, which Gradient set in its containers, is the last resort and needs
`APPLIANCE_URL` beside it: in a shell it may well be the key of an account at Paperspace, which is nobody's business here.

Why: one sign-in on a laptop, none in a container, and no key in a shell's history.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appliance.errors import BadRequest, ParseError


@dataclass(frozen=True)
class Settings:
    """A server and how to speak to it. `ca` None trusts the system's authorities."""

    url: str
    key: str | None
    ca: Path | None
    email: str | None = None


def normal_url(text: str) -> str:
    """`text` as the address of a server: scheme, host, port and perhaps a path, without `/v1`. Raises BadRequest.

    `HOST` and `HOST:PORT` mean https.
    """
    parts = urlsplit(text.strip() if "://" in text else f"https://{text.strip()}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.username is not None:
        raise BadRequest(f"{text[:200]!r} is not the address of an appliance: write it like https://gpu-server:8443.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "") + path


def config_folder(environ: Mapping[str, str] | None = None) -> Path:
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".config")
    return Path(base) / "appliance"


def find(environ: Mapping[str, str] | None = None) -> Settings | None:
    """The server that the environment or the stored file mean; None when neither names one."""
    environ = os.environ if environ is None else environ
    stored, current = servers(environ)
    named = environ.get("APPLIANCE_URL")
    url = normal_url(named) if named else current
    if url is None:
        return None
    known = stored.get(url)
    key = environ.get("APPLIANCE_API_KEY") or (known.key if known else None)
    if not key and named:
        key = environ.get("PAPERSPACE_API_KEY") or None
    ca = Path(environ["APPLIANCE_CA"]) if environ.get("APPLIANCE_CA") else (known.ca if known else None)
    return Settings(url, key, ca, known.email if known else None)


def servers(environ: Mapping[str, str] | None = None) -> tuple[dict[str, Settings], str | None]:
    """All stored servers by their address, and the current one's. Raises ParseError for a file that is no JSON."""
    content = _read(config_folder(environ) / "config.json")
    found = {
        url: Settings(url, each.get("key"), Path(each["ca"]) if each.get("ca") else None, each.get("email"))
        for url, each in content.get("servers", {}).items()
    }
    current = content.get("current")
    return found, current if current in found else None


def store(entry: Settings, environ: Mapping[str, str] | None = None) -> Path:
    """Keep `entry` and make it the current server. Returns the file."""
    path = config_folder(environ) / "config.json"
    content = _read(path)
    kept = {"key": entry.key, "ca": str(entry.ca) if entry.ca else None, "email": entry.email}
    content["servers"] = {**content.get("servers", {}), entry.url: kept}
    content["current"] = entry.url
    write_private(path, json.dumps(content, indent=2) + "\n")
    return path


def forget(url: str, environ: Mapping[str, str] | None = None) -> bool:
    """Remove a server, its certificate too; whether it was there. Another stored one becomes the current one."""
    path = config_folder(environ) / "config.json"
    content = _read(path)
    entry = content.get("servers", {}).pop(url, None)
    if entry is None:
        return False
    if entry.get("ca"):
        Path(entry["ca"]).unlink(missing_ok=True)
    if content.get("current") == url:
        content["current"] = next(iter(content["servers"]), None)
    write_private(path, json.dumps(content, indent=2) + "\n")
    return True


def write_private(path: Path, text: str) -> None:
    """`path` holds `text` for its owner's eyes alone; whoever reads meanwhile sees the old or the new text."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ParseError(
            f"{path} cannot be read ({error}): repair or remove it, then run `appliance login`."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("servers", {}), dict):
        raise ParseError(f"{path} is not what `appliance login` writes: remove it and sign in again.")
    return content
