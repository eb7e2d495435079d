"""Datasets and models: things with versions that hold files. The two differ in a word of the path and in `create`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance import ids
from appliance.client.files import Progress, Writer, collect, receive, send
from appliance.client.transport import Json, Transport, file_path, segment
from appliance.errors import ApplianceError, BadRequest, NotFound

LATEST = "latest"


class Versioned:
    """`owner` is an id or a name; `version` a version's id, number, tag or `latest`; `ref` is `NAME[:VERSION]`."""

    noun = ""

    def __init__(self, transport: Transport) -> None:
        self._at = transport

    # -- the thing -----------------------------------------------------------------------------------------------------

    def list(self, project: str | None = None) -> Iterator[Json]:
        return self._at.pages(f"/v1/{self.noun}s", projectId=project)

    def get(self, owner: str) -> Json:
        found: Json = self._at.get(self._path(owner))
        return found

    def update(self, owner: str, *, name: str | None = None, description: str | None = None) -> Json:
        found: Json = self._at.put(self._path(owner), name=name, description=description)
        return found

    def removal(self, owner: str) -> str:
        return str(self._at.get(self._path(owner) + "/removal")["text"])

    def delete(self, owner: str) -> None:
        self._at.delete(self._path(owner))

    # -- versions ------------------------------------------------------------------------------------------------------

    def versions(self, owner: str) -> Iterator[Json]:
        """Newest first."""
        return self._at.pages(self._path(owner) + "/versions")

    def version(self, owner: str, version: str = LATEST) -> Json:
        found: Json = self._at.get(self._version(owner, version))
        return found

    def create_version(self, owner: str, *, message: str = "", metadata: Mapping[str, Any] | None = None) -> Json:
        """An uncommitted version: files may be put into it until it is committed."""
        found: Json = self._at.post(self._path(owner) + "/versions", message=message, metadata=metadata)
        return found

    def commit(self, owner: str, version: str, *, message: str | None = None) -> Json:
        """From now on the version never changes."""
        found: Json = self._at.put(self._version(owner, version), isCommitted=True, message=message)
        return found

    def delete_version(self, owner: str, version: str) -> None:
        self._at.delete(self._version(owner, version))

    def diff(self, owner: str, old: str, new: str) -> Json:
        """The paths that differ between two versions: {added, changed, removed}."""
        found: Json = self._at.call("GET", self._path(owner) + "/diff", query={"from": old, "to": new})
        return found

    def tags(self, owner: str) -> Iterator[Json]:
        return self._at.pages(self._path(owner) + "/tags")

    def tag(self, owner: str, name: str, version: str = LATEST) -> Json:
        """`name` points at `version`, wherever it pointed before."""
        found: Json = self._at.put(f"{self._path(owner)}/tags/{segment(name)}", version=version)
        return found

    def untag(self, owner: str, name: str) -> None:
        self._at.delete(f"{self._path(owner)}/tags/{segment(name)}")

    # -- files ---------------------------------------------------------------------------------------------------------

    def files(self, owner: str, version: str = LATEST, *, prefix: str = "", recursive: bool = True) -> Iterator[Json]:
        """The entries: {path, kind, sizeBytes, …}; not recursive, those of one folder."""
        query = {"prefix": prefix or None, "recursive": recursive}
        return self._at.pages(self._version(owner, version) + "/files", **query)

    def read(self, owner: str, version: str, path: str) -> bytes:
        """One file's content, in memory."""
        pieces: list[bytes] = []
        self._at.download(self._file(owner, version, path), pieces.append)
        return b"".join(pieces)

    def put_file(self, owner: str, version: str, path: str, source: Path) -> None:
        """Put one file into an uncommitted version."""
        self._at.upload(self._file(owner, version, path), source)

    def delete_file(self, owner: str, version: str, path: str) -> None:
        self._at.delete(self._file(owner, version, path))

    def put(
        self,
        owner: str,
        folder: Path,
        *,
        message: str = "",
        tags: Sequence[str] = (),
        project: str | None = None,
        progress: Progress | None = None,
    ) -> Json:
        """A new committed version of `owner` with the files in `folder`, or that one file; `made` is what was made for it.

        Where there is no `owner`, it is made in the project with the id `project`; without one it belongs to none, and
        every member may read it. With a project, only what belongs to it is taken for `owner`.
        Symbolic links to files are sent as the files they lead to. When something fails nothing is committed and the
        unfinished version is removed.
        """
        for each in tags:
            _check_tag(each)
        found = collect(folder)
        name, made = self._ensure(owner, project)
        version = str(self.create_version(name, message=message)["version"])
        try:
            send(found, lambda each: self.put_file(name, version, each.path, each.source), progress)
            done = self.commit(name, version)
        except BaseException:
            with contextlib.suppress(ApplianceError):
                self.delete_version(name, version)
            raise
        for each in tags:
            self.tag(name, each, version)
        return {**(self.version(name, version) if tags else done), "made": made}

    def fetch(self, ref: str, folder: Path, *, progress: Progress | None = None) -> Json:
        """The files of one version in `folder`, made when it is missing; the version, with `leftOut`: [{path, reason}].

        Each file is complete or not there; nothing is ever written outside `folder`, whatever the server says, and a
        symbolic link that would lead out of it is left out.
        """
        owner, selector = split_ref(ref)
        found = self.version(owner, selector)
        version = str(found["version"])

        def load(path: str, write: Writer) -> int:
            return self._at.download(self._file(owner, version, path), write)

        left = receive(list(self.files(owner, version)), folder, load, progress)
        return {**found, "leftOut": left}

    # -- inside --------------------------------------------------------------------------------------------------------

    def _ensure(self, owner: str, project: str | None) -> tuple[str, Json | None]:
        """The id of `owner`, and the whole of it where it was made now."""
        if project is not None:
            for each in self.list(project):
                if owner in (each["id"], each["name"]):
                    return str(each["id"]), None
        else:
            with contextlib.suppress(NotFound):
                return str(self.get(owner)["id"]), None
        made = self._create(owner, project)
        return str(made["id"]), made

    def _create(self, name: str, project: str | None) -> Json:
        raise NotImplementedError

    def _path(self, owner: str) -> str:
        return f"/v1/{self.noun}s/{segment(owner)}"

    def _version(self, owner: str, version: str) -> str:
        return f"{self._path(owner)}/versions/{segment(version)}"

    def _file(self, owner: str, version: str, path: str) -> str:
        return f"{self._version(owner, version)}/files/{file_path(path)}"


