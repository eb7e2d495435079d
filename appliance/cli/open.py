"""Open the dashboard in a browser."""

from __future__ import annotations

import argparse
import webbrowser

from appliance.cli.shell import Shell, json_option
from appliance.client.transport import segment


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "project", nargs="?", metavar="PROJECT", help="a project's page (default: the list of projects)"
    )
    json_option(parser)
    parser.set_defaults(work=_open)


def _open(shell: Shell) -> None:
    project = shell.args.project
    url = shell.settings.url + (f"/projects/{segment(project)}" if project else "/")
    opened = False if shell.term.as_json else webbrowser.open(url)
    shell.term.answer({"url": url}, url if opened else f"Open {url} in a browser.")
