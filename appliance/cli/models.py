"""Models: trained files with versions and metrics.

A REF is NAME, NAME:VERSION or NAME:TAG; a VERSION is its id, its number, a tag or `latest`.
"""

from __future__ import annotations

import argparse

from appliance.cli import versioned
from appliance.cli.shell import Shell, project_option, verb


def add(parser: argparse.ArgumentParser) -> None:
    create = verb(
        versioned.add(parser, "model", "models"), "create", _create, "create a model without versions", "NAME"
    )
    create.add_argument("--type", default="ONNX", choices=("ONNX", "Tensorflow", "Custom"))
    create.add_argument("--description")
    project_option(create)


def _create(shell: Shell) -> None:
    args = shell.args
    found = shell.client.models.create(
        args.name,
        model_type=args.type,
        description=args.description,
        project=shell.project_id(args.project),
    )
    shell.term.answer(found, f"Model {found['name']} is there: `appliance models put DIR {found['name']}` fills it.")
