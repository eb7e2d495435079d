"""Who: the session, API keys, members and their invitations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.client.transport import Json, Transport, segment

TEAM = "/v1/teams/team"  # one appliance has one team; the API takes any word for it


class Account:
    """Signing in with a password happens in browsers; a program does it once, to make itself a key."""

    def __init__(self, transport: Transport) -> None:
        self._at = transport

    def health(self) -> str:
        """`HEALTHY`; raises what the server says is wrong. Needs no key."""
        return str(self._at.get("/v1/health"))

    def session(self) -> Json | None:
        """Who the key belongs to, with Gradient's fields; None for a stranger."""
        found: Json | None = self._at.get("/v1/auth/session")
        return found

    def sign_in(self, email: str, password: str) -> Json:
        """Open a session; its cookie stays with this client until it is closed."""
        found: Json = self._at.post("/v1/auth/login", email=email, password=password)
        return found

    def sign_out(self) -> None:
        self._at.post("/v1/auth/logout")

    def invitation(self, token: str) -> Json:
        """What a one-time link is for: {kind, email, role}."""
        found: Json = self._at.get("/v1/auth/invitation", token=token)
        return found

    def accept(self, token: str, password: str, *, email: str | None = None) -> Json:
        """Use a one-time link: afterwards the account has this password, and this client its session."""
        found: Json = self._at.post("/v1/auth/accept", token=token, email=email, password=password)
        return found


class Keys:
    """API keys of whoever asks."""

    def __init__(self, transport: Transport) -> None:
        self._at = transport

    def list(self) -> Iterator[Json]:
        return self._at.pages("/v1/api-keys")

    def create(self, name: str) -> Json:
        """A new key; its secret is the field `key`, shown this once."""
        found: Json = self._at.post("/v1/api-keys", name=name)
        return found

    def revoke(self, key_id: str) -> None:
        self._at.delete(f"/v1/api-keys/{segment(key_id)}")


class Members:
    """The team. Inviting, resetting and removing are an admin's."""

    def __init__(self, transport: Transport) -> None:
        self._at = transport

    def list(self) -> Iterator[Json]:
        return self._at.pages(f"{TEAM}/users")

    def set_admin(self, user_id: str, is_admin: bool) -> Json:
        found: Json = self._at.put(f"{TEAM}/users/{segment(user_id)}", isAdmin=is_admin)
        return found

    def remove(self, user_id: str) -> None:
        self._at.delete(f"{TEAM}/users/{segment(user_id)}")

    def invite(self, email: str, *, is_admin: bool = False) -> Json:
        """A one-time link for a new member: {id, url, expires}."""
        found: Json = self._at.post(f"{TEAM}/invitations", email=email, isAdmin=is_admin)
        return found

    def invitations(self) -> Iterator[Json]:
        return self._at.pages(f"{TEAM}/invitations")

    def withdraw(self, invitation_id: str) -> None:
        self._at.delete(f"{TEAM}/invitations/{segment(invitation_id)}")

    def reset(self, user_id: str) -> Json:
        """A one-time link with which the member sets a new password: {url}."""
        found: Json = self._at.post(f"{TEAM}/users/{segment(user_id)}/reset")
        return found


def email_of(user: dict[str, Any]) -> str:
    """The address in any of the API's shapes of a member."""
    return str(user.get("email") or (user.get("user") or {}).get("email") or "")
