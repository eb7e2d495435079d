"""Workflows: the files that pushes and people start runs of."""

from __future__ import annotations

import argparse
from typing import Any

from appliance.cli.runs import row_of
from appliance.cli.shell import Shell, project_option, verb, verbs, yes_option
from appliance.cli.terminal import ago
from appliance.errors import Conflict, NotFound


def add(parser: argparse.ArgumentParser) -> None:
    place = verbs(parser)
    project_option(verb(place, "list", _list, "list workflows"))
    verb(place, "runs", _runs, "list the runs of one, newest first", "WORKFLOW")
    yes_option(verb(place, "delete", _delete, "delete a workflow and its runs", "WORKFLOW"))


def _list(shell: Shell) -> None:
    items = list(shell.client.workflows.list(shell.project_id(shell.args.project)))
    rows = [
        {
            "NAME": each.get("name"),
            "ID": each["id"],
            "FILE": each.get("path"),
            "CREATED": ago(each.get("dtCreated")),
        }
        for each in items
    ]
    shell.term.table(items, rows, "There is no workflow yet: push .gradient/workflows/NAME.yaml.")


def _runs(shell: Shell) -> None:
    items = list(shell.client.workflows.runs(_find(shell)["id"]))
    shell.term.table(items, [row_of(each) for each in items], "It has not run yet.")


def _delete(shell: Shell) -> None:
    found = _find(shell)
    shell.confirm(f"Workflow {found.get('name')} and the logs of its runs will be deleted; versions that it made stay.")
    shell.client.workflows.delete(found["id"])
    shell.term.answer(found, f"Workflow {found.get('name')} is deleted.")


def _find(shell: Shell) -> Any:
    word = shell.args.workflow
    found = [each for each in shell.client.workflows.list() if word in (each["id"], each.get("name"))]
    if not found:
        raise NotFound(f"There is no workflow {word!r}: `appliance workflows list` shows them.")
    if len(found) > 1:
        raise Conflict(f"Several projects have a workflow {word!r}: use its id.")
    return found[0]
