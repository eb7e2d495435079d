"""Deployments as wishes: what may be changed when the model has gone or the name is taken. Nothing is rolled out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from web_support import person

from appliance import deployments, events, models, projects
from appliance.db import Database
from appliance.deployments import wishes
from appliance.errors import Conflict, NotFound
from appliance.records import Actor, Deployment, Project
from appliance.states import SpecState
from appliance.store import Store

pytestmark = pytest.mark.fast


@pytest.fixture
def ana(db: Database) -> Actor:
    return person(db, "ana@example.org")


@pytest.fixture
def project(db: Database, ana: Actor, store: Store, tmp_path: Path) -> Project:
    """It has a model `net` with two versions."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.onnx").write_text("x")
    tree = store.put_tree(tmp_path / "files", move=False)
    with db.write() as tx:
        made = projects.create(tx, ana, "vision")
        for job in ("first", "second"):
            of: dict[str, Any] = {"project_id": made.id, "tree": tree, "metadata": {}, "run_id": "r", "job": job}
            models.add_version(tx, ana, name="net", model_type="ONNX", origin=job, **of)
    store.publish(tree)
    return made


def applied(db: Database, ana: Actor, project: Project, name: str, version: int = 1) -> Deployment:
    with db.write() as tx:
        config = {"name": name, "model": f"net:{version}"}
        return deployments.apply(tx, ana, project_id=project.id, config=config)


def move(db: Database, deployment: Deployment, *states: SpecState) -> None:
    for state in states:
        with db.write() as tx:
            newest = wishes.open_specs(tx, deployment.id)[-1]
            wishes.move_spec(tx, newest, state, error="bad" if state is SpecState.FAILED else None)


def test_one_whose_newest_model_failed_and_was_deleted_can_be_switched_off(
    db: Database, ana: Actor, project: Project
) -> None:
    move(db, applied(db, ana, project, "net"), SpecState.STARTING, SpecState.SERVING)
    deployment = applied(db, ana, project, "net", 2)
    move(db, deployment, SpecState.FAILED)
    with db.write() as tx:
        models.delete_version(tx, ana, "net", "2")

    with db.write() as tx:
        off = deployments.set_enabled(tx, ana, deployment.id, False)
        deployments.set_enabled(tx, ana, deployment.id, False)

    assert not off.enabled
    with db.read() as reader:
        assert len(deployments.history(reader, ana, deployment.id).items) == 2
        said = [event.text for event in events.list_events(reader, project_id=project.id)]
    assert sum("switched the deployment net off" in text for text in said) == 1
    with pytest.raises(NotFound), db.write() as tx:
        deployments.set_enabled(tx, ana, deployment.id, True)


def test_a_name_that_another_deployment_has_is_refused_with_a_sentence(
    db: Database, ana: Actor, project: Project
) -> None:
    applied(db, ana, project, "one")
    two = applied(db, ana, project, "two")

    config = {"name": "one", "model": "net:1"}
    with pytest.raises(Conflict, match="'vision' has a deployment 'one' already"), db.write() as tx:
        deployments.apply(tx, ana, project_id=project.id, config=config, deployment_id=two.id)

    with db.write() as tx:
        config = {"name": "three", "model": "net:1"}
        renamed = deployments.apply(tx, ana, project_id=project.id, config=config, deployment_id=two.id)
    assert (renamed.id, renamed.name) == (two.id, "three")
