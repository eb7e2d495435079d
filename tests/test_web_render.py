"""The contract with Gradient's published clients: the keys of each shape, required and optional, as they were recorded."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.config import Config
from appliance.records import (
    Attempt,
    Collaborator,
    Container,
    ContainerSpec,
    Dataset,
    Deployment,
    DeploymentSpec,
    Job,
    LogLine,
    Model,
    Page,
    Project,
    Role,
    Run,
    User,
    Version,
    Workflow,
)
from appliance.states import AttemptState, JobState, RunState, Seen, SpecState, VersionState, Want
from appliance.web import render

pytestmark = pytest.mark.fast

NOW = "2030-01-01T00:00:00.000Z"
CONFIG = Config(host_name="gpu.test")
USER = User("u1", "ana@x.org", Role.ADMIN, NOW, None)
VERSION = Version(
    id="v1",
    owner_kind="dataset",
    owner_id="ds1",
    number=1,
    state=VersionState.COMMITTED,
    root="b3:0",
    file_count=1,
    size_bytes=11,
    added_bytes=11,
    message="m",
    metadata={},
    tags=("t",),
    created_by="ana@x.org",
    created_at=NOW,
    committed_at=NOW,
    run_id=None,
    job=None,
)
DATASET = Dataset("ds1", "digits", None, False, None, "ana@x.org", NOW, NOW, VERSION)
MODEL = Model("mo1", "net", "ONNX", None, False, None, "ana@x.org", NOW, NOW, None)
WORKFLOW = Workflow("w1", "p1", "train", None, NOW, NOW)
ATTEMPT = Attempt("a1", "j1", 1, AttemptState.QUEUED, None, None, None, None, "No card is free.", NOW, None, None)
JOB = Job("j1", "r1", "train", "script@v1", (), JobState.ACTIVE, None, None, {}, NOW, NOW, None, (ATTEMPT,))
RUN = Run(
    id="r1",
    workflow_id="w1",
    project_id="p1",
    number=3,
    state=RunState.RUNNING,
    message=None,
    ref="refs/heads/main",
    commit="0" * 40,
    commit_message="first",
    spec_text='{"jobs": {}}',
    inputs={},
    started_by="ana@x.org",
    push_id=None,
    created_at=NOW,
    started_at=NOW,
    finished_at=None,
    jobs=(JOB,),
)
SPEC = DeploymentSpec(
    "s1", "d1", 1, SpecState.SERVING, {"model": "net"}, "v1", 1, None, None, "ana@x.org", NOW, NOW, NOW, None
)
DEPLOYMENT = Deployment("d1", "p1", "net", True, 9400, "ana@x.org", NOW, SPEC, SPEC)
CONTAINER = Container(
    id="c1",
    kind="replica",
    owner_id="s1",
    project_id="p1",
    spec=ContainerSpec("c1", "replica", "serving", "i", None, None, {}, (), 1.0, 512),
    want=Want.RUNNING,
    seen=Seen.RUNNING,
    grace_s=1.0,
    engine_id="e",
    exit_code=None,
    out_of_memory=False,
    error=None,
    created_at=NOW,
    started_at=NOW,
    finished_at=None,
    lease_id=None,
)

# Gradient's required keys of each shape; what we add beside them is ours.
SHAPES: list[tuple[str, dict[str, Any], str]] = [
    ("Session", render.session(USER), "team user"),
    ("Session.team", render.session(USER)["team"], "analyticsId id isPrivate maxMachines namespace"),
    (
        "Session.user",
        render.session(USER)["user"],
        "analyticsId dtConfirmed dtCreated email firstName id isPasswordAuthEnabled isPhoneVerified "
        "isQrCodeBasedMfaConfirmed isQrCodeBasedMfaEnabled lastName metadata preferences teamMemberships",
    ),
    (
        "Session.user.teamMemberships",
        render.session(USER)["user"]["teamMemberships"][0]["team"],
        "dtCreated id isUserTeam name namespace",
    ),
    ("Page", render.page(Page((DATASET,), None), render.dataset), "items hasMore nextPage"),
    ("TeamUser", render.member(USER), "isAdmin isOwner user"),
    ("Project", render.project(Project("p1", "alpha", "ana@x.org", NOW), CONFIG), "dtCreated id name repoName repoUrl"),
    ("Collaborator", render.collaborator(Collaborator("p1", USER, NOW)), "dtCreated user"),
    (
        "Dataset",
        render.dataset(DATASET),
        "description dtCreated dtModified id isPublic name storageProviderId teamId",
    ),
    (
        "DatasetVersion",
        render.version(VERSION),
        "datasetId dtCreated dtModified isCommitted message metadata tags url usageBytes userId version",
    ),
    (
        "Model",
        render.model(MODEL),
        "description dtCreated dtModified id isPublic name projectId storageProviderId teamId",
    ),
    ("Workflow", render.workflow(WORKFLOW), "dtCreated dtModified id name"),
    ("WorkflowRun", render.run(RUN, "train", "alpha", CONFIG, with_spec=True), "cluster id meta spec status uuid"),
    ("RunStatus", render.run_status(RUN), "phase logId started jobs"),
    ("RunStatus.job", render.job(JOB), "phase logId started outputs needs uses wait"),
    ("JobLog", render.job_log(JOB, "r1", ()), "dtCreated id logs name phase workflowRunId"),
    (
        "LogLine",
        render.job_log(JOB, "r1", [LogLine(0, NOW, "stdout", "hi")])["logs"][0],
        "dtCreated id jobId message",
    ),
    (
        "Deployment",
        render.deployment(
            DEPLOYMENT, url="https://gpu.test/serving/d1", local_url="http://127.0.0.1:9400", model_name=None
        ),
        "dtCreated endpoint id latestSpec name projectId teamId",
    ),
    ("DeploymentSpec", render.spec(SPEC), "data deploymentId dtHealthy error externalApplied id metadata userId"),
    (
        "DeploymentRun",
        render.deployment_run("s1", 1, [CONTAINER]),
        "availableReplicas id instances readyReplicas replicas",
    ),
    ("DeploymentRun.instance", render.instance(CONTAINER), "dtCreated history id instanceId state"),
]


@pytest.mark.parametrize("name, shown, keys", SHAPES, ids=[name for name, _, _ in SHAPES])
def test_a_shape_has_the_keys_that_gradients_clients_read(name: str, shown: dict[str, Any], keys: str) -> None:
    assert set(keys.split()) <= set(shown)
    # A success that has the keys code and message and at most three in all is taken for an error.
    assert not ({"code", "message"} <= set(shown) and len(shown) <= 3)


def test_times_that_are_not_known_are_left_out_where_gradient_leaves_them_out() -> None:
    assert "finished" not in render.run_status(RUN)
    assert "dtDeleted" not in render.member(USER)
    assert "dtFinished" not in render.instance(CONTAINER)


def test_bytes_are_text_and_numbers_are_numbers() -> None:
    assert render.version(VERSION)["usageBytes"] == "11"
    assert render.run(RUN, "train", "alpha", CONFIG)["id"] == 3
    assert render.deployment_run("s1", 1, [CONTAINER])["readyReplicas"] == 1


@pytest.mark.parametrize("config", [CONFIG, Config(host_name="::1"), Config(host_name="gpu", https_port=443)])
def test_links_begin_with_the_dashboards_best_address(config: Config) -> None:
    assert render.base_url(config) == config.dashboard_urls()[0]


def test_an_endpoint_has_no_scheme_since_clients_put_one_before_it() -> None:
    shown = render.deployment(DEPLOYMENT, url="https://gpu.test/serving/d1", local_url="x", model_name=None)

    assert shown["endpoint"] == "gpu.test/serving/d1"


@pytest.mark.parametrize(
    "text, shown",
    [
        (None, None),
        ('{"jobs": {"a": {"timeout": 5}}}', {"jobs": {"a": {"timeout": 5}}}),
        ("on:\n  x: true\nn: 010\nf: 1.5\nl: [a, null]\n", {"on": {"x": True}, "n": 10, "f": 1.5, "l": ["a", None]}),
        ("a: [", None),
    ],
)
def test_a_stored_spec_is_shown_as_json_whatever_it_was_written_in(text: str | None, shown: Any) -> None:
    assert render.spec_json(text) == shown


@pytest.mark.parametrize(
    "change, state",
    [
        ({}, "running"),
        ({"seen": Seen.CREATED}, "pending"),
        ({"seen": Seen.EXITED, "exit_code": 1}, "failed"),
        ({"error": "The image is missing."}, "failed"),
        ({"want": Want.GONE}, "stopping"),
        ({"want": Want.GONE, "seen": Seen.REMOVED}, "stopped"),
    ],
)
def test_an_instances_state_is_one_word(change: dict[str, Any], state: str) -> None:
    from dataclasses import replace

    assert render.instance(replace(CONTAINER, **change))["state"] == state
