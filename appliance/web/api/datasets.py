"""/v1/datasets."""

from __future__ import annotations

import msgspec
from litestar.params import FromPath, JSONBody

from appliance import datasets, projects
from appliance.web import render
from appliance.web.api import versioned
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.params import After, Limit, ProjectId, limited
from appliance.web.routes import Json, get, post


class NewDataset(msgspec.Struct, rename="camel"):
    name: str
    description: str | None = None
    is_public: bool = False
    project_id: str | None = None


@get("/v1/datasets")
def list_datasets(request: AnyRequest, project_id: ProjectId = None, after: After = None, limit: Limit = 50) -> Json:
    """The datasets that one may see, newest first; of one project on request."""
    return _list(request, project_id, after, limit)


@get("/v1/projects/{project:str}/datasets")
def list_of_project(request: AnyRequest, project: FromPath[str], after: After = None, limit: Limit = 50) -> Json:
    """The project's datasets, newest first."""
    return _list(request, project, after, limit)


@post("/v1/datasets")
def create_dataset(request: AnyRequest, data: JSONBody[NewDataset]) -> Json:
    """A dataset without versions."""
    house, actor = who(request)
    with house.db.write() as tx:
        return render.dataset(
            datasets.create(
                tx,
                actor,
                name=data.name,
                description=data.description,
                is_public=data.is_public,
                project_id=data.project_id,
            )
        )


def _list(request: AnyRequest, project: str | None, after: str | None, limit: int) -> Json:
    house, actor = who(request)
    with house.db.read() as r:
        project_id = projects.get_project(r, actor, project).id if project else None
        found = datasets.list_datasets(r, actor, project_id=project_id, after=after, limit=limited(limit))
    return render.page(found, render.dataset)


HANDLERS = [list_datasets, list_of_project, create_dataset, *versioned.handlers("dataset", datasets, render.dataset)]
