"""What a container is made with: a golden file of both profiles, and a property over arbitrary specs."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import EngineRefused
from appliance.records import ContainerSpec, Mount
from appliance.runtime.arguments import create_arguments
from appliance.runtime.engine import spec_hash

pytestmark = pytest.mark.fast

GOLDEN = Path(__file__).with_name("golden") / "container_arguments.json"

JOB = ContainerSpec(
    id="ctr-job",
    kind="job",
    profile="workload",
    image="appliance/base:latest",
    command=("sh", "-c", "python train.py"),
    entrypoint=None,
    env={"EPOCHS": "3", "NVIDIA_VISIBLE_DEVICES": "all"},
    mounts=(Mount("/data/in", "/inputs/data", True), Mount("/data/out", "/outputs", False)),
    cpus=1.5,
    memory_mib=2048,
    cards=("GPU-aaaa", "GPU-bbbb"),
    network="run1",
    working_dir="/repo",
    lease_id="lease1",
    labels={"appliance.run": "run1"},
)
REPLICA = replace(
    JOB,
    id="ctr-replica",
    kind="replica",
    profile="serving",
    image="appliance/serving:latest",
    command=("--config", "/run/replica/config.json"),
    env={},
    cards=(),
    network="run1",
    working_dir=None,
    labels={},
)


def made(spec: ContainerSpec) -> dict[str, Any]:
    return create_arguments(
        spec,
        "inst1",
        network_id="net1",
        seccomp='{"defaultAction":"SCMP_ACT_ERRNO"}',
        environment={"PIP_INDEX_URL": "https://mirror.example/simple", "EPOCHS": "1"},
        mounts=(Mount("/etc/ssl/own.crt", "/etc/appliance/ca-certificates.crt", True),),
    )


def test_both_profiles_are_what_was_reviewed() -> None:
    shown = {"workload": made(JOB), "serving": made(REPLICA)}

    assert shown == json.loads(GOLDEN.read_text()), (
        f"What containers are made with has changed. If it is meant, write this to {GOLDEN}: {json.dumps(shown)}"
    )


words = st.text(string.printable, max_size=12)
names = st.text(string.ascii_letters + string.digits + "-_.", min_size=1, max_size=20)
mounts = st.builds(
    Mount, source=words.map(lambda w: "/" + w), target=words.map(lambda w: "/" + w), read_only=st.booleans()
)
specs = st.builds(
    ContainerSpec,
    id=names,
    kind=words,
    profile=st.sampled_from(["workload", "serving"]),
    image=words,
    command=st.none() | st.tuples(words, words),
    entrypoint=st.none() | st.tuples(words),
    env=st.dictionaries(
        st.sampled_from(["NVIDIA_VISIBLE_DEVICES", "LD_PRELOAD", "NVIDIA_IMEX_CHANNELS"]) | names, words, max_size=4
    ),
    mounts=st.lists(mounts, max_size=3).map(tuple),
    cpus=st.floats(0.01, 64),
    memory_mib=st.integers(16, 2**20),
    cards=st.lists(st.sampled_from(["GPU-1", "GPU-2", "GPU-3"]), unique=True, max_size=3).map(tuple),
    network=st.none() | names,
    working_dir=st.none() | words,
    lease_id=st.none() | names,
    labels=st.dictionaries(names | st.just("appliance.instance") | st.just("appliance.id"), words, max_size=3),
)
TOP = {"Image", "Hostname", "User", "Env", "Labels", "HostConfig", "Cmd", "Entrypoint", "WorkingDir"}
HOST = {
    "RestartPolicy", "Init", "PidsLimit", "Memory", "MemorySwap", "NanoCpus", "ShmSize", "OomScoreAdj", "Ulimits",
    "LogConfig", "IpcMode", "CgroupnsMode", "Mounts", "DeviceRequests", "CapDrop", "SecurityOpt", "NetworkMode",
}  # fmt: skip
SERVING = {"ReadonlyRootfs", "Tmpfs"}


@given(specs)
@settings(max_examples=300, deadline=None)
def test_no_spec_reaches_more_than_the_list(spec: ContainerSpec) -> None:
    body = made(spec)
    host = body["HostConfig"]

    assert set(body) <= TOP
    assert set(host) <= HOST | (SERVING if spec.profile == "serving" else set())
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["Memory"] == host["MemorySwap"] == spec.memory_mib * 2**20
    assert host["NetworkMode"] == ("net1" if spec.profile == "workload" else "none")
    assert "no-new-privileges" in host["SecurityOpt"]
    assert not any("unconfined" in option for option in host["SecurityOpt"])
    assert host["IpcMode"] == "private"
    assert body["User"] == ("0:0" if spec.profile == "workload" else "65534:65534")
    assert {mount["Type"] for mount in host["Mounts"]} <= {"bind"}
    assert body["Labels"]["appliance.id"] == spec.id
    assert body["Labels"]["appliance.instance"] == "inst1"


@given(specs)
@settings(max_examples=300, deadline=None)
def test_only_the_lease_says_which_cards_a_container_sees(spec: ContainerSpec) -> None:
    body = made(spec)
    env = [word.split("=", 1) for word in body["Env"]]
    nvidia = {name: value for name, value in env if name.startswith("NVIDIA_")}

    requests = body["HostConfig"]["DeviceRequests"]
    assert [card for request in requests for card in request["DeviceIDs"]] == list(spec.cards)
    assert nvidia["NVIDIA_VISIBLE_DEVICES"] == (",".join(spec.cards) if spec.cards else "void")
    assert "NVIDIA_IMEX_CHANNELS" not in nvidia
    assert len({name for name, _ in env}) == len(env)
    if spec.cards:
        assert "LD_PRELOAD" not in dict(env)


def test_a_specs_own_value_wins_over_the_machines() -> None:
    env = made(JOB)["Env"]

    assert "EPOCHS=3" in env
    assert "PIP_INDEX_URL=https://mirror.example/simple" in env
    assert not any(word.startswith("PIP_") for word in made(REPLICA)["Env"])


def test_a_serving_container_without_its_profile_is_refused() -> None:
    with pytest.raises(EngineRefused, match="seccomp"):
        create_arguments(REPLICA, "inst1")


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(EngineRefused, match="privileged"):
        create_arguments(replace(JOB, profile="privileged"), "inst1")


def test_equal_specs_have_equal_hashes_and_others_not() -> None:
    assert spec_hash(JOB) == spec_hash(replace(JOB, env=dict(reversed(list(JOB.env.items())))))
    assert spec_hash(JOB) != spec_hash(replace(JOB, cpus=2.0))
