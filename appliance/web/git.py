"""Smart HTTP for git: clone, fetch and push with an API key as the password.

What this keeps true: whoever may not see a project is told that there is none, as for a missing one, and only after showing
a key; both bodies are streamed; git's own checks decide what a push may contain.

Why a handler of its own and no mount: Litestar's mounts append a slash to the path that git then cannot find.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from litestar import Response
from litestar.concurrency import sync_to_thread
from litestar.params import FromPath
from litestar.response import Stream

from appliance import projects
from appliance.errors import NotFound
from appliance.records import Project
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.routes import get, post


@get("/git/{repo:str}/info/refs", perm="git", include_in_schema=False)
async def refs(request: AnyRequest, repo: FromPath[str]) -> Response[Any]:
    return await _serve(request, repo, "/info/refs")


@post("/git/{repo:str}/git-upload-pack", perm="git", include_in_schema=False, request_max_body_size=None)
async def upload_pack(request: AnyRequest, repo: FromPath[str]) -> Response[Any]:
    return await _serve(request, repo, "/git-upload-pack")


@post("/git/{repo:str}/git-receive-pack", perm="git", include_in_schema=False, request_max_body_size=None)
async def receive_pack(request: AnyRequest, repo: FromPath[str]) -> Response[Any]:
    return await _serve(request, repo, "/git-receive-pack")


async def _serve(request: AnyRequest, repo: str, path_info: str) -> Response[Any]:
    house, actor = who(request)
    project = await sync_to_thread(_project, request, repo)
    answer = await house.repos.http_backend(
        project.id,
        method=request.method,
        path_info=path_info,
        query=request.scope["query_string"].decode("latin-1"),
        content_type=request.headers.get("content-type", ""),
        headers=dict(request.headers),
        body=request.stream(),
        user=actor.email,
    )

    async def body() -> AsyncIterator[bytes]:
        try:
            async for part in answer.body:
                yield part
        finally:
            await answer.close()

    headers = {name: value for name, value in answer.headers if name.lower() != "content-type"}
    media_type = next((value for name, value in answer.headers if name.lower() == "content-type"), "text/plain")
    return Stream(body(), status_code=answer.status, headers=headers, media_type=media_type)


def _project(request: AnyRequest, repo: str) -> Project:
    house, actor = who(request)
    if not repo.endswith(".git"):
        raise NotFound(f"There is no repository {repo!r}; its address ends in .git.")
    with house.db.read() as r:
        return projects.get_project(r, actor, repo.removesuffix(".git"))


HANDLERS = [refs, upload_pack, receive_pack]
