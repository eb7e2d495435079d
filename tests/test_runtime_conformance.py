"""The facts about an engine, the same for the memory engine and for Docker."""

from __future__ import annotations

import io
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network

import memory_engine
import pytest
from waiting import wait_until

from appliance.errors import EngineBusy, EngineRefused, ImageNotFound
from appliance.records import ContainerSpec, Sighting
from appliance.runtime import networks
from appliance.runtime.docker import DockerEngine
from appliance.runtime.engine import Engine
from appliance.states import Seen

POOL = "10.214.0.0/16"
IMAGE = "appliance-test/busybox"
Make = Callable[..., Engine]


def test_image() -> None:
    """busybox-static as an image; made once, in a fraction of a second."""
    have = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, timeout=30, check=False)
    if have.returncode == 0:
        return
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for applet in applets:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    command = ["docker", "import", "--change", "LABEL appliance.test=1", "-", f"{IMAGE}:latest"]
    subprocess.run(command, input=archive.getvalue(), capture_output=True, timeout=60, check=True)


def remove_all(*instances: str) -> None:
    """Every container and network of these test instances is gone."""
    for instance in instances:
        label = f"label=appliance.instance={instance}"
        for listing, removing in (
            (["docker", "ps", "-aq", "--no-trunc"], ["docker", "rm", "-fv"]),
            (["docker", "network", "ls", "-q"], ["docker", "network", "rm"]),
        ):
            found = subprocess.run(
                [*listing, "--filter", label], capture_output=True, text=True, timeout=30, check=True
            )
            if ids := found.stdout.split():
                subprocess.run([*removing, *ids], capture_output=True, timeout=60, check=True)


