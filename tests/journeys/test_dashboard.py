"""The dashboard in a real browser: what a person sees, on a desk and on a phone, with and without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from web_browser import PHONE, Dashboard, browsing, chromium, running_dashboard, setup_link, sign_in

from appliance import accounts, deployments, models

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Dashboard]:
    with running_dashboard(tmp_path) as found:
        yield found


@pytest.fixture
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "deep").mkdir()
    (folder / "deep" / "notes.txt").write_text("<script>alert(1)</script> & more\n")
    (folder / "table.csv").write_text("label,a\n7,0.5\n")
    (folder / "page.png").write_bytes(b"<html><script>alert(1)</script></html>")
    return folder


def test_an_invited_member_joins_makes_a_project_and_is_told_how_to_push(board: Dashboard, browser: Browser) -> None:
    token = setup_link(board)

    with browsing(browser, expected=("Failed to load resource: the server responded with a status of 400",)) as page:
        page.goto(f"{board.url}/accept?token={token}")
        page.get_by_label("Password").fill("correct horse battery")
        page.get_by_label("The same again").fill("correct horse battery")
        page.get_by_role("button", name="Set the password").click()
        page.wait_for_url(f"{board.url}/")
        expect(page.get_by_text("No project yet")).to_be_visible()
        page.get_by_text("New project", exact=True).click()
        page.get_by_label("Name").fill("-bad-")
        page.get_by_role("button", name="Create").click()
        expect(page.get_by_role("alert")).to_contain_text("cannot be the name of a project")
        page.get_by_label("Name").fill("digits")
        page.get_by_role("button", name="Create").click()
        page.wait_for_url("**/projects/digits")

        expect(page.get_by_role("heading", name="Push your first commit")).to_be_visible()
        expect(page.get_by_text("git remote add appliance https://gpu.test:8443/git/digits.git")).to_be_visible()


def test_a_run_is_followed_live_without_a_reload_until_its_output_can_be_opened(
    board: Dashboard, browser: Browser, files: Path
) -> None:
    project = board.project("tour")
    run = board.submit(project)
    log = board.begin(run, "prepare")

    with browsing(browser) as page:
        sign_in(page, board)
        page.goto(f"{board.url}/projects/tour/runs/train/1")
        expect(page.get_by_role("link", name="prepare, active")).to_be_visible()
        expect(page.get_by_role("link", name="train, blocked")).to_be_visible()
        board.write(log, "first line", "\x1b[31mred\x1b[0m <b>not bold</b>")
        shown = page.get_by_role("log")
        expect(shown).to_contain_text("first line")
        expect(shown.locator(".c1")).to_have_text("red")
        expect(shown).to_contain_text("<b>not bold</b>")
        board.write(log, *(f"line {number}" for number in range(5000)))
        expect(shown).to_contain_text("line 4999")
        assert page.locator(".log-line").count() < 200

        version = board.dataset(project, files, run)
        board.end(
            run,
            "prepare",
            {"digits": {"type": "dataset", "version": version.id, "dataset_name": "digits", "number": "1"}},
        )
        expect(page.get_by_role("link", name="prepare, succeeded")).to_be_visible()
        expect(page.get_by_text("The job succeeded.")).to_be_visible()
        page.get_by_role("link", name="Data", exact=True).click()
        page.get_by_role("link", name="digits:1").click()
        expect(page.get_by_role("heading", name="digits version 1")).to_be_visible()
        expect(page.get_by_role("link", name="train #1")).to_be_visible()


def test_a_waiting_job_says_why_and_a_run_is_cancelled_from_its_page(board: Dashboard, browser: Browser) -> None:
    run = board.submit(board.project("tour"))

    with browsing(browser) as page:
        sign_in(page, board)
        page.goto(f"{board.url}/projects/tour/runs/train/1?job=train")
        expect(page.get_by_text("It waits for prepare.")).to_be_visible()
        board.begin(run, "prepare")
        page.get_by_role("button", name="Cancel").click()
        board_ended = page.locator("#live .pill").first
        board.end_cancelled(run)
        expect(board_ended).to_have_text("cancelled")
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)


def test_a_page_left_open_after_the_session_ended_leads_to_the_sign_in_and_back(
    board: Dashboard, browser: Browser
) -> None:
    project = board.project("tour")

    with browsing(browser, expected=("Failed to load resource", "Response Status Error Code 401")) as page:
        sign_in(page, board)
        page.goto(f"{board.url}/projects/tour")
        expect(page.get_by_text("No run yet")).to_be_visible()
        board.submit(project)
        expect(page.get_by_role("link", name="train #1")).to_be_visible()
        with board.house.db.write() as tx:
            accounts.end_sessions(tx, accounts.get_user(tx, board.boss.user_id))
        board.submit(project)
        page.wait_for_url("**/login?next=%2Fprojects%2Ftour")


def test_files_are_browsed_and_previewed_and_never_become_our_page(
    board: Dashboard, browser: Browser, files: Path
) -> None:
    project = board.project("tour")
    board.dataset(project, files)
    (files / "table.csv").write_text("label,a\n8,0.25\n")
    board.dataset(project, files)

    with browsing(browser) as page:
        sign_in(page, board)
        page.goto(f"{board.url}/datasets/digits/versions/2")
        page.get_by_role("link", name="deep/").click()
        page.get_by_role("link", name="notes.txt").click()
        expect(page.get_by_text("<script>alert(1)</script> & more")).to_be_visible()
        page.goto(f"{board.url}/datasets/digits/versions/2/file?path=table.csv")
        expect(page.get_by_role("columnheader", name="label")).to_be_visible()
        page.goto(f"{board.url}/datasets/digits/versions/2/file?path=page.png")
        expect(page.get_by_text("<html><script>alert(1)</script></html>")).to_be_visible()
        page.goto(f"{board.url}/datasets/digits/versions/2")
        page.get_by_label("New tag").fill("best")
        page.get_by_role("button", name="Add").click()
        expect(page.get_by_role("button", name="Remove the tag best")).to_be_visible()
        page.get_by_role("link", name="Compare with 1").click()
        expect(page.get_by_role("row", name="changed table.csv")).to_be_visible()


def test_keys_and_links_are_shown_once(board: Dashboard, browser: Browser) -> None:
    with browsing(browser) as page:
        sign_in(page, board)
        page.goto(f"{board.url}/settings/keys")
        page.get_by_label("Name").fill("laptop")
        page.get_by_role("button", name="Make a key").click()
        expect(page.locator(".secret pre")).to_contain_text("grad_")
        page.reload()
        expect(page.get_by_role("cell", name="laptop")).to_be_visible()
        expect(page.locator(".secret")).to_have_count(0)
        page.get_by_role("button", name="Revoke").click()
        expect(page.get_by_role("cell", name="laptop")).to_have_count(0)
        page.goto(f"{board.url}/settings/members")
        page.get_by_label("Invite").fill("eve@x.org")
        page.get_by_role("button", name="Make a link").click()
        expect(page.locator(".secret pre")).to_contain_text("/accept?token=")


def test_a_model_is_deployed_from_its_page_and_the_deployment_says_that_nothing_serves_yet(
    board: Dashboard, browser: Browser, files: Path
) -> None:
    project = board.project("tour")
    model, _ = board.model(project, files, {"accuracy": 0.5})
    board.model(project, files, {"accuracy": 0.98})

    with browsing(browser) as page:
        sign_in(page, board)
        page.goto(f"{board.url}/models/{model.id}")
        expect(page.get_by_role("columnheader", name="accuracy")).to_be_visible()
        page.get_by_text("Deploy", exact=True).first.click()
        page.get_by_role("button", name="Deploy").click()
        page.wait_for_url("**/deployments/*")
        expect(page.get_by_text("Nothing serves at the moment")).to_be_visible()
        page.get_by_role("link", name="Keys").click()
        page.get_by_label("Name").fill("shop")
        page.get_by_role("button", name="Make a key").click()
        expect(page.locator(".secret pre")).to_contain_text("dep_")
        page.get_by_role("link", name="Settings").last.click()
        page.get_by_label("Model version").select_option("1")
        page.get_by_role("button", name="Roll out").click()
        page.get_by_role("link", name="History").click()
        expect(page.get_by_role("row")).to_have_count(3)
        page.get_by_role("button", name="Roll back").click()
        expect(page.get_by_role("row")).to_have_count(4)

    with board.house.db.read() as r:
        (made,) = deployments.list_deployments(r, board.boss).items
        assert made.latest is not None
        assert made.latest.config["modelVersion"] == models.get_model(r, board.boss, model.id).latest.number


def test_everything_important_works_without_scripts(board: Dashboard, browser: Browser) -> None:
    with browsing(browser, scripts=False) as page:
        sign_in(page, board)
        page.get_by_text("New project", exact=True).click()
        page.get_by_label("Name").fill("plain")
        page.get_by_role("button", name="Create").click()
        page.wait_for_url("**/projects/plain")
        page.goto(f"{board.url}/projects/plain/settings")
        page.get_by_label("Name").fill("plainer")
        page.get_by_role("button", name="Rename").click()
        page.wait_for_url("**/projects/plainer/settings")
        page.get_by_text("Delete the project…").click()
        expect(page.get_by_text("with its repository, 0 deployments")).to_be_visible()
        page.get_by_role("button", name="Delete the project").click()
        page.wait_for_url(f"{board.url}/")
        expect(page.get_by_text("No project yet")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/login")


def test_every_page_fits_a_phone_and_has_a_title(board: Dashboard, browser: Browser, files: Path) -> None:
    project = board.project("a-project-with-a-name-that-is-rather-long-for-a-phone")
    run = board.submit(project, name="a-workflow-with-a-long-name")
    board.begin(run, "prepare")
    board.end(run, "prepare", problem="It exited with code 3; its log says why.")
    board.dataset(project, files, run)
    model, _ = board.model(project, files, {"accuracy": 0.98})
    with board.house.db.write() as tx:
        config = {"name": "digits", "model": model.id}
        made = deployments.apply(tx, board.boss, project_id=project.id, config=config)
    at = f"/projects/{project.name}"
    tabs = ["", "/workflows", "/models", "/deployments", "/data", "/settings"]
    run_page = f"{at}/runs/a-workflow-with-a-long-name/1"
    data = "/datasets/digits/versions/1"
    pages = [
        "/",
        *(at + tab for tab in tabs),
        *(run_page + more for more in ("", "?tab=data", "?tab=file")),
        *("/datasets", "/datasets/digits", data, f"{data}/file?path=table.csv", f"{data}/file?path=deep/notes.txt"),
        *("/models", f"/models/{model.id}", f"/models/{model.id}/versions/1"),
        *(f"/deployments/{made.id}?tab={tab}" for tab in ("overview", "try", "history", "keys", "log", "settings")),
        *("/settings/members", "/settings/keys", "/settings/machine"),
    ]

    with browsing(browser, PHONE) as page:
        sign_in(page, board)
        for address in pages:
            page.goto(board.url + address)
            assert page.title().endswith(" · Appliance"), address
            assert len(page.title()) > len(" · Appliance"), address
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0], f"{address} scrolls sideways"


def test_a_page_that_is_not_there_and_one_that_is_not_ours_to_see_say_the_same(
    board: Dashboard, browser: Browser
) -> None:
    board.project("secret")

    with browsing(browser, expected=("Failed to load resource",)) as page:
        page.goto(f"{board.url}/projects/secret?tab=x")
        assert page.url == f"{board.url}/login?next=%2Fprojects%2Fsecret%3Ftab%3Dx"
        sign_in(page, board, "ana@x.org")
        for name in ("secret", "missing"):
            page.goto(f"{board.url}/projects/{name}")
            expect(page.get_by_role("heading", name="Not here")).to_be_visible()
            expect(page.get_by_text(f"There is no project '{name}'")).to_be_visible()
