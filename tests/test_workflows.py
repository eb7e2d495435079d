"""Workflows: what Gradient's examples mean here, and a sentence with line and key for everything that is wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance import workflows as wf
from appliance.errors import BadRequest, ParseError
from appliance.states import JobState

pytestmark = pytest.mark.fast

PATH = ".gradient/workflows/train.yaml"

WHOLE = """\
on: {github: {branches: {only: main}}}
defaults:
  clusterId: clg07azjl
  env: {HELLO: hello, EPOCHS: "1"}
  resources: {instance-type: P4000, container-registries: [my-registry]}
inputs:
  data: {type: dataset, with: {ref: test-one}}
  echo: {type: string,  with: {value: "hello world"}}
  more: {type: dataset, optional: true}
jobs:
  checkout:
    resources: {instance-type: C4}
    uses: git-checkout@v1
    with: {url: context.event.github.url, ref: context.event.github.ref}
    outputs: {repo: {type: volume}}
  train:
    needs: [checkout]
    inputs: {repo: checkout.outputs.repo, data: workflow.inputs.data, echo: workflow.inputs.echo}
    env: {EPOCHS: 1.10, YES: yes, ON: true}
    uses: script@v1
    timeout: 3600
    with:
      image: tensorflow/tensorflow:2.4.1-jupyter
      script: |-
        cp -R /inputs/repo /w && cd /w && python train.py --data /inputs/data
        echo ${#x} ${x:-$y} $(cat /inputs/echo) > /outputs/note
    outputs:
      trained-model: {type: dataset, with: {ref: fashion-mnist}}
      note: {type: string}
  upload:
    needs: train
    inputs: {model: train.outputs.trained-model}
    uses: create-model@v1
    with: {name: trained-model, type: tensorflow}
    outputs: {model-id: {type: string}}
  serve:
    needs: [upload]
    inputs: {model: upload.outputs.model-id}
    uses: deploy@v1
    with: {name: digits, replicas: 2, machineType: C4, threads: 4}
    outputs: {deployment: {type: string}}
"""


def job(text: str, more: str = "") -> str:
    """A workflow of one script job `a`; the keys in `text` stand from line 4 on."""
    lines = "".join(f"    {line}\n" for line in text.splitlines())
    return f"jobs:\n  a:\n    uses: script@v1\n{lines}    with: {{script: echo}}\n{more}"


def problems(text: str | bytes) -> list[str]:
    """All sentences, without the path that each of them begins with."""
    with pytest.raises(ParseError) as caught:
        wf.parse(text, PATH)
    assert caught.value.message == caught.value.issues[0]
    assert all(issue.startswith(PATH) and "\n" not in issue for issue in caught.value.issues)
    return [issue.removeprefix(PATH + ", ") for issue in caught.value.issues]


# -- what is good ------------------------------------------------------------------------------------------------------


def test_gradients_reference_example_becomes_a_plan() -> None:
    plan = wf.parse(WHOLE, PATH)

    assert (plan.name, plan.path, plan.machine_type) == ("train", PATH, "P4000")
    assert plan.triggers == wf.Triggers(wf.Filter(("main",), ()), None)
    assert plan.inputs["data"] == wf.InputDecl(wf.IOType.DATASET, "test-one", None, False)
    assert plan.container_registries == ("my-registry",)
    assert list(plan.jobs) == ["checkout", "train", "upload", "serve"]

    checkout, train = plan.jobs["checkout"], plan.jobs["train"]
    assert checkout.with_ == wf.GitCheckout(wf.CONTEXT_URL, wf.CONTEXT_REF, None, None, "repo", "")
    assert checkout.machine_type == "C4"
    assert train.inputs == {
        "repo": wf.Reference("job_output", "checkout", "repo"),
        "data": wf.Reference("workflow_input", None, "data"),
        "echo": wf.Reference("workflow_input", None, "echo"),
    }
    assert (train.needs, train.timeout_s, train.machine_type, train.line) == (("checkout",), 3600, "P4000", 16)
    assert train.outputs["trained-model"] == wf.OutputDecl(wf.IOType.DATASET, "fashion-mnist")
    assert plan.jobs["upload"].with_ == wf.CreateModel("trained-model", "Tensorflow")
    assert plan.jobs["serve"].with_ == wf.Deploy("digits", 2, "C4", 4)


def test_scalars_stay_as_they_are_written() -> None:
    plan = wf.parse(WHOLE, PATH)

    assert plan.jobs["train"].env == {"HELLO": "hello", "EPOCHS": "1.10", "YES": "yes", "ON": "true"}


def test_a_script_is_taken_letter_for_letter() -> None:
    script = wf.parse(WHOLE, PATH).jobs["train"].with_

    assert isinstance(script, wf.Script)
    assert script.script.splitlines()[1] == "echo ${#x} ${x:-$y} $(cat /inputs/echo) > /outputs/note"


def test_a_script_without_an_image_runs_in_the_default_image() -> None:
    assert wf.parse(job(""), PATH).jobs["a"].with_ == wf.Script("echo", wf.DEFAULT_IMAGE)


@pytest.mark.parametrize(
    ("written", "command", "args"),
    [
        ("command: python train.py 'a b'", ("python", "train.py", "a b"), ()),
        ("command: [ls, -al]", ("ls", "-al"), ()),
        ("args: ['-', 1, 1.10, true]", None, ("-", "1", "1.10", "true")),
        ("", None, ()),
    ],
)
def test_a_containers_command_and_arguments(
    written: str, command: tuple[str, ...] | None, args: tuple[str, ...]
) -> None:
    text = f"jobs:\n  a:\n    uses: container@v1\n    with:\n      image: ubuntu:24.04\n      {written}\n"

    assert wf.parse(text, PATH).jobs["a"].with_ == wf.Container("ubuntu:24.04", command, args)


def test_a_checkout_without_a_url_means_the_projects_own_repository() -> None:
    text = "jobs: {a: {uses: git-checkout@v1, outputs: {repo: {type: volume}, x: {type: string}}}}"

    found = wf.parse(text, PATH).jobs["a"].with_

    assert found == wf.GitCheckout(None, None, None, None, "repo", "")
    assert found.is_own


def test_a_checkout_can_go_into_a_folder_of_an_output() -> None:
    text = (
        "jobs: {a: {uses: git-checkout@v1, with: {url: 'https://example.org/x.git', ref: v1, username: me, password: pw,"
        " path: /outputs/two/src/}, outputs: {one: {type: volume}, two: {type: dataset, with: {id: d}}}}}"
    )

    assert wf.parse(text, PATH).jobs["a"].with_ == wf.GitCheckout(
        "https://example.org/x.git", "v1", "me", "pw", "two", "src"
    )


def test_a_name_and_a_file_name() -> None:
    assert wf.parse(job("", "name: Train it\n"), PATH).name == "Train it"
    assert wf.parse(job(""), "dir/nightly.yml").name == "nightly"


def test_a_spec_that_came_as_json_gives_the_same_plan() -> None:
    spec = yaml.load(WHOLE, yaml.BaseLoader)
    spec["jobs"]["train"]["timeout"] = 3600
    spec["jobs"]["serve"]["with"] |= {"replicas": 2, "threads": 4}
    spec["inputs"]["more"]["optional"] = True

    plan = wf.parse_mapping(spec, PATH)

    written = wf.parse(WHOLE, PATH)
    assert {name: one.with_ for name, one in plan.jobs.items()} == {
        name: one.with_ for name, one in written.jobs.items()
    }
    assert (plan.triggers, plan.inputs) == (written.triggers, written.inputs)


@pytest.mark.parametrize("key", ["true", True, "on"])
def test_json_of_a_client_that_read_on_as_true_is_understood(key: Any) -> None:
    spec = {
        key: {"github": {"branches": {"only": "main"}}},
        "jobs": {"a": {"uses": "script@v1", "with": {"script": "x"}}},
    }

    assert wf.triggers_on(wf.parse_mapping(spec, "spec"), "refs/heads/main")


def test_json_that_is_wrong_names_the_key() -> None:
    for spec, sentence in [
        ({"jobs": {"a": {"uses": "x@v1"}}}, "spec, jobs.a.uses: names the unknown action 'x@v1'"),
        ({"jobs": {"a": {"uses": b"x"}}}, "spec, jobs.a.uses: is a bytes, which a workflow cannot hold."),
        (
            {"jobs": {"a": {"uses": "script@v1", "with": {"script": "a\0b"}}}},
            "spec, jobs.a.with.script: holds a character",
        ),
        ({"timeout": 10**5000}, "spec, timeout: is a int, which a workflow cannot hold."),
        ({"name": "x" * 300_000}, "spec, name: is larger than 256 KiB"),
    ]:
        with pytest.raises(ParseError) as caught:
            wf.parse_mapping(spec, "spec")
        assert caught.value.message.startswith(sentence)


# -- what is wrong -----------------------------------------------------------------------------------------------------

NEEDLESS = "jobs: {a: {uses: script@v1, with: {script: x}, outputs: {o: {type: string}}},\n"

WRONG = {
    # the text
    "": "line 1: is empty; a workflow has at least a job under 'jobs:'.",
    "# nothing\n": "line 1: is empty; a workflow has at least a job under 'jobs:'.",
    "jobs": "line 1: must be a table with 'jobs:' in it, not the text 'jobs'.",
    "name: x\n": "line 1: has no jobs; write at least one under 'jobs:'.",
    "jobs:\n": "line 1, jobs: is empty; write at least one job.",
    "jobs: []\n": "line 1, jobs: must be a table of keys and values, not a list.",
    "jobs: {}\n---\na: 1\n": "line 2: begins a second document ('---'); one file holds one workflow.",
    "\ufeffjobs: {}\n": "line 1: begins with a byte order mark; save the file as UTF-8 without one.",
    "jobs:\n\ta: 1\n": "line 2: has a tab where YAML wants spaces; indent with spaces only.",
    "a:\n  b: &x 1\n  c: *x\n": "line 2, a.b: sets the anchor '&x'; anchors are not allowed here.",
    "a:\n  c: *x\n": "line 2, a.c: uses the alias '*x'; aliases are not allowed here.",
    "a: !!python/object:os.system x\n": "line 1, a: has the tag 'tag:yaml.org,2002:python/object:os.syste'; tags are not",
    "a:\n  <<: {b: 1}\n": "line 2, a: uses the merge key '<<'; write the keys out.",
    "a:\n  b: 1\n  c: 2\n  b: 3\n": "line 4, a.b: stands here a second time (first on line 2); keep one.",
    "a: b: c\n": "line 1: is not valid YAML: mapping values are not allowed in this context.",
    "a: [1, 2\n": "line 2: is not valid YAML: did not find expected ',' or ']', while parsing a flow sequence.",
    "a: 'x\n": "line 2: is not valid YAML: found unexpected end of stream, while scanning a quoted scalar.",
    "a: \x07\n": "line 1: holds the control character U+0007; remove it.",
    "? [a]\n: b\n": "line 1: has a list or table as a key; keys are plain words.",
    '"": b\n': "line 1: has an empty key; write a word before ':'.",
    "a: " + "[" * 40 + "]" * 40: "line 1: is nested more than 32 levels deep.",
    # keys
    "job:\n  a: 1\n": "line 1, job: is not a known key (did you mean 'jobs'?).",
    job("neds: b"): "line 4, jobs.a.neds: is not a known key (did you mean 'needs'?).",
    job("privileged: true"): "line 4, jobs.a.privileged: is not a known key; known here: needs, uses, with, env,",
    job("").replace("{script", "{Script"): "line 4, jobs.a.with.Script: is not a known key (did you mean 'script'?).",
    # jobs
    "jobs: {a: }\n": "line 1, jobs.a: names no action; add 'uses:', one of container@v1, script@v1,",
    "jobs: {a b: {uses: script@v1, with: {script: x}}}\n": "line 1, jobs.a b: is no name for a job; use at most 100",
    "jobs: {workflow: {uses: script@v1, with: {script: x}}}\n": "line 1, jobs.workflow: is a reserved name, since",
    job("needs: b"): "line 4, jobs.a.needs: names 'b', but there is no such job.",
    job("needs: aa", "  ab: {uses: script@v1, with: {script: x}}\n"): "line 4, jobs.a.needs: names 'aa', but there is no",
    job("needs: a"): "line 4, jobs.a.needs: makes a circle: a needs a; take one of them out.",
    job("needs: b", "  b: {needs: c, uses: script@v1, with: {script: x}}\n  c: {needs: [a], uses: script@v1, with: {script: x}}\n"): (
        "line 4, jobs.a.needs: makes a circle: a needs b needs c needs a; take one of them out."
    ),
    job("needs: [b, b]", "  b: {uses: script@v1, with: {script: x}}\n"): "line 4, jobs.a.needs: names 'b' twice; keep one.",
    job("needs: {b: 1}"): "line 4, jobs.a.needs: must be a list, not a table.",
    job("timeout: soon"): "line 4, jobs.a.timeout: must be seconds, a whole number from 1 to 2592000.",
    job("timeout: 1.5"): "line 4, jobs.a.timeout: must be seconds, a whole number from 1 to 2592000.",
    job("resources: {instance-type: C4, machineType: C4}"): "line 4, jobs.a.resources.machineType: says the same as",
    job("resources: {instance-type: a b}"): "line 4, jobs.a.resources.instance-type: 'a b' is no machine type's name.",
    # env
    job("env: {A: secret:KEY}"): "line 4, jobs.a.env.A: names the secret 'KEY'; secrets come later, until then write",
    job("env: {1A: x}"): "line 4, jobs.a.env.1A: is no name of an environment variable; use letters, digits and '_'",
    job("env: {APPLIANCE_X: x}"): "line 4, jobs.a.env.APPLIANCE_X: is reserved; names that begin with APPLIANCE_ are",
    job("env: {A: }"): 'line 4, jobs.a.env.A: has no value; write one ("" for an empty text).',
    job("env: {A: [1]}"): "line 4, jobs.a.env.A: must be a text, not a list.",
    job("env: {A: '${{ secrets.X }}'}"): "line 4, jobs.a.env.A: holds an expression '${{ … }}'; nothing is substituted",
    "defaults: {env: [a]}\n" + job(""): "line 1, defaults.env: must be a table of keys and values, not a list.",
    # inputs
    job("inputs: {x: b.outputs.o}", "  b: {uses: script@v1, with: {script: x}, outputs: {o: {type: string}}}\n"): (
        "line 4, jobs.a.inputs.x: refers to 'b', which is not in needs; add it there."
    ),
    job("inputs: {x: c.outputs.o}", "  b: {uses: script@v1, with: {script: x}, outputs: {o: {type: string}}}\n"): (
        "line 4, jobs.a.inputs.x: refers to 'c', but there is no such job."
    ),
    job("needs: b\ninputs:\n  x: b.outputs.oo", "  b: {uses: script@v1, with: {script: x}, outputs: {oof: {type: string}}}\n"): (
        "line 6, jobs.a.inputs.x: refers to 'oo', which is no output of 'b' (did you mean 'oof'?)."
    ),
    "inputs: {data: {type: string}}\n" + job("inputs: {x: workflow.inputs.dat}"): (
        "line 5, jobs.a.inputs.x: refers to the workflow's input 'dat', which is not declared (did you mean 'data'?)."
    ),
    job("inputs: {x: data}"): "line 4, jobs.a.inputs.x: 'data' is no reference; write workflow.inputs.NAME or JOB.outputs.NAME.",
    job("inputs: {x: '${{ b.outputs.o }}'}"): "line 4, jobs.a.inputs.x: holds an expression '${{ … }}'; here a reference is",
    job("inputs: {x: {type: dataset, with: {ref: b.outputs.o}}}"): (
        "line 4, jobs.a.inputs.x.with.ref: 'b.outputs.o' is a reference, not a dataset; write it alone, as NAME: b.outputs.o."
    ),
    job("inputs: {x: {type: dataset}}"): "line 4, jobs.a.inputs.x: names no dataset; add with: {ref: NAME}.",
    job("inputs: {x: {type: string}}"): "line 4, jobs.a.inputs.x: has no value; add with: {value: TEXT}.",
    job("inputs: {x: {type: volume}}"): "line 4, jobs.a.inputs.x: is a volume, which lives within one run; make it as a",
    job("inputs: {x: {type: alias}}"): "line 4, jobs.a.inputs.x.type: 'alias' is no type",
    job("inputs: {x: {with: {ref: d}}}"): "line 4, jobs.a.inputs.x: has no type; write type: dataset, volume or string.",
    job("inputs: {x: }"): "line 4, jobs.a.inputs.x: has no value; write a table with 'type:', or a reference.",
    job("inputs: {x: {type: dataset, with: {ref: d, id: d}}}"): "line 4, jobs.a.inputs.x.with.id: says the same as 'ref'",
    job("inputs: {x: {type: dataset, with: {ref: 'a b'}}}"): "line 4, jobs.a.inputs.x.with.ref: 'a b' cannot be the name of a dataset",
    job("inputs: {x: {type: dataset, with: {ref: d}, optional: 1}}"): "line 4, jobs.a.inputs.x.optional: must be true or false.",
    # outputs
    job("outputs: {x: {type: dataset}}"): "line 4, jobs.a.outputs.x: names no dataset; add with: {ref: NAME}, it is created",
    job("outputs: {x: {type: dataset, with: {ref: 'd:v1'}}}"): "line 4, jobs.a.outputs.x.with.ref: 'd:v1' names a version,",
    job("outputs: {x: {type: strng}}"): "line 4, jobs.a.outputs.x.type: 'strng' is no type (did you mean 'string'?).",
    job("outputs: {x: }"): "line 4, jobs.a.outputs.x: has no type; write type: dataset, volume or string.",
    job("outputs: {x: {type: string, with: {ref: d}}}"): "line 4, jobs.a.outputs.x.with.ref: is not a known key",
    job("outputs: {../x: {type: string}}"): "line 4, jobs.a.outputs.../x: is no name for an output; use at most 100",
    # actions
    "jobs: {a: {uses: scrip@v1}}\n": "line 1, jobs.a.uses: names the unknown action 'scrip@v1' (did you mean 'script@v1'?).",
    "jobs: {a: {uses: s3-download@v1, with: {url: x}}}\n": (
        "line 1, jobs.a.uses: is the action 's3-download@v1', which is not there yet; download in a script@v1 job until then."
    ),
    "jobs:\n  a:\n    uses: script@v1\n": "line 2, jobs.a.with: needs 'script', for example script: echo hello.",
    "jobs:\n  a:\n    uses: script@v1\n    with: {script: }\n": "line 4, jobs.a.with.script: has no value; write one",
    "jobs: {a: {uses: script@v1, with: {script: 'echo ${{ inputs.x }}'}}}\n": (
        "line 1, jobs.a.with.script: holds the expression '${{ inputs.…'; nothing is substituted in a script, read /inputs/NAME"
    ),
    "jobs: {a: {uses: script@v1, with: {script: x, image: -v}}}\n": "line 1, jobs.a.with.image: '-v' is no image's name;",
    "jobs: {a: {uses: container@v1}}\n": "line 1, jobs.a.with: needs 'image', for example image: ubuntu:24.04.",
    "jobs: {a: {uses: container@v1, with: {image: x, command: \"a 'b\"}}}\n": "line 1, jobs.a.with.command: has a quote that",
    "jobs: {a: {uses: container@v1, with: {image: x, args: a}}}\n": "line 1, jobs.a.with.args: must be a list, not the text 'a'.",
    "jobs: {a: {uses: git-checkout@v1}}\n": "line 1, jobs.a: is a checkout without a place for the files; give it an output",
    "jobs: {a: {uses: git-checkout@v1, outputs: {x: {type: volume}, y: {type: volume}}}}\n": (
        "line 1, jobs.a: has 2 outputs; say with 'path: /outputs/NAME' which one takes the files."
    ),
    "jobs: {a: {uses: git-checkout@v1, with: {path: /outputs/x/../y}, outputs: {x: {type: volume}}}}\n": (
        "line 1, jobs.a.with.path: must be /outputs/NAME or a folder in it, where NAME is one of x."
    ),
    "jobs: {a: {uses: git-checkout@v1, with: {url: 'ext::sh -c x'}, outputs: {x: {type: volume}}}}\n": (
        "line 1, jobs.a.with.url: 'ext::sh -c x' is no address that git can fetch from; write https://, http://, git://"
    ),
    "jobs: {a: {uses: git-checkout@v1, with: {ref: --upload-pack=x}, outputs: {x: {type: volume}}}}\n": (
        "line 1, jobs.a.with.ref: '--upload-pack=x' is no branch, tag or commit."
    ),
    "jobs: {a: {uses: git-checkout@v1, with: {password: secret:PW}, outputs: {x: {type: volume}}}}\n": (
        "line 1, jobs.a.with.password: names the secret 'PW'; secrets come later, until then write the value itself."
    ),
    NEEDLESS + " m: {needs: a, inputs: {model: a.outputs.o}, uses: create-model@v1, with: {name: m, type: ONNX}}}\n": (
        "line 2, jobs.m.inputs.model: is a string, but must be a dataset: the dataset that holds the model's files."
    ),
    NEEDLESS + " m: {needs: a, inputs: {modl: a.outputs.o}, uses: create-model@v1, with: {name: m, type: ONNX}}}\n": (
        "line 2, jobs.m.inputs.modl: is not an input of this action; it takes 'model' alone."
    ),
    "jobs: {m: {uses: create-model@v1, with: {name: m, type: Onyx}}}\n": (
        "line 1, jobs.m.with.type: 'Onyx' is no type of model; use one of Tensorflow, ONNX, Custom."
    ),
    "jobs: {m: {uses: deploy@v1, with: {replicas: 2}}}\n": "line 1, jobs.m.with: needs 'name', for example name: my-deployment.",
    "jobs: {m: {uses: deploy@v1, with: {name: d, replicas: 17}}}\n": (
        "line 1, jobs.m.with.replicas: must be how many replicas run, a whole number from 1 to 16."
    ),
    "jobs: {m: {uses: deploy@v1, with: {name: d}}}\n": "line 1, jobs.m: lacks the input 'model': the id of a model, such as",
    "jobs: {m: {uses: deploy@v1, with: {name: d}, inputs: {model: {type: dataset, with: {ref: d}}}}}\n": (
        "line 1, jobs.m.inputs.model: is a dataset, but must be a string: the id of a model, such as the output model-id"
    ),
    "jobs: {m: {uses: deploy@v1, with: {name: d}, inputs: {model: {type: string, with: {value: m}}}, outputs: {x: {type: string}}}}\n": (
        "line 1, jobs.m.outputs.x: is not an output of this action; it gives 'deployment' alone."
    ),
    # on
    "on: schedule\n" + job(""): "line 1, on: 'schedule' starts nothing here; write 'push' or a table with 'push:'",
    "on: {pushes: {}}\n" + job(""): "line 1, on.pushes: is not a known key (did you mean 'push'?).",
    "on: {push: , github: }\n" + job(""): "line 1, on.push: means the same as 'github'; keep one of the two.",
    "on: {push: {branches: []}}\n" + job(""): "line 1, on.push.branches: names nothing; write a name or a pattern such as",
    "on: {push: {branches: {only: a, include: b}}}\n" + job(""): "line 1, on.push.branches.only: stands alone; put it into",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_each_mistake_has_its_sentence_with_line_and_key(text: str) -> None:
    assert problems(text)[0].startswith(WRONG[text])


def test_all_mistakes_are_named_at_once_by_line() -> None:
    text = WHOLE.replace("needs: [checkout]", "neds: [checkout]").replace("script@v1", "scrip@v1").replace("C4", "C 4")

    found = problems(text)

    assert [issue.split(": ")[0] for issue in found] == [
        "line 12, jobs.checkout.resources.instance-type",
        "line 17, jobs.train.neds",
        "line 18, jobs.train.inputs.repo",
        "line 20, jobs.train.uses",
        "line 40, jobs.serve.with.machineType",
    ]


def test_a_sentence_is_one_line_and_smuggles_nothing_to_a_terminal() -> None:
    text = '"a\\nb\\e[31m": {x: 1}\njobs: {a: {uses: "x\\e]0;y\\a"}}\n'

    assert problems(text) == [
        "line 1, a b?[31m: is not a known key; known here: name, on, context, defaults, inputs, jobs, timeout.",
        "line 2, jobs.a.uses: must be on one line.",
    ]


def test_a_password_is_not_shown_with_its_plan() -> None:
    text = "jobs: {a: {uses: git-checkout@v1, with: {password: hunter2}, outputs: {x: {type: volume}}}}"

    assert "hunter2" not in repr(wf.parse(text, PATH))


def test_bytes_that_are_no_text_name_their_line() -> None:
    assert problems(b"jobs:\n  a: \xff\n") == ["line 2: is not UTF-8 text; save the file as UTF-8."]


BOMBS = {
    "aliases": "a: &a [x,x]\n" + "".join(f"b{n}: &b{n} [*a,*a]\n" for n in range(50)),
    "flow nesting": "[" * 5000,
    "map nesting": "{a: " * 5000,
    "block nesting": "".join(" " * n + "a:\n" for n in range(500)),
    "dash nesting": "- " * 100_000,
    "ten megabytes": "a: " + "x" * 10_000_000,
    "many keys": "".join(f"k{n}: 1\n" for n in range(20_000)),
    "many unknown keys in a job": job("\n".join(f"x{n}: 1" for n in range(9_000))),
    "many jobs": "jobs:\n" + "".join(f"  j{n}: {{needs: j{n + 1}}}\n" for n in range(2_000)),
    "two hundred jobs with wrong needs": "jobs:\n"
    + "".join(f"  job{n}: {{needs: [jab{n}, jib{n}]}}\n" for n in range(200)),
    "a long chain": "jobs:\n" + "".join(f"  j{n}: {{uses: script@v1, needs: [j{n + 1}]}}\n" for n in range(199)),
    "long key": "x" * 260_000 + ": 1\n",
    "long value": job("needs: " + "y" * 200_000),
    "long line of words": "a: " + "x y " * 60_000,
    "colons": "a:" * 100_000,
    "question marks": "? " * 100_000,
    "quotes": "'" * 200_000,
    "hashes": "#\n" * 120_000,
    "anchors": "&a " * 80_000,
    "commas": "[" + "," * 200_000,
    "wide list": "a: [" + "1," * 100_000,
    "escapes": 'a: "' + "\\x41" * 60_000 + '"\n',
    "tags": "!a " * 60_000,
    "globs": "on: {push: {branches: ['" + "*a" * 120 + "']}}\n" + job("").replace("uses", "use"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_with_a_line_in_under_a_fifth_of_a_second(name: str) -> None:
    took = []
    for _ in range(3):  # the best of three: a collection of the whole process's garbage may fall into one
        began = time.process_time()
        found = problems(BOMBS[name])
        took.append(time.process_time() - began)

    assert min(took) < 0.2
    assert found[0].startswith("line ")
    assert len(found) <= 50
    assert all(len(issue) < 600 for issue in found)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300) | st.binary(max_size=300))
@example("\x00")
@example("a: \ud800")
@example("%YAML 9.9\n---\n")
@example("%TAG ! x\n--- !a b")
@example("--- |\n x\n...\n...")
def test_any_text_at_all_gives_a_parse_error_and_nothing_else(text: str | bytes) -> None:
    with pytest.raises(ParseError):
        wf.parse(text, PATH)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, len(WHOLE)),
    st.integers(0, 30),
    st.sampled_from(
        ["", " ", "\n", "{", "]", ": ", "- ", "x", "'", '"', "1", "&a ", "null", "\n  jobs:", "train", "[]", "{}"]
    ),
)
def test_a_slip_of_the_hand_gives_a_plan_or_sentences(place: int, length: int, slip: str) -> None:
    text = WHOLE[:place] + slip + WHOLE[place + length :]
    issues: tuple[str, ...] = ()
    try:
        wf.parse(text, PATH)
    except ParseError as error:
        issues = error.issues
    assert all(issue.startswith(f"{PATH}, line ") for issue in issues)


WORDS = st.sampled_from(
    """
    jobs on push github branches only defaults env resources timeout a b x 0 needs uses with inputs outputs type ref
    string dataset a.outputs.b workflow.inputs.a script@v1 container@v1 git-checkout@v1 create-model@v1 deploy@v1
    script image command args url
    """.replace("\n", " ").split(" ")
)
VALUES = st.recursive(
    WORDS | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=25,
)
JOBS = st.dictionaries(st.sampled_from(["a", "b", "workflow"]), st.dictionaries(WORDS, VALUES, max_size=6), max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(WORDS, VALUES, max_size=5), JOBS)
def test_any_json_at_all_gives_a_plan_or_a_parse_error(spec: dict[str, Any], jobs: dict[str, Any]) -> None:
    try:
        plan = wf.parse_mapping(spec | {"jobs": jobs}, "spec")
    except ParseError as error:
        issues = error.issues
    else:
        issues = ()
        assert set(wf.order(plan)) == set(plan.jobs)
    assert all("\n" not in issue for issue in issues)


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True).filter(
    lambda name: not name.startswith("APPLIANCE_")
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufeff\ufffe\uffff"))


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(NAMES, TEXTS.filter(lambda t: not t.lower().startswith("secret:") and "${{" not in t), max_size=4)
)
def test_environment_and_script_survive_the_round_trip_through_yaml(env: dict[str, str]) -> None:
    script = "echo x\n" + "\n".join(env.values())
    spec = {"jobs": {"a": {"uses": "script@v1", "env": env, "with": {"script": script}}}}

    plan = wf.parse(yaml.safe_dump(spec, allow_unicode=True), PATH)

    assert plan.jobs["a"].env == env
    assert plan.jobs["a"].with_ == wf.Script(script, wf.DEFAULT_IMAGE)


# -- triggers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "starting", "idle"),
    [
        ("", [], ["refs/heads/main", "refs/tags/v1"]),
        ("on:\n#  push:\n", [], ["refs/heads/main"]),
        ("on: push\n", ["refs/heads/main", "refs/heads/a/b"], ["refs/tags/v1", "refs/notes/x"]),
        ("on: {github: }\n", ["refs/heads/main"], ["refs/tags/v1"]),
        ("on: {github: {branches: {only: main}}}\n", ["refs/heads/main"], ["refs/heads/mainly", "refs/tags/main"]),
        ("on: {push: {branches: [main, 'rel/*']}}\n", ["refs/heads/rel/1"], ["refs/heads/rel/1/2", "refs/heads/rel"]),
        ("on: {push: {branches: {include: 'rel/**'}}}\n", ["refs/heads/rel/1/2"], ["refs/heads/rel"]),
        ("on: {push: {branches: {ignore: ['wip-*', x]}}}\n", ["refs/heads/main"], ["refs/heads/wip-1", "refs/heads/x"]),
        ("on: {push: {branches: {include: ['*'], ignore: x?}}}\n", ["refs/heads/x"], ["refs/heads/xy"]),
        ("on: {push: {tags: {only: v*}}}\n", ["refs/tags/v1"], ["refs/heads/v1", "refs/tags/1"]),
        ("on: {push: {branches: , tags: }}\n", ["refs/heads/x", "refs/tags/x"], ["refs/x"]),
        ("on: {push: {branches: refs/heads/main}}\n", ["refs/heads/main"], ["refs/heads/x"]),
    ],
)
def test_which_pushes_start_a_workflow(on: str, starting: list[str], idle: list[str]) -> None:
    plan = wf.parse(on + job(""), PATH)

    assert [ref for ref in starting + idle if wf.triggers_on(plan, ref)] == starting


def test_a_nasty_pattern_costs_no_time() -> None:
    plan = wf.parse("on: {push: {branches: '" + "*a" * 120 + "b'}}\n" + job(""), PATH)
    began = time.process_time()

    assert not wf.triggers_on(plan, "refs/heads/" + "a" * 250)
    assert time.process_time() - began < 0.2


# -- a run -------------------------------------------------------------------------------------------------------------

FORM = (
    "inputs: {data: {type: dataset}, echo: {type: string, with: {value: hi}}, more: {type: dataset, optional: true}}\n"
    + job("")
)


@pytest.mark.parametrize(
    "given_inputs",
    [
        {"data": {"id": "d:v1"}, "echo": {"value": "there"}},
        {"data": {"ref": "d:v1"}, "echo": "there"},
        {"inputs": {"data": {"id": "d:v1"}, "echo": {"value": "there"}}},
        {"data": {"type": "dataset", "with": {"ref": "d:v1"}}, "echo": {"value": "there"}},
        {"data": "d:v1", "echo": "there"},
    ],
)
def test_inputs_are_taken_in_every_shape_that_clients_send(given_inputs: dict[str, Any]) -> None:
    bound = wf.bind_inputs(wf.parse(FORM, PATH), given_inputs)

    assert bound == {
        "data": wf.BoundInput(wf.IOType.DATASET, "d:v1", None),
        "echo": wf.BoundInput(wf.IOType.STRING, None, "there"),
    }


def test_defaults_stand_in_for_what_is_not_given() -> None:
    bound = wf.bind_inputs(wf.parse(FORM, PATH), {"data": "d"})

    assert bound["echo"].value == "hi"
    assert "more" not in bound


@pytest.mark.parametrize(
    ("given_inputs", "sentence"),
    [
        ({}, 'The workflow \'train\' needs the input "data"; give it as {"data": {"id": "DATASET"}}.'),
        ({"dat": "x"}, "The workflow 'train' has no input 'dat' (did you mean 'data'?)."),
        ({"data": {"value": "x"}}, 'The input "data" is a dataset; give it as {"id": TEXT}.'),
        ({"data": "d", "echo": {"id": "x"}}, 'The input "echo" is a string; give it as {"value": TEXT}.'),
        ({"data": ""}, 'The input "data" is a dataset; give it as {"id": TEXT}.'),
        (
            {"data": "d:"},
            "'d:' is not a reference to a dataset: write NAME, NAME:VERSION or NAME:TAG.",
        ),
        ({"data": ["d"]}, 'The input "data" is a dataset; give it as {"id": TEXT}.'),
        ({"data": "d", "echo": None}, 'The input "echo" is a string; give it as {"value": TEXT}.'),
    ],
)
def test_an_input_that_is_missing_or_wrong_is_named(given_inputs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        wf.bind_inputs(wf.parse(FORM, PATH), given_inputs)

    assert str(caught.value) == sentence


def diamond() -> wf.Plan:
    def one(name: str, *needs: str) -> str:
        return f"  {name}: {{uses: script@v1, needs: [{', '.join(needs)}], with: {{script: x}}}}\n"

    return wf.parse("jobs:\n" + one("d", "b", "c") + one("c", "a") + one("b", "a") + one("a") + one("e"), PATH)


def test_the_order_puts_each_job_after_what_it_needs() -> None:
    assert wf.order(diamond()) == ("a", "e", "c", "b", "d")


@pytest.mark.parametrize(
    ("states", "ready", "skipped"),
    [
        ({}, {"a", "e"}, set()),
        ({"a": JobState.ACTIVE}, {"e"}, set()),
        ({"a": JobState.SUCCEEDED, "e": JobState.SUCCEEDED}, {"b", "c"}, set()),
        ({"a": JobState.SUCCEEDED, "b": JobState.SUCCEEDED, "c": JobState.ACTIVE}, {"e"}, set()),
        ({"a": JobState.SUCCEEDED, "b": JobState.SUCCEEDED, "c": JobState.SUCCEEDED}, {"d", "e"}, set()),
        ({"a": JobState.FAILED}, {"e"}, {"b", "c", "d"}),
        ({"a": JobState.SUCCEEDED, "b": JobState.CANCELLED, "c": JobState.ACTIVE}, {"e"}, {"d"}),
        (
            {"a": JobState.CANCELLED, "b": JobState.CANCELLED, "c": JobState.CANCELLED, "d": JobState.CANCELLED},
            {"e"},
            set(),
        ),
    ],
)
def test_which_jobs_are_next(states: dict[str, JobState], ready: set[str], skipped: set[str]) -> None:
    plan = diamond()

    found = wf.ready_jobs(plan, {name: states.get(name, JobState.BLOCKED) for name in plan.jobs})

    assert (set(found.ready), set(found.skipped)) == (ready, skipped)
