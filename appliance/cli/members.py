"""Members of the team. Inviting, resetting and removing are an admin's."""

from __future__ import annotations

import argparse

from appliance.cli.projects import user_id
from appliance.cli.shell import Shell, verb, verbs, yes_option
from appliance.cli.terminal import ago
from appliance.client.accounts import email_of


def add(parser: argparse.ArgumentParser) -> None:
    place = verbs(parser)
    verb(place, "list", _list, "list the members")
    invite = verb(place, "invite", _invite, "make a one-time link for a new member", "EMAIL")
    invite.add_argument("--admin", action="store_true", help="as an admin, who sees and may do everything")
    verb(place, "invitations", _invitations, "list invitations that are still open")
    verb(place, "reset", _reset, "make a one-time link with which a member sets a new password", "EMAIL")
    verb(place, "promote", _promote, "make a member an admin", "EMAIL")
    verb(place, "demote", _demote, "make an admin a member", "EMAIL")
    yes_option(verb(place, "remove", _remove, "remove a member; what they made stays", "EMAIL"))


def _list(shell: Shell) -> None:
    items = list(shell.client.members.list())
    rows = [
        {
            "EMAIL": email_of(each),
            "ROLE": "admin" if each.get("isAdmin") else "member",
            "SINCE": ago(each.get("dtConfirmed")),
            "LAST SEEN": ago((each.get("user") or {}).get("lastActive")),
        }
        for each in items
    ]
    shell.term.table(items, rows, "There is no member yet.")


def _invite(shell: Shell) -> None:
    found = shell.client.members.invite(shell.args.email, is_admin=shell.args.admin)
    shell.term.note(f"Give {shell.args.email} this link; it works once, until {found.get('expires')}.")
    shell.term.answer(found, str(found["url"]))


def _invitations(shell: Shell) -> None:
    items = list(shell.client.members.invitations())
    rows = [
        {"EMAIL": each.get("email"), "KIND": each.get("kind"), "EXPIRES": ago(each.get("expires")), "ID": each["id"]}
        for each in items
    ]
    shell.term.table(items, rows, "No invitation is open.")


def _reset(shell: Shell) -> None:
    found = shell.client.members.reset(user_id(shell, shell.args.email))
    shell.term.note(f"Give {shell.args.email} this link; it works once.")
    shell.term.answer(found, str(found["url"]))


def _promote(shell: Shell) -> None:
    _set_admin(shell, True, "is now an admin")


def _demote(shell: Shell) -> None:
    _set_admin(shell, False, "is now a member")


def _set_admin(shell: Shell, is_admin: bool, text: str) -> None:
    found = shell.client.members.set_admin(user_id(shell, shell.args.email), is_admin)
    shell.term.answer(found, f"{shell.args.email} {text}.")


def _remove(shell: Shell) -> None:
    user = user_id(shell, shell.args.email)
    shell.confirm(f"{shell.args.email} will no longer be able to sign in; what they made stays.")
    shell.client.members.remove(user)
    shell.term.answer({"userId": user}, f"{shell.args.email} is removed.")
