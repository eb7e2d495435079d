"""Our own images: base, datascience and serving, built here, because no registry has to be in reach.

What this keeps true: each image carries the label `appliance.inputs`, a hash of everything that it was made from: its
recipe's text, its requirements, the code in it, the machine's suite and mirrors, and the inputs of the image under it.
An image whose label is right is left alone, so a second `build_all` ends at once, and a changed input rebuilds that
image and those above it. A name is moved to a new image only when that is complete; a build that was cut off leaves
the old image, or none, and the next build does it again.

The certificates, proxies and pip settings of this machine are used in the build but are no inputs: they say how to get
things, not what they are, and at run time a container is given today's (see inherit.py).

The door: `python -m appliance.runtime.images build [--only NAME] [--gpu | --no-gpu] | status`.

Why mmdebstrap and `docker import`: a base image out of the distribution's own signed packages needs to trust nobody
besides, and takes half a minute.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from appliance import clock
from appliance.errors import ApplianceError, EngineBusy, EngineRefused, NotFound
from appliance.runtime import inherit

FOLDER = Path(__file__).with_suffix("")
PACKAGE = Path(__file__).parent.parent
NAMES = ("base", "datascience", "serving")
INPUTS = "appliance.inputs"
_BUILD_S = 1800.0
_ASK_S = 20.0

_PACKAGES = "python3,python3-venv,python3-pip,python-is-python3,ca-certificates,git"
_LEAVE_OUT = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/share/linda/*",
    "/usr/share/bash-completion/*",
    # A container is nobody's system: `pip install` may install.
    "/usr/lib/python3*/EXTERNALLY-MANAGED",
)
_BASE_CHANGES = (
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "ENV LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive",
    # A program's lines reach the log when they are written, not when a buffer is full.
    "ENV PYTHONUNBUFFERED=1",
    'CMD ["bash"]',
)


@dataclass(frozen=True)
class ImageState:
    """How an image stands: `current`, `outdated` (its inputs have changed) or `missing`."""

    name: str
    state: str
    size_bytes: int | None


@dataclass(frozen=True)
class Workshop:
    """Where images are made. `prefix` is their name's first part; `folder` holds what is under way, `logs` the output."""

    prefix: str = "appliance"
    folder: Path = Path("/var/tmp/appliance-images")  # noqa: S108 - made 0700, and an existing one must be ours
    logs: Path = Path("/var/log/appliance")
    package: Path = PACKAGE

    def image(self, name: str) -> str:
        return f"{self.prefix}/{name}:latest"


def build_all(
    progress: Callable[[str], None], gpu: bool, *, only: str | None = None, workshop: Workshop | None = None
) -> None:
    """Every image (or `only` that one and those under it) is current. What is current already is left alone.

    `gpu` makes serving with CUDA's wheels. `progress` is told one sentence for each step. `EngineRefused` names the
    step, the tool's last lines and the file with all of them; `EngineBusy` where Docker does not answer.
    """
    workshop = workshop or Workshop()
    wanted = _with_beneath(only)
    inputs = inputs_of(gpu, workshop)
    with _alone(workshop, progress):
        here = _labels_of(workshop)
        for name in wanted:
            if here.get(name, (None, 0))[0] == inputs[name]:
                progress(f"{workshop.image(name)}: is current")
                continue
            began = clock.monotonic()
            progress(f"{workshop.image(name)}: building")
            _build(name, inputs[name], gpu, workshop)
            size = _labels_of(workshop)[name][1] / 1e6
            progress(f"{workshop.image(name)}: built in {clock.monotonic() - began:.1f} s ({size:.0f} MB)")


def status(gpu: bool, workshop: Workshop | None = None) -> list[ImageState]:
    """How each image stands, base first."""
    workshop = workshop or Workshop()
    inputs, here = inputs_of(gpu, workshop), _labels_of(workshop)
    return [
        ImageState(
            name=workshop.image(name),
            state="missing" if name not in here else "current" if here[name][0] == inputs[name] else "outdated",
            size_bytes=here[name][1] if name in here else None,
        )
        for name in NAMES
    ]


def has_nvidia() -> bool:
    """Whether the NVIDIA kernel driver is loaded."""
    return Path("/proc/driver/nvidia/version").exists()


def inputs_of(gpu: bool, workshop: Workshop) -> dict[str, str]:
    """The hash of each image's inputs."""
    base = _hash(["base", *_base_inputs()])
    return {
        "base": base,
        "datascience": _hash([base, *_texts(sorted((FOLDER / "datascience").iterdir()))]),
        "serving": _hash([base, *_texts([FOLDER / "serving/Dockerfile", _requirements(gpu)]), *_code_texts(workshop)]),
    }


