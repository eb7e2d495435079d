"""Sign in to a server: trust its certificate, keep a key, tell git.

What this keeps true: no key or password leaves before the certificate is trusted, by the system or because a person
compared its fingerprint; over plain HTTP to another machine nothing is sent at all; what is changed in git's
configuration is shown. A second login replaces the first: once the new key works, the one that an earlier login with a
password made here for this server is revoked. A key that was given is not: it may be in use elsewhere.

Why a key and not the password: it can be revoked by itself, and it is what git and the SDK need anyway.
"""

from __future__ import annotations

import argparse
import getpass
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appliance.cli import git
from appliance.cli.shell import Shell, json_option
from appliance.client import Client, settings, trust
from appliance.client.settings import Settings
from appliance.client.transport import Unreachable, is_loopback
from appliance.errors import ApplianceError, BadRequest, Unauthorized


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="such as https://gpu-server:8443; HOST:PORT means https")
    parser.add_argument("--key", metavar="KEY", help="an API key; - reads it from stdin (default: ask)")
    parser.add_argument("--email", metavar="EMAIL", help="sign in with a password and make a key")
    parser.add_argument("--password", metavar="PASSWORD", help="with --email; - reads it from stdin (default: ask)")
    parser.add_argument("--fingerprint", metavar="SHA256", help="trust the certificate that has this fingerprint")
    parser.add_argument("-y", "--yes", action="store_true", help="trust the certificate that it shows now")
    parser.add_argument("--no-git", action="store_true", help="leave git's configuration alone")
    json_option(parser)
    parser.set_defaults(work=_login)


def _login(shell: Shell) -> None:
    url = settings.normal_url(shell.args.url)
    if url.startswith("http:") and not is_loopback(url):
        raise BadRequest(f"{url} would carry your key in the clear: use its https address.")
    pem = _trusted(shell, url) if url.startswith("https:") else None
    ca = _keep(url, pem)
    key = _key(shell, url, ca)
    session = _session(url, key, ca)
    email = str(session["user"]["email"])
    before = settings.servers()[0].get(url)
    path = settings.store(Settings(url, key, ca, email))
    if before is not None and before.key and before.key != key:
        _revoke(shell, url, before.key, ca)
    told = _tell_git(shell, url, ca)
    shell.term.answer(
        {"url": url, "email": email, "config": str(path), "ca": str(ca) if ca else None, "git": told},
        f"You are signed in to {url} as {email}.",
    )


def _trusted(shell: Shell, url: str) -> str | None:
    """The certificate to trust, None where the system trusts the server already. Raises BadRequest, Unreachable."""
    if trust.is_trusted(url):
        return None
    found = trust.claim(url)
    wanted = shell.args.fingerprint
    if wanted is not None and not trust.is_same(wanted, found.fingerprint):
        raise BadRequest(
            f"{url} shows another certificate, with the fingerprint {found.fingerprint}: do not sign in before you know why."
        )
    if wanted is None:
        _ask_trust(shell, url, found.fingerprint)
    if not trust.is_trusted(url, found.pem):
        host = urlsplit(url).hostname
        raise Unreachable(
            f"The certificate of {url} is not made for the name {host!r}, or has expired: use the address that the server "
            "printed when it was installed."
        )
    return found.pem


def _ask_trust(shell: Shell, url: str, fingerprint: str) -> None:
    shell.term.note(f"{url} vouches for itself. Compare the fingerprint with the one that its installation printed")
    shell.term.note("(or `openssl x509 -noout -fingerprint -sha256 -in …/tls/ca.crt` on the server shows):")
    shell.term.note(f"  SHA-256 {fingerprint}")
    if shell.args.yes:
        return
    if not sys.stdin.isatty():
        raise BadRequest("Nobody can be asked whether that is right: give --fingerprint (or --yes).")
    if shell.term.ask("Is it the same? [y/N] ").strip().lower() not in ("y", "yes"):
        raise BadRequest("The certificate was not trusted; nothing was sent.")


def _keep(url: str, pem: str | None) -> Path | None:
    if pem is None:
        return None
    parts = urlsplit(url)
    host = (parts.hostname or "").replace(":", "_")
    path = settings.config_folder() / "ca" / f"{host}_{parts.port or 443}.pem"
    settings.write_private(path, pem)
    return path


def _key(shell: Shell, url: str, ca: Path | None) -> str:
    args = shell.args
    if args.email:
        password = _secret(args.password, f"Password of {args.email}: ")
        with Client(url, None, ca=ca) as client:
            client.account.sign_in(args.email, password)
            key = str(client.keys.create(_own_name())["key"])
            client.account.sign_out()
            return key
    return _secret(args.key, f"API key (make one at {url}/settings): ")


def _own_name() -> str:
    """What a key is called that is made here."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _revoke(shell: Shell, url: str, old: str, ca: Path | None) -> None:
    """The key of an earlier login opens nothing any more; where that fails it is said, for the new key works anyway."""
    try:
        with Client(url, old, ca=ca) as client:
            for each in client.keys.list():
                if each.get("name") == _own_name() and old.startswith(f"{each.get('prefix')}_"):
                    client.keys.revoke(str(each["id"]))
    except Unauthorized:
        return
    except ApplianceError as error:
        shell.term.note(f"The key of the last login could not be revoked ({error.message}): see {url}/settings.")


def _secret(given: str | None, question: str) -> str:
    if given == "-":
        given = sys.stdin.readline()
    elif given is None:
        if not sys.stdin.isatty():
            raise BadRequest("Nobody can be asked for a key: give --key - and write it to stdin.")
        given = getpass.getpass(question)
    if not given.strip():
        raise BadRequest("That is empty; nothing was sent.")
    return given.strip()


def _session(url: str, key: str, ca: Path | None) -> dict[str, Any]:
    with Client(url, key, ca=ca) as client:
        session = client.account.session()
    if session is None:
        raise Unauthorized(f"{url} does not know this key: make a new one at {url}/settings.")
    return session


def _tell_git(shell: Shell, url: str, ca: Path | None) -> bool:
    if shell.args.no_git or not git.tell(url, ca):
        return False
    shell.term.note("git now knows this server; in its global configuration stands:")
    for name, value in git.settings_for(url, ca):
        shell.term.note(f'  {name} = "{value}"')
    if ca and (variable := git.overriding_variable()):
        shell.term.note(
            f"But the variable {variable} is set, which git obeys instead: unset it for git to trust the server."
        )
    return True
