"""What containers inherit from this machine: certificates, proxies, pip's settings, and where apt finds packages.

What this keeps true: a machine behind a proxy that opens TLS, or with a mirror of its own, can build our images and
`pip install` in a notebook without anything being set again; and nothing is passed on that means nothing inside a
container (a `file:` index, a folder of wheels, a proxy on this machine's loopback).

The certificates are bound at a path of our own and named by the usual variables, not laid over
/etc/ssl/certs/ca-certificates.crt: a bound file cannot be replaced, so `apt-get install ca-certificates` in somebody's
image would fail. Our own images have the bundle at the usual place from their build.

Why read here and not in config.py: these are other programs' settings, read as those programs read them.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from appliance.records import Mount

SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
BUNDLE_INSIDE = "/etc/appliance/ca-certificates.crt"
_BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_PIP = ("index-url", "extra-index-url", "trusted-host", "default-timeout", "retries")
_PIP_FILES = ("etc/xdg/pip/pip.conf", "etc/pip.conf")
_LOOPBACK = re.compile(r"^(localhost|127\.\d+\.\d+\.\d+|\[?::1\]?)$")
_ARCHIVE_KEYS = re.compile(r"/(debian|ubuntu)-archive-[\w.-]*keyring")

ROOT = Path("/")


def ca_bundle(environ: Mapping[str, str] = os.environ, root: Path = ROOT) -> Path | None:
    """The file with the certificates that this machine trusts; None where there is none."""
    named = [environ[name] for name in _BUNDLE_VARIABLES if name in environ]
    candidates = [Path(path) for path in named] + [root / SYSTEM_BUNDLE[1:]]
    return next((path for path in candidates if path.is_file()), None)


def has_own_certificates(environ: Mapping[str, str] = os.environ, root: Path = ROOT) -> bool:
    """Whether this machine trusts more (or other) certificates than its distribution ships."""
    local = root / "usr/local/share/ca-certificates"
    bundle = ca_bundle(environ, root)
    return bundle is not None and (bundle != root / SYSTEM_BUNDLE[1:] or any(local.rglob("*.crt")))


def inherited_env(environ: Mapping[str, str] = os.environ, root: Path = ROOT) -> dict[str, str]:
    """The variables that every workload gets; what its own spec says wins."""
    env = pip_settings(environ, root)
    for name, value in proxies(environ, root).items():
        if name.upper() == "NO_PROXY" or not _LOOPBACK.match(urlsplit(value).hostname or ""):
            env[name] = value
    if has_own_certificates(environ, root):
        env |= dict.fromkeys((*_BUNDLE_VARIABLES, "NODE_EXTRA_CA_CERTS"), BUNDLE_INSIDE)
    return env


def inherited_mounts(environ: Mapping[str, str] = os.environ, root: Path = ROOT) -> tuple[Mount, ...]:
    """The files that every workload gets: the certificates, where this machine has its own."""
    bundle = ca_bundle(environ, root)
    if bundle is None or not has_own_certificates(environ, root):
        return ()
    return (Mount(source=str(bundle.resolve()), target=BUNDLE_INSIDE, read_only=True),)


def proxies(environ: Mapping[str, str] = os.environ, root: Path = ROOT) -> dict[str, str]:
    """Proxies as this machine has them, from /etc/environment and, winning, the environment; both spellings."""
    found = {**dict(_assignments(_read(root / "etc/environment"))), **environ}
    env = {}
    for name in _PROXIES:
        if value := found.get(name) or found.get(name.lower()):
            env[name] = env[name.lower()] = value
    return env


def pip_settings(environ: Mapping[str, str] = os.environ, root: Path = ROOT) -> dict[str, str]:
    """pip's settings as PIP_ variables, from its files and, winning, the environment; local locations left out."""
    parser = configparser.RawConfigParser(strict=False)
    home = Path(environ.get("HOME", "/root"))
    personal = [
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
        Path(environ.get("PIP_CONFIG_FILE", "/dev/null")),
    ]
    for path in [*(root / name for name in _PIP_FILES), *personal]:
        try:
            parser.read_string(_read(path))
        except configparser.Error:
            continue  # pip itself would complain; the build then shows it
    env = {}
    for key in _PIP:
        said = parser.get("global", key, fallback="")
        if key == "default-timeout":
            said = said or parser.get("global", "timeout", fallback="")
        name = "PIP_" + key.upper().replace("-", "_")
        words = [word for word in environ.get(name, said).split() if not word.startswith(("file:", "/", "."))]
        if words:
            env[name] = " ".join(words)
    return env


def release(root: Path = ROOT) -> tuple[str, str]:
    """This machine's distribution and suite, such as ("debian", "bookworm"), from os-release."""
    said = dict(_assignments(_read(root / "etc/os-release")))
    return said.get("ID", ""), said.get("VERSION_CODENAME", "")


def apt_sources(root: Path = ROOT) -> list[str]:
    """The distribution's own sources as one-line `deb` entries, from both of apt's formats; others are left out.

    None where the machine has none: mmdebstrap then knows the distribution's public mirror by the suite's name.
    """
    _, suite = release(root)
    folder = root / "etc/apt"
    lists = [folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))]
    stanzas = [entry for path in lists for entry in _one_line(_read(path))]
    stanzas += [entry for path in sorted(folder.glob("sources.list.d/*.sources")) for entry in _deb822(_read(path))]
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    lines = [
        f"deb {'[trusted=yes] ' if trusted else ''}{_address(uri)} {name} {' '.join(components)}"
        for uri, name, components, signed_by, trusted in stanzas
        if name in wanted and "main" in components and (not signed_by or _ARCHIVE_KEYS.search(signed_by))
        if not uri.startswith("cdrom:")
    ]
    return list(dict.fromkeys(lines))


_Source = tuple[str, str, list[str], str, bool]


def _one_line(text: str) -> Iterator[_Source]:
    for found in re.finditer(r"^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:[ \t]+[^\s#]+)*)", text, re.MULTILINE):
        options, uri, name, components = found.groups()
        signed = re.search(r"signed-by=(\S+)", options or "")
        yield uri, name, components.split(), signed.group(1) if signed else "", "trusted=yes" in (options or "")


def _deb822(text: str) -> Iterator[_Source]:
    text = re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)
    for stanza in re.split(r"\n\s*\n", text):
        fields = {
            key.lower(): " ".join(value.split())
            for key, value in re.findall(r"^([\w-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        components = fields.get("components", "").split()
        for uri in fields.get("uris", "").split():
            for name in fields.get("suites", "").split():
                yield uri, name, components, fields.get("signed-by", ""), fields.get("trusted", "") == "yes"


def _address(uri: str) -> str:
    """A `mirror+file:` list (cloud images have one) as its first address, which means something in a container."""
    if not uri.startswith("mirror+file:"):
        return uri
    lines = _read(Path(uri.removeprefix("mirror+file:"))).split()
    return next((word for word in lines if word.startswith(("http://", "https://"))), uri)


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    for name, value in re.findall(r"^\s*(?:export\s+)?(\w+)=(.*?)\s*$", text, re.MULTILINE):
        yield name, value.strip("\"'")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
