"""What is worked on: the machine, projects, workflows, runs and their logs, events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from appliance import clock
from appliance.client.transport import Json, TimedOut, Transport, segment
from appliance.errors import BadRequest

ENDED = frozenset({"Succeeded", "Failed", "Canceled", "Omitted", "Skipped", "Error"})
"""Gradient's phases from which nothing moves on."""


class Machine:
    def __init__(self, transport: Transport) -> None:
        self._at = transport

    def show(self) -> Json:
        """What the server has and who uses it: cpus, memoryMib, cards, machineTypes, disk, leases, version."""
        found: Json = self._at.get("/v1/machine")
        return found

    def doctor(self) -> list[Json]:
        """The server's own findings: [{check, state, text, remedy}]. An admin's."""
        found: list[Json] = self._at.get("/v1/doctor")
        return found

    def storage(self) -> Json:
        found: Json = self._at.get("/v1/storage-providers/utilization")
        return found


class Projects:
    """`project` is an id or a name wherever it is asked for."""

    def __init__(self, transport: Transport) -> None:
        self._at = transport

    def list(self) -> Iterator[Json]:
        return self._at.pages("/v1/projects")

    def create(self, name: str) -> Json:
        found: Json = self._at.post("/v1/projects", name=name)
        return found

    def get(self, project: str) -> Json:
        found: Json = self._at.get(_project(project))
        return found

    def rename(self, project: str, name: str) -> Json:
        found: Json = self._at.put(_project(project), name=name)
        return found

    def removal(self, project: str) -> str:
        """The sentence that says what deleting it takes away."""
        return str(self._at.get(_project(project) + "/removal")["text"])

    def delete(self, project: str) -> None:
        self._at.delete(_project(project))

    def collaborators(self, project: str) -> Iterator[Json]:
        return self._at.pages(_project(project) + "/collaborators")

    def add_collaborator(self, project: str, user_id: str) -> Json:
        found: Json = self._at.post(_project(project) + "/collaborators", userId=user_id)
        return found

    def remove_collaborator(self, project: str, user_id: str) -> None:
        self._at.delete(f"{_project(project)}/collaborators/{segment(user_id)}")

    def pushes(self, project: str) -> Iterator[Json]:
        return self._at.pages(_project(project) + "/pushes")

    def commits(self, project: str, *, ref: str | None = None) -> Iterator[Json]:
        return self._at.pages(_project(project) + "/commits", ref=ref)


class Workflows:
    def __init__(self, transport: Transport) -> None:
        self._at = transport

    def list(self, project: str | None = None) -> Iterator[Json]:
        return self._at.pages("/v1/workflows", projectId=project)

    def get(self, workflow_id: str) -> Json:
        found: Json = self._at.get(f"/v1/workflows/{segment(workflow_id)}")
        return found

    def create(self, project_id: str, name: str, *, spec: Mapping[str, Any] | None = None) -> Json:
        found: Json = self._at.post("/v1/workflows", name=name, projectId=project_id, spec=spec)
        return found

    def rename(self, workflow_id: str, name: str) -> Json:
        found: Json = self._at.put(f"/v1/workflows/{segment(workflow_id)}", name=name)
        return found

    def delete(self, workflow_id: str) -> None:
        self._at.delete(f"/v1/workflows/{segment(workflow_id)}")

    def runs(self, workflow_id: str) -> Iterator[Json]:
        return self._at.pages(f"/v1/workflows/{segment(workflow_id)}/runs")

    def run(self, workflow_id: str, number: int | str) -> Json:
        """One run of a workflow by its number or uuid."""
        found: Json = self._at.get(f"/v1/workflows/{segment(workflow_id)}/runs/{segment(str(number))}")
        return found


class Runs:
    """`run` is a run's uuid wherever it is asked for."""

    def __init__(self, transport: Transport) -> None:
        self._at = transport

    def list(self, project: str | None = None) -> Iterator[Json]:
        """Newest first."""
        return self._at.pages("/v1/runs", projectId=project)

    def get(self, run: str) -> Json:
        found: Json = self._at.get(_run(run))
        return found

    def submit(
        self,
        project: str,
        *,
        path: str | None = None,
        ref: str | None = None,
        spec_text: str | None = None,
        name: str | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Json:
        """Start a run without a push: the workflow file `path` at `ref`, or the YAML in `spec_text`."""
        if (path is None) == (spec_text is None):
            raise BadRequest(
                "Say what to run: either a workflow file of the repository (--path .gradient/workflows/train.yaml) or the text of one (--file)."
            )
        found: Json = self._at.post(
            _project(project) + "/runs", path=path, ref=ref, specText=spec_text, name=name, inputs=inputs
        )
        return found

    def cancel(self, run: str) -> Json:
        found: Json = self._at.post(_run(run) + "/cancel")
        return found

    def removal(self, run: str) -> str:
        return str(self._at.get(_run(run) + "/removal")["text"])

    def delete(self, run: str) -> None:
        self._at.delete(_run(run))

    def follow(self, run: str, *, timeout_s: float | None = None) -> Iterator[Json]:
        """The run as it is now and after each change, until it has ended. Raises TimedOut after `timeout_s`."""
        deadline = None if timeout_s is None else clock.monotonic() + timeout_s
        for name, data in self._at.follow(_run(run) + "/stream", dict, deadline=deadline):
            if name == "run":
                yield data
                if phase_of(data) in ENDED:
                    return
            if deadline is not None and clock.monotonic() > deadline:
                raise TimedOut(f"Run {run} has not ended within {timeout_s:.0f} s.")

    def wait(self, run: str, *, timeout_s: float | None = None) -> Json:
        """The run when it has ended, however it ended."""
        for _ in self.follow(run, timeout_s=timeout_s):
            pass
        return self.get(run)

    def logs(self, run: str, job: str, *, after: int = -1) -> Iterator[Json]:
        """The lines so far ({line, at, stream, message}) after line number `after`."""
        while True:
            page = self._at.get(_logs(run, job), after=after, limit=1000)
            yield from page["items"]
            if not page["items"]:
                return
            after = page["items"][-1]["line"]

    def logs_follow(self, run: str, job: str, *, after: int = -1, timeout_s: float | None = None) -> Iterator[Json]:
        """The lines so far and then each as it is written, until the job has ended; each line once."""
        deadline = None if timeout_s is None else clock.monotonic() + timeout_s
        return follow_lines(self._at, _logs(run, job) + "/stream", after, deadline)


class Events:
    def __init__(self, transport: Transport) -> None:
        self._at = transport

    def list(self, project: str | None = None) -> Iterator[Json]:
        return self._at.pages("/v1/events", projectId=project)


def follow_lines(at: Transport, path: str, after: int, deadline: float | None) -> Iterator[Json]:
    """The lines of a log's event stream; a connection that breaks is resumed after the last line."""
    resume = {"after": after}
    for name, data in at.follow(path, lambda: resume, deadline=deadline):
        if name == "line" and data["line"] > resume["after"]:
            resume["after"] = data["line"]
            yield data


def phase_of(run: Json) -> str:
    return str((run.get("status") or {}).get("phase") or "")


def _project(project: str) -> str:
    return f"/v1/projects/{segment(project)}"


def _run(run: str) -> str:
    return f"/v1/runs/{segment(run)}"


def _logs(run: str, job: str) -> str:
    return f"{_run(run)}/jobs/{segment(job)}/logs"
