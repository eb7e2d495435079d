"""What is wrong is said in one clear sentence, where the person looks, and nothing else is harmed by it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from journeys.stories import BASE, Repository, push_url, run_now, script
from running import APPLIANCED, Running
from waiting import wait_until

from appliance.errors import ParseError, Unauthorized

pytestmark = pytest.mark.docker

PUSHED = "on: {github: {branches: {only: main}}}\n"


@pytest.fixture(scope="module")
def repository(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    with running.client() as client:
        client.projects.create("bad")
    made = Repository(tmp_path_factory.mktemp("copy") / "bad")
    made.git("remote", "add", "origin", push_url(running, "bad"))
    return made


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            PUSHED + "jobs:\n  a:\n    uses: script@v1\n   with: {}\n",
            ".gradient/workflows/train.yaml, line 5: ",
        ),
        (
            PUSHED + "jobs:\n  a:\n    uses: fly@v9\n",
            ".gradient/workflows/train.yaml, line 4, jobs.a.uses: ",
        ),
        (
            PUSHED
            + script("a", "true", "{out: {type: dataset, with: {ref: d}}}")
            + script("b", "true", more="    inputs: {d: a.outputs.out}\n").removeprefix("jobs:\n"),
            ".gradient/workflows/train.yaml, line 16, jobs.b.inputs.d: ",
        ),
    ],
)
def test_a_broken_workflow_is_a_failed_run_that_names_file_line_and_key_to_its_pusher_and_ever_after(
    running: Running, repository: Repository, text: str, sentence: str
) -> None:
    repository.write(".gradient/workflows/train.yaml", text)
    commit = repository.commit("broken")

    shown = repository.git("push", "origin", "main")

    (row,) = running.rows('SELECT * FROM runs WHERE "commit" = ?', commit)
    lines = [line.removeprefix("remote: ").strip() for line in shown.splitlines() if line.startswith("remote:")]
    assert lines[0].startswith(f"train: run {row['number']} failed: https://")
    assert lines[1].startswith(sentence)
    run = running.finished(row["id"])
    assert (run["status"]["phase"], run["status"]["message"]) == ("Failed", lines[1])
    assert "\n" not in row["message"]


def test_asked_by_hand_the_broken_workflow_is_refused_with_the_same_sentence(
    running: Running, repository: Repository
) -> None:
    with running.client() as client, pytest.raises(ParseError, match=r"line 3, jobs\.a\.uses: .*fly@v9"):
        client.runs.submit("bad", spec_text="jobs:\n  a:\n    uses: fly@v9\n", name="w")


@pytest.mark.parametrize(
    ("text", "reason", "sentence"),
    [
        (script("a", "echo so far; exit 3"), "exit_code", "a: It exited with code 3; its log says why."),
        (
            script("a", "true", "{out: {type: dataset, with: {ref: d}}}"),
            "output_missing",
            "a: The job wrote nothing into /outputs/out; an output has to hold at least one file.",
        ),
        (
            script("a", "true").replace(BASE, "no.such.registry.invalid/thing:1"),
            "image",
            "a: ",
        ),
        (
            script("a", "true", more="    inputs: {d: {type: dataset, with: {ref: nowhere}}}\n"),
            "input_missing",
            "a: There is no dataset 'nowhere' that you can see.",
        ),
    ],
    ids=["exit 3", "no output", "no image", "no input"],
)
def test_a_job_that_fails_says_why_in_one_sentence_and_the_run_repeats_it(
    running: Running, repository: Repository, text: str, reason: str, sentence: str
) -> None:
    run = run_now(running, "bad", text)

    assert run["status"]["phase"] == "Failed"
    assert run["status"]["message"].startswith(sentence)
    assert run["status"]["message"] == f"a: {run['status']['jobs']['a']['message']}"
    assert "\n" not in run["status"]["message"]
    assert running.rows("SELECT reason FROM jobs WHERE run_id = ?", run["uuid"]) == [{"reason": reason}]
    if reason == "image":
        assert "no.such.registry.invalid/thing:1" in run["status"]["message"]
    if reason == "exit_code":
        assert running.log_text(run["uuid"], "a") == "so far"
    assert running.rows("SELECT 1 FROM versions") == []


def test_a_wrong_api_key_is_refused_by_the_api_and_by_git(running: Running, repository: Repository) -> None:
    wrong = "grad_aaaaaaaa_" + "b" * 43
    repository.commit("never arrives")

    shown = repository.git("push", push_url(running, "bad", wrong), "main", must=False)

    assert "Authentication failed" in shown or "could not read Username" in shown
    with running.client(wrong) as client, pytest.raises(Unauthorized) as refused:
        list(client.projects.list())
    assert refused.value.message.count(".") <= 2
    assert "key" in refused.value.message
    said = httpx.get(f"{running.url}/v1/projects", headers={"Authorization": f"Bearer {wrong}"})
    assert (said.status_code, said.json()["code"]) == (401, "UNAUTHORIZED")


def test_a_second_daemon_on_the_same_data_ends_and_names_the_first(running: Running) -> None:
    second = subprocess.run(
        [str(APPLIANCED), "run"], env=running.environment, capture_output=True, text=True, timeout=20
    )

    holder = running.processes["run"].pid
    assert second.returncode == 1
    assert f"is in use by another applianced (process {holder}); stop that one first" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    assert running.is_healthy()


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 160 MiB, mounted."""
    image, at = tmp_path / "disk.img", tmp_path / "disk"
    at.mkdir()
    subprocess.run(["truncate", "-s", "160M", str(image)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(at)], check=True)
    yield at
    subprocess.run(["umount", "--lazy", str(at)], check=True)


