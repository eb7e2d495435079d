"""Runs of workflows: start one, watch it, read its logs.

A RUN is its id, the beginning of its id, or WORKFLOW/NUMBER as `runs list` shows it. `logs -f` and `start --follow` end when
the run (or the one job) has ended, with exit code 7 when it did not succeed.

Why several jobs are followed at once: independent jobs run side by side, and the one that is waited for is seldom the first.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import Any

from appliance.cli.shell import RUN_FAILED, Shell, project_option, verb, verbs, yes_option
from appliance.cli.terminal import ago, between
from appliance.client.work import phase_of
from appliance.errors import ApplianceError, BadRequest, Conflict, NotFound

_UUID_LENGTH = 36
_SEARCHED = 1000


def add(parser: argparse.ArgumentParser) -> None:
    place = verbs(parser)
    listing = verb(place, "list", _list, "list runs, newest first")
    project_option(listing)
    listing.add_argument("-n", "--limit", type=int, default=20, metavar="N", help="at most so many (default: 20)")
    verb(place, "show", _show, "show a run and its jobs", "RUN")
    start = verb(place, "start", _start, "start a run without a push", "PROJECT")
    start.add_argument("--path", help="a workflow file in the repository, such as .gradient/workflows/train.yaml")
    start.add_argument("--file", type=Path, help="a workflow file of this machine")
    start.add_argument("--ref", help="branch, tag or commit (default: main)")
    start.add_argument("--name", help="the workflow's name, where there is no file to name it")
    start.add_argument(
        "-i", "--input", action="append", default=[], metavar="NAME=VALUE", help="an input of the workflow"
    )
    start.add_argument("-f", "--follow", action="store_true", help="print the logs until it has ended")
    verb(place, "cancel", _cancel, "cancel a run", "RUN")
    logs = verb(place, "logs", _logs, "print the logs of a run, or of one of its jobs", "RUN", "[JOB]")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until it has ended")
    yes_option(verb(place, "delete", _delete, "delete a run and its logs; versions that it made stay", "RUN"))


def _list(shell: Shell) -> None:
    items: list[Any] = []
    for each in shell.client.runs.list(shell.project_id(shell.args.project)):
        if len(items) == shell.args.limit:
            break
        items.append(each)
    shell.term.table(items, [row_of(each) for each in items], "There is no run yet: push a workflow.")


def row_of(run: Any) -> dict[str, Any]:
    status = run["status"]
    return {
        "RUN": run["uuid"][:8],
        "WORKFLOW": f"{run.get('workflowName')}/{run['id']}",
        "STATE": status["phase"],
        "STARTED": ago(run.get("dtCreated")),
        "TOOK": between(status.get("started"), status.get("finished")),
        "COMMIT": f"{(run.get('commit') or '')[:8]} {run.get('commitMessage') or ''}".strip(),
    }


def _show(shell: Shell) -> None:
    run = find(shell, shell.args.run)
    status = run["status"]
    shell.term.fields(
        run,
        {
            "run": run["uuid"],
            "workflow": f"{run.get('workflowName')}/{run['id']}",
            "state": status["phase"],
            "message": status.get("message"),
            "started": ago(run.get("dtCreated")),
            "took": between(status.get("started"), status.get("finished")),
            "ref": run.get("ref"),
            "commit": run.get("commit"),
            "by": run.get("startedBy"),
            "page": run.get("url"),
        },
    )
    if not shell.term.as_json and status.get("jobs"):
        shell.term.say("")
        shell.term.table([], [_job_row(name, job) for name, job in status["jobs"].items()], "")


def _job_row(name: str, job: Any) -> dict[str, Any]:
    return {
        "JOB": name,
        "STATE": job["phase"],
        "TOOK": between(job.get("started"), job.get("finished")),
        "USES": job.get("uses"),
        "NEEDS": ", ".join(job.get("needs") or ()),
        "MESSAGE": job.get("message") or job.get("wait"),
    }


def _start(shell: Shell) -> int | None:
    args = shell.args
    run = shell.client.runs.submit(
        args.project,
        path=args.path,
        spec_text=_text_of(args.file),
        ref=args.ref,
        name=args.name or (args.file.stem if args.file else None),
        inputs=_inputs(args.input) or None,
    )
    if not args.follow:
        shell.term.answer(
            run, f"Run {run['uuid'][:8]} ({run.get('workflowName')}/{run['id']}) has started: {run.get('url')}"
        )
        return None
    return _follow_run(shell, run)


def _cancel(shell: Shell) -> None:
    run = shell.client.runs.cancel(find(shell, shell.args.run)["uuid"])
    shell.term.answer(run, f"Run {run['uuid'][:8]} is being cancelled.")


def _delete(shell: Shell) -> None:
    run = find(shell, shell.args.run)
    shell.confirm(shell.client.runs.removal(run["uuid"]))
    shell.client.runs.delete(run["uuid"])
    shell.term.answer(run, f"Run {run['uuid'][:8]} is deleted.")


def _logs(shell: Shell) -> int | None:
    run = find(shell, shell.args.run)
    jobs = run["status"].get("jobs") or {}
    if shell.args.job is not None and shell.args.job not in jobs:
        raise NotFound(f"Run {run['uuid'][:8]} has no job {shell.args.job!r}; it has {', '.join(jobs) or 'none'}.")
    if shell.args.follow:
        return _follow_job(shell, run, shell.args.job) if shell.args.job else _follow_run(shell, run)
    names = [shell.args.job] if shell.args.job else list(jobs)
    lines = [(name, line) for name in names for line in _lines(shell, run["uuid"], name)]
    if shell.term.as_json:
        shell.term.json([{"job": name, **line} for name, line in lines])
    for name, line in lines if not shell.term.as_json else ():
        shell.term.line(line["message"], "" if shell.args.job else name)
    return None


def _lines(shell: Shell, run: str, job: str) -> list[Any]:
    try:
        return list(shell.client.runs.logs(run, job))
    except NotFound:  # a job that has not begun has no log
        if shell.args.job:
            raise
        return []


def _follow_job(shell: Shell, run: Any, job: str) -> int | None:
    for line in shell.client.runs.logs_follow(run["uuid"], job):
        _print_line(shell, job, line, "")
    ended = shell.client.runs.get(run["uuid"])["status"]["jobs"][job]
    return _verdict(shell, f"Job {job}", ended["phase"], ended.get("message"))


def _follow_run(shell: Shell, run: Any) -> int | None:
    """Every job's log from when it begins, each in a thread of its own, until the run has ended."""
    followers: dict[str, threading.Thread] = {}
    printing = threading.Lock()

    def follow(job: str) -> None:
        try:
            for line in shell.client.runs.logs_follow(run["uuid"], job):
                with printing:
                    _print_line(shell, job, line, job)
        except ApplianceError as error:
            if not isinstance(error, NotFound):
                shell.term.note(f"The log of {job} broke off: {error.message}")

    for now in shell.client.runs.follow(run["uuid"]):
        run = now
        for name, job in (now["status"].get("jobs") or {}).items():
            if name not in followers and (job.get("started") or job["phase"] == "Running"):
                followers[name] = threading.Thread(target=follow, args=(name,), daemon=True)
                followers[name].start()
    for each in followers.values():
        each.join()
    return _verdict(shell, f"Run {run['uuid'][:8]}", phase_of(run), run["status"].get("message"))


