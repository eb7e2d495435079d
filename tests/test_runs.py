"""The course of runs: what happens when jobs end in every way there is, and after a restart at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from bench_of import Bench
from web_support import person

from appliance import clock, datasets, deployments, leases, machine, models, projects, runs, versions
from appliance.db import Database
from appliance.errors import BadRequest, Conflict, NotFound, ParseError
from appliance.records import Run
from appliance.repos import Repos
from appliance.store import Store

pytestmark = pytest.mark.fast

# The memory engine's programs run only what the test tells them to; `sleep` waits for the test's word.
WAIT = "sleep 600"


def script(name: str, outputs: str = "", needs: str = "", inputs: str = "", more: str = "") -> str:
    return (
        f"  {name}:\n    uses: container@v1\n    with: {{image: 'appliance/datascience:latest', "
        f"command: [sh, -c], args: ['{WAIT}']}}\n"
        + (f"    needs: [{needs}]\n" if needs else "")
        + (f"    inputs: {inputs}\n" if inputs else "")
        + (f"    outputs: {outputs}\n" if outputs else "")
        + more
    )


ONE = "jobs:\n" + script("make", "{out: {type: dataset, with: {ref: digits}}}")
CHAIN = ONE + script("use", needs="make", inputs="{data: make.outputs.out}")


@pytest.fixture
def bench(tmp_path: Path, db: Database, store: Store, repos: Repos) -> Iterator[Bench]:
    made = Bench(tmp_path, db, store, repos, person(db, "ana@example.org"))
    yield made
    made.close()
    assert made.failures == []


def test_a_job_that_succeeds_commits_what_it_wrote_and_the_next_reads_it(bench: Bench) -> None:
    run = bench.start(CHAIN)
    (bench.outputs(run, "make") / "out" / "a.txt").write_text("hello")
    bench.finish(run, "make")

    use = bench.container_of(run, "use")

    spec = bench.world.boxes["bench", use].spec
    mount = next(mount for mount in spec.mounts if mount.target == "/inputs/data")
    assert (Path(mount.source) / "a.txt").read_text() == "hello"
    assert mount.read_only
    with bench.db.read() as reader:
        dataset, version = datasets.resolve(reader, bench.actor, "digits")
        assert (dataset.project_id, version.number, version.run_id, version.job) == (
            bench.project.id,
            1,
            run.id,
            "make",
        )
    with bench.db.write() as tx, pytest.raises(Conflict, match=r"job use of run 1 reads it"):
        datasets.delete_version(tx, bench.actor, "digits", "1")
    bench.finish(run, "use")
    done = bench.ended(run)
    assert (done.state, [job.state for job in done.jobs]) == ("succeeded", ["succeeded", "succeeded"])
    with bench.db.write() as tx:
        assert leases.list_open(tx) == []
        datasets.delete_version(tx, bench.actor, "digits", "1")
    assert list(bench.config.work_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("exit_code", "how", "reason", "sentence"),
    [
        (3, {}, "exit_code", "It exited with code 3; its log says why."),
        (127, {}, "exit_code", "the command was not found in the image"),
        (137, {"out_of_memory": True}, "out_of_memory", "It ran out of memory: its limit is 2048 MiB"),
    ],
)
def test_a_job_that_fails_commits_nothing_and_what_needs_it_is_skipped(
    bench: Bench, exit_code: int, how: dict[str, bool], reason: str, sentence: str
) -> None:
    run = bench.start(CHAIN)
    (bench.outputs(run, "make") / "out" / "a.txt").write_text("hello")

    bench.finish(run, "make", exit_code, **how)

    done = bench.ended(run)
    make, use = done.jobs
    assert (done.state, make.state, make.reason, use.state) == ("failed", "failed", reason, "skipped")
    assert sentence in (make.message or "")
    assert (done.message or "").startswith("make: ")
    with bench.db.read() as reader:
        assert versions.live_roots(reader) == []


@pytest.mark.parametrize(
    ("outputs", "write", "sentence"),
    [
        ("{out: {type: dataset, with: {ref: d}}}", None, "wrote nothing into /outputs/out"),
        ("{out: {type: volume}}", None, "wrote nothing into /outputs/out"),
        ("{note: {type: string}}", None, "wrote no file /outputs/note"),
        ("{note: {type: string}}", ("note", b"\xff\xfe"), "is not UTF-8 text"),
        ("{note: {type: string}}", ("note", b"x" * 70000), "more than 64 KiB"),
    ],
)
def test_a_job_without_its_output_fails_and_says_which(
    bench: Bench, outputs: str, write: tuple[str, bytes] | None, sentence: str
) -> None:
    run = bench.start("jobs:\n" + script("make", outputs))
    if write:
        (bench.outputs(run, "make") / write[0]).write_bytes(write[1])

    bench.finish(run, "make")

    done = bench.ended(run)
    assert done.jobs[0].state == "failed"
    assert sentence in (done.jobs[0].message or "")


def test_a_link_in_place_of_an_output_is_not_followed(bench: Bench) -> None:
    run = bench.start("jobs:\n" + script("make", "{note: {type: string}, out: {type: dataset, with: {ref: d}}}"))
    folder = bench.outputs(run, "make")
    (folder / "note").symlink_to("/etc/shadow")
    (folder / "out" / "x").write_text("x")

    bench.finish(run, "make")

    done = bench.ended(run)
    assert done.jobs[0].state == "failed"
    assert "wrote no file /outputs/note" in (done.jobs[0].message or "")
    with bench.db.read() as reader:
        assert versions.live_roots(reader) == []


def test_strings_and_volumes_reach_the_next_job(bench: Bench) -> None:
    text = (
        "inputs:\n  greeting: {type: string, with: {value: hi}}\njobs:\n"
        + script("make", "{note: {type: string}, tools: {type: volume}}")
        + script(
            "use", needs="make", inputs="{n: make.outputs.note, t: make.outputs.tools, g: workflow.inputs.greeting}"
        )
    )
    run = bench.start(text, inputs={"greeting": {"value": "good day"}})
    folder = bench.outputs(run, "make")
    (folder / "note").write_text("42\n")
    (folder / "tools" / "x").write_text("tool")
    bench.finish(run, "make")

    mounts = {mount.target: mount for mount in bench.world.boxes["bench", bench.container_of(run, "use")].spec.mounts}

    assert Path(mounts["/inputs/n"].source).read_text() == "42"
    assert Path(mounts["/inputs/g"].source).read_text() == "good day"
    assert (Path(mounts["/inputs/t"].source) / "x").read_text() == "tool"
    assert all(mounts[f"/inputs/{name}"].read_only for name in "ntg")
    bench.finish(run, "use")
    bench.ended(run)
    bench.turn()
    assert list(bench.config.volumes_dir.iterdir()) == []


def test_independent_jobs_run_side_by_side(bench: Bench) -> None:
    run = bench.start("jobs:\n" + script("left") + script("right"))

    bench.container_of(run, "left")
    bench.container_of(run, "right")

    assert {job.state for job in bench.run(run).jobs} == {"active"}


def test_a_cancelled_run_stops_what_runs_starts_nothing_and_commits_nothing(bench: Bench) -> None:
    run = bench.start(CHAIN)
    (bench.outputs(run, "make") / "out" / "a.txt").write_text("hello")

    with bench.db.write() as tx:
        runs.cancel(tx, bench.actor, run.id)

    done = bench.ended(run)
    assert (done.state, [job.state for job in done.jobs]) == ("cancelled", ["cancelled", "cancelled"])
    assert done.message == "Cancelled by ana@example.org."
    with bench.db.write() as tx:
        assert versions.live_roots(tx) == []
        assert leases.list_open(tx) == []
        with pytest.raises(Conflict, match="has ended already"):
            runs.cancel(tx, bench.actor, run.id)
    bench.until(lambda: not bench.world.boxes, "no container is left")


def test_a_cancel_that_comes_while_it_waits_for_a_lease_leaves_nothing(bench: Bench) -> None:
    run = bench.start(ONE)
    runs.settle(bench.db)
    with bench.db.read() as reader:
        (attempt,) = runs.pending(reader)
    runs.prepare(bench.shop, attempt.id)

    with bench.db.write() as tx:
        runs.cancel(tx, bench.actor, run.id)

    assert bench.ended(run).state == "cancelled"
    assert not bench.world.boxes


def test_a_job_that_runs_longer_than_its_timeout_is_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench.start("jobs:\n" + script("make", more="    timeout: 60\n"))
    bench.container_of(run, "make")
    later = clock.now().timestamp() + 61
    real = clock.now

    monkeypatch.setattr(clock, "now", lambda: max(real(), real().fromtimestamp(later, real().tzinfo)))

    done = bench.ended(run)
    assert (done.jobs[0].state, done.jobs[0].reason) == ("failed", "timeout")


def test_an_image_that_cannot_be_had_fails_the_job_with_the_engines_sentence(bench: Bench) -> None:
    run = bench.start("jobs:\n  a: {uses: container@v1, with: {image: 'no/such:1'}}\n")

    done = bench.ended(run)

    assert (done.jobs[0].state, done.jobs[0].reason) == ("failed", "image")
    assert "no/such:1" in (done.jobs[0].message or "")
    with bench.db.read() as reader:
        assert leases.list_open(reader) == []


def test_an_image_that_a_registry_has_is_pulled_and_the_log_says_so(bench: Bench) -> None:
    bench.world.pullable.add("far/away:1")
    run = bench.start(
        f"jobs:\n  a: {{uses: container@v1, with: {{image: 'far/away:1', command: [sh, -c], args: ['{WAIT}']}}}}\n"
    )

    container = bench.container_of(run, "a")

    assert any("Pulled far/away:1" in line.text for line in bench.logs.read(container))


def test_an_input_that_is_not_there_fails_the_job_and_names_it(bench: Bench) -> None:
    run = bench.start("jobs:\n" + script("a", inputs="{d: {type: dataset, with: {ref: nowhere}}}"))

    done = bench.ended(run)

    assert (done.jobs[0].reason, done.jobs[0].message) == (
        "input_missing",
        "There is no dataset 'nowhere' that you can see.",
    )


def test_a_container_that_somebody_removed_fails_its_job_as_lost(bench: Bench) -> None:
    run = bench.start(ONE)
    bench.world.lose(bench.container_of(run, "make"))

    done = bench.ended(run)

    assert (done.jobs[0].state, done.jobs[0].reason) == ("failed", "lost")


def test_an_engine_that_breaks_down_and_comes_back_loses_nothing(bench: Bench) -> None:
    run = bench.start(ONE)
    (bench.outputs(run, "make") / "out" / "a").write_text("x")
    bench.world.break_down()
    for _ in range(3):
        bench.turn()
    assert bench.reconciler.problem is not None

    bench.world.break_down(False)
    bench.finish(run, "make")

    assert bench.ended(run).state == "succeeded"


def test_a_restart_at_every_step_changes_nothing_in_the_end(bench: Bench) -> None:
    run = bench.start(CHAIN)
    for name in ("make", "use"):
        for _ in range(2):
            bench.close()
            bench.open()
            bench.turn()
        if name == "make":
            (bench.outputs(run, "make") / "out" / "a").write_text("x")
        bench.finish(run, name)
        bench.close()
        bench.open()

    done = bench.ended(run)

    assert done.state == "succeeded"
    assert [len(job.attempts) for job in done.jobs] == [1, 1]
    with bench.db.read() as reader:
        assert len(datasets.list_versions(reader, bench.actor, "digits").items) == 1


def test_what_ended_while_nobody_looked_is_collected(bench: Bench) -> None:
    run = bench.start(ONE)
    (bench.outputs(run, "make") / "out" / "a").write_text("x")
    container = bench.container_of(run, "make")
    bench.close()
    bench.world.finish(container)
    bench.open()

    assert bench.ended(run).state == "succeeded"


def test_collecting_again_after_a_crash_makes_no_second_version(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench.start(ONE)
    (bench.outputs(run, "make") / "out" / "a").write_text("x")
    bench.finish(run, "make")
    from appliance.runs import course

    real = course.finish
    monkeypatch.setattr(course, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bench.ended(run)
    monkeypatch.setattr(course, "finish", real)

    done = bench.ended(run)

    assert done.state == "succeeded"
    with bench.db.read() as reader:
        assert len(datasets.list_versions(reader, bench.actor, "digits").items) == 1


def test_a_model_is_made_of_a_dataset_version_with_its_metrics(bench: Bench) -> None:
    run = bench.start(
        ONE
        + "  register:\n    uses: create-model@v1\n    needs: [make]\n    with: {name: digits, type: ONNX}\n"
        + "    inputs: {model: make.outputs.out}\n    outputs: {model-id: {type: string}}\n"
    )
    folder = bench.outputs(run, "make") / "out"
    (folder / "model.onnx").write_text("x")
    (folder / models.METADATA_FILE).write_text('{"metrics": [{"name": "accuracy", "numberValue": 0.5}]}')
    bench.finish(run, "make")

    done = bench.ended(run)

    assert done.state == "succeeded"
    with bench.db.read() as reader:
        model, version = models.resolve(reader, bench.actor, done.jobs[1].outputs["model-id"]["value"])
        _, source = datasets.resolve(reader, bench.actor, "digits")
    assert (model.name, model.model_type, version.metadata["metrics"]) == ("digits", "ONNX", {"accuracy": 0.5})
    assert version.root == source.root
    assert version.metadata["dataset_version"] == source.id


def test_a_workflow_that_cannot_run_here_is_refused_with_line_and_key(bench: Bench) -> None:
    text = "jobs:\n" + script("a", more="    resources: {instance-type: P4000}\n")

    with pytest.raises(BadRequest, match=r"jobs\.a\.resources: There is no machine type 'P4000' here"):
        runs.submit(bench.db, bench.repos, bench.actor, project_id=bench.project.id, spec_text=text, name="w")
    failed = bench.start(text)

    assert failed.state == "failed"
    assert "P4000" in (failed.message or "")


def test_a_run_that_would_write_to_a_dataset_of_others_is_refused_before_anything_runs(bench: Bench) -> None:
    bob = person(bench.db, "bob@example.org")
    with bench.db.write() as tx:
        other = projects.create(tx, bob, "speech")
        datasets.create(tx, bob, name="digits", project_id=other.id)

    failed = bench.start(ONE)

    assert (failed.state, failed.jobs) == ("failed", ())
    assert (
        "w.yaml, line 2, jobs.make.outputs.out: The dataset name 'digits' is taken by a project that you cannot see"
        in (failed.message or "")
    )


def test_a_run_is_started_from_a_spec_and_again_from_its_workflow(bench: Bench) -> None:
    spec = {"true": None, "jobs": {"a": {"uses": "container@v1", "with": {"image": "x"}}}}
    first = runs.submit(bench.db, bench.repos, bench.actor, project_id=bench.project.id, spec=spec, name="w")
    with bench.db.write() as tx:
        stored = runs.create_workflow(tx, bench.actor, project_id=bench.project.id, name="kept", spec_text=ONE)

    second = runs.submit(bench.db, bench.repos, bench.actor, project_id=bench.project.id, workflow_id=stored.id)

    assert (first.number, second.number, second.workflow_id) == (1, 1, stored.id)
    with pytest.raises(ParseError):
        runs.submit(bench.db, bench.repos, bench.actor, project_id=bench.project.id, spec_text="jobs: 3", name="w")
    with pytest.raises(BadRequest, match="Say what to run"):
        runs.submit(bench.db, bench.repos, bench.actor, project_id=bench.project.id)


def test_runs_are_for_the_projects_people(bench: Bench) -> None:
    run: Run = bench.start(ONE)
    bob = person(bench.db, "bob@example.org")

    with bench.db.read() as reader:
        assert runs.list_runs(reader, bob).items == ()
        assert [one.id for one in runs.list_runs(reader, bench.actor).items] == [run.id]
        with pytest.raises(NotFound):
            runs.get_run(reader, bob, run.id)
        with pytest.raises(NotFound):
            runs.list_workflows(reader, bob, bench.project.id)


def test_a_run_is_deleted_only_when_it_has_ended_and_its_number_stays_used(bench: Bench) -> None:
    run = bench.start(ONE)
    with bench.db.write() as tx, pytest.raises(Conflict, match="cancel it first"):
        runs.delete(tx, bench.actor, run.id)
    with bench.db.write() as tx:
        runs.cancel(tx, bench.actor, run.id)
    bench.ended(run)

    with bench.db.write() as tx:
        runs.delete(tx, bench.actor, run.id)

    assert bench.start(ONE).number == 2


def test_a_container_whose_run_was_deleted_goes_and_holds_nobody_up(bench: Bench) -> None:
    bench.config = replace(bench.config, container_retention_s=3600)
    bench.close()
    bench.open()
    run = bench.start("jobs:\n" + script("make"))
    bench.finish(run, "make")
    bench.ended(run)
    assert bench.world.boxes

    with bench.db.write() as tx:
        runs.delete(tx, bench.actor, run.id)

    bench.until(lambda: not bench.world.boxes, "the container is removed")
    later = bench.start("jobs:\n" + script("make"))
    bench.finish(later, "make")
    assert bench.ended(later).state == "succeeded"


# -- found by a sceptical reader ---------------------------------------------------------------------------------------


def test_a_workflow_in_flow_style_runs_as_any_other(bench: Bench) -> None:
    run = bench.start(
        "{jobs: {a: {uses: container@v1, with: {image: 'appliance/datascience:latest', command: [sh, -c], args: ['sleep 600']},"
        " env: {VERSION: 1.10}}}}"
    )

    container = bench.container_of(run, "a")

    assert bench.world.boxes["bench", container].spec.env["VERSION"] == "1.10"
    bench.finish(run, "a")
    assert bench.ended(run).state == "succeeded"


def test_a_run_whose_spec_was_spoilt_fails_and_holds_no_other_up(bench: Bench) -> None:
    bad, good = bench.start(ONE), bench.start("jobs:\n" + script("make"))
    with bench.db.write() as tx:
        tx.run("UPDATE runs SET spec_text = 'jobs: [' WHERE id = ?", bad.id)

    bench.finish(good, "make")

    assert bench.ended(good).state == "succeeded"
    assert "cannot be read any more" in (bench.ended(bad).message or "")


def test_an_ask_that_waits_wakes_nobody(bench: Bench) -> None:
    capacity = machine.cores() * machine.CPU_SHARES
    bench.start("jobs:\n" + "".join(script(f"j{number}") for number in range(capacity + 1)))
    for _ in range(4):
        bench.turn()
    heard: list[int] = []
    bench.db.on_commit(lambda: heard.append(1))

    for _ in range(5):
        bench.turn()

    assert heard == []


REGISTER = (
    "  register:\n    uses: create-model@v1\n    with: {name: digits, type: ONNX}\n    inputs: {model: INPUT}\n"
    "    outputs: {model-id: {type: string}}\n"
)
DEPLOY = (
    "  deploy:\n    uses: deploy@v1\n    needs: [register]\n    with: {name: digits}\n"
    "    inputs: {model: register.outputs.model-id}\n"
)


def deploying(bench: Bench, more: str = "") -> Run:
    """A run whose deploy job waits for its roll-out."""
    text = (
        ONE + REGISTER.replace("INPUT", "make.outputs.out").replace("with:", "needs: [make]\n    with:") + DEPLOY + more
    )
    run = bench.start(text)
    (bench.outputs(run, "make") / "out" / "model.onnx").write_text("x")
    bench.finish(run, "make")
    bench.until(lambda: [one.state for one in bench.job(run, "deploy").attempts] == ["running"], "it rolls out")
    return run


def test_a_deploy_job_whose_deployment_is_deleted_fails_and_says_so(bench: Bench) -> None:
    run = deploying(bench)
    with bench.db.write() as tx:
        deployment = deployments.find_by_name(tx, bench.actor, bench.project.id, "digits")
        deployments.delete(tx, bench.actor, deployment.id)

    done = bench.ended(run)

    assert (done.jobs[-1].state, done.jobs[-1].message) == ("failed", "The deployment was deleted before it served.")


def test_a_cancelled_deploy_job_does_not_deploy(bench: Bench) -> None:
    run = deploying(bench)

    with bench.db.write() as tx:
        runs.cancel(tx, bench.actor, run.id)

    assert bench.ended(run).state == "cancelled"
    with bench.db.read() as reader:
        deployment = deployments.find_by_name(reader, bench.actor, bench.project.id, "digits")
    assert deployment.latest is not None
    assert (deployment.latest.state, deployment.latest.error) == ("failed", "Cancelled by ana@example.org.")


def test_a_deploy_job_obeys_its_timeout(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = deploying(bench, "    timeout: 30\n")
    real = clock.now
    monkeypatch.setattr(clock, "now", lambda: real() + timedelta(seconds=31))

    assert (bench.ended(run).jobs[-1].reason) == "timeout"


def test_a_workflows_timeout_ends_jobs_that_only_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench.start("timeout: 60\n" + ONE)
    runs.settle(bench.db)
    real = clock.now
    monkeypatch.setattr(clock, "now", lambda: real() + timedelta(seconds=61))

    done = bench.ended(run)

    assert (done.state, done.jobs[0].reason) == ("failed", "timeout")


def test_what_is_not_committed_is_no_input_and_no_model(bench: Bench) -> None:
    with bench.db.write() as tx:
        dataset = datasets.create(tx, bench.actor, name="draft")
        datasets.create_version(tx, bench.actor, dataset.id)
    run = bench.start("jobs:\n" + script("a", inputs="{d: {type: dataset, with: {ref: 'draft:1'}}}"))

    assert "is not committed yet; commit it first" in (bench.ended(run).jobs[0].message or "")


def test_an_action_without_its_optional_input_fails_and_says_so(bench: Bench) -> None:
    run = bench.start("jobs:\n" + REGISTER.replace("INPUT", "{type: dataset, optional: true, with: {ref: nowhere}}"))

    done = bench.ended(run)

    assert done.jobs[0].state == "failed"
    assert "cannot do without it" in (done.jobs[0].message or "")


def test_a_job_that_was_cancelled_while_its_image_came_never_runs(bench: Bench) -> None:
    bench.world.pullable.add("far/away:1")
    run = bench.start("jobs:\n  a: {uses: container@v1, with: {image: 'far/away:1'}}\n")
    real = bench.engine.pull

    def pull(name: str, progress: object = None) -> None:
        with bench.db.write() as tx:
            runs.cancel(tx, bench.actor, run.id)
        real(name)

    bench.engine.pull = pull  # type: ignore[method-assign,assignment]

    assert bench.ended(run).state == "cancelled"
    assert bench.world.created == 0
