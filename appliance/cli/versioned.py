"""The verbs that datasets and models share: both are things with versions that hold files.

A REF is NAME, NAME:VERSION or NAME:TAG; a VERSION is its id, its number, a tag or `latest`.

Why one module: two of them would drift apart in a month.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from appliance.cli.shell import Shell, project_option, verb, verbs, yes_option
from appliance.cli.terminal import ago, size
from appliance.client.data import Versioned, metrics_of, split_ref


def add(parser: argparse.ArgumentParser, noun: str, plural: str) -> Any:
    """Add the shared verbs; the place for `noun`'s own."""
    place = verbs(parser)
    parser.set_defaults(noun=plural)
    project_option(verb(place, "list", _list, f"list {plural}"))
    verb(place, "show", _show, f"show a {noun} or one version of it", "REF")
    put = verb(place, "put", _put, f"make a new version of {noun} NAME with the files in DIR", "DIR", "NAME")
    put.description = (
        f"Make a new version of {noun} NAME with the files in DIR. Where there is no NAME it is made: in PROJECT, for its "
        "people to read; without --project every member may read it."
    )
    project_option(put)
    put.add_argument("-m", "--message", default="", help="what is new")
    put.add_argument("-t", "--tag", action="append", default=[], metavar="TAG", help="let this tag point at it")
    verb(place, "get", _get, "download the files of a version into DIR", "REF", "DIR")
    files = verb(place, "files", _files, "list the files of a version", "REF")
    files.add_argument("--prefix", default="", metavar="FOLDER", help="only those below this folder")
    verb(place, "versions", _versions, "list versions, newest first", "NAME")
    verb(place, "tag", _tag, "let a tag point at a version", "REF", "TAG")
    verb(place, "untag", _untag, "remove a tag; the version stays", "NAME", "TAG")
    verb(place, "diff", _diff, "list the files that differ between two versions", "NAME", "OLD", "NEW")
    yes_option(verb(place, "delete", _delete, f"delete a {noun}, or one version of it", "REF"))
    return place


def client_of(shell: Shell) -> Versioned:
    found: Versioned = getattr(shell.client, shell.args.noun)
    return found


def _list(shell: Shell) -> None:
    items = list(client_of(shell).list(shell.project_id(shell.args.project)))
    rows = [
        {
            "NAME": each["name"],
            "ID": each["id"],
            **({"TYPE": each.get("modelType")} if shell.args.noun == "models" else {}),
            "LATEST": (each.get("latest") or each.get("latestVersion") or {}).get("number"),
            "CHANGED": ago(each.get("dtModified")),
            "DESCRIPTION": each.get("description"),
        }
        for each in items
    ]
    shell.term.table(items, rows, f"There are no {shell.args.noun} yet.")


def _show(shell: Shell) -> None:
    name, selector = split_ref(shell.args.ref)
    if ":" in shell.args.ref:
        _show_version(shell, client_of(shell).version(name, selector))
        return
    found = client_of(shell).get(name)
    count = 0 if shell.term.as_json else sum(1 for _ in client_of(shell).versions(str(found["id"])))
    shell.term.fields(
        found,
        {
            "name": found["name"],
            "id": found["id"],
            "type": found.get("modelType"),
            "description": found.get("description"),
            "versions": count,
            "created": ago(found.get("dtCreated")),
            "changed": ago(found.get("dtModified")),
        },
    )


def _show_version(shell: Shell, found: Any) -> None:
    shell.term.fields(
        found,
        {
            "version": found["version"],
            "number": found.get("number"),
            "state": _state(found),
            "message": found.get("message"),
            "tags": ", ".join(found.get("tags") or ()),
            "files": found.get("fileCount"),
            "size": size(found.get("usageBytes")),
            "added": size(found.get("addedBytes")),
            "created": ago(found.get("dtCreated")),
            "by run": found.get("runId"),
            **metrics_of(found),
        },
    )