def _print_line(shell: Shell, job: str, line: Any, label: str) -> None:
    if shell.term.as_json:
        shell.term.json_line({"job": job, **line})
    else:
        shell.term.line(line["message"], label)


def _verdict(shell: Shell, what: str, phase: str, message: str | None) -> int | None:
    shell.term.note(f"{what}: {phase}." + (f" {message}" if message else ""))
    return None if phase == "Succeeded" else RUN_FAILED


def find(shell: Shell, text: str) -> Any:
    """The run that `text` means. Raises NotFound, or Conflict when several begin so."""
    if len(text) == _UUID_LENGTH:
        return shell.client.runs.get(text)
    found = []
    for count, each in enumerate(shell.client.runs.list()):
        if each["uuid"].startswith(text) or f"{each.get('workflowName')}/{each['id']}" == text:
            found.append(each)
        if count == _SEARCHED:
            break
    if not found:
        raise NotFound(f"There is no run {text!r}: `appliance runs list` shows them.")
    if len(found) > 1:
        raise Conflict(
            f"{text!r} means {len(found)} runs ({', '.join(each['uuid'] for each in found[:5])}): write more of the id."
        )
    return shell.client.runs.get(found[0]["uuid"])


def _text_of(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadRequest(f"{path} cannot be read: {why}.") from error


def _inputs(words: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` as the API takes it: a bare text is a string's value or a dataset's reference, as the workflow says."""
    for word in words:
        if "=" not in word:
            raise BadRequest(f"{word!r} is no input: write NAME=VALUE.")
    return {name: value for name, _, value in (word.partition("=") for word in words)}
