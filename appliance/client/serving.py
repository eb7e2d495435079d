"""Deployments: models that answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from appliance import clock
from appliance.client.transport import Json, Transport, segment
from appliance.client.work import follow_lines
from appliance.errors import Conflict, NotFound


class Deployments:
    """`deployment` is an id wherever it is asked for; `find` turns a name into it."""

    def __init__(self, transport: Transport) -> None:
        self._at = transport

    def list(self, project: str | None = None) -> Iterator[Json]:
        return self._at.pages("/v1/deployments", projectId=project)

    def get(self, deployment: str) -> Json:
        found: Json = self._at.get(_path(deployment))
        return found

    def find(self, name_or_id: str, *, project: str | None = None) -> Json:
        """The deployment of that id or name. Raises NotFound, or Conflict when several projects have one."""
        found = [each for each in self.list(project) if name_or_id in (each["id"], each["name"])]
        if not found:
            raise NotFound(f"There is no deployment {name_or_id!r} that you may see.")
        if len(found) > 1:
            ids = ", ".join(each["id"] for each in found)
            raise Conflict(f"Several projects have a deployment {name_or_id!r}: use one of the ids {ids}.")
        return found[0]

    def apply(self, project: str, config: Mapping[str, Any], *, deployment: str | None = None) -> str:
        """Create the deployment that `config` names, or roll it over to `config`. Its id."""
        answer = self._at.post("/v1/deployments", projectId=project, config=config, deploymentId=deployment)
        return str(answer["deploymentId"])

    def update(
        self,
        deployment: str,
        *,
        enabled: bool | None = None,
        replicas: int | None = None,
        model: str | None = None,
    ) -> Json:
        found: Json = self._at.patch(_path(deployment), enabled=enabled, replicas=replicas, model=model)
        return found

    def removal(self, deployment: str) -> str:
        return str(self._at.get(_path(deployment) + "/removal")["text"])

    def delete(self, deployment: str) -> None:
        self._at.delete(_path(deployment))

    def history(self, deployment: str) -> Iterator[Json]:
        """Every spec that it has had, newest first."""
        return self._at.pages(_path(deployment) + "/history")

    def apply_again(self, deployment: str, spec_id: str) -> Json:
        """Roll over to an earlier spec, as a new one."""
        found: Json = self._at.post(f"{_path(deployment)}/history/{segment(spec_id)}/apply")
        return found

    def replicas(self, deployment: str) -> Iterator[Json]:
        """Gradient's deployment runs, newest first, with their instances."""
        return self._at.pages(_path(deployment) + "/runs")

    def logs(self, deployment: str, *, instance: str | None = None) -> Iterator[Json]:
        return self._at.pages(_path(deployment) + "/logs", instanceId=instance)

    def logs_follow(self, deployment: str, *, after: int = -1, timeout_s: float | None = None) -> Iterator[Json]:
        deadline = None if timeout_s is None else clock.monotonic() + timeout_s
        return follow_lines(self._at, _path(deployment) + "/logs/stream", after, deadline)

    def keys(self, deployment: str) -> Iterator[Json]:
        return self._at.pages(_path(deployment) + "/keys")

    def create_key(self, deployment: str, name: str) -> Json:
        """A key that may call this deployment and nothing else; its secret is the field `key`, shown this once."""
        found: Json = self._at.post(_path(deployment) + "/keys", name=name)
        return found

    def revoke_key(self, deployment: str, key_id: str) -> None:
        self._at.delete(f"{_path(deployment)}/keys/{segment(key_id)}")

    def metadata(self, deployment: str) -> Json:
        """The served model's inputs and outputs, as the Open Inference Protocol shows them."""
        found: Json = self._at.get(_path(deployment) + "/metadata")
        return found

    def ask(self, deployment: str, request: Mapping[str, Any]) -> Json:
        """Send one Open Inference request through the server's own door; for trying out, not for traffic."""
        found: Json = self._at.call("POST", _path(deployment) + "/try", body=request)
        return found


def _path(deployment: str) -> str:
    return f"/v1/deployments/{segment(deployment)}"
