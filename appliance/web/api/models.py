"""/v1/models."""

from __future__ import annotations

import msgspec
from litestar.params import FromPath, JSONBody

from appliance import models, projects
from appliance.web import render
from appliance.web.api import versioned
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.params import After, Limit, ProjectId, limited
from appliance.web.routes import Json, get, post


class NewModel(msgspec.Struct, rename="camel"):
    name: str
    model_type: str | None = None
    description: str | None = None
    is_public: bool = False
    project_id: str | None = None


@get("/v1/models")
def list_models(request: AnyRequest, project_id: ProjectId = None, after: After = None, limit: Limit = 50) -> Json:
    """The models that one may see, newest first; of one project on request."""
    return _list(request, project_id, after, limit)


@get("/v1/projects/{project:str}/models")
def list_of_project(request: AnyRequest, project: FromPath[str], after: After = None, limit: Limit = 50) -> Json:
    """The project's models, newest first."""
    return _list(request, project, after, limit)


@post("/v1/models")
def create_model(request: AnyRequest, data: JSONBody[NewModel]) -> Json:
    """A model without versions."""
    house, actor = who(request)
    with house.db.write() as tx:
        return render.model(
            models.create(
                tx,
                actor,
                name=data.name,
                model_type=data.model_type or "Custom",
                description=data.description,
                is_public=data.is_public,
                project_id=data.project_id,
            )
        )


def _list(request: AnyRequest, project: str | None, after: str | None, limit: int) -> Json:
    house, actor = who(request)
    with house.db.read() as r:
        project_id = projects.get_project(r, actor, project).id if project else None
        found = models.list_models(r, actor, project_id=project_id, after=after, limit=limited(limit))
    return render.page(found, render.model)


HANDLERS = [list_models, list_of_project, create_model, *versioned.handlers("model", models, render.model)]
