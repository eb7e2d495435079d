"""What the journeys share: a repository of a few lines, the real git client, and clients that ask a deployment.

The pushed model is `y = x + C`, so an answer says which version gave it; it lies in the repository as a file, so that a
whole journey takes seconds.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx
import tritonclient.http as triton
from onnx import TensorProto, helper
from running import Running
from waiting import wait_until

BASE = "appliance/base:latest"
MAIN_PATH = """\
on: {github: {branches: {only: main}}}
jobs:
  checkout:
    uses: git-checkout@v1
    with: {url: context.event.github.url, ref: context.event.github.ref}
    outputs: {repo: {type: volume}}
  train:
    needs: [checkout]
    inputs: {repo: checkout.outputs.repo}
    uses: script@v1
    with:
      image: appliance/base:latest
      script: |-
        set -e
        echo training
        cp /inputs/repo/model.onnx /outputs/net/model.onnx
        cp /inputs/repo/data.txt /outputs/numbers/data.txt
    outputs:
      net: {type: dataset, with: {ref: net}}
      numbers: {type: dataset, with: {ref: numbers}}
  register:
    needs: [train]
    inputs: {model: train.outputs.net}
    uses: create-model@v1
    with: {name: adder, type: ONNX}
    outputs: {model-id: {type: string}}
  deploy:
    needs: [register]
    inputs: {model: register.outputs.model-id}
    uses: deploy@v1
    with: {name: adder}
"""


def adder(path: Path, constant: float) -> None:
    """An ONNX model: `y` FP32 [n] = `x` + constant."""
    value = helper.make_tensor("c", TensorProto.FLOAT, [1], [constant])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "c"], ["y"])], "g", ends[:1], ends[1:], [value])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@dataclass
class Repository:
    """A working copy with the real git client; nobody's own git configuration is read."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self.env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0"}
        self.env |= {"HOME": str(self.folder), "LC_ALL": "C", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        for who in ("AUTHOR", "COMMITTER"):
            self.env |= {f"GIT_{who}_NAME": "Ana", f"GIT_{who}_EMAIL": "ana@example.org"}
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *words: str, must: bool = True) -> str:
        """What git said, on both of its outputs."""
        done = subprocess.run(
            ["git", *words],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert not must or done.returncode == 0, done.stdout
        return done.stdout

    def write(self, path: str, text: str) -> None:
        where = self.folder / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)

    def commit(self, message: str = "a change") -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").strip()


def main_path(repository: Repository, constant: float) -> str:
    """The whole main path as one commit: its model adds `constant`; the commit's id."""
    repository.write(".gradient/workflows/train.yaml", MAIN_PATH)
    repository.write("data.txt", f"{constant}\n")
    adder(repository.folder / "model.onnx", constant)
    return repository.commit(f"adds {constant}")


def push_url(house: Running, project: str, key: str | None = None) -> str:
    return f"http://ana:{key or house.key}@127.0.0.1:{house.http_port}/git/{project}.git"


def run_of(house: Running, commit: str, within_s: float = 10) -> str:
    """The id of the one run of that commit."""

    def found() -> list[dict[str, Any]]:
        return house.rows('SELECT id FROM runs WHERE "commit" = ?', commit)

    rows = wait_until(found, within_s, f"a run of {commit[:10]} is there")
    assert len(rows) == 1, rows
    return str(rows[0]["id"])


def run_now(house: Running, project: str, text: str, name: str = "w", within_s: float = 60, **inputs: Any) -> Any:
    """A run of that YAML, when it has ended."""
    with house.client() as client:
        run = client.runs.submit(project, spec_text=text, name=name, inputs=inputs or None)
    return house.finished(run["uuid"], within_s)


def script(name: str, lines: str, outputs: str = "", more: str = "") -> str:
    """One job of the base image that runs `lines`."""
    body = "".join(f"        {line}\n" for line in lines.splitlines())
    return (
        f"jobs:\n  {name}:\n    uses: script@v1\n    with:\n      image: {BASE}\n      script: |-\n{body}"
        + (f"    outputs: {outputs}\n" if outputs else "")
        + more
    )


# -- asking ------------------------------------------------------------------------------------------------------------


def ask(endpoint: str, key: str | None, value: float = 1.0, *, ca: Path | None = None) -> float:
    """The deployment's answer for one number, asked with the unmodified tritonclient."""
    parts = urlsplit(endpoint)
    more: dict[str, Any] = {}
    if parts.scheme == "https":
        more = {"ssl": True, "ssl_context_factory": lambda: ssl.create_default_context(cafile=str(ca))}
    client = triton.InferenceServerClient(parts.netloc + parts.path, connection_timeout=20, network_timeout=20, **more)
    try:
        tensor = triton.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.array([value], dtype=np.float32))
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return float(client.infer("adder", [tensor], headers=headers).as_numpy("y")[0])
    finally:
        client.close()


class Asker:
    """Asks all the time, on one kept connection and on a new one each time, until `stop`; every failure is kept."""

    def __init__(self, endpoint: str, key: str, *, kept: bool) -> None:
        self._parts, self._kept = urlsplit(endpoint), kept
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._stopping = threading.Event()
        self.answers: list[float] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._ask_on)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)

    def wait_for(self, answer: float, within_s: float = 30) -> None:
        wait_until(lambda: answer in self.answers[-1:] or self.failures, within_s, f"the answer is {answer}")

    def _ask_on(self) -> None:
        line: http.client.HTTPConnection | None = None
        body = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]})
        while not self._stopping.is_set():
            try:
                line = line or http.client.HTTPConnection(self._parts.hostname or "", self._parts.port, timeout=20)
                line.request("POST", f"{self._parts.path}/v2/models/adder/infer", body, self._headers)
                response = line.getresponse()
                text = response.read()
                if response.status == 200:
                    self.answers.append(json.loads(text)["outputs"][0]["data"][0])
                else:
                    self.failures.append(f"{response.status} {text[:200]!r}")
                if not self._kept or response.will_close:
                    line.close()
                    line = None
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"after {len(self.answers)} answers: {error!r}")
                if line is not None:
                    line.close()
                line = None
            time.sleep(0.005)  # a client's own pace, so that the machine is left to others
        if line is not None:
            line.close()


def deployment(house: Running, name: str = "adder") -> dict[str, Any]:
    with house.client() as client:
        return client.deployments.find(name)


def key_for(house: Running, deployment_id: str) -> str:
    with house.client() as client:
        key = str(client.deployments.create_key(deployment_id, "journey")["key"])
        endpoint = client.deployments.get(deployment_id)["localUrl"]

    def opens() -> bool:
        request = urllib.request.Request(f"{endpoint}/v2", headers={"Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False

    wait_until(opens, 5, "the replicas have heard of the new key")
    return key


def urls_in(text: str) -> list[str]:
    return re.findall(r"https?://\S+", text)
