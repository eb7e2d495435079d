"""Projects: a git repository, and what its pushes started.

Why `delete` asks with the server's own sentence: it alone knows what goes with a project.
"""

from __future__ import annotations

import argparse

from appliance.cli.shell import Shell, verb, verbs, yes_option
from appliance.cli.terminal import ago
from appliance.client.accounts import email_of


def add(parser: argparse.ArgumentParser) -> None:
    place = verbs(parser)
    verb(place, "list", _list, "list the projects that you may see")
    verb(place, "show", _show, "show one project and where to push", "PROJECT")
    verb(place, "create", _create, "create a project with an empty repository", "NAME")
    verb(place, "rename", _rename, "give a project another name", "PROJECT", "NAME")
    yes_option(verb(place, "delete", _delete, "delete a project and what is in it", "PROJECT"))
    verb(place, "pushes", _pushes, "list what was pushed", "PROJECT")
    verb(place, "collaborators", _collaborators, "list who works on it", "PROJECT")
    verb(place, "add-collaborator", _add, "let a member of the team work on it", "PROJECT", "EMAIL")
    verb(place, "remove-collaborator", _remove, "take a member off it", "PROJECT", "EMAIL")


def _list(shell: Shell) -> None:
    items = list(shell.client.projects.list())
    rows = [{"NAME": each["name"], "ID": each["id"], "CREATED": ago(each.get("dtCreated"))} for each in items]
    shell.term.table(items, rows, "There is no project yet: `appliance projects create NAME`.")


def _show(shell: Shell) -> None:
    found = shell.client.projects.get(shell.args.project)
    shell.term.fields(
        found,
        {
            "name": found["name"],
            "id": found["id"],
            "created": ago(found.get("dtCreated")),
            "push to": found.get("repoUrl"),
            "on the server": found.get("repoPath"),
        },
    )


def _create(shell: Shell) -> None:
    found = shell.client.projects.create(shell.args.name)
    shell.term.answer(found, f"Project {found['name']} is there. Push to it: git push {found.get('repoUrl')} main")


def _rename(shell: Shell) -> None:
    found = shell.client.projects.rename(shell.args.project, shell.args.name)
    shell.term.answer(found, f"The project is now called {found['name']}; its push address is {found.get('repoUrl')}.")


def _delete(shell: Shell) -> None:
    found = shell.client.projects.get(shell.args.project)
    shell.confirm(shell.client.projects.removal(found["id"]))
    shell.client.projects.delete(found["id"])
    shell.term.answer(found, f"Project {found['name']} is deleted.")


def _pushes(shell: Shell) -> None:
    items = list(shell.client.projects.pushes(shell.args.project))
    rows = [
        {
            "REF": each.get("ref"),
            "COMMIT": str(each.get("new") or "deleted")[:10],
            "BY": each.get("pusher"),
            "WHEN": ago(each.get("at") or each.get("dtCreated")),
        }
        for each in items
    ]
    shell.term.table(items, rows, "Nothing was pushed yet.")


def _collaborators(shell: Shell) -> None:
    items = list(shell.client.projects.collaborators(shell.args.project))
    rows = [{"EMAIL": email_of(each), "SINCE": ago(each.get("dtCreated"))} for each in items]
    shell.term.table(items, rows, "Nobody but admins sees it.")


def _add(shell: Shell) -> None:
    user = user_id(shell, shell.args.email)
    found = shell.client.projects.add_collaborator(shell.args.project, user)
    shell.term.answer(found, f"{shell.args.email} now works on {shell.args.project}.")


def _remove(shell: Shell) -> None:
    user = user_id(shell, shell.args.email)
    shell.client.projects.remove_collaborator(shell.args.project, user)
    shell.term.answer({"userId": user}, f"{shell.args.email} no longer works on {shell.args.project}.")


def user_id(shell: Shell, email: str) -> str:
    """The id of the member with that address. Raises NotFound."""
    from appliance.errors import NotFound

    for each in shell.client.members.list():
        if email_of(each) == email.strip().lower():
            return str(each["user"]["id"])
    raise NotFound(f"There is no member {email!r} in the team.")
