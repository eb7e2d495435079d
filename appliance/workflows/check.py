"""Nodes to a `Plan`: every key is known, every reference points at something that is there and in `needs`.

What this keeps true: a `Plan` leaves here only when nothing at all is wrong; else every problem that could be found has
its sentence. Gradient's schema is followed; ours on top of it: `name`, `on: push`, `needs` as one text, unquoted numbers
in `env`, `machineType`, a default image for scripts, deploy@v1.

Why: Gradient answered "one or more invalid values were supplied"; here the sentence says which, where and what to write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from appliance import ids
from appliance.errors import BadRequest
from appliance.workflows.actions import NAME, Job, machine_type_of, read_action, refuse_secret
from appliance.workflows.plan import (
    Filter,
    InputDecl,
    IOType,
    JobPlan,
    OutputDecl,
    Plan,
    Reference,
    Triggers,
)
from appliance.workflows.reading import Spot, quoted

MAX_JOBS = 200
MAX_NAMES = 100
MAX_TIMEOUT_S = 30 * 24 * 3600
RESERVED_JOBS = ("workflow", "context")

_TOP = ("name", "on", "context", "defaults", "inputs", "jobs", "timeout")
_JOB = ("needs", "uses", "with", "env", "resources", "inputs", "outputs", "timeout")
_RESOURCES = ("instance-type", "machineType")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_REFERENCE = re.compile(r"([A-Za-z0-9_-]+)\.(inputs|outputs)\.([A-Za-z0-9_-]+)")


def read_plan(root: Spot, path: str) -> Plan:
    """The plan that `root` describes. It may only be used when `root.problems` stayed empty."""
    top = root.keys(_TOP, "a table with 'jobs:' in it")
    name = _title(top.get("name"), path)
    triggers = _triggers(top.get("on"))
    defaults = top["defaults"].keys(("clusterId", "env", "resources")) if "defaults" in top else {}
    resources = defaults["resources"].keys((*_RESOURCES, "container-registries")) if "resources" in defaults else {}
    env = _env(defaults.get("env"))
    machine_type = machine_type_of(resources)
    registries = resources["container-registries"].texts() if "container-registries" in resources else ()
    inputs = _declared(top.get("inputs"))
    if "jobs" not in top:
        root.say("has no jobs; write at least one under 'jobs:'.")
    jobs = _jobs(top["jobs"], inputs, env, machine_type) if "jobs" in top else {}
    return Plan(
        name=name,
        path=path,
        triggers=triggers,
        env=env,
        machine_type=machine_type,
        container_registries=registries,
        context=_context(top.get("context")),
        inputs=inputs,
        jobs=jobs,
        timeout_s=_timeout(top.get("timeout")),
    )


def _title(spot: Spot | None, path: str) -> str:
    """Gradient refused `name:`; here it is welcome. Without it: the file's name without its ending."""
    return (spot.full_text(100) if spot else None) or PurePosixPath(path).stem or "workflow"


def _timeout(spot: Spot | None) -> float | None:
    seconds = spot.number(1, MAX_TIMEOUT_S, "seconds") if spot else None
    return float(seconds) if seconds else None


def _context(spot: Spot | None) -> dict[str, str]:
    """`context.event.github.url|ref`: filled in by the trigger; a text may say it for a run by hand."""
    event = spot.keys(("event",)) if spot else {}
    github = event["event"].keys(("github",)) if "event" in event else {}
    values = github["github"].keys(("url", "ref")) if "github" in github else {}
    return {name: text for name, value in values.items() if (text := value.full_text()) is not None}


# -- on ----------------------------------------------------------------------------------------------------------------


