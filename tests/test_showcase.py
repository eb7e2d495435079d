"""The showcase does what its README says: in the image that its jobs name, and as the daemon reads its workflow."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import appliance
from appliance import workflows

DIGITS = Path(appliance.__file__).parent / "showcase" / "digits"
WORKFLOW = ".gradient/workflows/train.yaml"
IMAGE = "appliance/datascience:latest"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `digits` and `digits-model` as the jobs prepare and train leave them, made twice."""
    folder = tmp_path_factory.mktemp("showcase")
    shutil.copytree(DIGITS, folder / "repo")
    script = (
        "set -e; TIMEFORMAT='%U'; for n in 1 2; do python /w/repo/prepare.py /w/$n/digits >/dev/null;"
        " { time python /w/repo/train.py /w/$n/digits /w/$n/digits-model 2>/dev/null; } 2> /w/$n/cpu_s; done"
    )
    command = ["docker", "run", "--rm", "--network", "none", "--label", "appliance.test=1", "-v", f"{folder}:/w"]
    done = subprocess.run([*command, IMAGE, "bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stderr}\n(the image is built by install.sh)"
    return folder


@pytest.mark.fast
def test_the_workflow_is_what_the_daemon_understands() -> None:
    plan = workflows.parse((DIGITS / WORKFLOW).read_bytes(), WORKFLOW)

    assert list(plan.jobs) == ["checkout", "prepare", "train", "register", "deploy"]
    assert {job.uses for job in plan.jobs.values()} == {
        "git-checkout@v1",
        "script@v1",
        "create-model@v1",
        "deploy@v1",
    }


@pytest.mark.fast
def test_the_readme_names_every_job_and_no_other() -> None:
    rows = [line for line in (DIGITS / "README.md").read_text().splitlines() if line.startswith("| `")]

    assert [row.split("`")[1] for row in rows] == list(workflows.parse((DIGITS / WORKFLOW).read_bytes(), WORKFLOW).jobs)


@pytest.mark.docker
def test_the_same_push_trains_the_same_model(made: Path) -> None:
    def digests(folder: Path) -> dict[str, str]:
        files = [*(folder / "digits").iterdir(), *(folder / "digits-model").iterdir()]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert digests(made / "1") == digests(made / "2")
    assert set(digests(made / "1")) == {
        "train.csv",
        "test.csv",
        "held-out.csv",
        "model.onnx",
        "gradient-model-metadata.json",
    }


@pytest.mark.docker
def test_it_learns_well_and_fast_and_says_so(made: Path) -> None:
    metadata = json.loads((made / "1" / "digits-model" / "gradient-model-metadata.json").read_text())
    metrics = {each["name"]: each["numberValue"] for each in metadata["metrics"]}

    assert metrics["accuracy"] >= 0.95
    assert min(float((made / n / "cpu_s").read_text()) for n in "12") < 6  # 2.0 s of processor time when idle


@pytest.mark.docker
def test_no_digit_is_in_two_of_the_files(made: Path) -> None:
    parts = [
        (made / "1" / "digits" / f"{name}.csv").read_text().splitlines()[1:] for name in ("train", "test", "held-out")
    ]

    assert [len(part) for part in parts] == [1400, 347, 50]
    rows = [row for part in parts for row in part]
    assert len(set(rows)) == len(rows)


@pytest.mark.docker
def test_the_model_reads_every_held_out_digit(made: Path) -> None:
    """The tour's exit code hangs on one of them."""
    session = onnxruntime.InferenceSession(made / "1" / "digits-model" / "model.onnx")
    rows = list(csv.reader((made / "1" / "digits" / "held-out.csv").read_text().splitlines()))[1:]
    images = np.array([row[1:] for row in rows], np.float32)
    expected = np.array([int(row[0]) for row in rows])

    label, probability = session.run(["label", "probability"], {"image": images})

    assert [(each.name, each.shape, each.type) for each in session.get_inputs()] == [
        ("image", [None, 64], "tensor(float)")
    ]
    assert (label.dtype, probability.dtype, probability.shape) == (np.int64, np.float32, (50, 10))
    assert (label == expected).all()
    assert probability[np.arange(50), expected].min() > 0.6
    assert np.bincount(expected).tolist() == [5] * 10
