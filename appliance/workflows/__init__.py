"""Workflows: YAML text (or a JSON spec) to a plan, or everything that is wrong with it, file, line and key.

`parse` and `parse_mapping` give a `Plan` or raise `ParseError`, whose message is the first problem and whose `issues`
are all of them; no other exception leaves them, whatever the text. `triggers_on`, `bind_inputs`, `order` and
`ready_jobs` say what a plan means for a run. Nothing here touches the world.

    yamltext   text to nodes with lines        reading   a cursor that collects problems
    actions    what each action takes          check     nodes to a plan
    plan       the records                     running   what a plan means for a run

Why: everything that a user can get wrong is found in one place, without a container being started.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.errors import ParseError
from appliance.workflows.check import read_plan
from appliance.workflows.plan import (
    CONTEXT_REF,
    CONTEXT_URL,
    DEFAULT_IMAGE,
    Action,
    BoundInput,
    Container,
    CreateModel,
    Deploy,
    Filter,
    GitCheckout,
    InputDecl,
    IOType,
    JobPlan,
    OutputDecl,
    Plan,
    Readiness,
    Reference,
    Script,
    Triggers,
)
from appliance.workflows.reading import Enough, Problems, Spot
from appliance.workflows.running import bind_inputs, order, ready_jobs, triggers_on
from appliance.workflows.yamltext import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_EVENTS,
    Entry,
    Listing,
    Node,
    Scalar,
    Table,
    YamlProblem,
    load,
)

__all__ = [
    "CONTEXT_REF",
    "CONTEXT_URL",
    "DEFAULT_IMAGE",
    "Action",
    "BoundInput",
    "Container",
    "CreateModel",
    "Deploy",
    "Filter",
    "GitCheckout",
    "IOType",
    "InputDecl",
    "JobPlan",
    "OutputDecl",
    "ParseError",
    "Plan",
    "Readiness",
    "Reference",
    "Script",
    "Triggers",
    "bind_inputs",
    "order",
    "parse",
    "parse_mapping",
    "ready_jobs",
    "triggers_on",
]


def parse(text: str | bytes, path: str) -> Plan:
    """The plan in `text`, the contents of the file `path` (for the sentences, and for the name where it gives none).

    Raises ParseError. Under 200 ms for any text.
    """
    problems = Problems(path)
    try:
        root = load(text)
    except YamlProblem as problem:
        problems.add(problem.line, problem.key, problem.sentence)
        raise problems.error() from problem
    return _planned(root, problems)


def parse_mapping(spec: Mapping[str, Any], path: str) -> Plan:
    """The plan in a spec that came as JSON. Clients that read their YAML with YAML 1.1 send `true` for `on`: accepted."""
    problems = Problems(path)
    if "on" not in spec:
        spec = {("on" if str(key).lower() == "true" else key): value for key, value in spec.items()}
    try:
        root = _Nodes().of(spec, "", 0)
    except YamlProblem as problem:
        problems.add(problem.line, problem.key, problem.sentence)
        raise problems.error() from problem
    return _planned(root, problems)


def _planned(root: Node, problems: Problems) -> Plan:
    try:
        plan = read_plan(Spot(problems, "", root.line, root), problems.path)
    except Enough:
        raise problems.error() from None
    if problems.found:
        raise problems.error()
    return plan


class _Nodes:
    """Counts while it turns JSON values into nodes without lines; the limits are those of a text."""

    def __init__(self) -> None:
        self.count = 0
        self.letters = 0

    def of(self, value: Any, key: str, depth: int) -> Node:
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_EVENTS:
            raise YamlProblem(None, key[:100], "is nested too deeply or has too many elements.")
        if isinstance(value, Mapping):
            entries = {
                str(name): Entry(None, self.of(one, _joined(key, name), depth + 1)) for name, one in value.items()
            }
            return Table(entries, None)
        if isinstance(value, list | tuple):
            return Listing(tuple(self.of(one, _joined(key, at), depth + 1) for at, one in enumerate(value)), None)
        return self.scalar(value, key)

    def scalar(self, value: Any, key: str) -> Scalar:
        if value is None:
            return Scalar("", "null", None)
        if isinstance(value, bool):
            return Scalar("true" if value else "false", "bool", None)
        if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64):
            return Scalar(repr(value), "int" if isinstance(value, int) else "float", None)
        if isinstance(value, str):
            self.letters += len(value)
            if self.letters > MAX_BYTES:
                raise YamlProblem(None, key[:100], f"is larger than {MAX_BYTES // 1024} KiB in all.")
            return Scalar(value, "str", None)
        raise YamlProblem(None, key[:100], f"is a {type(value).__name__}, which a workflow cannot hold.")


def _joined(key: str, name: object) -> str:
    return f"{key}.{str(name)[:80]}" if key else str(name)[:80]
