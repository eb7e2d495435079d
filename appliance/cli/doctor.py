"""What is wrong, with the remedy: this machine's side first, then, for an admin, the server's own findings.

Exit code 1 when anything is wrong; warnings alone are 0.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from appliance import clock
from appliance.cli import git
from appliance.cli.shell import Shell, json_option
from appliance.client.transport import is_loopback
from appliance.errors import ApplianceError, Forbidden, Unauthorized

OK, WARNING, BAD = "ok", "warning", "problem"  # as the server's own doctor says them
_SKEW_S = 60.0


def add(parser: argparse.ArgumentParser) -> None:
    json_option(parser)
    parser.set_defaults(work=_doctor)


def _doctor(shell: Shell) -> int:
    found = [*_client_side(shell), *_server_side(shell)]
    rows = [
        {"CHECK": each["check"], "STATE": each["state"], "FINDING": each["text"], "REMEDY": each.get("remedy") or ""}
        for each in found
    ]
    shell.term.table(found, rows, "")
    return 0 if all(each["state"] in (OK, WARNING) for each in found) else 1


def _client_side(shell: Shell) -> Iterator[dict[str, Any]]:
    url = shell.settings.url
    try:
        answer = shell.client.transport.answer("GET", "/v1/health")
    except ApplianceError as error:
        remedy = "On the server, run `applianced doctor`; it works while the daemon is down."
        yield finding("server", BAD, error.message, remedy)
        return
    yield finding("server", OK, f"{url} answers.")
    if url.startswith("https:"):
        by = f"the authority in {shell.settings.ca}" if shell.settings.ca else "the system's authorities"
        yield finding("certificate", OK, f"It is trusted by {by}.")
    yield _key(shell)
    yield _clock(answer.headers.get("date"))
    if not (is_loopback(url) and os.geteuid() == 0):
        yield _git(url, shell.settings.ca is not None)


def _key(shell: Shell) -> dict[str, Any]:
    try:
        session = shell.client.account.session()
    except Unauthorized as error:
        return finding("key", BAD, error.message, f"Run `appliance login {shell.settings.url}`.")
    if session is None:
        return finding("key", BAD, "There is no key.", f"Run `appliance login {shell.settings.url}`.")
    return finding("key", OK, f"You are {session['user']['email']}.")


def _clock(date: str | None) -> dict[str, Any]:
    if date is None:
        return finding("clock", WARNING, "The server did not tell its time.")
    apart = (clock.now() - parsedate_to_datetime(date)).total_seconds()
    if abs(apart) > _SKEW_S:
        return finding(
            "clock", WARNING, f"This machine and the server are {apart:+.0f} s apart.", "Set up NTP on both."
        )
    return finding("clock", OK, "This machine and the server agree on the time.")


def _git(url: str, own_ca: bool) -> dict[str, Any]:
    variable = git.overriding_variable() if own_ca else None
    if variable:
        return finding(
            "git", WARNING, f"The variable {variable} keeps git from trusting the server.", "Unset it for git."
        )
    if git.is_told(url):
        return finding("git", OK, "git knows the server.")
    return finding("git", WARNING, "git does not know the server's key.", f"Run `appliance login {url}`.")


def _server_side(shell: Shell) -> list[dict[str, Any]]:
    try:
        return list(shell.client.machine.doctor())
    except (Forbidden, Unauthorized):
        return [finding("findings", WARNING, "The server's own findings are for admins.", "Ask one of yours.")]
    except ApplianceError:  # said already, by the first check
        return []


def finding(check: str, state: str, text: str, remedy: str | None = None) -> dict[str, Any]:
    return {"check": check, "state": state, "text": text, "remedy": remedy}
