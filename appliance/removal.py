"""Deleting a project: what goes with it, said before and done whole.

What this keeps true: nothing of a project is left when its row is gone; a project with a run that has not ended, or a
version that another project uses, is not deleted.

Order of effects: one transaction removes every row; then the repository goes. A crash between leaves a repository without
a project, which the janitor removes.

Why: what a project holds is spread over floors; here is the one place that knows all of it.
"""

from __future__ import annotations

from appliance import containers, datasets, deployments, events, models, projects, runs
from appliance.db import Database, Reader
from appliance.errors import Conflict
from appliance.records import Actor, Project
from appliance.repos import Repos

_ALL = 1_000_000


def project_text(db: Reader, actor: Actor, project_id: str) -> str:
    """The sentence that says what goes when the project is deleted."""
    project = projects.require(db, actor, project_id)
    parts = [
        _counted(len(deployments.list_deployments(db, actor, project_id=project.id, limit=_ALL).items), "deployment"),
        _counted(len(models.list_models(db, actor, project_id=project.id, limit=_ALL).items), "model"),
        _counted(len(datasets.list_datasets(db, actor, project_id=project.id, limit=_ALL).items), "dataset"),
        _counted(len(runs.list_runs(db, actor, project_id=project.id, limit=_ALL).items), "run"),
    ]
    return (
        f"The project {project.name} with its repository, {', '.join(parts)} goes for good, "
        "with all their versions and logs."
    )


def delete_project(db: Database, repos: Repos, actor: Actor, project_id: str) -> Project:
    """The project and all that it holds are gone."""
    with db.write() as tx:
        project = projects.require_owner(tx, actor, project_id)
        if count := runs.unfinished(tx, project.id):
            raise Conflict(
                f"The project {project.name!r} has {_counted(count, 'run')} that has not ended; cancel first."
            )
        for deployment in deployments.list_deployments(tx, actor, project_id=project.id, limit=_ALL).items:
            deployments.delete(tx, actor, deployment.id)
        runs.delete_of_project(tx, project.id)
        for model in models.list_models(tx, actor, project_id=project.id, limit=_ALL).items:
            models.delete(tx, actor, model.id)
        for dataset in datasets.list_datasets(tx, actor, project_id=project.id, limit=_ALL).items:
            datasets.delete(tx, actor, dataset.id)
        containers.remove_of_project(tx, project.id)
        projects.delete_row(tx, project.id)
        events.record(tx, actor, "project.deleted", project.id, f"{actor.email} deleted the project {project.name}.")
    repos.remove(project.id)
    return project


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
