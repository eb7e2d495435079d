"""What each action takes: its `with:`, its inputs and its outputs, checked into the action's record.

What this keeps true: an action's record holds only values that were checked; text of a script is never changed, nor is
anything substituted in it (values reach it as environment and files); a URL or ref can never be read as an option or as
one of git's helper transports.

Why: one function for each action, so that a new action is one function and one line in `ACTIONS`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping

from appliance import ids
from appliance.errors import BadRequest
from appliance.workflows.plan import (
    CONTEXT_REF,
    CONTEXT_URL,
    DEFAULT_IMAGE,
    Action,
    Container,
    CreateModel,
    Deploy,
    GitCheckout,
    IOType,
    OutputDecl,
    Script,
)
from appliance.workflows.reading import Spot, quoted

NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")
MODEL_TYPES = ("Tensorflow", "ONNX", "Custom")
MAX_REPLICAS = 16
MAX_THREADS = 256

_URL = re.compile(
    r"(https?|git|ssh)://[^\s/-][^\s]*|[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[^\s-][^\s]*"
)
_GIT_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@-]{0,254}")
_FOREIGN = re.compile(r"\$\{\{\s*(inputs|secrets|github|needs|steps|matrix|workflow)\.")
_SIGNATURE = re.compile(r"[A-Za-z0-9_-]+@v[0-9]+")


class Job:
    """A job under reading: what its action's function looks at. `inputs` has the type of each input (None: unknown)."""

    def __init__(
        self,
        spot: Spot,
        fields: Mapping[str, Spot],
        inputs: Mapping[str, IOType | None],
        outputs: Mapping[str, OutputDecl],
    ) -> None:
        self.spot, self.fields, self.inputs, self.outputs = spot, fields, inputs, outputs

    def params(self, *known: str) -> dict[str, Spot]:
        return self.fields["with"].keys(known) if "with" in self.fields else {}

    def required(self, params: Mapping[str, Spot], name: str, example: str) -> Spot | None:
        if name in params:
            return params[name]
        owner = self.fields.get("with", self.spot)
        key = owner.key if "with" in self.fields else f"{owner.key}.with"
        owner.problems.add(owner.line, key, f"needs '{name}', for example {name}: {example}.")
        return None

    def say_of(self, field: str, name: str, sentence: str) -> None:
        """A sentence about one input or output: at its line where it is written, else at the job's."""
        table = self.fields.get(field)
        entry = table.table().get(name) if table else None
        (entry or table or self.spot).say(sentence)


def refuse_secret(spot: Spot, value: str) -> bool:
    """Whether `value` names a secret, which is refused for now. The one place to change when secrets come."""
    if not value.lower().startswith("secret:"):
        return False
    spot.say(f"names the secret {quoted(value[7:])}; secrets come later, until then write the value itself.")
    return True


def read_action(job: Job) -> tuple[str, Action | None]:
    """The job's `uses` and its action's record; None after a problem."""
    uses = job.fields.get("uses")
    if uses is None:
        job.spot.say(f"names no action; add 'uses:', one of {', '.join(ACTIONS)}.")
        return "", None
    name = uses.full_text()
    if name is None:
        return "", None
    if name in ACTIONS:
        return name, ACTIONS[name](job)
    if name == "s3-download@v1":
        uses.say("is the action 's3-download@v1', which is not there yet; download in a script@v1 job until then.")
    else:
        hint = uses.problems.suggest(name, ACTIONS) or f"; there are {', '.join(ACTIONS)}"
        version = "" if _SIGNATURE.fullmatch(name) else " An action is written NAME@vN."
        uses.say(f"names the unknown action {quoted(name)}{hint}.{version}")
    return name, None


def _container(job: Job) -> Action | None:
    params = job.params("image", "command", "args")
    spot = job.required(params, "image", "ubuntu:24.04")
    image = _image(spot) if spot else None
    command = _command(params["command"]) if "command" in params else None
    args = _arguments(params["args"]) if "args" in params else ()
    return Container(image, command, args) if image else None


def _script(job: Job) -> Action | None:
    params = job.params("script", "image")
    image = _image(params["image"]) if "image" in params else DEFAULT_IMAGE
    spot = job.required(params, "script", "echo hello")
    script = spot.text() if spot else None
    if spot and script is not None:
        foreign = _FOREIGN.search(script)
        if foreign:
            spot.say(
                f"holds the expression '{foreign[0]}…'; nothing is substituted in a script, "
                "read /inputs/NAME or an environment variable instead."
            )
        elif not script.strip():
            spot.say("is empty; write what the job does.")
    return Script(script, image) if script is not None and image else None


def _git_checkout(job: Job) -> Action | None:
    params = job.params("url", "ref", "username", "password", "path")
    url = params["url"].full_text() if "url" in params else None
    ref = params["ref"].full_text() if "ref" in params else None
    if url is not None and url != CONTEXT_URL and not _URL.fullmatch(url):
        params["url"].say(
            f"{quoted(url)} is no address that git can fetch from; write https://, http://, git:// or ssh://, "
            f"or {CONTEXT_URL} for this project's own repository."
        )
    if ref is not None and ref != CONTEXT_REF and (not _GIT_REF.fullmatch(ref) or ".." in ref):
        params["ref"].say(f"{quoted(ref)} is no branch, tag or commit.")
    username = _credential(params.get("username"))
    password = _credential(params.get("password"))
    output, path = _checkout_folder(job, params.get("path"))
    return GitCheckout(url, ref, username, password, output, path)


