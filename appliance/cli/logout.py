"""Forget a server: its key, its certificate, and what git was told. The key itself stays valid until it is revoked."""

from __future__ import annotations

import argparse

from appliance.cli import git
from appliance.cli.shell import Shell, json_option
from appliance.client import settings
from appliance.errors import NotFound


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", nargs="?", help="which server (default: the current one)")
    json_option(parser)
    parser.set_defaults(work=_logout)


def _logout(shell: Shell) -> None:
    url = settings.normal_url(shell.args.url) if shell.args.url else settings.servers()[1]
    if url is None or not settings.forget(url):
        raise NotFound(
            "You are not signed in there: nothing was changed." if url else "You are not signed in anywhere."
        )
    git.forget(url)
    shell.term.answer(
        {"url": url, "current": settings.servers()[1]}, f"{url} is forgotten; revoke its key there if it should end."
    )
