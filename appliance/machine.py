"""The machine: who this appliance is, what it can give out, and the machine types made from that.

What this keeps true: the instance id is made once and never changes (containers carry it as a label); the machine types
are those that this machine can really give; a name that is not among them is answered with those that are.

CPU is given out twice over (`CPU_SHARES`): it is compressible, and most containers wait most of the time. Memory is not:
what is promised is there, less what the host itself needs. Cards are given out whole.

Owns the tables `settings` and `machine_types`.

Why: Gradient's word `machineType` hides everything that differs between two servers, so a workflow need not know.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance import ids
from appliance.db import Reader, Tx
from appliance.errors import BadRequest
from appliance.records import Card, MachineType

CPU_SHARES = 2
HOST_MEMORY_MIB = 1024
DEFAULT_TYPE = "C1"
_CPU_SIZES = (1, 2, 4, 8, 16, 32)
_MIB_PER_CPU = 2048


@dataclass(frozen=True)
class Capacity:
    """What all leases together may hold. `cpus` counts shares of cores; memory in MiB; cards that may be given out."""

    cpus: float
    memory_mib: int
    cards: tuple[Card, ...]


def capacity(cards: Sequence[Card]) -> Capacity:
    """What this machine can give out now; a card that is unhealthy is not among it."""
    return Capacity(
        cpus=cores() * CPU_SHARES,
        memory_mib=max(memory_mib() - HOST_MEMORY_MIB, HOST_MEMORY_MIB),
        cards=tuple(card for card in cards if card.healthy),
    )


def cores() -> int:
    return os.cpu_count() or 1


def memory_mib() -> int:
    """The machine's memory in MiB (MemTotal of /proc/meminfo, which is in KiB)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) // 1024
    return HOST_MEMORY_MIB * 2


def types_of(cpus: int, memory: int, cards: Sequence[Card]) -> list[MachineType]:
    """The machine types of a machine with so many cores, so much memory in MiB and these cards."""
    room = max(memory - HOST_MEMORY_MIB, HOST_MEMORY_MIB)
    sizes = [size for size in _CPU_SIZES if size == 1 or (size <= cpus and size * _MIB_PER_CPU <= room)]
    types = [MachineType(f"C{size}", float(size), min(size * _MIB_PER_CPU, room), 0, None) for size in sizes]
    models = sorted({card_model(card.name) for card in cards})
    for model in models:
        count = sum(card_model(card.name) == model for card in cards)
        for wanted in range(1, count + 1):
            share = wanted / len(cards)
            suffix = f"x{wanted}" if wanted > 1 else ""
            types.append(
                MachineType(
                    f"{model}{suffix}", max(1.0, float(int(cpus * share))), max(2048, int(room * share)), wanted, model
                )
            )
    return types


def card_model(name: str) -> str:
    """The short name of a card: `NVIDIA A100-SXM4-80GB` is an A100, `NVIDIA GeForce RTX 4090` an RTX-4090."""
    words = re.sub(r"^(NVIDIA|Tesla|GeForce|Quadro)\s+", "", re.sub(r"^NVIDIA\s+", "", name)).split()
    if not words:
        return "GPU"
    if words[0] in {"RTX", "GTX", "TITAN"} and len(words) > 1:
        return f"{words[0]}-{words[1]}"
    return words[0].split("-")[0]


def take_stock(tx: Tx, cards: Sequence[Card]) -> list[MachineType]:
    """Write the machine types of this machine as it is now; what no longer is, is gone from the list."""
    types = types_of(cores(), memory_mib(), cards)
    tx.run("DELETE FROM machine_types WHERE alias_of IS NULL")
    for kind in types:
        tx.insert(
            "machine_types",
            {
                "name": kind.name,
                "cpus": kind.cpus,
                "memory_mib": kind.memory_mib,
                "cards": kind.cards,
                "card_name": kind.card_name,
            },
        )
    return types


def machine_types(db: Reader) -> list[MachineType]:
    """Every machine type, CPU types first, the smallest first."""
    rows = db.all(
        "SELECT name, cpus, memory_mib, cards, card_name FROM machine_types WHERE alias_of IS NULL"
        " ORDER BY cards, card_name, cpus"
    )
    return [MachineType(**row) for row in rows]


def resolve_type(db: Reader, name: str | None) -> MachineType:
    """The machine type of that name (None: the default one). BadRequest says which ones there are."""
    types = {kind.name.lower(): kind for kind in machine_types(db)}
    found = types.get((name or DEFAULT_TYPE).lower())
    if found is None:
        offered = ", ".join(kind.name for kind in types.values())
        gpu = "" if any(kind.cards for kind in types.values()) else " This machine has no GPU."
        raise BadRequest(f"There is no machine type {name!r} here; choose one of {offered}.{gpu}")
    return found


def instance(tx: Tx) -> str:
    """This appliance's own id, made at the first call; the label by which its containers are known."""
    known = setting(tx, "instance")
    if known is None:
        known = ids.new_id("ap", 12)
        set_setting(tx, "instance", known)
    return known


def setting(db: Reader, name: str) -> str | None:
    value = db.value("SELECT value FROM settings WHERE name = ?", name)
    return None if value is None else str(value)


def set_setting(tx: Tx, name: str, value: str) -> None:
    tx.run("INSERT INTO settings VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
