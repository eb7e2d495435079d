"""Frozen dataclasses that cross a floor or a door. Plain values: no behaviour, no connection, nothing to close.

What this keeps true: whoever holds a record holds what was true when it was read. Changing something is a verb of the
module that owns it, never an assignment here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from appliance.states import (
    AttemptState,
    JobState,
    LeaseState,
    RunState,
    Seen,
    SpecState,
    VersionState,
    Want,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list, newest first unless said otherwise; `next_page` is the cursor of the next, None at the end."""

    items: tuple[T, ...]
    next_page: str | None


# -- who ---------------------------------------------------------------------------------------------------------------


class Role(StrEnum):
    ADMIN = "admin"
    MEMBER = "member"


@dataclass(frozen=True)
class Actor:
    """Who acts, and through which door (`session`, `key`, `system`). The system may do everything."""

    user_id: str
    email: str
    role: Role
    via: str

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN


SYSTEM = Actor(user_id="system", email="system", role=Role.ADMIN, via="system")


@dataclass(frozen=True)
class User:
    id: str
    email: str
    role: Role
    created_at: str
    disabled_at: str | None


@dataclass(frozen=True)
class ApiKey:
    """A key as it can be shown: its secret is not in it and nowhere in the database."""

    id: str
    user_id: str
    name: str
    prefix: str
    created_at: str
    last_used_at: str | None
    revoked_at: str | None


@dataclass(frozen=True)
class Invitation:
    """A one-time link: `setup` makes the first admin, `invite` a member, `reset` a new password."""

    id: str
    kind: str
    email: str | None
    role: Role
    created_at: str
    expires_at: str
    used_at: str | None


@dataclass(frozen=True)
class Project:
    id: str
    name: str
    created_by: str
    created_at: str


@dataclass(frozen=True)
class Collaborator:
    project_id: str
    user: User
    added_at: str


@dataclass(frozen=True)
class Event:
    """Something that happened, for people: one sentence, and what it is about."""

    id: int
    at: str
    actor: str
    kind: str
    project_id: str | None
    subject: str
    text: str


# -- data --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """A content-addressed tree that is durable in the store. `root` is `b3:` and 64 hex digits of its root node.

    `added_bytes` is what this tree really cost: bytes the store did not hold before.
    """

    root: str
    file_count: int
    size_bytes: int
    added_bytes: int


@dataclass(frozen=True)
class FileEntry:
    """One entry of a tree. `path` is relative, with `/`; `kind` is file, directory or symlink; `hash` is tagged."""

    path: str
    kind: str
    size_bytes: int
    executable: bool
    hash: str | None


@dataclass(frozen=True)
class Version:
    """A version of a dataset or of a model (`owner_kind` says which). Immutable once committed."""

    id: str
    owner_kind: str
    owner_id: str
    number: int
    state: VersionState
    root: str | None
    file_count: int
    size_bytes: int
    added_bytes: int
    message: str
    metadata: Mapping[str, Any]
    tags: tuple[str, ...]
    created_by: str
    created_at: str
    committed_at: str | None
    run_id: str | None
    job: str | None


@dataclass(frozen=True)
class Dataset:
    id: str
    name: str
    description: str | None
    is_public: bool
    project_id: str | None
    created_by: str
    created_at: str
    modified_at: str
    latest: Version | None


@dataclass(frozen=True)
class Model:
    id: str
    name: str
    model_type: str
    description: str | None
    is_public: bool
    project_id: str | None
    created_by: str
    created_at: str
    modified_at: str
    latest: Version | None


# -- what runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mount:
    """A host folder or file in a container. The source exists before the container is created."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class ContainerSpec:
    """Everything that the engine needs to make one container; frozen, hashed into `spec_hash`, kept with the row.

    `profile` is `workload` (root inside, Docker's default capabilities less the dangerous ones, own network) or
    `serving` (nobody, no capability, read-only root, no network, no `connect`). `network` names the network it joins:
    one for each run; ignored by `serving`. Nothing of privileged, devices, host network or runtime can be said here.
    `cards` are NVIDIA UUIDs from the lease. Memory in MiB; `cpus` in cores.
    """

    id: str
    kind: str
    profile: str
    image: str
    command: tuple[str, ...] | None
    entrypoint: tuple[str, ...] | None
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    cpus: float
    memory_mib: int
    cards: tuple[str, ...] = ()
    network: str | None = None
    working_dir: str | None = None
    lease_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sighting:
    """What the engine shows of one of our containers at this moment. Times as `clock.stamp` writes them."""

    id: str
    engine_id: str
    lease_id: str | None
    seen: Seen
    exit_code: int | None
    out_of_memory: bool
    started_at: str | None
    finished_at: str | None
    error: str | None


