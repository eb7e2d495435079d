"""The SDK: the same verbs as the doors, over HTTP.

    from appliance.client import Client, connect

    client = connect()                      # the environment's server, or the one that `appliance login` chose
    run = client.runs.submit("digits", path=".gradient/workflows/train.yaml")
    for line in client.runs.logs_follow(run["uuid"], "train"):
        print(line["message"])

What this keeps true: a method is one call of the API (or a loop of them that says so); what it returns is the API's
JSON as plain dicts and lists, not a second vocabulary; what goes wrong is raised from the same tree of errors as on the
server (`appliance.errors`), chosen by the answer's code. A `Client` may be used by several threads. Nothing but httpx and
the words of floor 0 is imported, so it works in a training container, where `APPLIANCE_URL` and `APPLIANCE_API_KEY` say
whom to ask.

Why dicts: the contract is the HTTP API; records of our own would have to be changed with it and would hide new fields
from old clients.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from appliance.client import settings
from appliance.client.accounts import Account, Keys, Members
from appliance.client.data import Datasets, Models
from appliance.client.serving import Deployments
from appliance.client.text import printable
from appliance.client.transport import DEFAULT_TIMEOUT_S, Json, TimedOut, Transport, Unreachable
from appliance.client.work import Events, Machine, Projects, Runs, Workflows
from appliance.errors import Unauthorized

__all__ = ["Client", "Json", "TimedOut", "Unreachable", "connect", "printable"]


class Client:
    """The appliance at `url`, as the owner of `key` (None: as a stranger).

    `ca` is a PEM file with the certificate authority to trust in place of the system's; `timeout_s` bounds each
    request's silence, not a whole transfer. Nothing is sent before the first verb.
    """

    def __init__(
        self, url: str, key: str | None = None, *, ca: Path | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.transport = Transport(url, key, ca=ca, timeout_s=timeout_s)
        self.url = self.transport.url
        self.account = Account(self.transport)
        self.keys = Keys(self.transport)
        self.members = Members(self.transport)
        self.machine = Machine(self.transport)
        self.projects = Projects(self.transport)
        self.workflows = Workflows(self.transport)
        self.runs = Runs(self.transport)
        self.datasets = Datasets(self.transport)
        self.models = Models(self.transport)
        self.deployments = Deployments(self.transport)
        self.events = Events(self.transport)

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def connect(*, timeout_s: float = DEFAULT_TIMEOUT_S) -> Client:
    """The client that environment or `appliance login` describe. Raises Unauthorized when neither does."""
    found = settings.find()
    if found is None:
        raise Unauthorized("You are not signed in to any appliance: run `appliance login URL`, or set APPLIANCE_URL.")
    return Client(found.url, found.key, ca=found.ca, timeout_s=timeout_s)
