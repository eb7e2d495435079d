"""The one place where a container's arguments are made: from a frozen spec to the body of Docker's create call.

What this keeps true, for every spec that anyone can write: no privilege, no device but the cards of the lease, no host
namespace, no published port, no added capability, no restart by Docker, always limits for memory, CPU, processes and
logs. A workload is root inside, with Docker's default capabilities less NET_RAW, MKNOD, AUDIT_WRITE and SYS_CHROOT
(apt, pip and chown work; forged packets and device nodes do not). A serving container is nobody, with no capability,
a read-only root and no network at all.

tests/test_runtime_arguments.py holds it by a golden file and by a property over arbitrary specs.

Why one pure function: a review of what a user's YAML can reach is a review of this page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.errors import EngineRefused
from appliance.records import ContainerSpec, Mount
from appliance.runtime.engine import spec_hash

LABEL = "appliance"

PIDS = 4096
NOBODY = "65534:65534"
_LOG = {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "4"}}
_LESS = ["AUDIT_WRITE", "MKNOD", "NET_RAW", "SYS_CHROOT"]
OPEN_FILES = 65536

# What NVIDIA's runtime hook reads from the environment belongs to the lease, whatever a spec says. LD_PRELOAD is there
# because hooks up to 1.17.7 ran with the container's own (CVE-2025-23266).
_NOT_FROM_OUTSIDE = frozenset(
    {
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_MIG_CONFIG_DEVICES",
        "NVIDIA_MIG_MONITOR_DEVICES",
        "NVIDIA_IMEX_CHANNELS",
        "NVIDIA_DRIVER_CAPABILITIES",
    }
)
_NOT_WITH_CARDS = frozenset({"LD_PRELOAD", "LD_AUDIT"})


def create_arguments(
    spec: ContainerSpec,
    instance: str,
    *,
    network_id: str | None = None,
    seccomp: str | None = None,
    environment: Mapping[str, str] | None = None,
    mounts: Sequence[Mount] = (),
    open_files: int = OPEN_FILES,
) -> dict[str, Any]:
    """The body of Docker's `POST /containers/create` (Engine API 1.41).

    `network_id` is the engine's id of the spec's network (None: no network). `seccomp` is the serving profile's JSON.
    `environment` and `mounts` are what workloads inherit from this machine; the spec's own win.
    `open_files` is the limit of open files, which must not be above the engine's own hard limit.
    """
    if spec.profile not in ("workload", "serving"):
        raise EngineRefused(f"There is no container profile {spec.profile!r}; there are workload and serving.")
    serving = spec.profile == "serving"
    if serving and seccomp is None:
        raise EngineRefused("A serving container is not made without its seccomp profile.")
    inherited = () if serving else tuple(mounts)
    body: dict[str, Any] = {
        "Image": spec.image,
        "Hostname": spec.id[-63:].strip("-"),
        "User": NOBODY if serving else "0:0",
        "Env": _environment(spec, {} if serving else environment or {}),
        "Labels": _labels(spec, instance),
        "HostConfig": _common(spec, inherited, open_files) | (_serving(seccomp) if serving else _workload(network_id)),
    }
    if spec.command is not None:
        body["Cmd"] = list(spec.command)
    if spec.entrypoint is not None:
        body["Entrypoint"] = list(spec.entrypoint)
    if spec.working_dir is not None:
        body["WorkingDir"] = spec.working_dir
    return body


def _common(spec: ContainerSpec, inherited: Sequence[Mount], open_files: int) -> dict[str, Any]:
    memory = spec.memory_mib * 2**20
    own = {mount.target for mount in spec.mounts}
    return {
        "RestartPolicy": {"Name": "no"},
        "Init": True,
        "PidsLimit": PIDS,
        "Memory": memory,
        "MemorySwap": memory,  # equal to Memory: no swap on top
        "NanoCpus": round(spec.cpus * 1e9),
        "ShmSize": memory // 2,  # counted in Memory; PyTorch's loaders pass batches through it
        "OomScoreAdj": 500,
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": open_files, "Hard": open_files},
        ],
        "LogConfig": _LOG,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Mounts": [_bind(mount) for mount in (*spec.mounts, *(it for it in inherited if it.target not in own))],
        "DeviceRequests": _cards(spec.cards),
    }


def _workload(network_id: str | None) -> dict[str, Any]:
    return {
        "CapDrop": _LESS,
        "SecurityOpt": ["no-new-privileges"],
        "NetworkMode": network_id or "none",
    }


def _serving(seccomp: str | None) -> dict[str, Any]:
    return {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp}"],
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"},  # noqa: S108 - the container's own
    }


def _bind(mount: Mount) -> dict[str, Any]:
    # The Mounts form refuses a source that does not exist, where Binds would make it as root.
    return {
        "Type": "bind",
        "Source": mount.source,
        "Target": mount.target,
        "ReadOnly": mount.read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }


def _cards(cards: Sequence[str]) -> list[dict[str, Any]]:
    # By UUID always: a request by count gives every container the first card.
    return [{"DeviceIDs": list(cards), "Capabilities": [["gpu"]]}] if cards else []


def _environment(spec: ContainerSpec, inherited: Mapping[str, str]) -> list[str]:
    barred = _NOT_FROM_OUTSIDE | (_NOT_WITH_CARDS if spec.cards else frozenset())
    kept = {name: value for name, value in {**inherited, **spec.env}.items() if name not in barred}
    # An image of CUDA's says NVIDIA_VISIBLE_DEVICES=all; where NVIDIA's runtime is the default one that would be obeyed.
    kept["NVIDIA_VISIBLE_DEVICES"] = ",".join(spec.cards) if spec.cards else "void"
    if spec.cards:
        kept["NVIDIA_DRIVER_CAPABILITIES"] = "compute,utility"
    return sorted(f"{name}={value}" for name, value in kept.items())


def _labels(spec: ContainerSpec, instance: str) -> dict[str, str]:
    ours = {
        f"{LABEL}.id": spec.id,
        f"{LABEL}.instance": instance,
        f"{LABEL}.kind": spec.kind,
        f"{LABEL}.spec": spec_hash(spec),
        f"{LABEL}.lease": spec.lease_id or "",
    }
    return {**spec.labels, **ours}
