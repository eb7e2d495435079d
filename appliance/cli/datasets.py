"""Datasets: folders with versions.

A REF is NAME, NAME:VERSION or NAME:TAG; a VERSION is its id, its number, a tag or `latest`.
"""

from __future__ import annotations

import argparse

from appliance.cli import versioned
from appliance.cli.shell import Shell, project_option, verb


def add(parser: argparse.ArgumentParser) -> None:
    create = verb(versioned.add(parser, "dataset", "datasets"), "create", _create, "create an empty dataset", "NAME")
    create.add_argument("--description")
    create.add_argument("--public", action="store_true", help="every member may read it, whatever their projects")
    project_option(create)


def _create(shell: Shell) -> None:
    args = shell.args
    found = shell.client.datasets.create(
        args.name, description=args.description, is_public=args.public, project=shell.project_id(args.project)
    )
    shell.term.answer(
        found, f"Dataset {found['name']} is there: `appliance datasets put DIR {found['name']}` fills it."
    )