def _triggers(spot: Spot | None) -> Triggers:
    """No `on`, or an empty one: by hand only. `github` or `push` alone: every branch, no tag."""
    if spot is None or spot.is_empty:
        return Triggers(None, None)
    if spot.is_text:
        word = spot.full_text() or ""
        if word in ("github", "push"):
            return Triggers(Filter((), ()), None)
        spot.say(f"{quoted(word)} starts nothing here; write 'push' or a table with 'push:' (or Gradient's 'github:').")
        return Triggers(None, None)
    sources = spot.keys(("github", "push"))
    if len(sources) > 1:
        sources["push"].say("means the same as 'github'; keep one of the two.")
    if not sources:
        return Triggers(None, None)
    kinds = next(iter(sources.values())).keys(("branches", "tags"))
    filters = {kind: _filter(kinds[kind]) for kind in kinds}
    return Triggers(filters.get("branches"), filters.get("tags")) if filters else Triggers(Filter((), ()), None)


def _filter(spot: Spot) -> Filter:
    """`only`, `include` and `ignore`, each one glob or a list; a bare glob or list means `include`."""
    if not spot.is_empty and not spot.is_table:
        return Filter(_globs(spot), ())
    rules = spot.keys(("only", "include", "ignore"))
    if "only" in rules and len(rules) > 1:
        rules["only"].say("stands alone; put it into 'include' when there is more.")
    include = [rules[name] for name in ("only", "include") if name in rules]
    return Filter(
        tuple(glob for one in include for glob in _globs(one)), _globs(rules["ignore"]) if "ignore" in rules else ()
    )


def _globs(spot: Spot) -> tuple[str, ...]:
    globs = spot.texts()
    if spot.has_nothing:
        spot.say("names nothing; write a name or a pattern such as release/*.")
    if any(len(glob) > 255 for glob in globs) or len(globs) > MAX_NAMES:
        spot.say("is too long: at most 100 patterns of 255 letters.")
    return globs


# -- values ------------------------------------------------------------------------------------------------------------


def _env(spot: Spot | None) -> dict[str, str]:
    """Texts; a number or truth value without quotes counts as it is written."""
    env: dict[str, str] = {}
    for name, value in (spot.table() if spot else {}).items():
        if not _ENV_NAME.fullmatch(name):
            value.say("is no name of an environment variable; use letters, digits and '_', no digit first.")
        elif name.startswith("APPLIANCE_"):
            value.say("is reserved; names that begin with APPLIANCE_ are set by the appliance.")
        text = value.text()
        if text is None:
            continue
        if "${{" in text:
            value.say("holds an expression '${{ … }}'; nothing is substituted here, write the value itself.")
        elif not refuse_secret(value, text):
            env[name] = text
    return env


def _named(spot: Spot | None, what: str) -> dict[str, Spot]:
    """The entries of a table whose keys are names that a person chose."""
    entries = spot.table() if spot else {}
    for name, entry in entries.items():
        if not NAME.fullmatch(name):
            entry.say(f"is no name for {what}; use at most 100 letters, digits, '-' and '_'.")
    if spot and len(entries) > (MAX_JOBS if what == "a job" else MAX_NAMES):
        spot.say(f"has {len(entries)} entries, which is too many.")
        return {}
    return entries


def _type(fields: Mapping[str, Spot], owner: Spot) -> IOType | None:
    if "type" not in fields:
        owner.say("has no type; write type: dataset, volume or string.")
        return None
    text = fields["type"].full_text()
    if text is None:
        return None
    known = [kind.value for kind in IOType]
    if text in known:
        return IOType(text)
    hint = owner.problems.suggest(text, known) or "; use dataset, volume or string"
    fields["type"].say(f"{quoted(text)} is no type{hint}.")
    return None


