"""What the server has, and who uses it."""

from __future__ import annotations

import argparse
from typing import Any

from appliance.cli.shell import Shell, json_option
from appliance.cli.terminal import ago, size


def add(parser: argparse.ArgumentParser) -> None:
    json_option(parser)
    parser.set_defaults(work=_show)


def _show(shell: Shell) -> None:
    found = shell.client.machine.show()
    shell.term.fields(
        found,
        {
            "cores": found.get("cpus"),
            "memory": size((found.get("memoryMib") or 0) << 20),
            "disk": f"{size(found.get('diskFreeBytes'))} free of {size(found.get('diskTotalBytes'))}",
            "version": found.get("version"),
        },
    )
    if shell.term.as_json:
        return
    for title, rows in (
        ("cards", [_card(each) for each in found.get("cards") or ()]),
        ("machine types", [_type(each) for each in found.get("machineTypes") or ()]),
        ("in use", [_lease(each) for each in found.get("leases") or ()]),
    ):
        if rows:
            shell.term.say(f"\n{title}".strip("\n"))
            shell.term.table([], rows, "")


def _card(card: Any) -> dict[str, Any]:
    used, whole = card.get("memoryUsedMib") or 0, card.get("memoryMib") or 0
    return {
        "CARD": card.get("index"),
        "NAME": card.get("name"),
        "MEMORY": f"{size(used << 20)} of {size(whole << 20)}",
        "LOAD": "" if card.get("utilisation") is None else f"{card['utilisation']} %",
        "STATE": "healthy" if card.get("healthy") else card.get("problem"),
    }


def _type(kind: Any) -> dict[str, Any]:
    return {
        "TYPE": kind["name"],
        "CORES": kind.get("cpus"),
        "MEMORY": size((kind.get("memoryMib") or 0) << 20),
        "CARDS": f"{kind['cards']} × {kind.get('cardName')}" if kind.get("cards") else "",
        "NOW": "free" if kind.get("free") else "in use",
    }


def _lease(lease: Any) -> dict[str, Any]:
    return {
        "TYPE": lease.get("machineType"),
        "FOR": lease.get("ownerId") or lease.get("containerId"),
        "STATE": lease.get("state"),
        "SINCE": ago(lease.get("dtCreated") or lease.get("createdAt")),
    }
