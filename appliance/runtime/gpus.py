"""The machine's NVIDIA cards, as NVML shows them.

What this keeps true: a card is its UUID, never its index, which changes when another card is lost. A card that was
seen once is listed for as long as this process lives: one that no longer answers is listed as unhealthy, with what
was last known of it, and the others are listed all the same. A machine without NVIDIA's driver has no cards and a
reason; nothing here raises. No call takes longer than `limit_s`: a driver that hangs makes its cards unhealthy and
leaves one waiting thread behind, not a daemon that waits with it.

Why keep the library open: opening it wakes every card, which takes seconds where persistence mode is off.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pynvml

from appliance.records import Card

T = TypeVar("T")

# What a driver holds on a card that nobody uses; more than this without a process is memory that outlived one
# (seen after `docker rm -f`: 22 GB).
IDLE_MIB = 1024
_LIMIT_S = 10.0
_NOT_OPEN = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
)
# Values a card may not tell without being ill.
_NOT_TOLD = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_DATA,
)
_REMEDIES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "NVIDIA's driver library (libnvidia-ml.so.1) is not installed",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "NVIDIA's kernel driver is not loaded: modprobe nvidia, or reboot",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "NVIDIA's driver was updated under the running kernel: reboot",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the card has fallen off the bus: reboot, and check its seat and power",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the card needs a reset: nvidia-smi --gpu-reset, or reboot",
}


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver; `problem` says why there is none (or none that works)."""

    version: str | None
    problem: str | None


class Gpus:
    """The open library and the cards seen so far. Any thread may call; the calls take turns."""

    def __init__(self, limit_s: float = _LIMIT_S) -> None:
        self._limit_s = limit_s
        self._turn = threading.Lock()
        self._open = False
        self._known: dict[str, Card] = {}
        self._hanging: threading.Thread | None = None

    def inventory(self) -> list[Card]:
        """Every card, by index; the lost ones with the index that they had."""
        seen = self._bounded(self._look)
        if seen is None:
            seen = []
            problem = f"NVIDIA's driver does not answer within {self._limit_s:g} s"
        else:
            problem = "the card no longer answers; reboot, and check its seat and power"
        present = {card.uuid: card for card in seen}
        self._known |= {uuid: card for uuid, card in present.items() if not uuid.startswith("index-")}
        missing = [_ill(card, card.problem or problem) for uuid, card in self._known.items() if uuid not in present]
        lost = {card.index for card in missing}
        # A card that will not even tell its UUID is the missing one of that index, if there is one.
        nameless = [card for uuid, card in present.items() if uuid.startswith("index-") and card.index in lost]
        listed = [card for card in seen if card not in nameless] + missing
        return sorted(listed, key=lambda card: (card.index, card.uuid))

    def driver(self) -> Driver:
        """NVIDIA's driver, or why there is none."""
        answer = self._bounded(self._version)
        return answer or Driver(
            None, f"NVIDIA's driver does not answer within {self._limit_s:g} s; reboot if it stays."
        )

    def busy_cards(self) -> dict[str, str]:
        """For each card that must not be given out again yet: why, as half a sentence for its lease's note."""
        return {card.uuid: why for card in self.inventory() if (why := why_busy(card))}

    def close(self) -> None:
        """Give the library back; it is opened again when needed."""
        with self._turn:
            if self._open:
                self._open = False
                with contextlib.suppress(pynvml.NVMLError):
                    pynvml.nvmlShutdown()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _bounded(self, ask: Callable[[], T]) -> T | None:
        """What `ask` answers; None when it, or one before it, hangs in the driver."""
        with self._turn:
            if self._hanging is not None and self._hanging.is_alive():
                return None
            answers: list[T] = []
            self._hanging = threading.Thread(target=lambda: answers.append(ask()), name="nvml", daemon=True)
            self._hanging.start()
            self._hanging.join(self._limit_s)
            return answers[0] if answers else None

    def _ready(self) -> pynvml.NVMLError | None:
        """The library is open, or why not."""
        if not self._open:
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as error:
                return error
            self._open = True
        return None

    def _version(self) -> Driver:
        if error := self._ready():
            return Driver(None, _sentence(error))
        try:
            return Driver(_text(pynvml.nvmlSystemGetDriverVersion()), None)
        except pynvml.NVMLError as error:
            self._closed_by(error)
            return Driver(None, _sentence(error))

    def _look(self) -> list[Card]:
        if self._ready():
            return []
        try:
            return [self._card(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            self._closed_by(error)
            return []

    def _closed_by(self, error: pynvml.NVMLError) -> None:
        if error.value in _NOT_OPEN:
            self._open = False

    def _card(self, index: int) -> Card:
        card = Card(f"index-{index}", "NVIDIA card", index, 0, 0, None, None, None, (), healthy=True, problem=None)
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            card = replace(card, uuid=_text(pynvml.nvmlDeviceGetUUID(handle)))
            card = replace(self._known.get(card.uuid, card), index=index, healthy=True, problem=None)
            return _measured(card, handle)
        except pynvml.NVMLError as error:
            self._closed_by(error)
            return _ill(card, _REMEDIES.get(error.value, _text(str(error))))


def why_busy(card: Card) -> str | None:
    """Why nobody else may have this card now; None when it is free. Compute processes count, a desktop's do not."""
    if not card.healthy:
        return f"it cannot be seen to be empty ({card.problem})"
    if card.processes:
        return f"process {', '.join(map(str, card.processes))} still uses it"
    if card.memory_used_mib > IDLE_MIB:
        return f"{card.memory_used_mib} MiB of its memory are still in use, by no process that can be seen"
    return None


def _measured(card: Card, handle: Any) -> Card:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    power = _told(pynvml.nvmlDeviceGetPowerUsage, handle)
    load = _told(pynvml.nvmlDeviceGetUtilizationRates, handle)
    return replace(
        card,
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        memory_mib=int(memory.total) // 2**20,
        memory_used_mib=int(memory.used) // 2**20,
        utilisation=None if load is None else int(load.gpu),
        temperature_c=_told(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000,
        processes=tuple(sorted({int(it.pid) for it in _told(_processes, handle) or ()})),
    )


def _processes(handle: Any) -> list[Any]:
    return list(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))


def _told(ask: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where this card or driver does not tell."""
    try:
        return ask(*arguments)
    except pynvml.NVMLError as error:
        if error.value in _NOT_TOLD:
            return None
        raise


def _ill(card: Card, problem: str) -> Card:
    return replace(
        card, healthy=False, problem=problem, utilisation=None, temperature_c=None, power_w=None, processes=()
    )


def _sentence(error: pynvml.NVMLError) -> str:
    return _REMEDIES.get(error.value, f"NVML says: {error}").rstrip(".") + "."


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
