"""/health, /v1/machine, /v1/doctor, /v1/storage-providers: how the server is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from litestar import MediaType, Response

from appliance import __version__, leases, machine
from appliance.leases import Held
from appliance.machine import Capacity
from appliance.records import Card, MachineType
from appliance.web import render
from appliance.web.auth import house_of, who
from appliance.web.errors import AnyRequest
from appliance.web.routes import Json, get


@get(["/health", "/v1/health"], perm="public", opt={"blind": True})
def health(request: AnyRequest) -> Response[Any]:
    """`HEALTHY`, or 503 and the sentence that says what is wrong."""
    problem = house_of(request).health()
    if problem is not None:
        return Response({"code": "INTERNAL_SERVER_ERROR", "message": problem}, status_code=503)
    return Response(b'"HEALTHY"', media_type=MediaType.JSON)


@get("/v1/machine")
def show_machine(request: AnyRequest) -> Json:
    """What the server has, what can be asked for, and who holds what."""
    house, _ = who(request)
    cards = house.cards()
    disk = shutil.disk_usage(house.config.data_dir)
    with house.db.read() as r:
        types, open_leases, held = machine.machine_types(r), leases.list_open(r), leases.held(r)
    capacity = machine.capacity(cards)
    return {
        "name": house.config.host_name,
        "version": __version__,
        "cpus": machine.cores(),
        "memoryMib": machine.memory_mib(),
        "cards": [{**render.camel(card), "held": card.uuid in held.cards} for card in cards],
        "machineTypes": [{**render.camel(kind), "free": is_free(kind, capacity, held)} for kind in types],
        "diskFreeBytes": disk.free,
        "diskTotalBytes": disk.total,
        "leases": [render.camel(lease) for lease in open_leases],
    }


@get("/v1/doctor", perm="admin")
def examine(request: AnyRequest) -> list[Json]:
    """Everything that was looked at, and what to do about what is wrong. Takes seconds."""
    return [render.camel(finding) for finding in house_of(request).doctor()]


@get("/v1/storage-providers/utilization")
def utilization(request: AnyRequest) -> Json:
    """Bytes, as text. Models and datasets share what is equal in one store, so their sum stands under datasets."""
    house, _ = who(request)
    found = house.store.usage()
    return {
        "datasetUsage": str(found.size_bytes),
        "modelUsage": "0",
        "notebookWorkspaceUsage": "0",
        "remainingFreeStorage": str(found.free_bytes),
        "sharedStorageUsage": "0",
        "totalFreeStorage": str(found.total_bytes),
        "totalUsage": str(found.size_bytes),
    }


def is_free(kind: MachineType, capacity: Capacity, held: Held) -> bool:
    """Whether one more of this kind could start at this moment. Pure."""
    return (
        kind.cpus <= capacity.cpus - held.cpus
        and kind.memory_mib <= capacity.memory_mib - held.memory_mib
        and kind.cards <= len(_free_cards(kind, capacity.cards, held))
    )


def _free_cards(kind: MachineType, cards: Sequence[Card], held: Held) -> list[Card]:
    return [card for card in cards if card.uuid not in held.cards and machine.card_model(card.name) == kind.card_name]


HANDLERS = [health, show_machine, examine, utilization]