@pytest.fixture
def cramped(engine: None, small_disk: Path, tmp_path: Path) -> Iterator[Running]:
    house = Running(tmp_path / "house", data_dir=str(small_disk / "data"), free_floor_mib=8)
    house.data = small_disk / "data"
    try:
        house.start()
        yield house
    except BaseException:
        print(house.story())
        raise
    finally:
        house.destroy()


def test_on_a_full_disk_a_job_fails_with_the_sentence_and_all_goes_on_when_there_is_room_again(
    cramped: Running, small_disk: Path
) -> None:
    with cramped.client() as client:
        client.projects.create("cramped")
    kept = script("a", "echo kept > /outputs/out/a", "{out: {type: dataset, with: {ref: d}}}")
    assert run_now(cramped, "cramped", kept)["status"]["phase"] == "Succeeded"

    # The job itself fills the disk: what it wrote is refused, and its sentence says what to do.
    greedy = script(
        "a",
        "dd if=/dev/urandom of=/outputs/out/large bs=1M count=400 2> /dev/null || true",
        "{out: {type: dataset, with: {ref: d}}}",
    )
    run = run_now(cramped, "cramped", greedy, name="greedy")
    assert run["status"]["phase"] == "Failed"
    assert "The disk" in run["status"]["message"]
    assert cramped.rows("SELECT reason FROM jobs WHERE run_id = ?", run["uuid"]) == [{"reason": "disk_full"}]

    # Somebody else fills it to the last byte: what is asked is refused in a sentence, what was acknowledged stays.
    with cramped.client() as client:
        wait_until(lambda: not list((cramped.data / "work").iterdir()), 10, "the job's folder is gone")
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while file.write(os.urandom(size)):
                        pass
                except OSError:
                    continue
        assert client.datasets.read("d", "1", "a") == b"kept\n"
        refused = httpx.post(
            f"{cramped.url}/v1/projects",
            json={"name": "x" * 60},
            headers={"Authorization": f"Bearer {cramped.key}"},
            timeout=30,
        )
        assert refused.status_code in (200, 507)
        if refused.status_code == 507:
            assert "full" in refused.json()["message"]
        assert client.datasets.read("d", "1", "a") == b"kept\n"

    ballast.unlink()

    assert run_now(cramped, "cramped", kept, name="again", within_s=60)["status"]["phase"] == "Succeeded"
    assert cramped.processes["run"].poll() is None
    with cramped.client() as client:
        assert [version["number"] for version in client.datasets.versions("d")] == [2, 1]
