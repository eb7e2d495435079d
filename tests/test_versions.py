"""Datasets, models and their versions: immutable, tagged, pinned, seen by the right people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from web_support import person

from appliance import datasets, ids, models, projects, versions
from appliance.db import Database
from appliance.errors import BadRequest, Conflict, Forbidden, NotFound
from appliance.records import SYSTEM, Actor, Role, Tree
from appliance.store import Store

pytestmark = pytest.mark.fast


def tree_of(store: Store, folder: Path, files: dict[str, str]) -> Tree:
    source = folder / f"source-{len(list(folder.iterdir()))}"
    for name, text in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return store.put_tree(source, move=True)


@pytest.fixture
def ana(db: Database) -> Actor:
    return person(db, "ana@example.org")


@pytest.fixture
def bob(db: Database) -> Actor:
    return person(db, "bob@example.org")


def test_a_version_gathers_files_and_never_changes_once_committed(
    db: Database, store: Store, tmp_path: Path, ana: Actor
) -> None:
    staging = tmp_path / "staging"
    with db.write() as tx:
        dataset = datasets.create(tx, ana, name="digits")
        draft = datasets.create_version(tx, ana, dataset.id, message="first")
    with db.read() as reader:
        stage = datasets.stage(reader, ana, staging, "digits", draft.id)
    stage.write("a/b.txt", [b"hello"])

    done = datasets.commit_version(db, store, staging, ana, "digits", draft.id)

    assert (done.number, done.file_count, done.size_bytes, done.message) == (1, 1, 5, "first")
    assert done.root is not None
    assert b"".join(store.read(done.root, "a/b.txt")) == b"hello"
    assert not (staging / draft.id).exists()
    with pytest.raises(Conflict, match="committed already"):
        datasets.commit_version(db, store, staging, ana, "digits", draft.id)
    with db.read() as reader, pytest.raises(Conflict, match="never changes"):
        datasets.stage(reader, ana, staging, "digits", "1")


def test_a_reference_means_id_number_tag_or_the_newest(db: Database, store: Store, tmp_path: Path, ana: Actor) -> None:
    with db.write() as tx:
        owner = datasets.CATALOG.owner(datasets.create(tx, ana, name="digits"))
        made = [
            versions.add_committed(tx, owner, ana, tree_of(store, tmp_path, {"f": str(number)})) for number in range(3)
        ]
        datasets.tag(tx, ana, "digits", "gold", "2")

        def meant(ref: str) -> str:
            return datasets.resolve(tx, ana, ref)[1].id

        assert meant("digits") == meant("digits:latest") == made[2].id
        assert meant("digits:gold") == meant("digits:2") == meant(f"digits:{made[1].id}") == made[1].id
        with pytest.raises(NotFound, match="no version or tag 'silver'"):
            meant("digits:silver")


def test_a_tag_moves_and_its_history_stays(db: Database, store: Store, tmp_path: Path, ana: Actor) -> None:
    with db.write() as tx:
        owner = datasets.CATALOG.owner(datasets.create(tx, ana, name="digits"))
        first, second = (versions.add_committed(tx, owner, ana, tree_of(store, tmp_path, {"f": x})) for x in "ab")
        datasets.tag(tx, ana, "digits", "gold", first.id)
        datasets.tag(tx, ana, "digits", "gold", second.id)
        datasets.untag(tx, ana, "digits", "gold")

        moves = tx.all("SELECT from_version, to_version, moved_by FROM tag_moves ORDER BY id")

        assert [(row["from_version"], row["to_version"]) for row in moves] == [
            (None, first.id),
            (first.id, second.id),
            (second.id, None),
        ]
        assert {row["moved_by"] for row in moves} == {"ana@example.org"}


def test_the_same_origin_makes_one_version(db: Database, store: Store, tmp_path: Path, ana: Actor) -> None:
    tree = tree_of(store, tmp_path, {"f": "x"})
    with db.write() as tx:
        owner = datasets.CATALOG.owner(datasets.create(tx, ana, name="digits"))
        first = versions.add_committed(tx, owner, ana, tree, origin="attempt/out")
        second = versions.add_committed(tx, owner, ana, tree, origin="attempt/out")

    assert first.id == second.id


def test_a_number_is_never_used_again(db: Database, store: Store, tmp_path: Path, ana: Actor) -> None:
    tree = tree_of(store, tmp_path, {"f": "x"})
    with db.write() as tx:
        owner = datasets.CATALOG.owner(datasets.create(tx, ana, name="digits"))
        versions.add_committed(tx, owner, ana, tree)
        datasets.delete_version(tx, ana, "digits", "1")

        assert versions.add_committed(tx, owner, ana, tree).number == 2


def test_what_is_in_use_is_not_deleted(db: Database, store: Store, tmp_path: Path, ana: Actor) -> None:
    with db.write() as tx:
        owner = datasets.CATALOG.owner(datasets.create(tx, ana, name="digits"))
        version = versions.add_committed(tx, owner, ana, tree_of(store, tmp_path, {"f": "x"}))
        versions.pin(tx, version.id, "job", "job train of run 3 reads it")

        with pytest.raises(Conflict, match=r"Version 1 of dataset 'digits' is in use: job train of run 3 reads it\."):
            datasets.delete_version(tx, ana, "digits", "1")
        with pytest.raises(Conflict, match="in use"):
            datasets.delete(tx, ana, "digits")
        versions.unpin(tx, "job")
        datasets.delete(tx, ana, "digits")

        assert versions.live_roots(tx) == []


def test_a_projects_dataset_is_for_its_people_alone(db: Database, ana: Actor, bob: Actor) -> None:
    with db.write() as tx:
        project = projects.create(tx, ana, "vision")
        datasets.create(tx, ana, name="private", project_id=project.id)
        datasets.create(tx, ana, name="open", project_id=project.id, is_public=True)
        datasets.create(tx, ana, name="team")

        seen = {dataset.name for dataset in datasets.list_datasets(tx, bob).items}

        assert seen == {"open", "team"}
        with pytest.raises(NotFound, match="no dataset 'private' that you can see"):
            datasets.get_dataset(tx, bob, "private")
        with pytest.raises(Forbidden, match=r"ask ana@example\.org"):
            datasets.create_version(tx, bob, "team")
        assert {one.name for one in datasets.list_datasets(tx, SYSTEM).items} == {"private", "open", "team"}


def test_an_output_lands_in_the_dataset_of_its_name_or_makes_it(db: Database, ana: Actor, bob: Actor) -> None:
    with db.write() as tx:
        project = projects.create(tx, ana, "vision")
        other = projects.create(tx, bob, "speech")

        made = datasets.for_output(tx, ana, "digits", project.id)

        assert (made.name, made.project_id) == ("digits", project.id)
        assert datasets.for_output(tx, ana, "digits", project.id).id == made.id
        with pytest.raises(Conflict, match="taken by a project that you cannot see"):
            datasets.for_output(tx, bob, "digits", other.id)


def test_pages_follow_on_without_gap_or_double(db: Database, ana: Actor) -> None:
    with db.write() as tx:
        for number in range(7):
            datasets.create(tx, ana, name=f"d{number}")
    seen, after = [], None
    with db.read() as reader:
        while True:
            page = datasets.list_datasets(reader, ana, after=after, limit=3)
            seen += [one.name for one in page.items]
            after = page.next_page
            if after is None:
                break
        with pytest.raises(BadRequest, match="not a cursor"):
            ids.cursor("x")

    assert seen == [f"d{number}" for number in reversed(range(7))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"metrics": [{"name": "accuracy", "numberValue": 0.97}]}', {"metrics": {"accuracy": 0.97}}),
        ('{"metrics": {"loss": 1}}', {"metrics": {"loss": 1.0}}),
        ("{", None),
        ('{"metrics": [{"name": "x"}]}', None),
        ('{"metrics": 7}', None),
        ("[1]", None),
        ("[" * 5000, None),
    ],
)
def test_a_models_metrics_come_from_its_files_or_the_problem_is_kept(
    store: Store, tmp_path: Path, text: str, found: dict[str, object] | None
) -> None:
    tree = tree_of(store, tmp_path, {models.METADATA_FILE: text})

    read = models.metadata_of(store, tree.root)

    if found is None:
        assert set(read) == {"metadataProblem"}
        assert json.dumps(read)
    else:
        assert read == found


def test_a_models_name_is_its_projects_own(db: Database, store: Store, tmp_path: Path, ana: Actor) -> None:
    tree = tree_of(store, tmp_path, {"model.onnx": "x"})
    boss = person(db, "boss@example.org", Role.ADMIN)
    with db.write() as tx:
        ids_ = []
        for name in ("one", "two"):
            project = projects.create(tx, ana, name)
            model, _ = models.add_version(
                tx,
                ana,
                name="digits",
                model_type="ONNX",
                project_id=project.id,
                tree=tree,
                metadata={},
                run_id="r",
                job="j",
                origin=name,
            )
            ids_.append((model.id, project.id))

        assert models.get_model(tx, ana, "digits", project_id=ids_[1][1]).id == ids_[1][0]
        with pytest.raises(BadRequest, match="2 models are named 'digits'; say which by its id"):
            models.get_model(tx, boss, "digits")
        assert models.resolve(tx, boss, f"{ids_[0][0]}:latest")[1].number == 1
        with pytest.raises(BadRequest, match="choose one of Tensorflow, ONNX, Custom"):
            models.create(tx, ana, name="x", model_type="Pickle")
