"""`appliance`: the command line, a client and nothing else.

What this keeps true: a command is one call of the SDK and then printing. `--json` prints one JSON value on stdout and
nothing else there (`logs -f --json`: one on each line); sentences, questions and progress go to stderr. What the server
sends never reaches the terminal with its control characters. Exit codes: 0 done, 1 refused or failed, 2 the command was
not understood, 3 not signed in, 4 there is no such thing, 5 not allowed, 6 the server cannot be reached (or is not
trusted), 7 the run that was waited for did not succeed, 130 interrupted.

A noun is a module that is loaded only when it is named: `add(parser)` describes its verbs, and each verb is a function
that takes a `Shell` and returns None or an exit code.

Why argparse and lazy modules: completion by eye needs an answer in a blink, and `pip install appliance` brings httpx alone.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from appliance import errors
from appliance.cli.shell import Shell, exit_code

NOUNS = {
    "login": ("appliance.cli.login", "sign in to a server, trust its certificate, tell git"),
    "logout": ("appliance.cli.logout", "forget a server, its key and its certificate"),
    "projects": ("appliance.cli.projects", "projects, their collaborators and pushes"),
    "runs": ("appliance.cli.runs", "runs of workflows: list, show, start, cancel, logs"),
    "workflows": ("appliance.cli.workflows", "workflows and their runs"),
    "datasets": ("appliance.cli.datasets", "datasets, their versions and files"),
    "models": ("appliance.cli.models", "models, their versions and files"),
    "deployments": ("appliance.cli.deployments", "served models: apply, scale, roll back, keys, logs"),
    "members": ("appliance.cli.members", "the team: list, invite, reset a password"),
    "keys": ("appliance.cli.keys", "your API keys"),
    "machine": ("appliance.cli.machine", "what the server has and who uses it"),
    "doctor": ("appliance.cli.doctor", "what is wrong, with the remedy"),
    "tour": ("appliance.tour", "a real model, from a push to an answer"),
    "version": ("appliance.cli.version", "the versions of this program and of the server"),
    "open": ("appliance.cli.open", "open the dashboard in a browser"),
}
_HIDDEN = {"git-credential": ("appliance.cli.git", "answer git's question for a password")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter is no reason to stop
            stream.reconfigure(errors="replace")
    try:
        return _dispatch(words)
    except errors.ApplianceError as error:
        return exit_code(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `appliance runs list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(words: list[str]) -> int:
    noun = words[0] if words else "--help"
    if noun in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    module = (NOUNS | _HIDDEN).get("version" if noun == "--version" else noun)
    if module is None:
        near = difflib.get_close_matches(noun, NOUNS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"appliance: there is no command {noun!r}.{hint} `appliance --help` lists them.", file=sys.stderr)
        return 2
    # By name, so that a command loads its own noun alone (and `tour`, a door of its own, only when it is asked for).
    found = importlib.import_module(module[0])
    parser = argparse.ArgumentParser(prog=f"appliance {noun}", description=(found.__doc__ or "").split("\n\n")[0])
    found.add(parser)
    arguments = parser.parse_args(words[1:])
    work = getattr(arguments, "work", None)
    if work is None:
        parser.print_help(sys.stderr)
        return 2
    with Shell(arguments) as shell:
        return work(shell) or 0


def _help() -> str:
    width = max(map(len, NOUNS))
    lines = [f"  {noun:<{width}}  {about}" for noun, (_, about) in NOUNS.items()]
    return "\n".join(
        [
            "usage: appliance COMMAND ...",
            "",
            *lines,
            "",
            "`appliance COMMAND --help` says more; --json on each of them prints JSON.",
            "The server: APPLIANCE_URL and APPLIANCE_API_KEY, else the one of `appliance login`, else (root on the server",
            "itself) this machine's own.",
        ]
    )