def serving_code(package: Path) -> list[Path]:
    """The files of `package` that appliance.inference needs, itself included, found by following its imports."""
    root = package.parent
    wanted = [package / "__init__.py", *sorted((package / "inference").rglob("*.py"))]
    seen: dict[Path, None] = {}
    while wanted:
        path = wanted.pop(0)
        if path in seen or not path.is_file():
            continue
        seen[path] = None
        for module in _imports(path):
            stem = root.joinpath(*module.split("."))
            wanted += [stem.with_suffix(".py"), stem / "__init__.py"]
    return sorted([*seen, *(package / "inference").glob("*.json")])


# -- inputs ------------------------------------------------------------------------------------------------------------


def _base_inputs() -> list[str]:
    return [*inherit.release(), *inherit.apt_sources(), _PACKAGES, *_LEAVE_OUT, *_BASE_CHANGES]


def _requirements(gpu: bool) -> Path:
    return FOLDER / "serving" / ("requirements-gpu.txt" if gpu else "requirements-cpu.txt")


def _texts(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        yield path.name
        yield path.read_text()


def _code_texts(workshop: Workshop) -> Iterator[str]:
    for path in serving_code(workshop.package):
        yield str(path.relative_to(workshop.package))
        yield path.read_text()


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        yield from (name for name in names if name.split(".")[0] == "appliance")


def _with_beneath(only: str | None) -> tuple[str, ...]:
    if only is None:
        return NAMES
    if only not in NAMES:
        raise NotFound(f"There is no image {only!r}; there are {', '.join(NAMES)}.")
    return ("base",) if only == "base" else ("base", only)


# -- building ----------------------------------------------------------------------------------------------------------


def _build(name: str, inputs: str, gpu: bool, workshop: Workshop) -> None:
    log = _log_file(name, workshop)
    before = _image_id(workshop.image(name))
    with tempfile.TemporaryDirectory(dir=workshop.folder) as scratch, log.open("w") as out:
        if name == "base":
            _build_base(Path(scratch), inputs, workshop, out)
        else:
            _build_above(name, Path(scratch), inputs, gpu, workshop, out)
    if before and before != _image_id(workshop.image(name)):
        # The old image has lost its name; while a container still uses it Docker keeps it, and that is fine.
        _call(["docker", "image", "rm", before])


def _build_base(scratch: Path, inputs: str, workshop: Workshop, out: IO[str]) -> None:
    _, suite = inherit.release()
    if not suite:
        raise EngineRefused("/etc/os-release names no VERSION_CODENAME; the base image needs Debian or Ubuntu.")
    archive = scratch / "base.tar"
    hooks = []
    if bundle := inherit.ca_bundle():
        hooks = [f"--customize-hook=upload {bundle} {inherit.SYSTEM_BUNDLE}"]
    _run(
        "base",
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={_PACKAGES}",
            *(f"--dpkgopt=path-exclude={path}" for path in _LEAVE_OUT),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            *(f"--aptopt={option}" for option in _apt_options()),
            *hooks,
            suite,
            str(archive),
            *inherit.apt_sources(),
        ],
        out,
    )
    changes = [*_BASE_CHANGES, f"LABEL {INPUTS}={inputs}"]
    changed = [word for change in changes for word in ("--change", change)]
    _run("base", ["docker", "import", *changed, str(archive), workshop.image("base")], out)


def _build_above(name: str, scratch: Path, inputs: str, gpu: bool, workshop: Workshop, out: IO[str]) -> None:
    shutil.copy(FOLDER / name / "Dockerfile", scratch)
    requirements = _requirements(gpu) if name == "serving" else FOLDER / name / "requirements.txt"
    shutil.copy(requirements, scratch / "requirements.txt")
    bundle = inherit.ca_bundle()
    if bundle is None:
        raise EngineRefused(
            f"There are no certificates at {inherit.SYSTEM_BUNDLE}, without which pip reaches no index: "
            "apt-get install ca-certificates."
        )
    shutil.copy(bundle, scratch / "ca-certificates.crt")
    (scratch / "ca-certificates.crt").chmod(0o644)
    if name == "serving":
        _copy_code(workshop.package, scratch)
    settings = {**inherit.pip_settings(), **inherit.proxies(), "BASE": workshop.image("base")}
    arguments = [word for key, value in settings.items() for word in ("--build-arg", f"{key}={value}")]
    # The host's network, so that pip reaches whatever index this machine reaches, a loopback proxy included.
    command = ["docker", "build", "--network", "host", "--force-rm", "--label", f"{INPUTS}={inputs}", *arguments]
    _run(name, [*command, "--tag", workshop.image(name), str(scratch)], out)


