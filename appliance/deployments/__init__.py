"""Deployments: a model that answers on an endpoint, and the history of what it served.

    wishes    what people want: specs, keys, addresses       roll    the way from there to replicas that serve

Owns the tables `deployments`, `deployment_specs` and `deployment_keys`.

Why: applying a configuration is one row; rolling it out without dropping a request is a loop's work.
"""

from __future__ import annotations

from appliance.deployments.roll import Roller, internal_key
from appliance.deployments.wishes import (
    all_deployments,
    apply,
    apply_again,
    change,
    create_key,
    delete,
    find_by_name,
    find_spec_of,
    get_deployment,
    give_up,
    history,
    list_deployments,
    list_keys,
    local_url,
    normalised,
    removal,
    replicas,
    revoke_key,
    set_enabled,
    url,
)

__all__ = [
    "Roller",
    "all_deployments",
    "apply",
    "apply_again",
    "change",
    "create_key",
    "delete",
    "find_by_name",
    "find_spec_of",
    "get_deployment",
    "give_up",
    "history",
    "internal_key",
    "list_deployments",
    "list_keys",
    "local_url",
    "normalised",
    "removal",
    "replicas",
    "revoke_key",
    "set_enabled",
    "url",
]