@dataclass(frozen=True)
class Container:
    """A container row: what is wanted, and what was last seen."""

    id: str
    kind: str
    owner_id: str
    project_id: str
    spec: ContainerSpec
    want: Want
    seen: Seen
    grace_s: float
    engine_id: str | None
    exit_code: int | None
    out_of_memory: bool
    error: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    lease_id: str | None


@dataclass(frozen=True)
class Card:
    """A GPU as NVML shows it. Memory in MiB; utilisation in percent; None where the driver does not tell."""

    uuid: str
    name: str
    index: int
    memory_mib: int
    memory_used_mib: int
    utilisation: int | None
    temperature_c: int | None
    power_w: float | None
    processes: tuple[int, ...]
    healthy: bool
    problem: str | None


@dataclass(frozen=True)
class MachineType:
    """A size of machine that can be asked for, in Gradient's word. `cards` is how many, of model `card_name`."""

    name: str
    cpus: float
    memory_mib: int
    cards: int
    card_name: str | None


@dataclass(frozen=True)
class Lease:
    id: str
    container_id: str
    owner_id: str
    state: LeaseState
    machine_type: str
    cpus: float
    memory_mib: int
    cards: tuple[str, ...]
    created_at: str
    ended_at: str | None
    note: str | None


@dataclass(frozen=True)
class LogLine:
    """One line of a container's output. `number` counts from 0 within one attempt; `stream` is stdout or stderr."""

    number: int
    at: str
    stream: str
    text: str


# -- workflows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Push:
    id: str
    project_id: str
    ref: str
    old: str | None
    new: str | None
    pusher: str
    at: str


@dataclass(frozen=True)
class Workflow:
    id: str
    project_id: str
    name: str
    path: str | None
    created_at: str
    modified_at: str


@dataclass(frozen=True)
class Attempt:
    id: str
    job_id: str
    number: int
    state: AttemptState
    reason: str | None
    message: str | None
    exit_code: int | None
    container_id: str | None
    wait: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None


@dataclass(frozen=True)
class Job:
    """`outputs` maps an output's name to what it became: `{"type": "dataset", "version": ID}` and so on."""

    id: str
    run_id: str
    name: str
    uses: str
    needs: tuple[str, ...]
    state: JobState
    reason: str | None
    message: str | None
    outputs: Mapping[str, Mapping[str, Any]]
    created_at: str
    started_at: str | None
    finished_at: str | None
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Run:
    id: str
    workflow_id: str
    project_id: str
    number: int
    state: RunState
    message: str | None
    ref: str | None
    commit: str | None
    commit_message: str | None
    spec_text: str
    inputs: Mapping[str, Any]
    started_by: str
    push_id: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    jobs: tuple[Job, ...]


# -- serving -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeploymentKey:
    """A key that may call one deployment; its secret was shown once and is kept as a hash."""

    id: str
    deployment_id: str
    name: str
    prefix: str
    created_at: str
    revoked_at: str | None


@dataclass(frozen=True)
class DeploymentSpec:
    """One rolled-out state of a deployment; a new wish is a new spec, and an old one can be applied again."""

    id: str
    deployment_id: str
    number: int
    state: SpecState
    config: Mapping[str, Any]
    model_version_id: str
    replicas: int
    error: str | None
    run_id: str | None
    created_by: str
    created_at: str
    applied_at: str | None
    healthy_at: str | None
    ended_at: str | None


@dataclass(frozen=True)
class Deployment:
    """`port` is its own TCP port on the server; `url` and `local_url` are how clients reach it."""

    id: str
    project_id: str
    name: str
    enabled: bool
    port: int
    created_by: str
    created_at: str
    latest: DeploymentSpec | None
    serving: DeploymentSpec | None
