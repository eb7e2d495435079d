"""The frozen records of a workflow that was read and found good.

What this keeps true: whoever holds a `Plan` need not check again. Each reference points at something that exists and
that is in `needs`; the jobs have no cycle; each job's `with_` is the record of its action.

Why: the runs module matches on the action's record and the type checker sees a forgotten action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

DEFAULT_IMAGE = "appliance/datascience"
"""What a `script@v1` runs in that names no image (Gradient had no default: an extension)."""

CONTEXT_URL = "context.event.github.url"
CONTEXT_REF = "context.event.github.ref"


class IOType(StrEnum):
    DATASET = "dataset"
    VOLUME = "volume"
    STRING = "string"


@dataclass(frozen=True)
class Reference:
    """`workflow.inputs.NAME` (kind `workflow_input`, job None) or `JOB.outputs.NAME` (kind `job_output`)."""

    kind: str
    job: str | None
    name: str


@dataclass(frozen=True)
class InputDecl:
    """An input from outside: `ref` of a dataset that exists (or its version), or the `value` of a string.

    On a workflow both may be None: then each run gives it. `optional`: without it the job just has no such input.
    """

    type: IOType
    ref: str | None
    value: str | None
    optional: bool


@dataclass(frozen=True)
class OutputDecl:
    """What a job leaves in `/outputs/NAME`. `ref` is the dataset that gets a new version; None for the other types."""

    type: IOType
    ref: str | None


@dataclass(frozen=True)
class BoundInput:
    """A workflow input of one run: a dataset's `ref`, or a string's `value`."""

    type: IOType
    ref: str | None
    value: str | None


@dataclass(frozen=True)
class Container:
    """container@v1. `command` None keeps the image's own entrypoint; `args` come after it."""

    image: str
    command: tuple[str, ...] | None
    args: tuple[str, ...]


@dataclass(frozen=True)
class Script:
    """script@v1: `script`, letter for letter as in the file, by the image's bash."""

    script: str
    image: str


@dataclass(frozen=True)
class GitCheckout:
    """git-checkout@v1 into `/outputs/{output}/{path}`.

    `url` None or `CONTEXT_URL` is the project's own repository. `ref` None is the commit of the run for the own
    repository and the default branch for another; `CONTEXT_REF` is the ref or commit that started the run.
    """

    url: str | None
    ref: str | None
    username: str | None
    password: str | None = field(repr=False)
    output: str
    path: str

    @property
    def is_own(self) -> bool:
        """Whether the project's own repository is meant, which needs no network."""
        return self.url is None or self.url == CONTEXT_URL


@dataclass(frozen=True)
class CreateModel:
    """create-model@v1: the dataset in input `model` becomes a version of model `name`; output `model-id` is its id."""

    name: str
    model_type: str


@dataclass(frozen=True)
class Deploy:
    """deploy@v1 (ours): roll deployment `name` out with the model whose id is in the string input `model`."""

    name: str
    replicas: int
    machine_type: str | None
    threads: int | None


Action = Container | Script | GitCheckout | CreateModel | Deploy


@dataclass(frozen=True)
class JobPlan:
    """`env` has the workflow's defaults merged in, the job's own winning. `line` is 0 where there was no text."""

    name: str
    uses: str
    with_: Action
    needs: tuple[str, ...]
    env: Mapping[str, str]
    inputs: Mapping[str, Reference | InputDecl]
    outputs: Mapping[str, OutputDecl]
    machine_type: str | None
    timeout_s: float | None
    line: int


@dataclass(frozen=True)
class Filter:
    """Globs of short ref names: one of `include` must match (empty: all do), none of `ignore` may."""

    include: tuple[str, ...]
    ignore: tuple[str, ...]


@dataclass(frozen=True)
class Triggers:
    """Which pushes start the workflow. None: never by a ref of that kind."""

    branches: Filter | None
    tags: Filter | None


@dataclass(frozen=True)
class Plan:
    """A whole workflow. `env` and `machine_type` are the defaults, already merged into the jobs.

    `jobs` stands in the order of the text. `context` holds what the text said under `context.event.github`.
    """

    name: str
    path: str
    triggers: Triggers
    env: Mapping[str, str]
    machine_type: str | None
    container_registries: tuple[str, ...]
    context: Mapping[str, str]
    inputs: Mapping[str, InputDecl]
    jobs: Mapping[str, JobPlan]
    timeout_s: float | None


@dataclass(frozen=True)
class Readiness:
    """Which blocked jobs may start now, and which never will."""

    ready: tuple[str, ...]
    skipped: tuple[str, ...]
