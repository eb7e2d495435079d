"""Your API keys: what programs, git and notebooks sign in with."""

from __future__ import annotations

import argparse

from appliance.cli.shell import Shell, verb, verbs, yes_option
from appliance.cli.terminal import ago
from appliance.errors import NotFound


def add(parser: argparse.ArgumentParser) -> None:
    place = verbs(parser)
    verb(place, "list", _list, "list your keys; their secrets are nowhere to be had")
    verb(place, "create", _create, "make a key; it is shown this once", "NAME")
    yes_option(verb(place, "revoke", _revoke, "make a key worthless, without asking", "KEY"))


def _list(shell: Shell) -> None:
    items = list(shell.client.keys.list())
    rows = [
        {
            "NAME": each.get("name"),
            "KEY": f"{each.get('prefix') or ''}…",
            "CREATED": ago(each.get("dtCreated") or each.get("createdAt")),
            "LAST USED": ago(each.get("dtLastUsed") or each.get("lastUsedAt")),
            "ID": each["id"],
        }
        for each in items
    ]
    shell.term.table(items, rows, "You have no key.")


def _create(shell: Shell) -> None:
    found = shell.client.keys.create(shell.args.name)
    shell.term.note("The key is shown this once.")
    shell.term.answer(found, str(found["key"]))


def _revoke(shell: Shell) -> None:
    for each in shell.client.keys.list():
        if shell.args.key in (each["id"], each.get("name")):
            shell.client.keys.revoke(each["id"])
            shell.term.answer(each, f"The key {each.get('name')} is revoked.")
            return
    raise NotFound(f"You have no key {shell.args.key!r}.")