def _versions(shell: Shell) -> None:
    items = list(client_of(shell).versions(shell.args.name))
    rows = [
        {
            "NUMBER": each.get("number"),
            "VERSION": each["version"],
            "STATE": _state(each),
            "TAGS": ", ".join(each.get("tags") or ()),
            "FILES": each.get("fileCount"),
            "SIZE": size(each.get("usageBytes")),
            "CREATED": ago(each.get("dtCreated")),
            "METRICS": ", ".join(f"{name} {value:g}" for name, value in metrics_of(each).items()),
            "MESSAGE": each.get("message"),
        }
        for each in items
    ]
    shell.term.table(items, rows, "It has no version yet.")


def _state(version: Any) -> str:
    return "committed" if version.get("isCommitted") else "uncommitted"


def _put(shell: Shell) -> None:
    args = shell.args
    found = client_of(shell).put(
        args.name,
        Path(args.dir),
        message=args.message,
        tags=args.tag,
        project=shell.project_id(args.project),
        progress=shell.term.progress,
    )
    if found.get("made"):
        who = f"the people of {args.project}" if args.project else "every member (it belongs to no project)"
        shell.term.note(f"{args.name} is new; {who} may read it.")
    text = f"{args.name}:{found.get('number') or found['version']} is committed: {found.get('fileCount')} files"
    shell.term.answer(found, f"{text}, {size(found.get('usageBytes'))}.")


def _get(shell: Shell) -> None:
    found = client_of(shell).fetch(shell.args.ref, Path(shell.args.dir), progress=shell.term.progress)
    left = found["leftOut"]
    for each in left:
        shell.term.note(f"Left out: {each['path']}; {each['reason']}.")
    count = f"{int(found.get('fileCount') or 0) - len(left)}" + (f" of {found.get('fileCount')}" if left else "")
    text = f"{count} files, {size(found.get('usageBytes'))}, of version {found['version']}"
    shell.term.answer(found, f"{text} are in {shell.args.dir}.")


def _files(shell: Shell) -> None:
    name, selector = split_ref(shell.args.ref)
    items = list(client_of(shell).files(name, selector, prefix=shell.args.prefix))
    rows = [{"PATH": each["path"], "SIZE": size(each.get("sizeBytes")), "KIND": each.get("kind")} for each in items]
    shell.term.table(items, rows, "There are no files.")


def _tag(shell: Shell) -> None:
    name, selector = split_ref(shell.args.ref)
    found = client_of(shell).tag(name, shell.args.tag, selector)
    shell.term.answer(found, f"{name}:{shell.args.tag} now is version {selector}.")


def _untag(shell: Shell) -> None:
    client_of(shell).untag(shell.args.name, shell.args.tag)
    shell.term.answer({"name": shell.args.tag}, f"{shell.args.name} no longer has the tag {shell.args.tag}.")


def _diff(shell: Shell) -> None:
    found = client_of(shell).diff(shell.args.name, shell.args.old, shell.args.new)
    rows = [
        {"": sign, "PATH": each["path"] if isinstance(each, dict) else each}
        for kind, sign in (("removed", "-"), ("added", "+"), ("changed", "~"))
        for each in found.get(kind) or ()
    ]
    shell.term.table(found, rows, "The two versions hold the same files.")


def _delete(shell: Shell) -> None:
    name, selector = split_ref(shell.args.ref)
    client = client_of(shell)
    if ":" in shell.args.ref:
        found = client.version(name, selector)
        number = found.get("number") or found["version"]
        shell.confirm(f"Version {number} of {name} will be deleted, its files and tags with it.")
        client.delete_version(name, str(found["version"]))
        shell.term.answer(found, f"Version {number} of {name} is deleted.")
        return
    found = client.get(name)
    shell.confirm(client.removal(found["id"]))
    client.delete(found["id"])
    shell.term.answer(found, f"{found['name']} is deleted.")