def _dataset_ref(fields: Mapping[str, Spot]) -> tuple[str | None, Spot | None]:
    """Gradient's `ref`, or its older `id` of the same meaning, and where it stands."""
    given = [fields[name] for name in ("ref", "id") if name in fields]
    if len(given) > 1:
        given[1].say("says the same as 'ref'; keep one of the two.")
    text = given[0].full_text() if given else None
    if text is None:
        return None, given[0] if given else None
    if _REFERENCE.fullmatch(text):
        given[0].say(f"{quoted(text)} is a reference, not a dataset; write it alone, as NAME: {text}.")
        return None, given[0]
    try:
        ids.ref(text, "dataset")
    except BadRequest as error:
        given[0].say(error.message)
        return None, given[0]
    return text, given[0]


def _declared(spot: Spot | None) -> dict[str, InputDecl]:
    found = {name: _input(entry, by_run=True) for name, entry in _named(spot, "an input").items()}
    return {name: one for name, one in found.items() if one}


def _input(spot: Spot, *, by_run: bool) -> InputDecl | None:
    """`{type, with, optional}`. On a workflow (`by_run`) the value may be left for each run to give."""
    fields = spot.keys(("type", "with", "optional"), "a table with 'type:', or a reference such as JOB.outputs.NAME")
    if not fields:
        if spot.is_empty:
            spot.say("has no value; write a table with 'type:', or a reference.")
        return None
    kind = _type(fields, spot)
    optional = fields["optional"].truth() if "optional" in fields else False
    ref = value = None
    if kind is IOType.VOLUME:
        spot.say("is a volume, which lives within one run; make it as a job's output and refer to JOB.outputs.NAME.")
    elif kind is IOType.DATASET:
        params = fields["with"].keys(("ref", "id")) if "with" in fields else {}
        ref, place = _dataset_ref(params)
        if place is None and not by_run:
            spot.say("names no dataset; add with: {ref: NAME}.")
    elif kind is IOType.STRING:
        params = fields["with"].keys(("value",)) if "with" in fields else {}
        value = params["value"].text() if "value" in params else None
        if "value" not in params and not by_run:
            spot.say("has no value; add with: {value: TEXT}.")
    return InputDecl(kind, ref, value, optional) if kind else None


def _outputs(spot: Spot | None) -> dict[str, OutputDecl]:
    found = {name: _output(entry) for name, entry in _named(spot, "an output").items()}
    return {name: one for name, one in found.items() if one}


def _output(spot: Spot) -> OutputDecl | None:
    fields = spot.keys(("type", "with"), "a table with 'type:'")
    kind = _type(fields, spot) if fields or spot.is_empty else None
    params = fields["with"].keys(("ref", "id") if kind is IOType.DATASET else ()) if "with" in fields else {}
    if kind is not IOType.DATASET:
        return OutputDecl(kind, None) if kind else None
    ref, place = _dataset_ref(params)
    if place is None:
        spot.say("names no dataset; add with: {ref: NAME}, it is created when it is not there.")
    elif ref and ":" in ref:
        place.say(
            f"{quoted(ref)} names a version, but an output always makes a new one; leave out ':' and what follows."
        )
    return OutputDecl(kind, ref)


# -- jobs --------------------------------------------------------------------------------------------------------------


def _jobs(
    spot: Spot, inputs: Mapping[str, InputDecl], env: Mapping[str, str], machine_type: str | None
) -> dict[str, JobPlan]:
    entries = _named(spot, "a job")
    if spot.has_nothing:
        spot.say("is empty; write at least one job.")
    for name in RESERVED_JOBS:
        if name in entries:
            entries[name].say(f"is a reserved name, since references begin with '{name}.'; choose another.")
    fields = {name: entry.keys(_JOB, "a table with 'uses:'") for name, entry in entries.items()}
    outputs = {name: _outputs(fields[name].get("outputs")) for name in entries}
    needs = {name: _needs(fields[name].get("needs"), entries) for name in entries}
    cycle = find_cycle(needs)
    if cycle:
        fields[cycle[0]]["needs"].say(f"makes a circle: {' needs '.join(cycle)}; take one of them out.")
    jobs: dict[str, JobPlan] = {}
    for name, entry in entries.items():
        job = _job(name, entry, fields[name], needs[name], inputs, outputs)
        if job:
            jobs[name] = replace(job, env={**env, **job.env}, machine_type=job.machine_type or machine_type)
    return jobs


