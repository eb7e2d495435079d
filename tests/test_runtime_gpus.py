"""Cards through the unmodified nvidia-ml-py, against the stand-in library, in a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nvml_standin
import pytest

from appliance.records import Card
from appliance.runtime.gpus import why_busy

pytestmark = pytest.mark.fast

# Answers one question a line; so a test can change the machine between two.
CHILD = """
import json, sys
from dataclasses import asdict
from appliance.runtime.gpus import Gpus
gpus = Gpus(limit_s=0.5)
for line in sys.stdin:
    match line.strip():
        case "inventory": answer = [asdict(card) for card in gpus.inventory()]
        case "driver": answer = asdict(gpus.driver())
        case "busy": answer = gpus.busy_cards()
    print(json.dumps(answer), flush=True)
"""
A = "card GPU-aaaa NVIDIA_H100 81559 4 0 31 70000 0 -"
B = "card GPU-bbbb NVIDIA_A100 40960 20000 97 64 250500 0 4711,4712"


class Machine:
    """A machine with NVIDIA's driver, and a process that looks at its cards."""

    def __init__(self, folder: Path, *, driver: bool = True) -> None:
        self.state = folder / "state"
        if driver:
            nvml_standin.compile_library(folder)
        else:
            (folder / "libnvidia-ml.so.1").touch()  # no library at all, also where the machine has a real one
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(folder),
            "NVML_STANDIN": str(self.state),
        }
        self.child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def has(self, *lines: str, driver: str = "driver 570.86.10") -> None:
        changed = self.state.with_suffix(".new")
        changed.write_text("\n".join([driver, *lines, ""]))
        changed.rename(self.state)

    def ask(self, question: str) -> Any:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(question + "\n")
        self.child.stdin.flush()
        return json.loads(self.child.stdout.readline())

    def end(self) -> None:
        self.child.kill()
        self.child.communicate()

    def cards(self) -> dict[str, dict[str, Any]]:
        return {card["uuid"]: card for card in self.ask("inventory")}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    it = Machine(tmp_path)
    yield it
    it.end()


def test_every_card_is_told_with_its_uuid_and_measures(machine: Machine) -> None:
    machine.has(A, B)

    first, second = machine.ask("inventory")

    assert machine.ask("driver") == {"version": "570.86.10", "problem": None}
    assert (first["uuid"], first["name"], first["memory_mib"], first["healthy"]) == (
        "GPU-aaaa",
        "NVIDIA H100",
        81559,
        True,
    )
    assert second == {
        "uuid": "GPU-bbbb",
        "name": "NVIDIA A100",
        "index": 1,
        "memory_mib": 40960,
        "memory_used_mib": 20000,
        "utilisation": 97,
        "temperature_c": 64,
        "power_w": 250.5,
        "processes": [4711, 4712],
        "healthy": True,
        "problem": None,
    }


def test_a_card_that_does_not_tell_its_load_is_healthy(machine: Machine) -> None:
    machine.has(A.replace(" 0 31 ", " -1 31 "))

    (card,) = machine.ask("inventory")

    assert (card["utilisation"], card["temperature_c"], card["healthy"]) == (None, 31, True)


def test_a_lost_card_is_listed_as_unhealthy_and_the_others_go_on(machine: Machine) -> None:
    machine.has(A, B)
    machine.ask("inventory")

    machine.has(A.replace(" 0 -", " 15 -"), B)

    cards = machine.cards()
    assert set(cards) == {"GPU-aaaa", "GPU-bbbb"}
    assert not cards["GPU-aaaa"]["healthy"]
    assert "no longer answers" in cards["GPU-aaaa"]["problem"]
    assert cards["GPU-aaaa"]["memory_mib"] == 81559
    assert cards["GPU-bbbb"]["healthy"]


def test_a_card_that_is_no_longer_counted_keeps_its_uuid_while_the_others_move_up(machine: Machine) -> None:
    machine.has(A, B)
    machine.ask("inventory")

    machine.has(B)

    cards = machine.cards()
    assert (cards["GPU-bbbb"]["index"], cards["GPU-bbbb"]["healthy"]) == (0, True)
    assert not cards["GPU-aaaa"]["healthy"]


def test_a_card_that_was_lost_before_the_start_is_told_without_a_uuid(machine: Machine) -> None:
    machine.has(A.replace(" 0 -", " 15 -"), B)

    cards = machine.cards()

    assert not cards["index-0"]["healthy"]
    assert "off the bus" in cards["index-0"]["problem"]
    assert cards["GPU-bbbb"]["healthy"]


def test_a_card_that_comes_back_is_healthy_again(machine: Machine) -> None:
    machine.has(A)
    machine.ask("inventory")
    machine.has(A.replace(" 0 -", " 15 -"))
    assert not machine.cards()["GPU-aaaa"]["healthy"]

    machine.has(A)

    assert machine.cards()["GPU-aaaa"]["healthy"]


def test_a_driver_that_hangs_makes_its_cards_unhealthy_and_never_the_daemon_wait(machine: Machine) -> None:
    machine.has(A, B)
    machine.ask("inventory")

    machine.has("hang", A, B)

    for _ in range(2):
        cards = machine.cards()
        assert {card["healthy"] for card in cards.values()} == {False}
        assert "does not answer" in cards["GPU-aaaa"]["problem"]


def test_a_driver_that_is_not_loaded_is_a_reason_and_later_found(machine: Machine) -> None:
    machine.has(driver="")
    assert machine.ask("inventory") == []
    assert "modprobe nvidia" in machine.ask("driver")["problem"]

    machine.has(A)

    assert list(machine.cards()) == ["GPU-aaaa"]


def test_a_busy_card_says_why(machine: Machine) -> None:
    machine.has(A, B, "card GPU-cccc NVIDIA_A100 40960 22000 0 40 60000 0 -")

    busy = machine.ask("busy")

    assert set(busy) == {"GPU-bbbb", "GPU-cccc"}
    assert "4711, 4712" in busy["GPU-bbbb"]
    assert "22000 MiB" in busy["GPU-cccc"]


def test_a_machine_without_the_driver_has_no_cards_and_a_reason(tmp_path: Path) -> None:
    machine = Machine(tmp_path, driver=False)

    cards, driver = machine.ask("inventory"), machine.ask("driver")

    machine.end()
    assert cards == []
    assert driver["version"] is None
    assert "not installed" in driver["problem"]


def test_an_unhealthy_card_is_never_seen_to_be_free() -> None:
    card = Card("GPU-x", "x", 0, 1, 0, None, None, None, (), healthy=False, problem="it is lost")

    assert "it is lost" in (why_busy(card) or "")
