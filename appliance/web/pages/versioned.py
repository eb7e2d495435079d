"""Datasets and models: the list, one with its versions, a version with its files, tags and what changed.

Why one module: they differ in a word, in metrics and in the button that deploys; api/versioned.py does the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from litestar import Response
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, QueryParameter, URLEncodedBody
from litestar.response import Redirect

from appliance import catalog, datasets, deployments, models, projects, runs
from appliance.db import Reader
from appliance.errors import ApplianceError, NotFound
from appliance.records import Actor, Dataset, Model, Version
from appliance.states import VersionState
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.pages import files
from appliance.web.pages.project import run_url
from appliance.web.pages.view import go, metrics_of, page
from appliance.web.params import After
from appliance.web.render import base_url
from appliance.web.routes import get, post

Thing = Dataset | Model
Path = Annotated[str, QueryParameter(name="path")]
Against = Annotated[str | None, QueryParameter(name="against")]
_CHANGES = 500


class NewThing(msgspec.Struct):
    name: str
    description: str = ""
    project: str = ""


class TagForm(msgspec.Struct):
    name: str


class Change(msgspec.Struct):
    name: str
    description: str = ""
    is_public: str = ""


class Nothing(msgspec.Struct):
    confirm: str = ""


@dataclass(frozen=True)
class Maker:
    """The run that made a version, as a link; None where it was uploaded or its run was deleted."""

    text: str
    url: str


def handlers(noun: str, verbs: ModuleType) -> list[HTTPRouteHandler]:
    """Every page of `noun`, carried out by the module `verbs`."""
    thing_path = f"/{noun}s/{{thing:str}}"
    one = f"{thing_path}/versions/{{selector:str}}"

    def thing_of(r: Reader, actor: Actor, name: str) -> Any:
        return getattr(verbs, f"get_{noun}")(r, actor, name)

    def url_of(thing: Thing) -> str:
        return f"/{noun}s/{quote(thing.name if noun == 'dataset' else thing.id)}"

    def shown(r: Reader, actor: Actor, thing: Thing) -> dict[str, Any]:
        project = projects.find_project(r, actor, thing.project_id) if thing.project_id else None
        may_change = catalog.may_change(r, actor, thing)
        return {"noun": noun, "thing": thing, "url": url_of(thing), "project": project, "may_change": may_change}

    @get(f"/{noun}s", include_in_schema=False)
    def list_all(request: AnyRequest, after: After = None) -> Response[Any]:
        house, actor = who(request)
        with house.db.read() as r:
            found = getattr(verbs, f"list_{noun}s")(r, actor, after=after)
            mine = projects.list_projects(r, actor, limit=200).items
        names = {each.id: each.name for each in mine}
        more: dict[str, Any] = {"projects": mine, "project_names": names, "base": base_url(house.config)}
        return page(request, "data/list.html", noun=noun, things=found.items, next_page=found.next_page, **more)

    @post(f"/{noun}s", include_in_schema=False)
    def create(request: AnyRequest, data: URLEncodedBody[NewThing]) -> Response[Any]:
        house, actor = who(request)
        with house.db.write() as tx:
            made = verbs.create(
                tx,
                actor,
                name=data.name.strip(),
                description=data.description.strip() or None,
                project_id=data.project or None,
            )
        return go(request, url_of(made))

    @get(thing_path, include_in_schema=False)
    def show(request: AnyRequest, thing: FromPath[str], after: After = None) -> Response[Any]:
        house, actor = who(request)
        with house.db.read() as r:
            found = thing_of(r, actor, thing)
            listed = verbs.list_versions(r, actor, found.id, after=after, limit=50)
            known = shown(r, actor, found)
            makers = {each.id: _maker(r, actor, each) for each in listed.items}
            goes = verbs.removal(r, actor, found.id) if known["may_change"] else None
            serving = _serving(r, actor, found) if noun == "model" else []
        metrics = sorted({name for each in listed.items for name in metrics_of(each)})
        more = {"versions": listed.items, "next_page": listed.next_page, "makers": makers, "removal": goes}
        more |= {"metrics": metrics[:6], "serving": serving, "base": base_url(house.config)}
        return page(request, "data/thing.html", **known, **more)

    @post(f"{thing_path}/change", include_in_schema=False)
    def change(request: AnyRequest, thing: FromPath[str], data: URLEncodedBody[Change]) -> Response[Any]:
        house, actor = who(request)
        with house.db.write() as tx:
            found = thing_of(tx, actor, thing)
            changed = verbs.update(
                tx,
                actor,
                found.id,
                name=data.name.strip(),
                description=data.description.strip(),
                is_public=bool(data.is_public),
            )
        return go(request, url_of(changed))

    @post(f"{thing_path}/delete", include_in_schema=False)
    def delete(request: AnyRequest, thing: FromPath[str], data: URLEncodedBody[Nothing]) -> Response[Any]:
        house, actor = who(request)
        del data
        with house.db.write() as tx:
            found = thing_of(tx, actor, thing)
            known = shown(tx, actor, found)
            verbs.delete(tx, actor, found.id)
        tab = "data" if noun == "dataset" else "models"
        return go(request, f"/projects/{quote(known['project'].name)}/{tab}" if known["project"] else f"/{noun}s")

    @get(one, include_in_schema=False)
    def show_version(
        request: AnyRequest, thing: FromPath[str], selector: FromPath[str], folder: Path = "", after: After = None
    ) -> Response[Any]:
        house, actor = who(request)
        with house.db.read() as r:
            found = thing_of(r, actor, thing)
            version = verbs.get_version(r, actor, found.id, selector)
            known = shown(r, actor, found)
            maker = _maker(r, actor, version)
            before = _before(r, verbs, actor, found, version)
        entries, more = files.listing(house.store, version.root, folder, after) if version.root else ([], None)
        at = {"version": version, "maker": maker, "before": before, "crumbs": files.crumbs(folder), "folder": folder}
        return page(request, "data/version.html", **known, **at, entries=entries, next_page=more)

    @get(f"{one}/file", include_in_schema=False)
    def show_file(request: AnyRequest, thing: FromPath[str], selector: FromPath[str], path: Path) -> Response[Any]:
        house, actor = who(request)
        with house.db.read() as r:
            found = thing_of(r, actor, thing)
            version = verbs.get_version(r, actor, found.id, selector)
            known = shown(r, actor, found)
        if version.root is None:
            raise NotFound("The version is not committed yet; its files can be looked at afterwards.")
        entry = house.store.entry(version.root, path)
        if entry.kind == "directory":
            folder = f"?path={quote(entry.path)}" if entry.path else ""
            return Redirect(f"{url_of(found)}/versions/{version.number}{folder}", status_code=303)
        seen = files.preview(house.store, version.root, entry)
        at = {"version": version, "entry": entry, "crumbs": files.crumbs(path), "preview": seen}
        return page(request, "data/file.html", **known, **at)

    @get(f"{one}/image", include_in_schema=False)
    def show_image(request: AnyRequest, thing: FromPath[str], selector: FromPath[str], path: Path) -> Response[bytes]:
        house, actor = who(request)
        with house.db.read() as r:
            version = verbs.get_version(r, actor, thing_of(r, actor, thing).id, selector)
        if version.root is None:
            raise NotFound("The version is not committed yet.")
        content, kind = files.image(house.store, version.root, house.store.entry(version.root, path))
        headers = {"content-security-policy": "sandbox; default-src 'none'"}
        return Response(content, media_type=kind, headers=headers)

    @get(f"{one}/diff", include_in_schema=False)
    def show_diff(
        request: AnyRequest, thing: FromPath[str], selector: FromPath[str], against: Against = None
    ) -> Response[Any]:
        house, actor = who(request)
        with house.db.read() as r:
            found = thing_of(r, actor, thing)
            version = verbs.get_version(r, actor, found.id, selector)
            other = (
                verbs.get_version(r, actor, found.id, against) if against else _before(r, verbs, actor, found, version)
            )
            known = shown(r, actor, found)
        if other is None or other.root is None or version.root is None:
            raise NotFound("There is no committed version to compare with.")
        diff = house.store.diff(other.root, version.root)
        return page(request, "data/diff.html", **known, version=version, other=other, diff=diff, most=_CHANGES)

    @post(f"{one}/tags", include_in_schema=False)
    def tag(
        request: AnyRequest, thing: FromPath[str], selector: FromPath[str], data: URLEncodedBody[TagForm]
    ) -> Response[Any]:
        house, actor = who(request)
        with house.db.write() as tx:
            found = thing_of(tx, actor, thing)
            version = verbs.tag(tx, actor, found.id, data.name.strip(), selector)
        return go(request, f"{url_of(found)}/versions/{version.number}")

    @post(f"{one}/tags/remove", include_in_schema=False)
    def untag(
        request: AnyRequest, thing: FromPath[str], selector: FromPath[str], data: URLEncodedBody[TagForm]
    ) -> Response[Any]:
        house, actor = who(request)
        with house.db.write() as tx:
            found = thing_of(tx, actor, thing)
            version = verbs.get_version(tx, actor, found.id, selector)
            verbs.untag(tx, actor, found.id, data.name)
        return go(request, f"{url_of(found)}/versions/{version.number}")

    @post(f"{one}/delete", include_in_schema=False)
    def delete_version(
        request: AnyRequest, thing: FromPath[str], selector: FromPath[str], data: URLEncodedBody[Nothing]
    ) -> Response[Any]:
        house, actor = who(request)
        del data
        with house.db.write() as tx:
            found = thing_of(tx, actor, thing)
            verbs.delete_version(tx, actor, found.id, selector)
        return go(request, url_of(found))

    return [
        list_all,
        create,
        show,
        change,
        delete,
        show_version,
        show_file,
        show_image,
        show_diff,
        tag,
        untag,
        delete_version,
    ]


def _maker(r: Reader, actor: Actor, version: Version) -> Maker | None:
    if version.run_id is None:
        return None
    try:
        run = runs.get_run(r, actor, version.run_id)
    except ApplianceError:
        return None  # the run was deleted, or belongs to a project that the reader may not see
    workflow = runs.get_workflow(r, actor, run.workflow_id)
    project = projects.require(r, actor, run.project_id)
    job = f"?job={quote(version.job)}" if version.job else ""
    return Maker(f"{workflow.name} #{run.number}", run_url(project, workflow.name, run) + job)


def _before(r: Reader, verbs: ModuleType, actor: Actor, thing: Thing, version: Version) -> Version | None:
    """The newest committed version that is older."""
    older = verbs.list_versions(r, actor, thing.id, after=str(version.number), limit=1, committed_only=True).items
    return older[0] if older and version.state is VersionState.COMMITTED else None


def _serving(r: Reader, actor: Actor, model: Thing) -> list[Any]:
    """The deployments whose newest configuration is a version of the model."""
    listed = deployments.list_deployments(r, actor, project_id=model.project_id, limit=200).items
    return [each for each in listed if each.latest and each.latest.config.get("modelId") == model.id]


HANDLERS = [*handlers("dataset", datasets), *handlers("model", models)]