def _checkout_folder(job: Job, spot: Spot | None) -> tuple[str, str]:
    """The output and the folder in it; ("", "") after a problem."""
    fitting = [name for name, output in job.outputs.items() if output.type is not IOType.STRING]
    if not fitting:
        job.spot.say("is a checkout without a place for the files; give it an output of type volume or dataset.")
        return "", ""
    if spot is None:
        if len(fitting) > 1:
            job.spot.say(f"has {len(fitting)} outputs; say with 'path: /outputs/NAME' which one takes the files.")
        return fitting[0], ""
    text = spot.full_text() or ""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if not text.startswith("/outputs/") or ".." in parts or len(parts) < 2 or parts[1] not in fitting:
        spot.say(f"must be /outputs/NAME or a folder in it, where NAME is one of {', '.join(fitting)}.")
        return "", ""
    return parts[1], "/".join(parts[2:])


def _create_model(job: Job) -> Action | None:
    params = job.params("name", "type")
    spot = job.required(params, "name", "my-model")
    name = _name(spot, "model") if spot else None
    kind = job.required(params, "type", "ONNX")
    model_type = _model_type(kind) if kind else None
    _need_input(job, "model", IOType.DATASET, "the dataset that holds the model's files")
    _allow_outputs(job, "model-id")
    return CreateModel(name, model_type) if name and model_type else None


def _deploy(job: Job) -> Action | None:
    params = job.params("name", "replicas", "machineType", "instance-type", "threads")
    spot = job.required(params, "name", "my-deployment")
    name = _name(spot, "deployment") if spot else None
    replicas = params["replicas"].number(1, MAX_REPLICAS, "how many replicas run") if "replicas" in params else 1
    threads = params["threads"].number(1, MAX_THREADS, "threads of one replica") if "threads" in params else None
    machine_type = machine_type_of(params)
    _need_input(job, "model", IOType.STRING, "the id of a model, such as the output model-id of create-model@v1")
    _allow_outputs(job, "deployment")
    return Deploy(name, replicas, machine_type, threads) if name and replicas else None


ACTIONS: Mapping[str, Callable[[Job], Action | None]] = {
    "container@v1": _container,
    "script@v1": _script,
    "git-checkout@v1": _git_checkout,
    "create-model@v1": _create_model,
    "deploy@v1": _deploy,
}


def machine_type_of(fields: Mapping[str, Spot]) -> str | None:
    """`instance-type` (Gradient's workflows) or `machineType` (its deployments): the same thing, so only one of them."""
    given = [fields[name] for name in ("instance-type", "machineType") if name in fields]
    if len(given) > 1:
        given[1].say("says the same as 'instance-type'; keep one of the two.")
    text = given[0].full_text() if given else None
    if text is not None and not NAME.fullmatch(text):
        given[0].say(f"{quoted(text)} is no machine type's name.")
        return None
    return text


def _need_input(job: Job, name: str, wanted: IOType, what: str) -> None:
    for other in job.inputs:
        if other != name:
            job.say_of("inputs", other, f"is not an input of this action; it takes '{name}' alone.")
    if name not in job.inputs:
        (job.fields.get("inputs") or job.spot).say(f"lacks the input '{name}': {what}.")
    elif job.inputs[name] not in (wanted, None):
        job.say_of("inputs", name, f"is a {job.inputs[name]}, but must be a {wanted}: {what}.")


def _allow_outputs(job: Job, name: str) -> None:
    for other, output in job.outputs.items():
        if other != name:
            job.say_of("outputs", other, f"is not an output of this action; it gives '{name}' alone.")
        elif output.type is not IOType.STRING:
            job.say_of("outputs", other, f"is a {output.type}, but this action's '{name}' is a string.")


def _image(spot: Spot) -> str | None:
    text = spot.full_text()
    if text is not None and not IMAGE.fullmatch(text):
        spot.say(f"{quoted(text)} is no image's name; write it like ubuntu:24.04.")
        return None
    return text


def _command(spot: Spot) -> tuple[str, ...] | None:
    """A text is split as a shell would; a list is taken as it stands."""
    if not spot.is_text:
        return _arguments(spot) or None
    text = spot.text() or ""
    try:
        words = tuple(shlex.split(text))
    except ValueError:
        spot.say("has a quote that is not closed.")
        return None
    if not words:
        spot.say("is empty; leave it out to keep the image's own.")
    return words or None


def _arguments(spot: Spot) -> tuple[str, ...]:
    """Texts of any kind, line breaks too; numbers and truth values as they are written."""
    return tuple(text for item in spot.items() if (text := item.text()) is not None)


def _name(spot: Spot, what: str) -> str | None:
    text = spot.full_text()
    if text is None:
        return None
    try:
        return ids.name(text, what)
    except BadRequest as error:
        spot.say(error.message)
        return None


def _model_type(spot: Spot) -> str | None:
    text = spot.full_text()
    if text is None:
        return None
    for known in MODEL_TYPES:
        if known.lower() == text.lower():
            return known
    spot.say(f"{quoted(text)} is no type of model; use one of {', '.join(MODEL_TYPES)}.")
    return None


def _credential(spot: Spot | None) -> str | None:
    text = spot.full_text() if spot else None
    if spot is None or text is None or refuse_secret(spot, text):
        return None
    return text
