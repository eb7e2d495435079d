"""What Docker answers, in our words: plain functions, without a connection.

What this keeps true: an answer that a later try may change is EngineBusy, any other EngineRefused, and an image that
cannot be had says what can be done about it. Sighted states are those of appliance.states alone.

Why apart from docker.py: this is where the cases are, and a table of values tests them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from appliance import clock
from appliance.errors import ApplianceError, EngineBusy, EngineRefused, ImageNotFound
from appliance.records import Sighting
from appliance.runtime.arguments import LABEL
from appliance.states import Seen

_SEEN = {"created": Seen.CREATED, "exited": Seen.EXITED, "dead": Seen.EXITED, "removing": Seen.EXITED}
_FOR_EVER = re.compile(r"OCI runtime|could not select device driver|no such file|not found in \$PATH|invalid", re.I)
_IMAGE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*(:\d+)?(/[A-Za-z0-9][A-Za-z0-9._-]*)*(:[\w][\w.-]*)?(@sha256:[0-9a-f]{64})?"
)


class EngineConflict(EngineRefused):
    """Docker's 409: the name is taken, or the container is not in the state that the call needs."""


def sighting_of(shown: Mapping[str, Any]) -> Sighting:
    """What `inspect` shows, as a sighting.

    `out_of_memory` is told only of a container that failed: the kernel may have killed a child that the program
    could do without. A container that could not be started stays "created" and has an error.
    """
    state, labels = shown["State"], shown["Config"]["Labels"]
    seen = _SEEN.get(state["Status"], Seen.RUNNING)
    failed_to_start = seen is Seen.CREATED and state.get("Error")
    started, finished = stamp_of(state["StartedAt"]), stamp_of(state["FinishedAt"])
    if started and finished and seen is Seen.EXITED:
        # Docker stamps the start after it, containerd the end: a program of a millisecond can seem to end before.
        started = min(started, finished)
    return Sighting(
        id=labels[f"{LABEL}.id"],
        engine_id=shown["Id"],
        lease_id=labels.get(f"{LABEL}.lease") or None,
        seen=seen,
        exit_code=int(state["ExitCode"]) if seen is Seen.EXITED or failed_to_start else None,
        out_of_memory=bool(state["OOMKilled"]) and seen is Seen.EXITED and state["ExitCode"] != 0,
        started_at=started,
        finished_at=finished if seen is Seen.EXITED else None,
        error=state.get("Error") or None,
    )


def with_tag(name: str) -> str:
    """`name` with `:latest` when it has neither tag nor digest; without it Docker would pull every tag."""
    return name if "@" in name or ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def checked_image(name: str) -> str:
    """`name` itself if it can be an image's; it becomes part of a path of Docker's API, so nothing else may pass."""
    if len(name) <= 512 and _IMAGE.fullmatch(name) and ".." not in name:
        return name
    raise ImageNotFound(
        f"{name[:200]!r} is no image's name; one looks like python:3.12 or registry.example/team/image:tag."
    )


def image_not_found(image: str, why: str) -> ImageNotFound:
    why = " ".join(why.split()).rstrip(".")
    if image.startswith("appliance/"):
        return ImageNotFound(
            f"The image {image!r} is not on this server. It is one of the appliance's own: build it with "
            "`python -m appliance.runtime.images build`."
        )
    return ImageNotFound(
        f"The image {image!r} is neither on this server nor to be had from its registry ({why}). Check its name, or "
        f"bring it: `docker pull {image}` where a registry is in reach (after `docker login` if it is private), "
        "`docker build`, or `docker load` from a file."
    )


def follow_pull(image: str, lines: Iterable[dict[str, Any]], progress: Callable[[str], None]) -> None:
    layers: dict[str, tuple[int, int]] = {}
    told = clock.monotonic() - 1
    for line in lines:
        if "error" in line:
            raise image_not_found(image, str(line["error"]))
        detail = line.get("progressDetail") or {}
        if line.get("status") == "Downloading" and detail.get("total"):
            layers[line["id"]] = (detail["current"], detail["total"])
        if layers and clock.monotonic() - told >= 0.5:
            told = clock.monotonic()
            done, total = (sum(part[i] for part in layers.values()) / 2**20 for i in (0, 1))
            progress(f"Pulling {image}: {done:.0f} of {total:.0f} MiB")
    progress(f"Pulled {image}")


def refusal(doing: str, status: int, text: str, pulled: str | None) -> ApplianceError:
    """Docker's error answer, as one of ours: may a later try succeed, or not?"""
    text = " ".join(text.split())
    if pulled is not None:
        return image_not_found(pulled, text)
    if status == 409:
        return EngineConflict(f"Docker could not {doing}: {text}")
    if "could not select device driver" in text:
        return EngineRefused(
            "Docker cannot give cards to containers: install NVIDIA's container toolkit (nvidia-container-toolkit) "
            "and restart Docker."
        )
    if "no available IPv4 addresses" in text or (status >= 500 and not _FOR_EVER.search(text)):
        return EngineBusy(f"Docker could not {doing} now: {text}")
    return EngineRefused(f"Docker could not {doing}: {text}")


def warnings(info: Mapping[str, Any], version: str) -> Iterator[str]:
    major = re.match(r"\d+", version)
    if major and int(major.group()) < 23:
        yield f"Docker {version} is old; 28.3.3 or newer closes known holes."
    if not info.get("LiveRestoreEnabled"):
        yield 'Containers end when Docker restarts: set "live-restore": true in /etc/docker/daemon.json.'
    if not info.get("IPv4Forwarding", True):
        yield "IPv4 forwarding is off, so containers do not reach the internet: sysctl net.ipv4.ip_forward=1."


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def stamp_of(docker_time: str) -> str | None:
    """Docker's time (nine digits, or the year 1 for never) as `clock.stamp` writes it."""
    if docker_time.startswith("0001"):
        return None
    moment, _, fraction = docker_time.removesuffix("Z").partition(".")
    return f"{moment}.{fraction[:3]:0<3}Z"
