"""Asking a deployment in somebody's stead: the dashboard's form, for trying a model out.

What this keeps true: the request goes to the deployment's own port on this machine, with the daemon's key for it; it takes
at most 60 seconds and 16 MiB, and at most eight are under way, so that a slow model cannot stop the dashboard. What a page
needs to know of a model has places of its own and waits for two seconds, so that a page never waits for a model.

Why: a browser on the dashboard has no key of the deployment, and must not be given one.
"""

from __future__ import annotations

import http.client
import json
import threading
from typing import Any
from urllib.parse import quote, urlsplit

from appliance import deployments
from appliance.config import Config
from appliance.errors import BadRequest, Conflict, PreconditionFailed, TooLarge, TooManyRequests
from appliance.records import Deployment

TIMEOUT_S = 60.0
GLANCE_S = 2.0
MOST_BYTES = 16 << 20
AT_ONCE = 8
_slots = threading.BoundedSemaphore(AT_ONCE)
_glances = threading.BoundedSemaphore(AT_ONCE)


def metadata(config: Config, deployment: Deployment) -> Any:
    """The served model's inputs and outputs, as the Open Inference Protocol shows them. PreconditionFailed after 2 s."""
    return _ask(config, deployment, "GET", "", None, _glances, GLANCE_S)


def infer(config: Config, deployment: Deployment, body: Any) -> Any:
    """The answer to one Open Inference request."""
    return _ask(config, deployment, "POST", "/infer", json.dumps(body).encode(), _slots, TIMEOUT_S)


def _ask(
    config: Config,
    deployment: Deployment,
    method: str,
    path: str,
    body: bytes | None,
    slots: threading.BoundedSemaphore,
    timeout_s: float,
) -> Any:
    """JSON from the model that serves. Conflict when none does, BadRequest with what the model says is wrong."""
    if deployment.serving is None:
        raise Conflict(f"The deployment {deployment.name!r} does not serve yet; wait until it is healthy.")
    name = str(deployment.serving.config.get("modelName") or deployment.name)
    if not slots.acquire(blocking=False):
        raise TooManyRequests("Too many requests are being tried at once; try again in a moment.")
    try:
        status, found = _request(config, deployment, method, f"/v2/models/{quote(name)}{path}", body, timeout_s)
    finally:
        slots.release()
    if status != 200:
        said = found.get("error") if isinstance(found, dict) else None
        raise BadRequest(f"The deployment answered {status}: {said or 'without a reason'}".rstrip(".") + ".")
    return found


def _request(
    config: Config, deployment: Deployment, method: str, path: str, body: bytes | None, timeout_s: float
) -> tuple[int, Any]:
    address = urlsplit(deployments.local_url(config, deployment))
    headers = {
        "Authorization": f"Bearer {deployments.internal_key(config, deployment.id)}",
        "Content-Type": "application/json",
        "Accept": "application/json",
    }
    plug = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port, timeout=timeout_s)
    try:
        plug.request(method, path, body, headers)
        answer = plug.getresponse()
        text = answer.read(MOST_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise PreconditionFailed(
            f"The deployment {deployment.name!r} does not answer ({error}); see its log."
        ) from error
    finally:
        plug.close()
    if len(text) > MOST_BYTES:
        raise TooLarge(f"The answer is larger than {MOST_BYTES >> 20} MiB; ask the deployment itself.")
    if answer.getheader("Inference-Header-Content-Length") is not None:
        raise BadRequest("The outputs came as binary data; the form takes JSON alone, so ask without binary_data.")
    try:
        return answer.status, json.loads(text)
    except ValueError as error:
        raise BadRequest(f"The deployment {deployment.name!r} answered something that is not JSON.") from error
