"""Who gets what of the machine, and why the others wait.

What this keeps true: `choose` is pure; an ask is granted whole or not at all; whoever came first goes first, and a later
one goes before it only where the earlier one could not use what is left (it is too big for it); each wait is one sentence.
`tick` writes grants: the lease and the container's leave to be made, in one transaction.

Why: a decision that can be read as a table of values can be tested as one; what is written is only its outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance import containers, leases, machine, runs
from appliance.db import Database
from appliance.errors import BadRequest
from appliance.leases import Held
from appliance.machine import Capacity, card_model
from appliance.records import Card, MachineType
from appliance.store import failpoints


@dataclass(frozen=True)
class Ask:
    """Something waits for a machine of that type."""

    container_id: str
    owner_id: str
    kind: MachineType


@dataclass(frozen=True)
class Grant:
    container_id: str
    owner_id: str
    kind: MachineType
    cards: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    container_id: str
    why: str


def choose(asks: Sequence[Ask], capacity: Capacity, held: Held) -> list[Grant | Wait]:
    """Give each ask, the first one first, what it needs of what is left; say why the others wait.

    Cards are compared by model; CPU in shares of cores, memory in MiB, both against what all leases hold, not against
    what is in use this moment: a lease is a promise. One answer for each ask, in their order.
    """
    cpus, memory = capacity.cpus - held.cpus, capacity.memory_mib - held.memory_mib
    free = [card for card in capacity.cards if card.uuid not in held.cards]
    answers: list[Grant | Wait] = []
    for position, ask in enumerate(asks):
        cards = _fitting(free, ask.kind)
        why = _obstacle(ask.kind, capacity, cpus, memory, cards)
        if why is not None or cards is None:
            ahead = sum(isinstance(answer, Wait) for answer in answers[:position])
            place = f" {ahead} ask{'s' if ahead > 1 else ''} came before." if ahead else ""
            answers.append(Wait(ask.container_id, f"{why}{place}"))
            continue
        answers.append(Grant(ask.container_id, ask.owner_id, ask.kind, tuple(card.uuid for card in cards)))
        cpus, memory = cpus - ask.kind.cpus, memory - ask.kind.memory_mib
        free = [card for card in free if card not in cards]
    return answers


def _fitting(free: Sequence[Card], kind: MachineType) -> list[Card] | None:
    """The first free cards of the wanted model, as many as are wanted; None when there are fewer."""
    matching = [card for card in free if card_model(card.name) == kind.card_name]
    return matching[: kind.cards] if len(matching) >= kind.cards else None


def _obstacle(
    kind: MachineType, capacity: Capacity, cpus: float, memory: int, cards: Sequence[Card] | None
) -> str | None:
    """The sentence that says what is missing for `kind`, or None."""
    if kind.cpus > capacity.cpus or kind.memory_mib > capacity.memory_mib:
        return f"{kind.name} needs {kind.cpus:g} cores and {kind.memory_mib} MiB, more than this machine can ever give."
    if cards is None:
        return f"{kind.name} needs {kind.cards} free {kind.card_name} card(s), and the others are in use."
    if kind.cpus > cpus:
        return f"{kind.name} needs {kind.cpus:g} cores, and {max(cpus, 0):g} of {capacity.cpus:g} are free."
    if kind.memory_mib > memory:
        return f"{kind.name} needs {kind.memory_mib} MiB, and {max(memory, 0)} of {capacity.memory_mib} MiB are free."
    return None


def tick(db: Database, inventory: Callable[[], Sequence[Card]]) -> int:
    """Grant what can be granted now; how many were. Waits are noted where the person looks.

    `inventory` is asked for the cards only when somebody waits.
    """
    with db.read() as reader:
        waiting = containers.list_waiting(reader)
    if not waiting:
        return 0
    cards = inventory()
    with db.write() as tx:
        asks = []
        noted = {}
        for container, kind, wait in containers.list_waiting(tx):
            noted[container.id] = wait
            try:
                asks.append(Ask(container.id, container.owner_id, machine.resolve_type(tx, kind)))
            except BadRequest as error:
                containers.note_wait(tx, container.id, error.message)
        answers = choose(asks, machine.capacity(cards), leases.held(tx))
        for answer in answers:
            if isinstance(answer, Wait):
                if noted[answer.container_id] != answer.why:
                    containers.note_wait(tx, answer.container_id, answer.why)
                continue
            lease = leases.grant(tx, answer.container_id, answer.owner_id, answer.kind, answer.cards)
            container = containers.leased(tx, answer.container_id, lease.id, lease.cards)
            if container.kind == "attempt":
                runs.leased(tx, container)
    granted = sum(isinstance(answer, Grant) for answer in answers)
    if granted:
        failpoints.hit("lease.granted")
    return granted
