"""The pages without a browser: what they say, what they refuse, and the pure functions behind them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from web_support import PASSWORD, Web, running_web

from appliance import clock, datasets, models, projects, versions
from appliance.records import FileEntry
from appliance.store import Store
from appliance.web.pages import files, graph, static, trying, view

pytestmark = pytest.mark.fast
PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 40
BROWSER = {"Accept": "text/html,application/xhtml+xml", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with running_web(tmp_path_factory.mktemp("web")) as running:
        yield running


def signed_in(web: Web, who: str = "boss") -> httpx.Client:
    client = web.client(**BROWSER)
    answer = client.post("/login", data={"email": f"{who}@x.org", "password": PASSWORD})
    assert answer.status_code == 303
    return client


# -- getting in --------------------------------------------------------------------------------------------------------


def test_a_stranger_in_a_browser_is_led_to_the_sign_in_and_back(web: Web) -> None:
    client = web.client(**BROWSER)

    sent = client.get("/settings/machine?x=1")
    assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=%2Fsettings%2Fmachine%3Fx%3D1")
    after = client.post("/login", data={"email": "ana@x.org", "password": PASSWORD, "next": "/settings/machine?x=1"})

    assert (after.status_code, after.headers["location"]) == (303, "/settings/machine?x=1")


def test_a_wrong_password_is_said_in_the_form_and_what_was_typed_stays(web: Web) -> None:
    answer = web.client(**BROWSER).post("/login", data={"email": "ana@x.org", "password": "wrong"})

    assert answer.status_code == 401
    assert 'value="ana@x.org"' in answer.text
    assert 'role="alert"' in answer.text
    assert "wrong" not in re.sub(r"<p.*?</p>", "", answer.text)


@pytest.mark.parametrize(
    "url", ["https://evil.org", "//evil.org", "/\\evil.org", "evil", "", None, "/a\n//b", "javascript:x"]
)
def test_coming_back_never_leads_elsewhere(url: str | None) -> None:
    assert view.own_path(url) == "/"


def test_a_path_of_ours_is_come_back_to() -> None:
    assert view.own_path("/projects/a%20b?tab=data") == "/projects/a%20b?tab=data"


def test_passwords_that_differ_set_nothing(web: Web) -> None:
    boss = signed_in(web)
    made = boss.post("/settings/invitations", data={"email": "new@x.org", "role": "member"})
    token = re.search(r"accept\?token=([\w-]+)", made.text)
    assert token is not None

    answer = web.client(**BROWSER).post(
        "/accept", data={"token": token[1], "password": "a long one", "again": "another"}
    )

    assert answer.status_code == 400
    assert "differ" in answer.text
    assert web.client(**BROWSER).get(f"/accept?token={token[1]}").status_code == 200


# -- errors and forms --------------------------------------------------------------------------------------------------


def test_an_error_is_one_sentence_on_a_page_and_json_for_a_script_of_ours(web: Web) -> None:
    client = signed_in(web)

    page = client.get("/projects/none")
    partial = client.get("/projects/none", headers={"HX-Request": "true"})
    script = client.post("/projects", data={"name": "-"}, headers={"Accept": "application/json"})

    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "There is no project &#39;none&#39;" in page.text
    assert partial.json()["code"] == "NOT_FOUND"
    assert script.json()["code"] == "BAD_REQUEST"


def test_a_form_is_answered_with_a_redirect_and_a_script_is_told_where(web: Web) -> None:
    client = signed_in(web)

    plain = client.post("/projects", data={"name": "by-form"})
    scripted = client.post("/projects", data={"name": "by-script"}, headers={"Accept": "application/json"})

    assert (plain.status_code, plain.headers["location"]) == (303, "/projects/by-form")
    assert scripted.json() == {"location": "/projects/by-script"}


def test_a_form_of_another_site_is_refused(web: Web) -> None:
    answer = signed_in(web).post("/projects", data={"name": "theirs"}, headers={"Sec-Fetch-Site": "cross-site"})

    assert answer.status_code == 403


def test_pages_load_nothing_from_elsewhere_and_hold_nothing_inline(web: Web) -> None:
    client = signed_in(web)
    client.post("/projects", data={"name": "inline"})

    for address in (
        "/",
        "/projects/inline",
        "/projects/inline/settings",
        "/datasets",
        "/settings",
        "/settings/machine",
    ):
        text = client.get(address).text
        assert not re.search(r"<script(?![^>]* src=\"/static/)", text), address
        assert not re.search(r"<style|\sstyle=|\son\w+=|src=\"(?!/)", text), address


# -- what is stored stays what it is -----------------------------------------------------------------------------------


def test_what_somebody_stored_is_escaped_and_never_served_as_our_page(web: Web, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<script>alert(1)</script>")
    (tmp_path / "fake.png").write_text("<svg onload=alert(1)>")
    (tmp_path / "real.png").write_bytes(PNG)
    number = stored(web, tmp_path)
    client, at = signed_in(web), f"/datasets/things/versions/{number}"

    shown = client.get(f"{at}/file", params={"path": "a.html"})
    fake = client.get(f"{at}/image", params={"path": "fake.png"})
    real = client.get(f"{at}/image", params={"path": "real.png"})

    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown.text
    assert fake.status_code == 400
    assert (real.content, real.headers["content-type"]) == (PNG, "image/png")
    assert real.headers["content-security-policy"].startswith("sandbox")


def test_a_member_outside_of_the_project_sees_no_page_of_its_data(web: Web, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    number = stored(web, tmp_path, project="closed", name="closed-things")
    client = signed_in(web, "bob")

    for address in ("/projects/closed", "/datasets/closed-things", f"/datasets/closed-things/versions/{number}"):
        assert client.get(address).status_code == 404, address
    assert "closed-things" not in client.get("/datasets").text


def stored(web: Web, folder: Path, project: str | None = None, name: str = "things") -> int:
    tree = web.house.store.put_tree(folder, move=False)
    with web.house.db.write() as tx:
        home = projects.create(tx, web.boss, project).id if project else None
        made = datasets.create(tx, web.boss, name=name, project_id=home)
        version = versions.add_committed(tx, datasets.CATALOG.owner(made), web.boss, tree)
    web.house.store.publish(tree)
    return version.number


def test_a_models_metrics_stand_beside_its_versions(web: Web, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    tree = web.house.store.put_tree(tmp_path, move=False)
    with web.house.db.write() as tx:
        made = models.create(tx, web.boss, name="net", model_type="ONNX")
        metadata = {"metrics": {"accuracy": 0.9798270893371758}}
        versions.add_committed(tx, models.CATALOG.owner(made), web.boss, tree, metadata=metadata)
    web.house.store.publish(tree)

    text = signed_in(web).get(f"/models/{made.id}").text

    assert ">accuracy</th>" in text
    assert ">0.979827</td>" in text


METRICS = [
    ([{"name": "accuracy", "numberValue": 0.9}, {"name": "note", "stringValue": "x"}, 5], {"accuracy": 0.9}),
    ({"loss": 1, "good": True, "note": "x", "deep": {"a": 1}}, {"loss": 1}),
    (None, {}),
    ("abc", {}),
    (7, {}),
]


@pytest.mark.parametrize("told, numbers", METRICS)
def test_whatever_somebody_calls_metrics_every_page_of_the_model_is_shown(
    web: Web, told: Any, numbers: dict[str, float]
) -> None:
    home = f"metrics{METRICS.index((told, numbers))}"
    with web.house.db.write() as tx:
        project = projects.create(tx, web.boss, home)
        made = models.create(tx, web.boss, name=home, model_type="Custom", project_id=project.id)
    api = web.client("boss")
    version = api.post(f"/v1/models/{made.id}/versions", json={"metadata": {"metrics": told}}).json()["version"]
    api.put(f"/v1/models/{made.id}/versions/{version}/files/x", content=b"1")
    assert api.put(f"/v1/models/{made.id}/versions/{version}", json={"isCommitted": True}).status_code == 200
    client = signed_in(web)

    pages = [
        client.get(at) for at in (f"/projects/{home}/models", f"/models/{made.id}", f"/models/{made.id}/versions/1")
    ]

    assert [each.status_code for each in pages] == [200, 200, 200]
    for name in numbers:
        assert all(name in each.text for each in pages)
    with web.house.db.read() as r:
        assert view.metrics_of(models.get_version(r, web.boss, made.id, "1")) == numbers


def test_a_folder_that_is_opened_as_a_file_leads_to_the_folder(web: Web, tmp_path: Path) -> None:
    (tmp_path / "sub dir").mkdir()
    (tmp_path / "sub dir" / "a").write_text("a")
    number = stored(web, tmp_path, name="folders")
    client, at = signed_in(web), f"/datasets/folders/versions/{number}"

    folder = client.get(f"{at}/file", params={"path": "sub dir"})
    nothing = client.get(f"{at}/file", params={"path": ""})

    assert (folder.status_code, folder.headers["location"]) == (303, f"{at}?path=sub%20dir")
    assert (nothing.status_code, nothing.headers["location"]) == (303, at)
    assert client.get(folder.headers["location"]).status_code == 200


# -- previews ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(tmp_path_factory.mktemp("store"), reserve_mib=1, floor_bytes=1 << 20)
    yield opened
    opened.close()


def preview(store: Store, folder: Path, name: str, content: bytes) -> files.Preview:
    (folder / name).write_bytes(content)
    tree = store.put_tree(folder, move=False)
    return files.preview(store, tree.root, store.entry(tree.root, name))


def test_a_preview_is_text_a_table_an_image_or_a_sentence(store: Store, tmp_path: Path) -> None:
    assert preview(store, tmp_path, "a.txt", b"hello").text == "hello"
    assert preview(store, tmp_path, "a.csv", b"x,y\n1,2\n").rows == (("x", "y"), ("1", "2"))
    assert preview(store, tmp_path, "a.bin", PNG).kind == "image"
    assert preview(store, tmp_path, "b.txt", b"\x00\x01").kind == "none"
    assert preview(store, tmp_path, "c.txt", b"\xff\xfe\xfa").kind == "none"


def test_a_long_text_is_cut_and_a_sign_in_the_middle_of_the_cut_is_left_out(store: Store, tmp_path: Path) -> None:
    content = b"x" * (files.TEXT_BYTES - 1) + "ü".encode() * 10

    cut = preview(store, tmp_path, "long.txt", content)

    assert not cut.is_whole
    assert cut.text == "x" * (files.TEXT_BYTES - 1)


def test_a_link_is_not_followed(store: Store) -> None:
    entry = FileEntry("link", "symlink", 4, False, "b3:00")

    assert files.preview(store, "b3:00", entry).kind == "none"


# -- the picture of a run ----------------------------------------------------------------------------------------------


def test_a_job_stands_right_of_what_it_needs_and_implied_arrows_are_not_drawn() -> None:
    needs = {"checkout": [], "prepare": ["checkout"], "train": ["checkout", "prepare"], "lint": ["checkout", "gone"]}

    picture = graph.layout(needs)

    at = {box.name: box for box in picture.boxes}
    assert at["checkout"].x < at["prepare"].x < at["train"].x
    assert at["lint"].x == at["prepare"].x
    assert at["lint"].y != at["prepare"].y
    assert len(picture.arrows) == 3


def test_a_wide_and_deep_graph_is_drawn_at_once() -> None:
    layers = 40
    needs = {f"{x}.{y}": [f"{x - 1}.{z}" for z in range(5)] if x else [] for x in range(layers) for y in range(5)}
    started = clock.monotonic()

    picture = graph.layout(needs)

    assert len(picture.boxes) == layers * 5
    assert clock.monotonic() - started < 2


def test_no_jobs_are_an_empty_picture() -> None:
    assert graph.layout({}).boxes == ()


# -- asking a model ----------------------------------------------------------------------------------------------------


def test_an_example_has_the_models_shapes_and_types() -> None:
    inputs = [
        {"name": "image", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "word", "datatype": "BYTES", "shape": [1]},
    ]

    request = trying.example(inputs)

    assert request["inputs"][0] == {"name": "image", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}
    assert request["inputs"][1]["data"] == ["text"]
    assert '"data": [0, 0, 0, 0]' in trying.example_text(request)


@pytest.mark.parametrize(
    ("shape", "side"), [([-1, 64], 8), ([-1, 784], None), ([-1, 63], None), ([64], None), ([-1, 8, 8], None)]
)
def test_a_row_of_a_small_square_can_be_drawn(shape: list[int], side: int | None) -> None:
    assert trying.grid_of([{"name": "image", "datatype": "FP32", "shape": shape}]) == side


def test_probabilities_are_bars_and_a_long_answer_is_cut() -> None:
    answer: dict[str, Any] = {
        "outputs": [
            {"name": "p", "datatype": "FP32", "shape": [1, 3], "data": [0.1, 0.8, 0.1]},
            {"name": "label", "datatype": "INT64", "shape": [1], "data": [1]},
            {"name": "many", "datatype": "FP32", "shape": [1, 1000], "data": [0.5] * 1000},
        ]
    }

    shown = trying.outputs(answer)

    assert [each.best for each in shown] == [1, None, None]
    assert not shown[2].is_whole
    assert len(shown[2].values) == 64


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "just now"), (7, "7 s ago"), (60, "1 min ago"), (7300, "2 h ago"), (200_000, "2 d ago"), (-7300, "in 2 h")],
)
def test_times_are_told_as_people_do(seconds: int, words: str) -> None:
    now = clock.now()

    assert view.ago(clock.stamp(now - timedelta(seconds=seconds)), now) == words


def test_durations_and_sizes_are_short() -> None:
    start = "2024-05-01T12:00:00.000Z"

    assert view.duration(start, "2024-05-01T12:00:04.740Z") == "4.7 s"
    assert view.duration(start, "2024-05-01T12:03:05.000Z") == "3 min 05 s"
    assert view.duration(start, "2024-05-01T14:03:05.000Z") == "2 h 03 min"
    assert view.duration(None, None) == ""
    assert [view.size(each) for each in (0, 1023, 1536, 265_498, 5 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "259 KiB",
        "5.0 GiB",
    ]
    assert view.branch("refs/heads/main") == "main"
    assert view.branch("f98b91a90a7eb11b9706e1d679dcf8fe1bced1e8") == "f98b91a9"


# -- static files ------------------------------------------------------------------------------------------------------


def test_a_static_file_is_kept_for_ever_under_its_digest_and_nothing_else_is_served(web: Web) -> None:
    client, address = web.client(), static.address("appliance.css")

    found = client.get(address)

    assert found.headers["cache-control"].endswith("immutable")
    assert found.headers["content-type"] == "text/css; charset=utf-8"
    for wrong in ("/static/000000000000/appliance.css", "/static/000000000000/../pages/view.py", f"{address}x"):
        assert client.get(wrong).status_code == 404, wrong


def test_a_page_names_no_static_file_that_is_not_there() -> None:
    with pytest.raises(AssertionError, match="there is no static file"):
        static.address("missing.js")
