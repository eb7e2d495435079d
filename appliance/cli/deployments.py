"""Deployments: models that answer.

A DEPLOYMENT is its id, or its name where one project alone has it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from appliance.cli.shell import Shell, project_option, verb, verbs, yes_option
from appliance.cli.terminal import ago
from appliance.errors import BadRequest, NotFound


def add(parser: argparse.ArgumentParser) -> None:
    place = verbs(parser)
    project_option(verb(place, "list", _list, "list deployments"))
    verb(place, "show", _show, "show a deployment: its address, its model, its replicas", "DEPLOYMENT")
    apply = verb(place, "apply", _apply, "create a deployment, or roll it over", "NAME", aliases=("create",))
    project_option(apply, required=True)
    apply.add_argument("--model", required=True, metavar="REF", help="NAME, NAME:VERSION or NAME:TAG")
    apply.add_argument("--replicas", type=int, metavar="N", help="how many answer side by side (default: 1)")
    apply.add_argument("--machine-type", metavar="TYPE", help="the size of each; `appliance machine` lists them")
    apply.add_argument("--threads", type=int, metavar="N", help="threads of each replica")
    verb(place, "scale", _scale, "change the number of replicas", "DEPLOYMENT", "N")
    verb(place, "enable", _enable, "serve again", "DEPLOYMENT")
    verb(place, "disable", _disable, "stop serving; address and history stay", "DEPLOYMENT")
    verb(place, "history", _history, "list what was rolled out, newest first", "DEPLOYMENT")
    verb(place, "rollback", _rollback, "roll out an earlier state: the one before, or SPEC", "DEPLOYMENT", "[SPEC]")
    logs = verb(place, "logs", _logs, "print the replicas' logs", "DEPLOYMENT")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until interrupted")
    predict = verb(
        place, "predict", _predict, "send one Open Inference request (JSON in FILE, or stdin)", "DEPLOYMENT", "[FILE]"
    )
    predict.set_defaults(json=True)
    yes_option(verb(place, "delete", _delete, "delete a deployment and its keys", "DEPLOYMENT"))
    keys = verbs(place.add_parser("keys", help="keys that may call one deployment and nothing else"))
    verb(keys, "list", _keys, "list the keys", "DEPLOYMENT")
    verb(keys, "create", _create_key, "make a key; it is shown this once", "DEPLOYMENT", "NAME")
    verb(keys, "revoke", _revoke_key, "make a key worthless", "DEPLOYMENT", "KEY")


def _list(shell: Shell) -> None:
    items = list(shell.client.deployments.list(shell.project_id(shell.args.project)))
    rows = [
        {
            "NAME": each["name"],
            "STATE": state_of(each),
            "MODEL": _model(each),
            "ADDRESS": each.get("url") or each.get("localUrl"),
            "CHANGED": ago(_spec(each).get("dtCreated") or each.get("dtCreated")),
            "ID": each["id"],
        }
        for each in items
    ]
    shell.term.table(items, rows, "Nothing is deployed yet.")


def _show(shell: Shell) -> None:
    found = _find(shell)
    spec = _spec(found)
    shell.term.fields(
        found,
        {
            "name": found["name"],
            "id": found["id"],
            "state": state_of(found),
            "error": spec.get("error"),
            "model": _model(found),
            "spec": spec.get("number"),
            "address": found.get("url"),
            "on the server": found.get("localUrl"),
            "healthy since": ago(spec.get("dtHealthy")),
            "created": ago(found.get("dtCreated")),
        },
    )


def _apply(shell: Shell) -> None:
    args = shell.args
    resources = {"replicas": args.replicas, "machineType": args.machine_type}
    config: dict[str, Any] = {"name": args.name, "model": args.model, "enabled": True}
    if any(resources.values()):
        config["resources"] = {name: value for name, value in resources.items() if value is not None}
    if args.threads is not None:
        config["threads"] = args.threads
    deployment = shell.client.deployments.apply(shell.project_id(args.project) or "", config)
    found = shell.client.deployments.get(deployment)
    shell.term.answer(found, f"Deployment {args.name} is being rolled out: {found.get('url') or found.get('localUrl')}")


def _scale(shell: Shell) -> None:
    try:
        count = int(shell.args.n)
    except ValueError as error:
        raise BadRequest(f"{shell.args.n!r} is no number of replicas.") from error
    found = shell.client.deployments.update(_find(shell)["id"], replicas=count)
    shell.term.answer(found, f"{shell.args.deployment} goes to {count} replicas.")


def _enable(shell: Shell) -> None:
    found = shell.client.deployments.update(_find(shell)["id"], enabled=True)
    shell.term.answer(found, f"{shell.args.deployment} is being started.")


def _disable(shell: Shell) -> None:
    found = shell.client.deployments.update(_find(shell)["id"], enabled=False)
    shell.term.answer(found, f"{shell.args.deployment} is being stopped; its address and history stay.")


def _history(shell: Shell) -> None:
    items = list(shell.client.deployments.history(_find(shell)["id"]))
    rows = [
        {
            "NUMBER": each.get("number"),
            "STATE": each.get("state"),
            "MODEL": _model_of(each),
            "APPLIED": ago(each.get("externalApplied") or each.get("dtCreated")),
            "BY": each.get("createdBy"),
            "SPEC": each["id"],
            "ERROR": each.get("error"),
        }
        for each in items
    ]
    shell.term.table(items, rows, "It was never rolled out.")


def _rollback(shell: Shell) -> None:
    found = _find(shell)
    specs = list(shell.client.deployments.history(found["id"]))
    spec = _spec_to(shell.args.spec, specs)
    answer = shell.client.deployments.apply_again(found["id"], spec["id"])
    shell.term.answer(answer, f"{found['name']} is being rolled back to number {spec.get('number')}.")


def _spec_to(word: str | None, specs: list[Any]) -> Any:
    """The spec that `word` means (its id or number); without a word the newest before the present one that was healthy."""
    if word is not None:
        chosen = [each for each in specs if word in (each["id"], str(each.get("number")))]
    else:
        chosen = [each for each in specs[1:] if each.get("dtHealthy")]
    if not chosen:
        raise NotFound("There is no such earlier state: `appliance deployments history NAME` lists them.")
    return chosen[0]


def _logs(shell: Shell) -> None:
    deployment = _find(shell)["id"]
    if shell.args.follow:
        for line in shell.client.deployments.logs_follow(deployment):
            shell.term.json_line(line) if shell.term.as_json else shell.term.line(line["message"])
        return
    lines = list(shell.client.deployments.logs(deployment))
    if shell.term.as_json:
        shell.term.json(lines)
    for line in lines if not shell.term.as_json else ():
        shell.term.line(line["message"])


def _predict(shell: Shell) -> None:
    try:
        text = Path(shell.args.file).read_text(encoding="utf-8") if shell.args.file else sys.stdin.read()
        request = json.loads(text)
    except (OSError, ValueError) as error:
        raise BadRequest(f"The request cannot be read: {error}.") from error
    shell.term.json(shell.client.deployments.ask(_find(shell)["id"], request))


def _delete(shell: Shell) -> None:
    found = _find(shell)
    shell.confirm(shell.client.deployments.removal(found["id"]))
    shell.client.deployments.delete(found["id"])
    shell.term.answer(found, f"Deployment {found['name']} is deleted.")


def _keys(shell: Shell) -> None:
    items = list(shell.client.deployments.keys(_find(shell)["id"]))
    rows = [
        {
            "NAME": each.get("name"),
            "KEY": f"{each.get('prefix') or ''}…",
            "CREATED": ago(each.get("dtCreated") or each.get("createdAt")),
            "ID": each["id"],
        }
        for each in items
    ]
    shell.term.table(items, rows, "It has no key: nobody can call it yet.")


def _create_key(shell: Shell) -> None:
    found = shell.client.deployments.create_key(_find(shell)["id"], shell.args.name)
    shell.term.note("The key is shown this once; send it as `Authorization: Bearer KEY`.")
    shell.term.answer(found, str(found["key"]))


def _revoke_key(shell: Shell) -> None:
    deployment = _find(shell)["id"]
    for each in shell.client.deployments.keys(deployment):
        if shell.args.key in (each["id"], each.get("name")):
            shell.client.deployments.revoke_key(deployment, each["id"])
            shell.term.answer(each, f"The key {each.get('name')} is revoked.")
            return
    raise NotFound(f"{shell.args.deployment} has no key {shell.args.key!r}.")


def _find(shell: Shell) -> Any:
    return shell.client.deployments.find(shell.args.deployment)


def state_of(deployment: Any) -> str:
    return str(deployment.get("state") or _spec(deployment).get("state") or "")


def _spec(deployment: Any) -> Any:
    return deployment.get("latestSpec") or {}


def _model(deployment: Any) -> str:
    return _model_of(deployment.get("servingSpec") or _spec(deployment))


def _model_of(spec: Any) -> str:
    """`NAME:NUMBER` where the server tells, else the reference that was given."""
    data = spec.get("data") or {}
    if data.get("modelName"):
        return f"{data['modelName']}:{data.get('modelVersion')}"
    return str(spec.get("modelRef") or "")
