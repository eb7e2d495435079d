"""The routes that datasets and models share: the thing, its versions, their files and tags.

`{thing}` is an id or a name; `{selector}` a version's id, number, tag or `latest`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Annotated, Any

import msgspec
from litestar import Response
from litestar.concurrency import sync_to_thread
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream

from appliance import versions
from appliance.db import Database
from appliance.errors import ApplianceError, BadRequest, Conflict, DurabilityLost, NotFound
from appliance.records import Dataset, FileEntry, Model, Page, Version
from appliance.store import Stage, clean_path
from appliance.web import render, transfer
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.params import After, Limit, limited
from appliance.web.routes import Json, delete, get, post, put


class Change(msgspec.Struct, rename="camel"):
    name: str | None = None
    description: str | None = None
    is_public: bool | None = None


class NewVersion(msgspec.Struct, rename="camel"):
    message: str | None = None
    metadata: dict[str, Any] | None = None
    tags: str | None = None


class VersionChange(msgspec.Struct, rename="camel"):
    is_committed: bool = False
    message: str | None = None
    tags: str | None = None


class TagBody(msgspec.Struct):
    version: str = "latest"


Prefix = Annotated[str, QueryParameter(name="prefix", description="A folder; its contents alone are listed.")]
Recursive = Annotated[bool, QueryParameter(name="recursive")]
Executable = Annotated[bool, QueryParameter(name="executable", description="Whether the file may be run as a program.")]
From = Annotated[str, QueryParameter(name="from")]
To = Annotated[str, QueryParameter(name="to")]


def handlers(noun: str, verbs: ModuleType, show: Callable[[Any], Json]) -> list[HTTPRouteHandler]:
    """Every shared route of `noun`, carried out by the module `verbs`, each thing shown by `show`."""
    thing_path = f"/v1/{noun}s/{{thing:str}}"
    one = f"{thing_path}/versions/{{selector:str}}"
    of_thing: Callable[..., Dataset | Model] = getattr(verbs, f"get_{noun}")

    @get(thing_path)
    def get_thing(request: AnyRequest, thing: FromPath[str]) -> Json:
        """One, with its newest version."""
        house, actor = who(request)
        with house.db.read() as r:
            return show(of_thing(r, actor, thing))

    @put(thing_path)
    def update_thing(request: AnyRequest, thing: FromPath[str], data: JSONBody[Change]) -> Json:
        """What is given is changed, the rest stays."""
        house, actor = who(request)
        with house.db.write() as tx:
            changes = {"name": data.name, "description": data.description, "is_public": data.is_public}
            return show(verbs.update(tx, actor, thing, **changes))

    @get(f"{thing_path}/removal")
    def removal_of_thing(request: AnyRequest, thing: FromPath[str]) -> Json:
        """The sentence that says what deleting it takes away."""
        house, actor = who(request)
        with house.db.read() as r:
            return {"text": verbs.removal(r, actor, thing)}

    @delete(thing_path)
    def delete_thing(request: AnyRequest, thing: FromPath[str]) -> Json:
        """Gone, with all its versions."""
        house, actor = who(request)
        with house.db.write() as tx:
            found = of_thing(tx, actor, thing)
            verbs.delete(tx, actor, found.id)
        return {"id": found.id}

    @get(f"{thing_path}/versions")
    def list_versions(request: AnyRequest, thing: FromPath[str], after: After = None, limit: Limit = 50) -> Json:
        """The versions, newest first."""
        house, actor = who(request)
        with house.db.read() as r:
            return render.page(verbs.list_versions(r, actor, thing, after=after, limit=limited(limit)), render.version)

    @post(f"{thing_path}/versions")
    def create_version(request: AnyRequest, thing: FromPath[str], data: JSONBody[NewVersion]) -> Json:
        """A new version without files, open until it is committed."""
        house, actor = who(request)
        if data.tags:
            raise BadRequest("Tags are set when the version is committed; a version without files has none.")
        with house.db.write() as tx:
            made = verbs.create_version(tx, actor, thing, message=data.message or "", metadata=data.metadata or {})
        return render.version(made)

    @get(one)
    def get_version(request: AnyRequest, thing: FromPath[str], selector: FromPath[str]) -> Json:
        """One version."""
        house, actor = who(request)
        with house.db.read() as r:
            return render.version(verbs.get_version(r, actor, thing, selector))

    @put(one)
    def change_version(
        request: AnyRequest, thing: FromPath[str], selector: FromPath[str], data: JSONBody[VersionChange]
    ) -> Json:
        """Commit the version, tag it, or both."""
        house, actor = who(request)
        tags = [tag.strip() for tag in (data.tags or "").split(",") if tag.strip()]
        with house.db.read() as r:
            version_id = verbs.get_version(r, actor, thing, selector).id
        if not data.is_committed and not tags:
            raise BadRequest("A version can be committed (isCommitted: true) and tagged (tags); say which.")
        if data.is_committed:
            verbs.commit_version(
                house.db, house.store, house.config.staging_dir, actor, thing, version_id, message=data.message
            )
        with house.db.write() as tx:
            for tag in tags:
                verbs.tag(tx, actor, thing, tag, version_id)
            return render.version(verbs.get_version(tx, actor, thing, version_id))

    @delete(one)
    def delete_version(request: AnyRequest, thing: FromPath[str], selector: FromPath[str]) -> Json:
        """The version is gone. Refused while something uses it."""
        house, actor = who(request)
        with house.db.write() as tx:
            found: Version = verbs.delete_version(tx, actor, thing, selector)
        return {f"{noun}Id": found.owner_id, "version": found.id}

    @get(f"{one}/files")
    def list_files(
        request: AnyRequest,
        thing: FromPath[str],
        selector: FromPath[str],
        prefix: Prefix = "",
        recursive: Recursive = True,
        after: After = None,
        limit: Limit = 200,
    ) -> Json:
        """What lies in the version, by path; a version that is open shows what was uploaded so far."""
        house, actor = who(request)
        with house.db.read() as r:
            version = verbs.get_version(r, actor, thing, selector)
            stage = None if version.root else verbs.stage(r, actor, house.config.staging_dir, thing, version.id)
        most = limited(limit)
        if stage is not None:
            return _page_of(_staged(stage, prefix, recursive, after)[: most + 1], most)
        found = house.store.files(version.root, prefix, recursive=recursive, after=after, limit=most + 1)
        return _page_of(found, most)

    @get(f"{one}/files/{{path:path}}")
    def download(
        request: AnyRequest, thing: FromPath[str], selector: FromPath[str], path: FromPath[str]
    ) -> Response[Any]:
        """One file, as a download; a single Range is honoured."""
        house, actor = who(request)
        with house.db.read() as r:
            version = _committed(verbs.get_version(r, actor, thing, selector))
        entry = house.store.entry(str(version.root), path.lstrip("/"))  # as a job named it
        if entry.kind == "directory":
            raise BadRequest(f"{entry.path!r} is a folder; list it, or download the version as an archive.")
        return transfer.download(house.store, str(version.root), entry, request.headers.get("range"))

    @put(f"{one}/files/{{path:path}}", request_max_body_size=None)
    async def upload(
        request: AnyRequest,
        thing: FromPath[str],
        selector: FromPath[str],
        path: FromPath[str],
        executable: Executable = False,
    ) -> Json:
        """Put one file, the raw body, into a version that is open."""
        house, _ = who(request)
        clean = clean_path(path.lstrip("/"))
        stage: Stage = await sync_to_thread(_stage, request, verbs, thing, selector)
        most = house.config.max_upload_mib << 20

        def take(pieces: Iterator[bytes]) -> int:
            with _kept(house.db, stage):
                return stage.write(clean, pieces, executable=executable, max_bytes=most)

        size = await transfer.receive(request, request.app.state.uploads, take)
        return {"path": clean, "sizeBytes": size}

    @delete(f"{one}/files/{{path:path}}")
    def delete_file(request: AnyRequest, thing: FromPath[str], selector: FromPath[str], path: FromPath[str]) -> Json:
        """The file is no longer in the version, which is open."""
        house, _ = who(request)
        clean = clean_path(path.lstrip("/"))
        stage = _stage(request, verbs, thing, selector)
        with _kept(house.db, stage):
            stage.delete(clean)
        return {"path": clean}

    @get(f"{one}/archive.tar")
    def archive(request: AnyRequest, thing: FromPath[str], selector: FromPath[str]) -> Stream:
        """The whole version as a tar archive."""
        house, actor = who(request)
        with house.db.read() as r:
            found = of_thing(r, actor, thing)
            version = _committed(verbs.get_version(r, actor, thing, selector))
        return transfer.archive(house.store, version, f"{found.name}-{version.number}")

    @get(f"{thing_path}/diff")
    def diff(request: AnyRequest, thing: FromPath[str], old: From, new: To = "latest") -> Json:
        """What differs between two versions."""
        house, actor = who(request)
        with house.db.read() as r:
            before = _committed(verbs.get_version(r, actor, thing, old))
            after = _committed(verbs.get_version(r, actor, thing, new))
        found = house.store.diff(str(before.root), str(after.root))
        lists = {"added": found.added, "changed": found.changed, "removed": found.removed}
        return {name: [render.file_entry(entry) for entry in entries] for name, entries in lists.items()}

    @get(f"{thing_path}/tags")
    def list_tags(request: AnyRequest, thing: FromPath[str]) -> Json:
        """Each tag and the version at which it points."""
        house, actor = who(request)
        with house.db.read() as r:
            found: dict[str, str] = verbs.list_tags(r, actor, thing)
        return render.whole(found.items(), lambda each: {"name": each[0], "version": each[1]})

    @get(f"{thing_path}/tags/{{name:str}}")
    def get_tag(request: AnyRequest, thing: FromPath[str], name: FromPath[str]) -> Json:
        """The version at which the tag points."""
        house, actor = who(request)
        with house.db.read() as r:
            found: str | None = verbs.list_tags(r, actor, thing).get(name)
            if found is None:
                raise NotFound(f"The {noun} has no tag {name!r}.")
            return render.version(verbs.get_version(r, actor, thing, found))

    @put(f"{thing_path}/tags/{{name:str}}")
    def tag(request: AnyRequest, thing: FromPath[str], name: FromPath[str], data: JSONBody[TagBody]) -> Json:
        """The tag points at the version from now on."""
        house, actor = who(request)
        with house.db.write() as tx:
            return render.version(verbs.tag(tx, actor, thing, name, data.version))

    @delete(f"{thing_path}/tags/{{name:str}}")
    def untag(request: AnyRequest, thing: FromPath[str], name: FromPath[str]) -> Json:
        """The tag is gone; the version stays."""
        house, actor = who(request)
        with house.db.write() as tx:
            verbs.untag(tx, actor, thing, name)
        return {"name": name}

    return [
        get_thing,
        update_thing,
        removal_of_thing,
        delete_thing,
        list_versions,
        create_version,
        get_version,
        change_version,
        delete_version,
        list_files,
        download,
        upload,
        delete_file,
        archive,
        diff,
        list_tags,
        get_tag,
        tag,
        untag,
    ]


def _stage(request: AnyRequest, verbs: ModuleType, thing: str, selector: str) -> Stage:
    house, actor = who(request)
    with house.db.read() as r:
        found: Stage = verbs.stage(r, actor, house.config.staging_dir, thing, selector)
    return found


@contextmanager
def _kept(db: Database, stage: Stage) -> Iterator[None]:
    """The change made inside is in the version. Conflict when a commit came before it was done, however it ended."""
    try:
        yield
    except (Conflict, DurabilityLost):
        raise
    except ApplianceError:
        versions.check_kept(db, stage.folder.name)
        raise
    versions.check_kept(db, stage.folder.name)


def _committed(version: Version) -> Version:
    if version.root is None:
        raise Conflict(f"Version {version.number} is not committed yet; commit it, then read it.")
    return version


def _staged(stage: Stage, prefix: str, recursive: bool, after: str | None) -> list[FileEntry]:
    base = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    found = [entry for entry in stage.files() if entry.path.startswith(base)]
    flat = [entry for entry in found if recursive or "/" not in entry.path[len(base) :]]
    seen = next((at + 1 for at, entry in enumerate(flat) if entry.path == after), 0)
    return flat[seen:]


def _page_of(found: list[FileEntry], most: int) -> Json:
    more = len(found) > most
    return render.page(Page(tuple(found[:most]), found[most - 1].path if more else None), render.file_entry)
