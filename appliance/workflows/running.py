"""What a plan means for a run: which pushes start it, what its inputs become, which job is next. Values to values.

What this keeps true: the same plan and the same states give the same answer; nothing here reads a clock or a disk.

Why: a run's course can be tested with a table, without a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from appliance import ids
from appliance.errors import BadRequest
from appliance.states import JobState
from appliance.workflows.plan import BoundInput, Filter, InputDecl, IOType, Plan, Readiness
from appliance.workflows.reading import Problems, quoted

_BRANCH, _TAG = "refs/heads/", "refs/tags/"


def triggers_on(plan: Plan, ref: str) -> bool:
    """Whether a push of `ref` (`refs/heads/main`, `refs/tags/v1`) starts the workflow. A plan without `on`: never."""
    for prefix, wanted in ((_BRANCH, plan.triggers.branches), (_TAG, plan.triggers.tags)):
        if ref.startswith(prefix) and wanted is not None:
            return _passes(wanted, ref, ref.removeprefix(prefix))
    return False


def _passes(wanted: Filter, ref: str, name: str) -> bool:
    def hit(glob: str) -> bool:
        return glob_matches(glob, ref if glob.startswith("refs/") else name)

    return (not wanted.include or any(map(hit, wanted.include))) and not any(map(hit, wanted.ignore))


def glob_matches(glob: str, name: str) -> bool:
    """`*` is any run without '/', `**` any run, `?` one letter but '/'. Time is bounded by len(glob) * len(name)."""
    tokens: list[str] = []
    for letter in glob:
        if letter == "*" and tokens and tokens[-1] in ("*", "**"):
            tokens[-1] = "**"
        else:
            tokens.append(letter)
    places = _closure({0}, tokens)
    for letter in name:
        moved = {
            place + (token not in ("*", "**"))
            for place in places
            if place < len(tokens) and _takes(token := tokens[place], letter)
        }
        places = _closure(moved, tokens)
    return len(tokens) in places


def _takes(token: str, letter: str) -> bool:
    return token in ("**", letter) or (token in ("*", "?") and letter != "/")


def _closure(places: set[int], tokens: list[str]) -> set[int]:
    for place in sorted(places):
        while place < len(tokens) and tokens[place] in ("*", "**"):
            place += 1
            places.add(place)
    return places


def order(plan: Plan) -> tuple[str, ...]:
    """Every job after all that it needs; else in the order of the text."""
    done: dict[str, None] = {}
    while len(done) < len(plan.jobs):
        for name, job in plan.jobs.items():
            if name not in done and all(other in done for other in job.needs):
                done[name] = None
    return tuple(done)


def ready_jobs(plan: Plan, states: Mapping[str, JobState]) -> Readiness:
    """Of the blocked jobs: which are ready (all needs succeeded), which are skipped (a need ended otherwise).

    A job that is skipped here counts as ended for those behind it, so one call settles the whole chain.
    """
    now = dict(states)
    ready, skipped = [], []
    for name in order(plan):
        if now[name] is not JobState.BLOCKED:
            continue
        needs = [now[other] for other in plan.jobs[name].needs]
        if any(state in (JobState.FAILED, JobState.CANCELLED, JobState.SKIPPED) for state in needs):
            now[name] = JobState.SKIPPED
            skipped.append(name)
        elif all(state is JobState.SUCCEEDED for state in needs):
            ready.append(name)
    return Readiness(tuple(ready), tuple(skipped))


def bind_inputs(plan: Plan, given: Mapping[str, Any]) -> dict[str, BoundInput]:
    """The workflow's inputs for one run: what is `given`, else the default; an optional one without either is left out.

    `given` in the shapes that Gradient's clients send: {NAME: {"id": REF}} or {"ref": REF} for a dataset,
    {NAME: {"value": TEXT}} for a string, all of it under "inputs" or not; a bare text does for both.
    Raises BadRequest that names the input.
    """
    given = _unwrapped(plan, given)
    for name in given:
        if name not in plan.inputs:
            hint = Problems("").suggest(name, plan.inputs)
            raise BadRequest(f"The workflow {plan.name!r} has no input {quoted(name)}{hint}.")
    bound: dict[str, BoundInput] = {}
    for name, declared in plan.inputs.items():
        one = _given(name, declared, given[name]) if name in given else _default(declared)
        if one is not None:
            bound[name] = one
        elif not declared.optional:
            example = '{"id": "DATASET"}' if declared.type is IOType.DATASET else '{"value": "TEXT"}'
            raise BadRequest(
                f'The workflow {plan.name!r} needs the input "{name}"; give it as {{"{name}": {example}}}.'
            )
    return bound


def _unwrapped(plan: Plan, given: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = given.get("inputs")
    if set(given) == {"inputs"} and isinstance(inner, Mapping) and "inputs" not in plan.inputs:
        return inner
    return given


def _default(declared: InputDecl) -> BoundInput | None:
    if declared.ref is None and declared.value is None:
        return None
    return BoundInput(declared.type, declared.ref, declared.value)


def _given(name: str, declared: InputDecl, value: Any) -> BoundInput:
    if isinstance(value, Mapping) and isinstance(value.get("with"), Mapping):
        value = value["with"]
    keys = ("ref", "id") if declared.type is IOType.DATASET else ("value",)
    if isinstance(value, Mapping):
        value = (
            value[next(key for key in keys if key in value)] if len(value) == 1 and set(value) <= set(keys) else None
        )
    if declared.type is IOType.STRING and isinstance(value, bool | int | float):
        value = json.dumps(value)
    if not isinstance(value, str) or (declared.type is IOType.DATASET and not value.strip()):
        raise BadRequest(f'The input "{name}" is a {declared.type}; give it as {{"{keys[-1]}": TEXT}}.')
    if declared.type is IOType.DATASET:
        return BoundInput(declared.type, str(ids.ref(value, "dataset")), None)
    return BoundInput(declared.type, None, value)
