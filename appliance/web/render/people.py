"""Who there is, and projects with what happens in them."""

from __future__ import annotations

from urllib.parse import quote

from appliance.config import Config
from appliance.records import ApiKey, Collaborator, Event, Invitation, Project, Push, User
from appliance.web.render.common import TEAM, Json, base_url, known


def session(user: User) -> Json:
    team = {**TEAM, "analyticsId": 1, "isPrivate": True, "maxMachines": 1}
    membership_team = {**TEAM, "dtCreated": user.created_at, "isUserTeam": False, "name": "Team"}
    return {
        "team": team,
        "user": {
            **user_ref(user),
            "analyticsId": 1,
            "dtConfirmed": user.created_at,
            "dtCreated": user.created_at,
            "isPasswordAuthEnabled": True,
            "isPhoneVerified": False,
            "isQrCodeBasedMfaConfirmed": False,
            "isQrCodeBasedMfaEnabled": False,
            "metadata": {},
            "preferences": None,
            "teamMemberships": [
                {"isAdmin": user.role == "admin", "isOwner": user.role == "admin", "team": membership_team}
            ],
        },
    }


def user_ref(user: User) -> Json:
    return {"email": user.email, "firstName": None, "id": user.id, "lastName": None, "publicProfileImageUrl": None}


def membership(user: User) -> Json:
    is_admin = user.role == "admin"
    times = {"dtConfirmed": user.created_at, "dtDeleted": user.disabled_at}
    return {**known(times), "isAdmin": is_admin, "isOwner": is_admin}


def member(user: User) -> Json:
    return {**membership(user), "user": user_ref(user)}


def api_key(key: ApiKey) -> Json:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "dtCreated": key.created_at,
        "dtLastUsed": key.last_used_at,
    }


def invitation(found: Invitation) -> Json:
    return {
        "id": found.id,
        "kind": found.kind,
        "email": found.email,
        "role": found.role.value,
        "isAdmin": found.role == "admin",
        "dtCreated": found.created_at,
        "expires": found.expires_at,
    }


def link(config: Config, token: str) -> str:
    return f"{base_url(config)}/accept?token={token}"


def project(found: Project, config: Config) -> Json:
    return {
        "dtCreated": found.created_at,
        "id": found.id,
        "name": found.name,
        "repoName": found.name,
        "repoNodeId": None,
        "repoUrl": f"{base_url(config)}/git/{quote(found.name)}.git",
        "repoPath": str(config.repos_dir / f"{found.id}.git"),
        "createdBy": found.created_by,
        "url": f"{base_url(config)}/projects/{quote(found.name)}",
    }


def collaborator(found: Collaborator) -> Json:
    return {"dtCreated": found.added_at, "user": user_ref(found.user)}


def event(found: Event) -> Json:
    return {
        "id": found.id,
        "dtCreated": found.at,
        "actor": found.actor,
        "kind": found.kind,
        "projectId": found.project_id,
        "subject": found.subject,
        "text": found.text,
    }


def push(found: Push) -> Json:
    return {
        "id": found.id,
        "projectId": found.project_id,
        "ref": found.ref,
        "old": found.old,
        "new": found.new,
        "pusher": found.pusher,
        "dtCreated": found.at,
    }
