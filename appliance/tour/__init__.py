"""The tour: what a user does, done once, from a `git push` to a digit that was read.

What this keeps true: only public doors are used (the SDK, the real git client, the unmodified Triton client with a key of
its own that is revoked at the end); every wait ends; the exit code is 0 only when the answer is right. Each run of it
pushes a new commit, so it makes new versions and rolls the deployment over; nothing is deleted.

Why: an installation is finished when a model has answered, not when a service has started.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

from appliance import clock
from appliance.client import Client, Json, TimedOut
from appliance.client.data import Versioned, metrics_of
from appliance.client.transport import is_loopback
from appliance.client.work import phase_of
from appliance.errors import ApplianceError, NotFound, PreconditionFailed
from appliance.tour import digits, push
from appliance.tour.show import Progress, picture

T = TypeVar("T")

PROJECT = "tour"
DATASET, MODEL, DEPLOYMENT = "digits", "digits", "digits"
_LAST_LINES = 15
_PAUSE_S = 0.2


class TourFailed(ApplianceError):
    """A stage did not do what it should; the issues are the last lines of the log that says why."""

    code = "TOUR_FAILED"


class Door(Protocol):
    """Who opens the tour: the command line's shell."""

    args: argparse.Namespace

    @property
    def client(self) -> Client: ...


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object; progress goes to stderr")
    parser.add_argument("--project", default=PROJECT, help=f"the project to use or make (default: {PROJECT})")
    parser.add_argument(
        "--digit", type=int, choices=range(10), help="ask for this digit (default: another one each time)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="work in this new folder and leave the repository there"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="give up after so long (default: 600)"
    )
    parser.set_defaults(work=work)


def work(door: Door) -> int:
    """The command: 0 when the digit was read right."""
    args = door.args
    progress = Progress(sys.stderr)
    report = take(
        door.client,
        progress,
        project=args.project,
        digit=args.digit,
        keep=args.keep,
        timeout_s=args.timeout,
    )
    is_right = report["prediction"] == report["expected"]
    pixels = report.pop("pixels")
    if args.json:
        print(json.dumps(report))
    else:
        print(_told(report, pixels))
    if not is_right:
        print(f"appliance: the model read {report['prediction']}, but it is {report['expected']}.", file=sys.stderr)
    return 0 if is_right else 1


def take(
    client: Client,
    progress: Progress,
    *,
    project: str = PROJECT,
    digit: int | None = None,
    keep: Path | None = None,
    timeout_s: float = 600.0,
) -> Json:
    """Every stage; the report that `--json` prints, and `pixels`. Raises what failed."""
    _check_tools()
    deadline = clock.monotonic() + timeout_s
    with progress.stage("project") as stage:
        found = _project(client, project)
        stage.say(found["name"])
    with progress.stage("push") as stage:
        commit = _push(client, found, keep)
        stage.say(commit[:10])
    with progress.stage("run") as stage:
        run = _run(client, found["id"], commit, progress, deadline)
        stage.say(f"{run.get('workflowName')}/{run['id']}")
    with progress.stage("dataset") as stage:
        dataset = _made_by(client.datasets, DATASET, run)
        sample = digits.choose(client.datasets.read(DATASET, dataset["version"], "held-out.csv"), digit)
        stage.say(f"{DATASET}:{dataset.get('number')}, {dataset.get('fileCount')} files")
    with progress.stage("model") as stage:
        model = _made_by(client.models, MODEL, run)
        accuracy = metrics_of(model).get("accuracy")
        stage.say(f"{MODEL}:{model.get('number')}" + (f", accuracy {accuracy:.4f}" if accuracy is not None else ""))
    with progress.stage("deployment") as stage:
        deployment = _deployment(client, found["id"], model["version"], deadline)
        endpoint = str(deployment["localUrl"] if is_loopback(client.url) else deployment["url"])
        stage.say(endpoint)
    with progress.stage("prediction") as stage:
        answer = _ask(client, deployment["id"], endpoint, sample)
        stage.say(f"{answer.label}, probability {answer.probability:.3f}")
    return {
        "run": run["uuid"],
        "jobs": {name: _job_report(job) for name, job in run["status"]["jobs"].items()},
        "dataset_version": dataset["version"],
        "model_version": model["version"],
        "accuracy": accuracy,
        "deployment": deployment["id"],
        "endpoint": endpoint,
        "prediction": answer.label,
        "expected": sample.label,
        "probability": answer.probability,
        "seconds": progress.seconds,
        "pixels": sample.pixels,
    }


# -- the stages --------------------------------------------------------------------------------------------------------


def _check_tools() -> None:
    if importlib.util.find_spec("tritonclient") is None:
        raise PreconditionFailed(
            "The tour asks with tritonclient, which is not here: pip install 'tritonclient[http]' numpy."
        )


def _project(client: Client, name: str) -> Json:
    try:
        return client.projects.get(name)
    except NotFound:
        return client.projects.create(name)