def _needs(spot: Spot | None, entries: Mapping[str, Spot]) -> tuple[str, ...]:
    known: list[str] = []
    for other in spot.texts() if spot else ():
        assert spot is not None
        if other not in entries:
            spot.say(f"names {quoted(other)}, but there is no such job{spot.problems.suggest(other, entries)}.")
        elif other in known:
            spot.say(f"names {quoted(other)} twice; keep one.")
        else:
            known.append(other)
    return tuple(known)


def find_cycle(needs: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """One circle, from a job back to itself; empty when there is none."""
    done: set[str] = set()
    trail: list[str] = []

    def visit(name: str) -> tuple[str, ...]:
        if name in trail:
            return (*trail[trail.index(name) :], name)
        if name in done:
            return ()
        trail.append(name)
        for other in needs[name]:
            if found := visit(other):
                return found
        done.add(trail.pop())
        return ()

    return next((found for name in needs if (found := visit(name))), ())


def _job(
    name: str,
    spot: Spot,
    fields: Mapping[str, Spot],
    needs: tuple[str, ...],
    inputs: Mapping[str, InputDecl],
    outputs: Mapping[str, Mapping[str, OutputDecl]],
) -> JobPlan | None:
    used: dict[str, Reference | InputDecl] = {}
    types: dict[str, IOType | None] = {}
    for key, entry in _named(fields.get("inputs"), "an input").items():
        source = _reference(entry, needs, inputs, outputs) if entry.is_text else _input(entry, by_run=False)
        types[key] = _type_of(source, inputs, outputs)
        if source:
            used[key] = source
    resources = fields["resources"].keys(_RESOURCES) if "resources" in fields else {}
    uses, action = read_action(Job(spot, fields, types, outputs[name]))
    env = _env(fields.get("env"))
    machine_type = machine_type_of(resources)
    timeout_s = _timeout(fields.get("timeout"))
    if action is None:
        return None
    return JobPlan(name, uses, action, needs, env, used, outputs[name], machine_type, timeout_s, spot.line or 0)


def _type_of(
    source: Reference | InputDecl | None,
    inputs: Mapping[str, InputDecl],
    outputs: Mapping[str, Mapping[str, OutputDecl]],
) -> IOType | None:
    if source is None:
        return None
    if isinstance(source, InputDecl):
        return source.type
    if source.job is None:
        return inputs[source.name].type
    return outputs[source.job][source.name].type


def _reference(
    spot: Spot,
    needs: tuple[str, ...],
    inputs: Mapping[str, InputDecl],
    outputs: Mapping[str, Mapping[str, OutputDecl]],
) -> Reference | None:
    text = spot.full_text()
    if text is None:
        return None
    match = _REFERENCE.fullmatch(text)
    if not match or (match[1] == "workflow") != (match[2] == "inputs"):
        spot.say(f"{quoted(text)} is no reference; write workflow.inputs.NAME or JOB.outputs.NAME.")
        return None
    job, name, suggest = match[1], match[3], spot.problems.suggest
    if job == "workflow":
        if name in inputs:
            return Reference("workflow_input", None, name)
        spot.say(f"refers to the workflow's input {quoted(name)}, which is not declared{suggest(name, inputs)}.")
    elif job not in outputs:
        spot.say(f"refers to {quoted(job)}, but there is no such job{suggest(job, outputs)}.")
    elif job not in needs:
        spot.say(f"refers to {quoted(job)}, which is not in needs; add it there.")
    elif name not in outputs[job]:
        spot.say(f"refers to {quoted(name)}, which is no output of {quoted(job)}{suggest(name, outputs[job])}.")
    else:
        return Reference("job_output", job, name)
    return None