def _copy_code(package: Path, scratch: Path) -> None:
    for path in serving_code(package):
        target = scratch / "appliance" / path.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        target.chmod(0o644)


def _apt_options() -> list[str]:
    """What this machine's apt was told about its mirrors and the way to them."""
    shown = _call(["apt-config", "dump", "--format", '%f "%v";%n'])
    kept = ("Acquire::Check-Valid-Until ", "Acquire::Check-Date ", "Acquire::http::Proxy ", "Acquire::https::Proxy ")
    return [line for line in shown.stdout.splitlines() if line.startswith(kept) and '""' not in line]


def _run(name: str, command: list[str], out: IO[str]) -> None:
    env = {**os.environ, **inherit.proxies(), "DOCKER_BUILDKIT": "0"}  # BuildKit needs a plug-in that may be missing
    out.write(f"$ {' '.join(command[:3])} …\n")
    out.flush()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, timeout=_BUILD_S, check=False
        )
    except FileNotFoundError as cause:
        raise EngineRefused(f"{command[0]} is not installed, and the image {name!r} needs it to be built.") from cause
    except subprocess.TimeoutExpired as cause:
        raise EngineBusy(
            f"Building the image {name!r} took longer than {_BUILD_S / 60:.0f} minutes; see {out.name}."
        ) from cause
    if done.returncode != 0:
        lines = [line.strip() for line in Path(out.name).read_text(errors="replace").splitlines() if line.strip()]
        raise EngineRefused(
            f"The image {name!r} could not be built: {command[0]} ended with {done.returncode}. "
            f"All it said is in {out.name}; mend the cause and build again. Its last lines: " + " / ".join(lines[-4:]),
            issues=tuple(lines[-12:]),
        )


@contextlib.contextmanager
def _alone(workshop: Workshop, progress: Callable[[str], None]) -> Iterator[None]:
    """One builder at a time on this machine; what a builder that was cut off left is cleared away."""
    folder = workshop.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise EngineRefused(f"{folder} belongs to somebody else; remove it and build again.")
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Another build is under way on this machine; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.iterdir():
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        yield


def _log_file(name: str, workshop: Workshop) -> Path:
    workshop.logs.mkdir(parents=True, exist_ok=True)
    return workshop.logs / f"image-{name}.log"


# -- what Docker has ---------------------------------------------------------------------------------------------------


def _labels_of(workshop: Workshop) -> dict[str, tuple[str | None, int]]:
    """For each of our images that is here: the hash of its inputs, and its bytes."""
    shown = _call(["docker", "image", "inspect", *(workshop.image(name) for name in NAMES)])
    try:
        rows = json.loads(shown.stdout)
    except ValueError:
        rows = []
    if not rows and "no such image" not in shown.stderr.lower():
        raise EngineBusy(f"Docker does not answer ({shown.stderr.strip()}); is it running? `systemctl start docker`")
    labels = {}
    for row in rows:
        for name in NAMES:
            if workshop.image(name) in row["RepoTags"]:
                labels[name] = ((row["Config"].get("Labels") or {}).get(INPUTS), int(row["Size"]))
    return labels


def _image_id(image: str) -> str | None:
    shown = _call(["docker", "image", "inspect", "--format", "{{.Id}}", image])
    return shown.stdout.strip() or None


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=False)
    except FileNotFoundError as cause:
        raise EngineRefused(f"{command[0]} is not installed, and without it no image can be built.") from cause
    except subprocess.TimeoutExpired as cause:
        raise EngineBusy(f"{command[0]} did not answer within {_ASK_S:.0f} s; try again.") from cause


def main(arguments: Sequence[str] | None = None) -> int:
    """The door for install.sh; 0 when every image asked for is current."""
    parser = argparse.ArgumentParser(prog="python -m appliance.runtime.images", description="The appliance's images.")
    parser.add_argument("what", choices=("build", "status"), help="build what is missing or outdated, or show it")
    parser.add_argument("--only", choices=NAMES, help="this image, and what is under it")
    parser.add_argument("--gpu", action=argparse.BooleanOptionalAction, default=has_nvidia(), help="CUDA in serving")
    parser.add_argument("--status", action="store_true", help="the same as the word status")
    said = parser.parse_args(arguments)
    try:
        if said.what == "status" or said.status:
            states = status(said.gpu)
            for image in states:
                print(f"{image.name:32} {image.state:9} {(image.size_bytes or 0) / 1e6:6.0f} MB")
            return 0 if all(image.state == "current" for image in states) else 1
        build_all(lambda line: print(line, flush=True), said.gpu, only=said.only)
    except ApplianceError as problem:
        print(f"error: {problem.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