def _push(client: Client, project: Json, keep: Path | None) -> str:
    with nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory(prefix="appliance-tour-") as folder:
        return push.push_showcase(client, project["name"], Path(folder), f"The digits, {clock.stamp()}")


def _run(client: Client, project_id: str, commit: str, progress: Progress, deadline: float) -> Json:
    """The run that the push started, when it has succeeded; each job is told as it ends. Raises TourFailed."""
    run = _until(
        lambda: next((each for each in client.runs.list(project_id) if each.get("commit") == commit), None),
        min(deadline, clock.monotonic() + 60),
        "The push started no run within 60 s",
    )
    told: set[str] = set()
    for now in client.runs.follow(run["uuid"], timeout_s=deadline - clock.monotonic()):
        run = now
        _tell_jobs(run, told, progress)
    if phase_of(run) != "Succeeded":
        raise _failed(client, run)
    return run


def _tell_jobs(run: Json, told: set[str], progress: Progress) -> None:
    jobs = run["status"].get("jobs") or {}
    for name, job in jobs.items():
        if job["phase"] in ("Succeeded", "Failed", "Canceled", "Omitted") and name not in told:
            told.add(name)
            progress.step(name, _seconds(job), job["phase"])
    busy = [name for name, job in jobs.items() if job["phase"] == "Running"]
    waits = [str(job.get("wait")) for job in jobs.values() if job.get("wait")]
    progress.now(", ".join(busy) or (waits[0] if waits else ""))


def _failed(client: Client, run: Json) -> TourFailed:
    for name, job in (run["status"].get("jobs") or {}).items():
        if job["phase"] in ("Failed", "Canceled"):
            why = f"Job {name} of run {run['uuid'][:8]} did not succeed: {job.get('message') or job['phase']}"
            return TourFailed(why, issues=_last_lines(client, run["uuid"], name))
    return TourFailed(f"Run {run['uuid'][:8]} did not succeed: {run['status'].get('message') or phase_of(run)}")


def _last_lines(client: Client, run: str, job: str) -> tuple[str, ...]:
    try:
        return tuple(str(line["message"]) for line in client.runs.logs(run, job))[-_LAST_LINES:]
    except ApplianceError:  # no log is no reason to hide why the run failed
        return ()


def _made_by(client: Versioned, name: str, run: Json) -> Json:
    """The version of `name` that this run made. Raises TourFailed."""
    for each in client.versions(name):
        if each.get("runId") == run["uuid"]:
            return each
    raise TourFailed(f"Run {run['uuid'][:8]} succeeded, but made no version of the {client.noun} {name}.")


def _deployment(client: Client, project_id: str, model_version: str, deadline: float) -> Json:
    """The deployment, when the model's version is what it serves. Raises TourFailed, TimedOut."""

    def probe() -> Json | None:
        found = next((each for each in client.deployments.list(project_id) if each["name"] == DEPLOYMENT), None)
        if found is None:
            return None
        latest, serving = found.get("latestSpec") or {}, found.get("servingSpec") or {}
        if latest.get("modelVersionId") == model_version and latest.get("state") == "failed":
            raise TourFailed(f"The deployment {DEPLOYMENT} did not become healthy: {latest.get('error')}")
        is_ours = serving.get("modelVersionId") == model_version and serving.get("state") == "serving"
        return found if is_ours else None

    return _until(probe, deadline, f"The deployment {DEPLOYMENT} does not serve the new model version in time")


def _ask(client: Client, deployment: str, endpoint: str, sample: digits.Sample) -> digits.Answer:
    key = client.deployments.create_key(deployment, "tour")
    try:
        name = str(client.deployments.metadata(deployment)["name"])
        return digits.ask(endpoint, name, str(key["key"]), sample, client.transport.ca)
    finally:
        client.deployments.revoke_key(deployment, str(key["id"]))


# -- inside ------------------------------------------------------------------------------------------------------------


def _until(probe: Callable[[], T | None], deadline: float, sentence: str) -> T:
    while True:
        found = probe()
        if found is not None:
            return found
        if clock.monotonic() > deadline:
            raise TimedOut(f"{sentence}: `appliance runs list` and `appliance doctor` may say why.")
        time.sleep(_PAUSE_S)


def _job_report(job: Json) -> Json:
    return {"phase": job["phase"], "seconds": _seconds(job)}


def _seconds(job: Json) -> float | None:
    if not (job.get("started") and job.get("finished")):
        return None
    return round((clock.parse(job["finished"]) - clock.parse(job["started"])).total_seconds(), 3)


def _told(report: Json, pixels: tuple[int, ...]) -> str:
    sentence = (
        f"The model reads a {report['prediction']} (probability {report['probability']:.3f}); "
        f"the label says {report['expected']}. It never saw this digit before."
    )
    return f"\n{picture(pixels)}\n\n{sentence}\nIt answers at {report['endpoint']}"
