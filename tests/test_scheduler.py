"""Who gets what: a pure decision, and a ledger that never promises anything twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appliance import containers, leases, machine, scheduler
from appliance.db import Database
from appliance.errors import ApplianceError, BadRequest
from appliance.leases import Held
from appliance.machine import Capacity, card_model, types_of
from appliance.records import Card, ContainerSpec, MachineType
from appliance.scheduler import Ask, Grant, Wait, choose
from appliance.states import LeaseState, Seen

pytestmark = pytest.mark.fast

NOTHING = Held(0, 0, frozenset())
C1, C2 = MachineType("C1", 1, 2048, 0, None), MachineType("C2", 2, 4096, 0, None)
A100, A100X2 = MachineType("A100", 4, 8192, 1, "A100"), MachineType("A100x2", 8, 16384, 2, "A100")


def card(number: int, name: str = "NVIDIA A100-SXM4-80GB", healthy: bool = True) -> Card:
    return Card(f"GPU-{number}", name, number, 81920, 0, 0, 30, 60.0, (), healthy, None if healthy else "lost")


def machine_of(cpus: float = 16, memory: int = 65536, cards: int = 2) -> Capacity:
    return Capacity(cpus, memory, tuple(card(number) for number in range(cards)))


def asks(*kinds: MachineType) -> list[Ask]:
    return [Ask(f"c{number}", f"o{number}", kind) for number, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("wanted", "capacity", "held", "granted", "why"),
    [
        ([C1], machine_of(), NOTHING, [0], None),
        ([C1, C1, C1], machine_of(cpus=2), NOTHING, [0, 1], "C1 needs 1 cores, and 0 of 2 are free."),
        ([C2, C1], machine_of(cpus=2), Held(1, 0, frozenset()), [1], "C2 needs 2 cores, and 1 of 2 are free."),
        ([C1], machine_of(memory=2000), NOTHING, [], "more than this machine can ever give"),
        ([C1], machine_of(memory=4096), Held(0, 3000, frozenset()), [], "2048 MiB, and 1096 of 4096 MiB are free"),
        ([A100X2], machine_of(), Held(0, 0, frozenset({"GPU-0"})), [], "2 free A100 card(s)"),
        ([A100, A100], machine_of(), NOTHING, [0, 1], None),
        ([A100X2, A100], machine_of(cards=1), NOTHING, [1], "the others are in use"),
    ],
)
def test_a_decision(
    wanted: list[MachineType], capacity: Capacity, held: Held, granted: list[int], why: str | None
) -> None:
    answers = choose(asks(*wanted), capacity, held)

    assert [number for number, answer in enumerate(answers) if isinstance(answer, Grant)] == granted
    waits = [answer.why for answer in answers if isinstance(answer, Wait)]
    assert why is None or why in waits[0]


def test_a_card_that_is_ill_is_not_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = machine.capacity([card(0, healthy=False), card(1)])

    answers = choose(asks(A100, A100), capacity, NOTHING)

    assert isinstance(answers[0], Grant)
    assert answers[0].cards == ("GPU-1",)
    assert isinstance(answers[1], Wait)


@given(
    st.lists(st.sampled_from([C1, C2, A100, A100X2]), max_size=20),
    st.integers(0, 16),
    st.integers(0, 65536),
    st.sets(st.sampled_from(["GPU-0", "GPU-1", "GPU-2"])),
)
def test_no_decision_gives_more_than_there_is(
    wanted: list[MachineType], cpus: int, memory: int, taken: set[str]
) -> None:
    capacity = machine_of(cards=3)

    answers = choose(asks(*wanted), capacity, Held(cpus, memory, frozenset(taken)))

    grants = [answer for answer in answers if isinstance(answer, Grant)]
    given_cards = [uuid for grant in grants for uuid in grant.cards]
    assert len(answers) == len(wanted)
    assert len(set(given_cards)) == len(given_cards)
    assert not set(given_cards) & taken
    assert cpus + sum(grant.kind.cpus for grant in grants) <= max(capacity.cpus, cpus)
    assert memory + sum(grant.kind.memory_mib for grant in grants) <= max(capacity.memory_mib, memory)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA RTX A6000", "RTX-A6000"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("", "GPU"),
    ],
)
def test_a_cards_model_is_its_short_name(name: str, model: str) -> None:
    assert card_model(name) == model


def test_machine_types_are_what_this_machine_can_give() -> None:
    names = [kind.name for kind in types_of(4, 16384, [card(0), card(1)])]

    assert names == ["C1", "C2", "C4", "A100", "A100x2"]
    assert [kind.name for kind in types_of(1, 1500, [])] == ["C1"]


def test_a_machine_type_that_is_not_here_is_answered_with_those_that_are(db: Database) -> None:
    with (
        db.read() as reader,
        pytest.raises(BadRequest, match=r"no machine type 'P4000' here; choose one of C1.*no GPU"),
    ):
        machine.resolve_type(reader, "P4000")


def wanted(db: Database, name: str, kind: str = "C1") -> None:
    spec = ContainerSpec(name, "replica", "serving", "image", None, None, {}, (), 1, 512)
    with db.write() as tx:
        containers.add(tx, spec, owner_id=name, project_id="p", machine_type=kind)


def test_a_tick_gives_leases_and_says_why_others_wait(db: Database) -> None:
    room = machine.cores() * machine.CPU_SHARES
    for number in range(room + 1):
        wanted(db, f"c{number}")

    granted = scheduler.tick(db, list)

    with db.read() as reader:
        waiting = containers.list_waiting(reader)
        held = leases.held(reader)
    assert granted == room
    assert held.cpus == room
    assert [one.id for one, _, _ in waiting] == [f"c{room}"]
    assert waiting[0][2] is not None
    assert "cores" in waiting[0][2]
    assert scheduler.tick(db, list) == 0


def test_a_card_is_never_in_two_leases(db: Database) -> None:
    with db.write() as tx:
        leases.grant(tx, "c1", "o", A100, ["GPU-0"])

    with pytest.raises(ApplianceError), db.write() as tx:
        leases.grant(tx, "c2", "o", A100, ["GPU-0"])


def test_a_card_with_a_process_left_is_quarantined_until_it_is_empty(db: Database) -> None:
    with db.write() as tx:
        lease = leases.grant(tx, "c1", "o", A100, ["GPU-0"])
        leases.end(tx, lease.id)

        assert leases.settle(tx, lease.id, {"GPU-0"}).state is LeaseState.QUARANTINED
        assert leases.held(tx).cards == {"GPU-0"}
        assert leases.held(tx).cpus == 0
        assert leases.settle(tx, lease.id, {"GPU-0"}).state is LeaseState.QUARANTINED
        assert leases.settle(tx, lease.id, ()).state is LeaseState.RELEASED
        assert leases.held(tx) == NOTHING
        leases.end(tx, lease.id)


class Ledger(RuleBasedStateMachine):
    """Grants and endings in any order against a list kept by hand."""

    capacity = machine_of(cpus=6, memory=20000, cards=3)

    def __init__(self) -> None:
        super().__init__()
        import tempfile
        from pathlib import Path

        from appliance import schema
        from appliance.db import open_database

        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "a.db"
        schema.migrate(path)
        self.db = open_database(path)
        self.active: dict[str, Grant] = {}
        self.made = 0

    def teardown(self) -> None:
        self.db.close()
        self.folder.cleanup()

    @rule(kinds=st.lists(st.sampled_from([C1, C2, A100, A100X2]), max_size=4))
    def ask(self, kinds: list[MachineType]) -> None:
        with self.db.write() as tx:
            names = [f"c{self.made + number}" for number in range(len(kinds))]
            self.made += len(kinds)
            answers = choose(
                [Ask(name, name, kind) for name, kind in zip(names, kinds, strict=True)],
                self.capacity,
                leases.held(tx),
            )
            for answer in answers:
                if isinstance(answer, Grant):
                    lease = leases.grant(tx, answer.container_id, "o", answer.kind, answer.cards)
                    self.active[lease.id] = answer

    @rule(which=st.integers(0, 30))
    def end(self, which: int) -> None:
        if self.active:
            lease_id = list(self.active)[which % len(self.active)]
            with self.db.write() as tx:
                leases.end(tx, lease_id)
                leases.settle(tx, lease_id, ())
            del self.active[lease_id]

    @invariant()
    def the_ledger_is_what_was_given_and_never_too_much(self) -> None:
        with self.db.read() as reader:
            held = leases.held(reader)
        given = [uuid for grant in self.active.values() for uuid in grant.cards]
        assert sorted(given) == sorted(held.cards)
        assert held.cpus == sum(grant.kind.cpus for grant in self.active.values()) <= self.capacity.cpus
        assert held.memory_mib == sum(grant.kind.memory_mib for grant in self.active.values())
        assert held.memory_mib <= self.capacity.memory_mib


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


def test_a_container_is_made_only_with_its_lease_and_never_goes_back(db: Database) -> None:
    wanted(db, "c1")
    scheduler.tick(db, list)

    with db.write() as tx:
        container = containers.get_container(tx, "c1")
        assert container.lease_id is not None
        assert container.spec.lease_id == container.lease_id
        assert containers.saw(tx, "c1", Seen.RUNNING)
        assert containers.saw(tx, "c1", Seen.EXITED, exit_code=3)
        assert not containers.saw(tx, "c1", Seen.RUNNING)
        assert containers.get_container(tx, "c1").exit_code == 3
