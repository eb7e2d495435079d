"""The REST API over a real server, with real database, store and git; nothing runs, so runs stay pending."""

from __future__ import annotations

import errno
import http.server
import io
import json
import os
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from waiting import wait_until
from web_support import PASSWORD, Web, running_web

from appliance import accounts, containers, datasets, projects, runs, tls, versions
from appliance.records import SYSTEM, ContainerSpec, Role
from appliance.runtime.engine import LogEntry
from appliance.store import failpoints
from appliance.web import asking, transfer

WORKFLOW = """\
on:
  github:
    branches:
      only: main
jobs:
  train:
    resources:
      instance-type: C1
    uses: script@v1
    with:
      script: |
        echo hello
"""


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with running_web(tmp_path_factory.mktemp("web")) as running:
        yield running


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def make_project(client: httpx.Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ok(client.post("/v1/projects", json={"name": name}))
    return found


def put_version(client: httpx.Client, at: str, files: dict[str, bytes]) -> dict[str, Any]:
    version = ok(client.post(f"{at}/versions", json={"message": "first"}))
    for path, data in files.items():
        ok(client.put(f"{at}/versions/{version['version']}/files/{path}", content=data))
    done: dict[str, Any] = ok(client.put(f"{at}/versions/{version['version']}", json={"isCommitted": True}))
    return done


def test_a_file_with_any_name_that_a_job_gave_it_can_be_downloaded(web: Web, tmp_path: Path) -> None:
    names = ["new\nline", "tab\tx", " lead", "back\\slash"]
    for name in names:
        (tmp_path / name).write_text(name)
    ana, tree = web.client("ana"), web.house.store.put_tree(tmp_path, move=False)
    with web.house.db.write() as tx:
        made = datasets.create(tx, web.ana, name="odd-names")
        versions.add_committed(tx, datasets.CATALOG.owner(made), web.ana, tree)
    web.house.store.publish(tree)
    at = "/v1/datasets/odd-names/versions/1/files"

    assert sorted(each["path"] for each in ok(ana.get(at))["items"]) == sorted(names)
    for name in names:
        answer = ana.get(f"{at}/{quote(name)}")
        assert (answer.status_code, answer.text) == (200, name), name
    assert ana.get(f"{at}/no%0Asuch").status_code == 404


def test_only_a_tag_is_found_among_the_tags(web: Web) -> None:
    ana = web.client("ana")
    ok(ana.post("/v1/datasets", json={"name": "tag-only"}))
    version = put_version(ana, "/v1/datasets/tag-only", {"a": b"1"})
    ok(ana.put("/v1/datasets/tag-only/tags/good", json={"version": "1"}))

    assert ok(ana.get("/v1/datasets/tag-only/tags/good"))["version"] == version["version"]
    for name in ("1", "latest", version["version"], "none"):
        assert ana.get(f"/v1/datasets/tag-only/tags/{name}").status_code == 404, name


def test_a_members_stalled_uploads_stop_nobody_else_and_end_for_themselves(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PATIENCE_S", 0.2)
    ana, bob = web.client("ana"), web.client("bob")
    for client, name in ((ana, "stalled"), (bob, "flowing")):
        ok(client.post("/v1/datasets", json={"name": name}))
        ok(client.post(f"/v1/datasets/{name}/versions", json={}))
    at = "/v1/datasets/stalled/versions/1/files"

    def stalled(number: int) -> socket.socket:
        plug = socket.socket(socket.AF_UNIX)
        plug.connect(str(web.socket))
        head = f"PUT {at}/f{number} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {web.keys['ana']}\r\n"
        plug.sendall(f"{head}Content-Length: 9\r\n\r\nx".encode())
        return plug

    def ninth() -> int:
        return ana.put(f"{at}/ninth", content=b"1").status_code

    plugs = [stalled(number) for number in range(transfer.UPLOADS_EACH)]
    wait_until(lambda: ninth() == 429, 10, "all places of ana's are taken")
    refused = ana.put(f"{at}/ninth", content=b"1")
    beside = bob.put("/v1/datasets/flowing/versions/1/files/x", content=b"1")
    for plug in plugs:
        plug.close()

    assert "uploads are under way" in refused.json()["message"]
    assert beside.status_code == 200
    wait_until(lambda: ninth() == 200, 10, "ana's places are free again")


# -- projects ----------------------------------------------------------------------------------------------------------


def test_a_project_is_made_shown_renamed_and_deleted(web: Web) -> None:
    ana = web.client("ana")

    made = make_project(ana, "alpha")

    assert made["repoUrl"].endswith("/git/alpha.git")
    assert Path(made["repoPath"]).is_dir()
    assert ok(ana.get("/v1/projects/alpha")) == made
    assert ok(ana.put(f"/v1/projects/{made['id']}", json={"name": "alpha2"}))["name"] == "alpha2"
    assert "goes for good" in ok(ana.get("/v1/projects/alpha2/removal"))["text"]
    assert ok(ana.get("/v1/projects/alpha2/commits"))["items"] == []
    kinds = [event["kind"] for event in ok(ana.get("/v1/projects/alpha2/events"))["items"]]
    assert kinds == ["project.renamed", "project.created"]
    ok(ana.delete("/v1/projects/alpha2"))
    assert ana.get("/v1/projects/alpha2").status_code == 404


def test_a_collaborator_is_let_in_and_out(web: Web) -> None:
    ana, bob = web.client("ana"), web.client("bob")
    make_project(ana, "shared")
    users = {each["user"]["email"]: each["user"]["id"] for each in ok(ana.get("/v1/teams/any/users"))["items"]}

    assert bob.get("/v1/projects/shared").status_code == 404
    ok(ana.post("/v1/projects/shared/collaborators", json={"userId": users["bob@x.org"]}))
    assert ok(bob.get("/v1/projects/shared"))["name"] == "shared"
    assert bob.post("/v1/projects/shared/collaborators", json={"userId": users["boss@x.org"]}).status_code == 403
    assert bob.delete("/v1/projects/shared").status_code == 403
    ok(ana.delete(f"/v1/projects/shared/collaborators/{users['bob@x.org']}"))
    assert bob.get("/v1/projects/shared").status_code == 404


def test_a_member_sees_the_events_of_their_projects_and_an_admin_those_of_all(web: Web) -> None:
    ana, bob, boss = web.client("ana"), web.client("bob"), web.client("boss")
    make_project(ana, "events-a")
    make_project(bob, "events-b")

    def seen(client: httpx.Client, **query: Any) -> list[str]:
        return [each["text"] for each in ok(client.get("/v1/events", params=query))["items"]]

    assert "bob@x.org made the project 'events-b'." in seen(bob)
    assert not [text for text in seen(bob) if "events-a" in text]
    assert {"bob@x.org made the project 'events-b'.", "ana@x.org made the project 'events-a'."} <= set(seen(boss))
    assert seen(ana, projectId="events-a") == ["ana@x.org made the project 'events-a'."]
    assert ana.get("/v1/events", params={"projectId": "events-b"}).status_code == 404
    page = ok(boss.get("/v1/events", params={"limit": 1}))
    assert page["hasMore"]
    assert ok(boss.get("/v1/events", params={"limit": 1, "after": page["nextPage"]}))["items"] != page["items"]


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_go_in_one_by_one_are_committed_and_come_back(web: Web) -> None:
    ana = web.client("ana")
    dataset = ok(ana.post("/v1/datasets", json={"name": "digits"}))
    version = ok(ana.post("/v1/datasets/digits/versions", json={}))
    at = f"/v1/datasets/{dataset['id']}/versions/{version['version']}"

    put = ok(ana.put(f"{at}/files/a/ü b.txt", content=b"hello world"))
    ok(ana.put(f"{at}/files/gone.txt", content=b"x"))
    ok(ana.delete(f"{at}/files/gone.txt"))
    staged = ok(ana.get(f"{at}/files"))
    done = ok(ana.put(at, json={"isCommitted": True, "message": "first", "tags": "good, best"}))

    assert put == {"path": "a/ü b.txt", "sizeBytes": 11}
    assert [each["path"] for each in staged["items"]] == ["a", "a/ü b.txt"]
    assert (done["isCommitted"], done["fileCount"], done["usageBytes"], done["number"]) == (True, 1, "11", 1)
    assert sorted(done["tags"]) == ["best", "good"]
    for selector in ("1", "latest", "best", version["version"]):
        answer = ana.get(f"/v1/datasets/digits/versions/{selector}/files/a/ü b.txt")
        assert answer.content == b"hello world"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ana.put(f"{at}/files/late.txt", content=b"x").status_code == 409
    assert ana.get("/v1/datasets/digits").json()["latestVersion"]["number"] == 1


@pytest.mark.parametrize(
    "wanted, status, content",
    [
        ("bytes=0-4", 206, b"01234"),
        ("bytes=5-", 206, b"56789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=5-100", 206, b"56789"),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("bytes=4-2", 200, b"0123456789"),
        ("junk", 200, b"0123456789"),
        ("bytes=10-", 416, None),
        ("bytes=-0", 416, None),
    ],
)
def test_a_part_of_a_file_can_be_asked_for(web: Web, wanted: str, status: int, content: bytes | None) -> None:
    ana = web.client("ana")
    if ana.get("/v1/datasets/ranges").status_code == 404:
        ok(ana.post("/v1/datasets", json={"name": "ranges"}))
        put_version(ana, "/v1/datasets/ranges", {"ten": b"0123456789"})

    answer = ana.get("/v1/datasets/ranges/versions/latest/files/ten", headers={"Range": wanted})

    assert answer.status_code == status
    if content is not None:
        assert answer.content == content
    if status == 206:
        assert answer.headers["content-range"].endswith("/10")


@pytest.mark.parametrize(
    "path", ["%2e%2e/x", "a/%2e%2e/%2e%2e/x", "a/%2e/b", "a%00b", "a/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/x"]
)
def test_a_path_that_would_lead_elsewhere_is_refused(web: Web, path: str) -> None:
    ana = web.client("ana")
    name = f"paths{abs(hash(path))}"
    ok(ana.post("/v1/datasets", json={"name": name}))
    version = ok(ana.post(f"/v1/datasets/{name}/versions", json={}))["version"]
    before = sorted(web.house.config.data_dir.rglob("*etc*"))

    answer = ana.put(f"/v1/datasets/{name}/versions/{version}/files/{path}", content=b"x")

    assert 400 <= answer.status_code < 500, answer.text
    assert sorted(web.house.config.data_dir.rglob("*etc*")) == before


def test_a_large_file_is_streamed_both_ways_and_a_version_is_a_tar(web: Web) -> None:
    ana = web.client("ana")
    ok(ana.post("/v1/datasets", json={"name": "big"}))
    large = os.urandom(1 << 20) * 24  # more than a body may be elsewhere

    put_version(ana, "/v1/datasets/big", {"large.bin": large, "dir/small": b"s"})

    assert ana.get("/v1/datasets/big/versions/1/files/large.bin").content == large
    answer = ana.get("/v1/datasets/big/versions/1/archive.tar")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        found = {member.name: member.size for member in tar.getmembers()}
    assert found == {"dir": 0, "dir/small": 1, "large.bin": len(large)}


def test_an_upload_that_breaks_off_leaves_nothing(web: Web) -> None:
    ana = web.client("ana")
    ok(ana.post("/v1/datasets", json={"name": "broken"}))
    version = ok(ana.post("/v1/datasets/broken/versions", json={}))["version"]

    def half() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise RuntimeError("the client dies")

    with pytest.raises(RuntimeError):
        ana.put(
            f"/v1/datasets/broken/versions/{version}/files/half", content=half(), headers={"content-length": "200000"}
        )

    assert ok(web.client("ana").get(f"/v1/datasets/broken/versions/{version}/files"))["items"] == []
    staging = web.house.config.staging_dir
    wait_until(lambda: not list(staging.glob(f".{version}.part-*")), 5, "the unfinished file is gone")


def test_two_versions_differ_and_a_tag_moves(web: Web) -> None:
    ana = web.client("ana")
    ok(ana.post("/v1/datasets", json={"name": "moving"}))
    put_version(ana, "/v1/datasets/moving", {"same": b"1", "changed": b"1", "removed": b"1"})
    put_version(ana, "/v1/datasets/moving", {"same": b"1", "changed": b"2", "added": b"2"})

    diff = ok(ana.get("/v1/datasets/moving/diff", params={"from": "1", "to": "2"}))
    ok(ana.put("/v1/datasets/moving/tags/gold", json={"version": "1"}))
    ok(ana.put("/v1/datasets/moving/tags/gold", json={"version": "2"}))

    assert {kind: [each["path"] for each in entries] for kind, entries in diff.items()} == {
        "added": ["added"],
        "changed": ["changed"],
        "removed": ["removed"],
    }
    assert ok(ana.get("/v1/datasets/moving/tags/gold"))["number"] == 2
    assert [each["name"] for each in ok(ana.get("/v1/datasets/moving/tags"))["items"]] == ["gold"]
    ok(ana.delete("/v1/datasets/moving/tags/gold"))
    assert ana.get("/v1/datasets/moving/tags/gold").status_code == 404
    listed = ok(ana.get("/v1/datasets/moving/versions?limit=1"))
    assert (listed["items"][0]["number"], listed["hasMore"]) == (2, True)
    assert ok(ana.get(f"/v1/datasets/moving/versions?after={listed['nextPage']}"))["items"][0]["number"] == 1
    ok(ana.delete("/v1/datasets/moving/versions/1"))
    ok(ana.delete("/v1/datasets/moving"))


# -- runs --------------------------------------------------------------------------------------------------------------


def submit(web: Web, project: str) -> dict[str, Any]:
    ana = web.client("ana")
    if ana.get(f"/v1/projects/{project}").status_code == 404:
        make_project(ana, project)
    run: dict[str, Any] = ok(ana.post(f"/v1/projects/{project}/runs", json={"specText": WORKFLOW, "name": "train"}))
    return run


def test_a_run_is_started_shown_in_gradients_words_and_cancelled(web: Web) -> None:
    ana = web.client("ana")

    run = submit(web, "work")

    assert run["status"]["phase"] == "Pending"
    assert run["status"]["jobs"]["train"]["uses"] == "script@v1"
    assert run["spec"]["jobs"]["train"]["resources"] == {"instance-type": "C1"}
    assert run["url"].endswith(f"/projects/work/runs/train/{run['id']}")
    [workflow] = ok(ana.get("/v1/workflows", params={"projectId": run["projectId"]}))
    for path in (f"/v1/runs/{run['uuid']}", f"/v1/workflows/{workflow['id']}/runs/{run['id']}"):
        assert ok(ana.get(path))["uuid"] == run["uuid"]
    assert [each["uuid"] for each in ok(ana.get("/v1/projects/work/runs"))["items"]] == [run["uuid"]]
    again = ok(ana.post(f"/v1/workflows/{workflow['id']}/runs", json={"spec": run["spec"]}))
    assert again["id"] == run["id"] + 1
    ok(ana.post(f"/v1/runs/{run['uuid']}/cancel"))
    assert web.client("bob").get(f"/v1/runs/{run['uuid']}").status_code == 404
    logs = ok(ana.get(f"/v1/workflows/{workflow['id']}/runs/{run['id']}/logs"))
    assert [each["name"] for each in logs] == ["train"]


def test_a_workflow_that_cannot_be_read_is_answered_with_every_problem(web: Web) -> None:
    make_project(web.client("ana"), "faulty")

    answer = web.client("ana").post(
        "/v1/projects/faulty/runs", json={"specText": "jobs:\n  a:\n    uses: nothing@v9\n"}
    )

    assert (answer.status_code, answer.json()["code"]) == (400, "PARSE_ERROR")
    assert "line 3" in answer.json()["message"]


def events_of(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_a_run_is_followed_and_a_change_arrives_at_once(web: Web) -> None:
    run = submit(web, "followed")
    ana = web.client("ana")

    with web.client("ana").stream("GET", f"/v1/runs/{run['uuid']}/stream") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = events_of(answer)
        first = next(found)
        ok(ana.post(f"/v1/runs/{run['uuid']}/cancel"))
        second = next(found)

    assert first[0] == second[0] == "run"
    assert first[1]["status"]["jobs"]["train"]["phase"] == "Pending"
    assert second[1]["status"]["jobs"]["train"]["phase"] == "Canceled"


@pytest.mark.parametrize("door", ["key", "session"])
def test_a_stream_ends_with_the_key_or_session_that_opened_it(web: Web, door: str) -> None:
    run = submit(web, f"ended-by-{door}")
    ana, stranger = web.client("ana"), web.client()
    if door == "key":
        key = ok(ana.post("/v1/api-keys", json={"name": "short"}))
        headers = {"Authorization": f"Bearer {key['key']}"}
    else:
        jar = dict(stranger.post("/v1/auth/login", json={"email": "ana@x.org", "password": PASSWORD}).cookies)
        stranger.cookies.clear()
        headers = {"Cookie": f"appliance={jar['appliance']}", "Sec-Fetch-Site": "same-origin"}

    with (
        web.client(None, **headers).stream("GET", f"/v1/runs/{run['uuid']}/stream") as followed,
        web.client(None, **headers).stream("GET", f"/v1/runs/{run['uuid']}/jobs/train/logs/stream") as lines,
    ):
        if door == "key":
            ok(ana.delete(f"/v1/api-keys/{key['id']}"))
        else:
            ok(web.client(None, **headers).post("/v1/auth/logout"))
        last = [list(events_of(each))[-1] for each in (followed, lines)]

    for name, data in last:
        assert name == "end"
        assert "has ended; sign in again" in data["message"]


def test_a_log_is_followed_line_by_line_and_resumed_after_a_line(web: Web) -> None:
    run = submit(web, "logged")
    with web.house.db.write() as tx:
        job = runs.get_job(tx, web.ana, run["uuid"], "train")
        tx.insert(
            "attempts",
            {"id": "at1", "job_id": job.id, "number": 1, "state": "queued", "created_at": job.created_at},
        )
    path = f"/v1/runs/{run['uuid']}/jobs/train/logs"

    def write(*texts: str) -> None:
        web.house.logs.capture(
            "at1", [LogEntry(f"2030-01-01T00:00:0{text[-1]}.000000000Z", "stdout", text) for text in texts]
        )

    write("line 0", "line 1")
    with web.client("ana").stream("GET", f"{path}/stream?after=0") as answer:
        found = events_of(answer)
        first = next(found)
        threading.Timer(0.1, lambda: write("line 2")).start()
        second = next(found)

    assert (first[0], first[1]["message"], first[1]["line"]) == ("line", "line 1", 1)
    assert (second[1]["message"], second[1]["stream"]) == ("line 2", "stdout")
    with web.client("ana", **{"Last-Event-ID": "1"}).stream("GET", f"{path}/stream") as answer:
        assert next(events_of(answer))[1]["line"] == 2
    page = ok(web.client("ana").get(path, params={"after": 1}))
    assert ([each["line"] for each in page["items"]], page["nextLine"], page["finished"]) == ([2], 3, False)
    assert web.client("bob").get(f"{path}/stream").status_code == 404


def test_many_idle_streams_cost_no_thread_each(web: Web) -> None:
    run = submit(web, "idle")
    before = threading.active_count()

    streams = [web.client("ana").stream("GET", f"/v1/runs/{run['uuid']}/stream") for _ in range(60)]
    answers = [stream.__enter__() for stream in streams]
    kept = [events_of(answer) for answer in answers]  # a reader that is dropped closes its connection
    for found in kept:
        assert next(found)[0] == "run"

    assert threading.active_count() - before <= 48
    assert ok(web.client("ana").get("/v1/projects/idle"))["name"] == "idle"
    assert web.app.live.open_streams >= 60
    for stream in streams:
        stream.__exit__(None, None, None)
    wait_until(lambda: web.app.live.open_streams == 0, 5, "the streams whose readers left have ended")


def test_a_stream_ends_when_the_one_who_reads_it_is_removed(web: Web) -> None:
    run = submit(web, "leaving")
    with web.house.db.write() as tx:
        guest = accounts.create_user(tx, SYSTEM, "guest@x.org", Role.MEMBER)
        projects.add_collaborator(tx, web.ana, run["projectId"], guest.id)
        _, key = accounts.create_key(tx, accounts.actor_of(guest, "key"), "laptop")

    with web.client(None, Authorization=f"Bearer {key}").stream("GET", f"/v1/runs/{run['uuid']}/stream") as answer:
        found = events_of(answer)
        assert next(found)[0] == "run"
        with web.house.db.write() as tx:
            accounts.remove_user(tx, web.boss, guest.id)
        name, data = next(found)

    assert (name, data["phase"]) == ("end", None)


def open_version(web: Web, name: str) -> str:
    """The address of a version of a new dataset, into which files may be put."""
    ana = web.client("ana")
    at = f"/v1/datasets/{ok(ana.post('/v1/datasets', json={'name': name}))['id']}/versions"
    return f"{at}/{ok(ana.post(at, json={}))['version']}"


def test_a_file_that_comes_while_its_version_is_committed_is_never_said_to_be_kept(web: Web) -> None:
    at = open_version(web, "in-between")
    ana, other = web.client("ana"), web.client("ana")
    ok(ana.put(f"{at}/files/early", content=b"1"))
    answers: list[httpx.Response] = []

    def once_the_folder_was_read(place: str) -> None:
        if place == "stored" and not answers:
            answers.append(other.put(f"{at}/files/late", content=b"2"))
            answers.append(other.delete(f"{at}/files/early"))

    failpoints.arm(once_the_folder_was_read)
    try:
        ok(ana.put(at, json={"isCommitted": True}))
    finally:
        failpoints.arm(None)

    assert [answer.status_code for answer in answers] == [409, 409]
    assert "was committed meanwhile" in answers[0].json()["message"]
    assert [each["path"] for each in ok(ana.get(f"{at}/files"))["items"]] == ["early"]


def test_an_upload_that_ends_after_its_version_was_committed_is_a_conflict(web: Web) -> None:
    at = open_version(web, "too-late")
    stage = web.house.config.staging_dir / at.rpartition("/")[2]

    def body() -> Iterator[bytes]:
        yield bytes(1 << 20)
        wait_until(lambda: list(stage.parent.glob(f".{stage.name}.part-*")), 5, "it is being written")
        ok(web.client("ana").put(at, json={"isCommitted": True}))
        yield b"the end"

    answer = web.client("ana").put(f"{at}/files/late", content=body())

    assert answer.status_code == 409
    assert "was committed meanwhile" in answer.json()["message"]


def test_a_write_that_was_lost_in_a_request_ends_the_daemon(web: Web) -> None:
    at = open_version(web, "lost")
    failed: list[BaseException] = []
    web.app.state.house = replace(web.house, fail=failed.append)

    def failing(place: str) -> None:
        if place == "fsync":
            raise OSError(errno.EIO, "Input/output error")

    failpoints.arm(failing)
    try:
        answer = web.client("ana").put(f"{at}/files/a", content=b"1")
    finally:
        failpoints.arm(None)
        web.app.state.house = web.house

    assert (answer.status_code, answer.json()["code"]) == (500, "DURABILITY_LOST")
    assert len(failed) == 1


# -- deployments -------------------------------------------------------------------------------------------------------


def test_a_deployment_is_wished_changed_rolled_back_and_deleted(web: Web) -> None:
    ana = web.client("ana")
    project = make_project(ana, "serving")
    model = ok(ana.post("/v1/models", json={"name": "net", "modelType": "ONNX", "projectId": project["id"]}))
    put_version(ana, f"/v1/models/{model['id']}", {"model.onnx": b"not really"})
    config = {"name": "net", "model": f"{model['id']}:1", "resources": {"replicas": 1, "machineType": "C1"}}

    made = ok(ana.post("/v1/deployments", json={"projectId": project["id"], "config": config}))
    again = ok(ana.post("/v1/deployments", json={"projectId": project["id"], "config": config}))
    at = f"/v1/deployments/{made['deploymentId']}"
    shown = ok(ana.get(at))
    history = ok(ana.get(f"{at}/history"))["items"]

    assert again == made
    assert shown["endpoint"] == shown["url"].removeprefix("https://")
    assert shown["localUrl"].startswith("http://127.0.0.1:")
    assert (shown["state"], shown["modelName"]) == ("pending", "net")
    assert [each["number"] for each in history] == [2, 1]
    ok(ana.patch(at, json={"replicas": 2}))
    assert ok(ana.get(at))["latestSpec"]["replicas"] == 2
    ok(ana.patch(at, json={"enabled": False}))
    assert ok(ana.get(at))["enabled"] is False
    ok(ana.post(f"{at}/history/{history[-1]['id']}/apply"))
    replicas = ok(ana.get(f"{at}/runs"))
    assert (replicas[0]["replicas"], replicas[0]["readyReplicas"], replicas[0]["instances"]) == (1, 0, [])
    assert ana.post(f"{at}/try", json={"inputs": []}).status_code == 409
    assert ok(ana.get(f"{at}/logs")) == {"items": [], "hasMore": False, "nextPage": None}
    key = ok(ana.post(f"{at}/keys", json={"name": "app"}))
    assert key["key"].startswith(key["prefix"])
    assert ok(ana.get(f"{at}/keys"))["items"] == [{k: v for k, v in key.items() if k != "key"}]
    ok(ana.delete(f"{at}/keys/{key['id']}"))
    assert web.client("bob").get(at).status_code == 404
    ok(ana.delete(at))
    assert ana.get(at).status_code == 404


def serving_deployment(web: Web, name: str) -> tuple[str, str]:
    """A deployment whose row says that it serves; its id and its spec's."""
    ana = web.client("ana")
    project = make_project(ana, name)
    model = ok(ana.post("/v1/models", json={"name": "net", "modelType": "ONNX", "projectId": project["id"]}))
    put_version(ana, f"/v1/models/{model['id']}", {"model.onnx": b"not really"})
    config = {"name": name, "model": f"{model['id']}:1"}
    made = ok(ana.post("/v1/deployments", json={"projectId": project["id"], "config": config}))["deploymentId"]
    spec = ok(ana.get(f"/v1/deployments/{made}"))["latestSpec"]["id"]
    with web.house.db.write() as tx:
        tx.run("UPDATE deployment_specs SET state = 'serving' WHERE id = ?", spec)
    return made, spec


class Model(http.server.BaseHTTPRequestHandler):
    """What a replica answers, as far as the dashboard's form needs it."""

    def do_GET(self) -> None:
        self._answer(200, {"name": "net", "inputs": [], "key": self.headers["Authorization"]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.get("inputs") == "binary":
            self._answer(200, {}, {"Inference-Header-Content-Length": "2"})
            return
        if not asked.get("inputs"):
            self._answer(400, {"error": "The request has no inputs."})
            return
        self._answer(200, {"model_name": self.path, "outputs": asked["inputs"]})

    def _answer(self, status: int, found: Any, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None: ...


def test_the_dashboards_form_asks_the_deployment_with_a_key_that_the_browser_never_sees(web: Web) -> None:
    deployment, _ = serving_deployment(web, "tried")
    ana, at = web.client("ana"), f"/v1/deployments/{deployment}"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        with web.house.db.write() as tx:
            tx.run("UPDATE deployments SET port = ? WHERE id = ?", server.server_address[1], deployment)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()

        metadata = ok(ana.get(f"{at}/metadata"))
        answered = ok(ana.post(f"{at}/try", json={"inputs": [1]}))
        refused = ana.post(f"{at}/try", json={"inputs": []})
        binary = ana.post(f"{at}/try", json={"inputs": "binary"})
        server.shutdown()
        thread.join()
    silent = ana.post(f"{at}/try", json={"inputs": [1]})

    key = (web.house.config.replicas_dir / "keys" / deployment).read_text()
    assert metadata["key"] == f"Bearer {key}"
    assert answered == {"model_name": "/v2/models/net/infer", "outputs": [1]}
    assert (refused.status_code, refused.json()["message"]) == (
        400,
        "The deployment answered 400: The request has no inputs.",
    )
    assert (silent.status_code, silent.json()["code"]) == (412, "PRECONDITION_FAILED")
    assert key not in silent.text
    assert (binary.status_code, binary.json()["message"]) == (
        400,
        "The outputs came as binary data; the form takes JSON alone, so ask without binary_data.",
    )


def test_a_page_is_shown_without_the_form_when_the_replica_hangs_and_leaves_the_places_for_trying(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "GLANCE_S", 0.2)
    deployment, _ = serving_deployment(web, "hanging")
    ana = web.client("ana")
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(asking.AT_ONCE) as many:
        with web.house.db.write() as tx:
            tx.run("UPDATE deployments SET port = ? WHERE id = ?", silent.getsockname()[1], deployment)
        pages = list(many.map(lambda _: ana.get(f"/deployments/{deployment}"), range(asking.AT_ONCE)))
        trial = ana.get(f"/deployments/{deployment}?tab=try")

    assert {each.status_code for each in [*pages, trial]} == {200}
    assert "does not answer" in trial.text
    assert "Open Inference request" not in trial.text


def test_a_page_tells_of_our_authority_only_where_it_is_used(web: Web) -> None:
    deployment, _ = serving_deployment(web, "trusted")
    page = f"/deployments/{deployment}"

    without = web.client("ana").get(page).text
    tls.ensure(web.house.config)
    with_own = web.client("ana").get(page).text

    for sign in ("/ca.crt", "--cacert", "cafile="):
        assert sign not in without
        assert sign in with_own


def test_a_replicas_log_is_followed_until_it_has_ended(web: Web) -> None:
    deployment, spec = serving_deployment(web, "talking")
    at = f"/v1/deployments/{deployment}"
    with web.house.db.write() as tx:
        replica = ContainerSpec("rep1", "replica", "serving", "i", None, None, {}, (), 1.0, 512)
        project = tx.value("SELECT project_id FROM deployments WHERE id = ?", deployment)
        containers.add(tx, replica, owner_id=spec, project_id=project, machine_type="C1", grace_s=1.0)
    web.house.logs.capture("rep1", [LogEntry("2030-01-01T00:00:00.000000000Z", "stdout", "ready")])

    with web.client("ana").stream("GET", f"{at}/logs/stream") as answer:
        found = events_of(answer)
        first = next(found)
        web.house.logs.seal("rep1")
        with web.house.db.write() as tx:
            tx.run("UPDATE containers SET seen = 'exited' WHERE id = 'rep1'")
        second = next(found)

    assert (first[0], first[1]["message"], first[1]["instanceId"]) == ("line", "ready", "rep1")
    assert second[0] == "end"
    [line] = ok(web.client("ana").get(f"{at}/logs"))["items"]
    assert (line["message"], line["instanceId"], line["jobId"]) == ("ready", "rep1", spec)
    [run] = ok(web.client("ana").get(f"{at}/runs"))
    assert [each["instanceId"] for each in run["instances"]] == ["rep1"]


# -- the machine -------------------------------------------------------------------------------------------------------


def test_the_machine_says_what_can_be_asked_for(web: Web) -> None:
    found = ok(web.client("ana").get("/v1/machine"))

    assert found["machineTypes"][0]["name"] == "C1"
    assert found["machineTypes"][0]["free"] is True
    assert found["diskTotalBytes"] > found["diskFreeBytes"] > 0
    assert web.client("ana").get("/v1/doctor").status_code == 403
    assert ok(web.client("boss").get("/v1/doctor")) == []
    assert ok(web.client("ana").get("/v1/storage-providers/utilization"))["totalUsage"].isdigit()


# -- git ---------------------------------------------------------------------------------------------------------------


def test_git_clones_and_pushes_with_a_key_as_its_password(web: Web, tmp_path: Path) -> None:
    project = make_project(web.client("ana"), "gitty")
    info = "/git/gitty.git/info/refs?service=git-upload-pack"

    unasked = web.client().get(info)
    allowed = web.client().get(info, auth=("anything", web.keys["ana"]))
    hidden = web.client().get(info, auth=("x", web.keys["bob"]))
    missing = web.client().get("/git/none.git/info/refs?service=git-upload-pack", auth=("x", web.keys["bob"]))

    assert unasked.status_code == 401
    assert unasked.headers["www-authenticate"].startswith("Basic")
    assert allowed.status_code == 200
    assert allowed.headers["content-type"] == "application/x-git-upload-pack-advertisement"
    assert (hidden.status_code, hidden.json()["code"]) == (404, "NOT_FOUND")
    assert missing.json()["message"].replace("none", "gitty") == hidden.json()["message"]
    push(web, tmp_path, "gitty")
    commits = ok(web.client("ana").get("/v1/projects/gitty/commits"))["items"]
    assert [each["message"] for each in commits] == ["first"]
    started = ok(
        web.client("ana").post(
            "/v1/projects/gitty/runs", json={"path": ".gradient/workflows/train.yaml", "ref": "main"}
        )
    )
    assert (started["projectId"], started["commit"]) == (project["id"], commits[0]["sha"])


def push(web: Web, folder: Path, project: str) -> None:
    """git itself, through a relay, since git speaks HTTP over TCP alone."""
    work = folder / "work"
    (work / ".gradient/workflows").mkdir(parents=True)
    (work / ".gradient/workflows/train.yaml").write_text(WORKFLOW)
    (work / "large.bin").write_bytes(os.urandom(3 << 20))  # above 1 MiB git sends chunks
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Ana",
        "GIT_AUTHOR_EMAIL": "ana@x.org",
        "GIT_COMMITTER_NAME": "Ana",
        "GIT_COMMITTER_EMAIL": "ana@x.org",
        "GIT_TERMINAL_PROMPT": "0",
    }

    def git(*arguments: str) -> None:
        done = subprocess.run(
            ["git", *arguments], cwd=work, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr

    with web.tcp() as port:
        git("init", "-q", "-b", "main")
        git("add", ".")
        git("commit", "-q", "-m", "first")
        git("push", "-q", f"http://ana:{web.keys['ana']}@127.0.0.1:{port}/git/{project}.git", "main")
        git("clone", "-q", f"http://ana:{web.keys['ana']}@127.0.0.1:{port}/git/{project}.git", str(folder / "copy"))
    assert (folder / "copy/large.bin").read_bytes() == (work / "large.bin").read_bytes()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_open_streams_do_not_hold_up_the_end(tmp_path: Path) -> None:
    with running_web(tmp_path) as web:
        run = submit(web, "last")
        stream = web.client("ana").stream("GET", f"/v1/runs/{run['uuid']}/stream")
        found = events_of(stream.__enter__())
        assert next(found)[0] == "run"
        assert web.app.live.open_streams == 1

        web.app.close_streams()

        assert wait_until(lambda: web.app.live.open_streams == 0, 5, "the stream has ended")
        stream.__exit__(None, None, None)


def test_an_upload_that_never_ends_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with running_web(tmp_path) as web:
        ana = web.client("ana")
        ok(ana.post("/v1/datasets", json={"name": "slow"}))
        version = ok(ana.post("/v1/datasets/slow/versions", json={}))["version"]
        plug = socket.socket(socket.AF_UNIX)
        plug.connect(str(web.socket))
        head = (
            f"PUT /v1/datasets/slow/versions/{version}/files/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        )
        plug.sendall(f"{head}Authorization: Bearer {web.keys['ana']}\r\n\r\nabc".encode())
        staging = web.house.config.staging_dir
        wait_until(lambda: list(staging.glob(f".{version}.part-*")), 5, "the upload has begun")

    plug.close()
    assert not list(staging.glob(f".{version}.part-*"))
