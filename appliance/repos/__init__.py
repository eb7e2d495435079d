"""Bare git repositories, one for each project: made, read, watched, pushed to over HTTP, a path or SSH.

What this keeps true: the wire is git's own (`git http-backend`, `receive-pack` with its quarantine and checks); objects
are read by a `git cat-file` of limited memory, size before contents, and parsed with dulwich; nothing is ever checked
out, no link is followed, no hook of a user's runs. A push is never refused for what its workflows say.

    bare    create, remove, refs, read       wire    smart HTTP over `git http-backend`
    hook    what the pusher is told          watch   which repositories' refs moved
    reader  objects, by git cat-file

Why: a pack is hostile input. git checks it before a ref moves, and its memory is not the daemon's.
"""

from __future__ import annotations

from appliance.repos.bare import CommitInfo, Repos, WorkflowFiles
from appliance.repos.hook import HookServer, hook_server
from appliance.repos.wire import HttpAnswer, http_backend, service_of

__all__ = [
    "CommitInfo",
    "HookServer",
    "HttpAnswer",
    "Repos",
    "WorkflowFiles",
    "hook_server",
    "http_backend",
    "service_of",
]
