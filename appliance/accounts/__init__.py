"""Who there is and how they prove it: users, passwords, browser sessions, API keys, one-time links.

What this keeps true: no password, session token, API key or link can be read out of the database (argon2 or SHA-256
alone is kept); a link works once and not for ever; a disabled or removed user is out at once, through every door; there is always an
active admin who can sign in, once there has been one. Every change writes its event in the same transaction.

Owns the tables `users`, `sessions`, `api_keys` and `invitations`.

Why: every door asks "who is this" here, and nowhere else is a secret compared.
"""

from __future__ import annotations

from appliance.accounts.keys import create_key, key_actor, key_id_of, key_stands, list_keys, local_admin_key, revoke_key
from appliance.accounts.links import (
    accept,
    invitation,
    invite,
    list_invitations,
    reset_link,
    setup_token,
    withdraw_invitation,
)
from appliance.accounts.passwords import hash_password
from appliance.accounts.sessions import (
    digest,
    end_session,
    end_sessions,
    open_session,
    session_actor,
    session_stands,
    sign_in,
)
from appliance.accounts.users import (
    LOCAL_ADMIN,
    actor_of,
    create_user,
    disable_user,
    enable_user,
    find_user,
    get_user,
    has_admin,
    list_users,
    remove_user,
    require_admin,
    set_role,
)

__all__ = [
    "LOCAL_ADMIN",
    "accept",
    "actor_of",
    "create_key",
    "create_user",
    "digest",
    "disable_user",
    "enable_user",
    "end_session",
    "end_sessions",
    "find_user",
    "get_user",
    "has_admin",
    "hash_password",
    "invitation",
    "invite",
    "key_actor",
    "key_id_of",
    "key_stands",
    "list_invitations",
    "list_keys",
    "list_users",
    "local_admin_key",
    "open_session",
    "remove_user",
    "require_admin",
    "reset_link",
    "revoke_key",
    "session_actor",
    "session_stands",
    "set_role",
    "setup_token",
    "sign_in",
    "withdraw_invitation",
]
