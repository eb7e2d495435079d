"""Datasets, models, their versions and files."""

from __future__ import annotations

from appliance.records import Dataset, FileEntry, Model, Version
from appliance.states import VersionState
from appliance.web.render.common import TEAM_ID, Json


def dataset(found: Dataset) -> Json:
    return {
        "description": found.description,
        "dtCreated": found.created_at,
        "dtModified": found.modified_at,
        "id": found.id,
        "isPublic": found.is_public,
        "name": found.name,
        "storageProviderId": "appliance",
        "teamId": TEAM_ID,
        "projectId": found.project_id,
        "createdBy": found.created_by,
        "latestVersion": version(found.latest) if found.latest else None,
    }


def model(found: Model) -> Json:
    return {
        "description": found.description,
        "dtCreated": found.created_at,
        "dtModified": found.modified_at,
        "id": found.id,
        "isPublic": found.is_public,
        "name": found.name,
        "projectId": found.project_id,
        "storageProviderId": "appliance",
        "teamId": TEAM_ID,
        "modelType": found.model_type,
        "createdBy": found.created_by,
        "latestVersion": version(found.latest) if found.latest else None,
    }


def version(found: Version) -> Json:
    """Gradient's DatasetVersion (its `version` is the id), and what we know besides; for models as well."""
    return {
        f"{found.owner_kind}Id": found.owner_id,
        "dtCreated": found.created_at,
        "dtModified": found.committed_at or found.created_at,
        "isCommitted": found.state is VersionState.COMMITTED,
        "message": found.message,
        "metadata": dict(found.metadata),
        "tags": list(found.tags),
        "url": f"/v1/{found.owner_kind}s/{found.owner_id}/versions/{found.id}/archive.tar",
        "usageBytes": str(found.size_bytes),
        "userId": found.created_by,
        "version": found.id,
        "number": found.number,
        "fileCount": found.file_count,
        "addedBytes": str(found.added_bytes),
        "root": found.root,
        "runId": found.run_id,
        "job": found.job,
    }


def file_entry(found: FileEntry) -> Json:
    return {
        "path": found.path,
        "kind": found.kind,
        "sizeBytes": found.size_bytes,
        "executable": found.executable,
        "hash": found.hash,
    }