class Datasets(Versioned):
    noun = "dataset"

    def create(
        self, name: str, *, description: str | None = None, is_public: bool = False, project: str | None = None
    ) -> Json:
        found: Json = self._at.post(
            "/v1/datasets", name=name, description=description, isPublic=is_public, projectId=project
        )
        return found

    def _create(self, name: str, project: str | None) -> Json:
        return self.create(name, project=project)


class Models(Versioned):
    noun = "model"

    def create(
        self,
        name: str,
        *,
        model_type: str = "Custom",
        description: str | None = None,
        is_public: bool = False,
        project: str | None = None,
    ) -> Json:
        found: Json = self._at.post(
            "/v1/models",
            name=name,
            modelType=model_type,
            description=description,
            isPublic=is_public,
            projectId=project,
        )
        return found

    def _create(self, name: str, project: str | None) -> Json:
        return self.create(name, project=project)


def split_ref(ref: str) -> tuple[str, str]:
    """`NAME[:SELECTOR]` as (name, selector), `latest` where there is none. Raises BadRequest."""
    name, colon, selector = ref.partition(":")
    if not name or (colon and not selector):
        raise BadRequest(f"{ref[:120]!r} is no reference: write NAME, NAME:VERSION or NAME:TAG.")
    return name, selector or LATEST


def _check_tag(text: str) -> None:
    """What the server would say of it, before anything is sent. Raises BadRequest."""
    ids.tag(text)
    if text.isdigit():
        raise BadRequest(f"{text!r} cannot be a tag: numbers name versions.")


def metrics_of(version: Mapping[str, Any]) -> dict[str, float]:
    """The metrics in a version's metadata: Gradient's list of {name, numberValue}, or a table of numbers."""
    found = (version.get("metadata") or {}).get("metrics") or {}
    if isinstance(found, list):
        found = {str(each.get("name")): each.get("numberValue") for each in found if isinstance(each, dict)}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