@pytest.fixture(
    params=[pytest.param("memory", marks=pytest.mark.fast), pytest.param("docker", marks=pytest.mark.docker)]
)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes engines that all look at one machine: `make()` again is the daemon started again."""
    if request.param == "memory":
        world = memory_engine.World(f"{IMAGE}:latest")
        yield lambda instance="conformance": memory_engine.MemoryEngine(instance, world)
        return
    test_image()
    remove_all("conformance", "foreign")
    made: list[DockerEngine] = []

    def docker_engine(instance: str = "conformance") -> Engine:
        made.append(DockerEngine(instance, pool=POOL))
        return made[-1]

    yield docker_engine
    for engine in made:
        engine.close()
    remove_all("conformance", "foreign")
    networks.remove_isolation(IPv4Network(POOL))


test_image.__test__ = False  # type: ignore[attr-defined]


def spec(script: str, container_id: str = "ctr1", **changes: object) -> ContainerSpec:
    values: dict[str, object] = {
        "id": container_id,
        "kind": "job",
        "profile": "workload",
        "image": IMAGE,
        "command": ("sh", "-c", script),
        "entrypoint": None,
        "env": {},
        "mounts": (),
        "cpus": 0.5,
        "memory_mib": 32,
        "labels": {"appliance.test": "1"},
    }
    return ContainerSpec(**{**values, **changes})  # type: ignore[arg-type]


def sight(engine: Engine, container_id: str = "ctr1") -> Sighting:
    return next(it for it in engine.sightings() if it.id == container_id)


def ended(engine: Engine, container_id: str = "ctr1") -> Sighting:
    wait_until(lambda: sight(engine, container_id).seen is Seen.EXITED, 20, f"{container_id} has ended")
    return sight(engine, container_id)


def test_creating_twice_adopts_the_one_that_is_there(make: Make) -> None:
    engine = make()

    first = engine.create(spec("sleep 60"))
    second = make().create(spec("sleep 60"))

    assert first == second
    assert [it.seen for it in engine.sightings()] == [Seen.CREATED]


def test_creating_at_once_from_several_sides_makes_one_container(make: Make) -> None:
    engines = [make() for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda engine: engine.create(spec("sleep 60")), engines))

    assert len(made) == 1
    assert [it.engine_id for it in engines[0].sightings()] == list(made)


def test_networks_made_at_once_are_apart(make: Make) -> None:
    engines = [make() for _ in range(4)]

    with ThreadPoolExecutor(4) as pool:
        subnets = list(pool.map(lambda it: it[1].ensure_network(f"run{it[0]}"), enumerate(engines)))

    assert len(set(subnets)) == 4
    assert engines[0].networks() == ["run0", "run1", "run2", "run3"]


def test_what_runs_is_sighted_again_after_a_daemon_restart(make: Make) -> None:
    engine = make()
    engine.create(spec("sleep 60", lease_id="lease7"))
    engine.start("ctr1")
    engine.start("ctr1")

    again = sight(make())

    assert again == sight(engine)
    assert (again.seen, again.lease_id, again.exit_code, again.finished_at) == (Seen.RUNNING, "lease7", None, None)
    assert again.started_at is not None


def test_an_exit_code_and_the_output_are_there_after_the_end(make: Make) -> None:
    engine = make()
    engine.create(spec("echo hello; echo oops >&2; exit 3"))
    engine.start("ctr1")

    after = ended(make())
    lines = list(engine.logs("ctr1"))

    assert (after.exit_code, after.out_of_memory, after.error) == (3, False, None)
    assert after.started_at is not None
    assert after.finished_at is not None
    assert after.started_at <= after.finished_at
    assert {(line.stream, line.text) for line in lines} == {("stdout", "hello"), ("stderr", "oops")}
    assert all(len(line.at) == 30 and line.at.endswith("Z") for line in lines)


def test_an_ended_container_is_not_started_again(make: Make) -> None:
    engine = make()
    engine.create(spec("echo once"))
    engine.start("ctr1")
    ended(engine)

    engine.start("ctr1")

    assert sight(engine).seen is Seen.EXITED
    assert [line.text for line in engine.logs("ctr1")] == ["once"]


def test_a_program_that_ignores_term_is_killed_after_its_grace(make: Make) -> None:
    engine = make()
    engine.create(spec("trap '' TERM; echo deaf; sleep 60"))
    engine.start("ctr1")
    wait_until(lambda: list(engine.logs("ctr1")), 10, "the program has set its trap")

    engine.stop("ctr1", grace_s=1)
    engine.stop("ctr1", grace_s=1)

    assert sight(engine).seen is Seen.EXITED
    assert sight(engine).exit_code == 137


def test_a_program_that_heeds_term_ends_within_its_grace(make: Make) -> None:
    engine = make()
    engine.create(spec("sleep 60"))
    engine.start("ctr1")

    engine.stop("ctr1", grace_s=30)

    assert sight(engine).exit_code == 143


def test_running_out_of_memory_is_told(make: Make) -> None:
    engine = make()
    engine.create(spec("tail /dev/zero", memory_mib=16))
    engine.start("ctr1")

    after = ended(engine)

    assert (after.exit_code, after.out_of_memory) == (137, True)


def test_removing_is_repeatable_and_ends_what_runs(make: Make) -> None:
    engine = make()
    engine.create(spec("sleep 60"))
    engine.start("ctr1")

    engine.remove("ctr1")
    engine.remove("ctr1")
    engine.stop("ctr1", grace_s=1)

    assert engine.sightings() == []
    assert list(engine.logs("ctr1")) == []


def test_another_instances_container_is_neither_listed_nor_touched(make: Make) -> None:
    ours, theirs = make(), make("foreign")
    theirs.create(spec("sleep 60"))
    theirs.start("ctr1")

    ours.stop("ctr1", grace_s=0)
    ours.remove("ctr1")

    assert ours.sightings() == []
    assert list(ours.logs("ctr1")) == []
    with pytest.raises(EngineRefused):
        ours.exec("ctr1", ("echo", "hi"))
    assert sight(theirs).seen is Seen.RUNNING


def test_a_missing_image_is_refused_with_what_to_do(make: Make) -> None:
    engine = make()

    with pytest.raises(ImageNotFound, match=r"no-such-image.*registry"):
        engine.create(spec("echo", image="no-such-image:7"))

    assert not engine.image_exists("no-such-image:7")
    assert engine.image_exists(IMAGE)
    assert engine.sightings() == []


def test_a_program_that_is_not_in_the_image_ends_with_127_and_its_log_names_it(make: Make) -> None:
    engine = make()
    engine.create(spec("", command=("no-such-program",)))
    engine.start("ctr1")

    assert ended(engine).exit_code == 127
    assert "no-such-program" in list(engine.logs("ctr1"))[0].text  # noqa: RUF015 - a log is read to its end, or closed


def test_starting_what_was_never_created_is_refused(make: Make) -> None:
    with pytest.raises(EngineRefused, match="created first"):
        make().start("ctr1")


def test_a_container_on_a_network_has_an_address_while_it_runs(make: Make) -> None:
    engine = make()
    subnet = engine.ensure_network("run1")
    assert engine.ensure_network("run1") == subnet
    engine.create(spec("sleep 60", network="run1"))
    assert engine.address("ctr1") is None

    engine.start("ctr1")

    address = engine.address("ctr1") or ""
    assert address.rsplit(".", 1)[0] == subnet.rsplit(".", 1)[0]
    assert engine.networks() == ["run1"]
    with pytest.raises(EngineBusy):
        engine.remove_network("run1")
    engine.remove("ctr1")
    engine.remove_network("run1")
    engine.remove_network("run1")
    assert engine.networks() == []
    assert engine.address("ctr1") is None


def test_a_network_must_be_there_before_the_container(make: Make) -> None:
    with pytest.raises(EngineRefused, match="nowhere"):
        make().create(spec("sleep 60", network="nowhere"))


def test_a_command_inside_tells_its_code_and_output(make: Make) -> None:
    engine = make()
    engine.create(spec("sleep 60"))
    with pytest.raises(EngineRefused):
        engine.exec("ctr1", ("echo", "hi"))
    engine.start("ctr1")

    code, output = engine.exec("ctr1", ("sh", "-c", "echo one; echo two >&2; exit 4"))

    assert (code, sorted(output.split())) == (4, ["one", "two"])
    with pytest.raises(EngineBusy, match=r"0\.3 s"):
        engine.exec("ctr1", ("sleep", "30"), timeout_s=0.3)


def test_a_followed_log_ends_with_its_container(make: Make) -> None:
    engine = make()
    engine.create(spec("echo one; sleep 0.3; echo two"))
    engine.start("ctr1")

    lines = [line.text for line in engine.logs("ctr1", follow=True)]

    assert lines == ["one", "two"]


def test_a_log_is_read_on_from_a_time(make: Make) -> None:
    engine = make()
    engine.create(spec("seq 50"))
    engine.start("ctr1")
    ended(engine)
    everything = list(engine.logs("ctr1"))

    rest = list(make().logs("ctr1", since=everything[30].at))

    assert [line.text for line in everything] == [str(number) for number in range(1, 51)]
    assert rest == everything[30:]


def test_closing_a_followed_log_ends_its_reader(make: Make) -> None:
    engine = make()
    engine.create(spec("echo one; sleep 60"))
    engine.start("ctr1")
    stream = engine.logs("ctr1", follow=True)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.extend(line.text for line in stream))
    reader.start()
    wait_until(lambda: read == ["one"], 10, "the first line was read")

    stream.close()

    reader.join(10)
    assert not reader.is_alive()


def test_events_wake_for_each_change_of_ours(make: Make) -> None:
    engine = make()
    stream = engine.events()
    kinds: list[str] = []
    listener = threading.Thread(target=lambda: kinds.extend(nudge.kind for nudge in stream))
    listener.start()

    engine.create(spec("exit 0"))
    engine.start("ctr1")
    ended(engine)
    engine.remove("ctr1")

    wait_until(lambda: kinds == ["create", "start", "die", "destroy"], 10, "all four nudges came")
    stream.close()
    listener.join(10)
    assert not listener.is_alive()


def test_use_is_told_of_what_runs(make: Make) -> None:
    engine = make()
    engine.create(spec("sleep 60", memory_mib=48))
    assert engine.stats("ctr1") is None

    engine.start("ctr1")

    used = engine.stats("ctr1")
    assert used is not None
    assert used.memory_limit_mib == 48
    assert 0 <= used.memory_mib < 48
    assert engine.stats("nothing") is None


def test_a_healthy_engine_says_so(make: Make) -> None:
    health = make().health()

    assert health.ok
    assert health.version
    assert health.problem is None
