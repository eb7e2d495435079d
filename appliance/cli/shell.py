"""What a verb of the command line gets: its arguments, a client when it asks for one, and the terminal.

What this keeps true: no connection is made before a verb wants one; which server is meant is decided here alone; every
question is asked on the terminal and can be answered beforehand with `--yes`.

Why: fifteen nouns would otherwise each decide what "on the server itself" means.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from appliance import errors
from appliance.cli.terminal import Terminal, printable

if TYPE_CHECKING:
    from appliance.client import Client
    from appliance.client.settings import Settings

Work = Callable[["Shell"], int | None]

RUN_FAILED = 7
_EXIT_CODES = {"UNAUTHORIZED": 3, "NOT_FOUND": 4, "FORBIDDEN": 5, "UNREACHABLE": 6}


class Shell:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.args = arguments
        self.term = Terminal(sys.stdout, sys.stderr, as_json=getattr(arguments, "json", False))

    @cached_property
    def settings(self) -> Settings:
        """The server that is meant. Raises Unauthorized when none is."""
        from appliance.client import settings

        found = settings.find() or local_server()
        if found is None:
            raise errors.Unauthorized(
                "You are not signed in to any appliance: run `appliance login https://SERVER:8443`, or set APPLIANCE_URL "
                "and APPLIANCE_API_KEY."
            )
        return found

    @cached_property
    def client(self) -> Client:
        from appliance.client import Client

        found = self.settings
        return Client(found.url, found.key, ca=found.ca)

    def confirm(self, sentence: str) -> None:
        """Returns when the person (or `--yes`) agrees. Raises BadRequest otherwise."""
        if self.args.yes:
            return
        self.term.note(sentence)
        if not sys.stdin.isatty():
            raise errors.BadRequest("Nothing was deleted: add --yes where nobody can be asked.")
        if self.term.ask("Delete it? [y/N] ").strip().lower() not in ("y", "yes"):
            raise errors.BadRequest("Nothing was deleted.")

    def project_id(self, name: str | None) -> str | None:
        return str(self.client.projects.get(name)["id"]) if name else None

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if "client" in self.__dict__:
            self.client.close()


def local_server() -> Settings | None:
    """This machine's own appliance as root@localhost; None unless root asks and the daemon has written its key."""
    if os.geteuid() != 0:
        return None
    from appliance import config
    from appliance.client.settings import Settings

    chosen = config.load()
    try:
        key = chosen.local_admin_key.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return Settings(chosen.local_url, key, None, "root@localhost")


def exit_code(error: errors.ApplianceError) -> int:
    """Say `error` on stderr; the exit code that goes with it."""
    print(f"appliance: {printable(error.message)}", file=sys.stderr)
    for issue in error.issues:
        if issue != error.message:
            print(f"  - {printable(issue)}", file=sys.stderr)
    return _EXIT_CODES.get(error.code, 1)


def verbs(parser: argparse.ArgumentParser) -> Any:
    """The place in a noun's parser where `verb` adds to. Without a verb the noun's help is shown."""
    return parser.add_subparsers(metavar="VERB", title="verbs")


def verb(
    place: Any, name: str, work: Work, about: str, *words: str, aliases: tuple[str, ...] = ()
) -> argparse.ArgumentParser:
    """Add verb `name`; `words` are its positional arguments, `[WORD]` being one that may be left out."""
    parser: argparse.ArgumentParser = place.add_parser(
        name, help=about, description=about[0].upper() + about[1:] + ".", aliases=aliases
    )
    parser.set_defaults(work=work)
    for word in words:
        optional = word.startswith("[")
        plain = word.strip("[]")
        parser.add_argument(plain.lower(), metavar=plain, nargs="?" if optional else None)
    json_option(parser)
    return parser


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def yes_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def project_option(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument("-p", "--project", metavar="PROJECT", required=required, help="its id or name")
