"""The versions of this program and, where one can be reached, of the server."""

from __future__ import annotations

import argparse

from appliance import __version__
from appliance.cli.shell import Shell, json_option
from appliance.errors import ApplianceError


def add(parser: argparse.ArgumentParser) -> None:
    json_option(parser)
    parser.set_defaults(work=_show)


def _show(shell: Shell) -> None:
    server = _server(shell)
    shell.term.fields({"client": __version__, "server": server}, {"client": __version__, "server": server})


def _server(shell: Shell) -> str | None:
    try:
        return str(shell.client.machine.show().get("version"))
    except ApplianceError:  # the client's own version is worth telling without a server
        return None
