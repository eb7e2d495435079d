"""Everything that the doors need, made once by the daemon and handed over whole.

Why: a handler gets what it uses from one frozen value; there is no global and nothing to inject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.config import Config
from appliance.db import Database
from appliance.doctor import Finding
from appliance.records import Card
from appliance.repos import Repos
from appliance.runtime.engine import Engine
from appliance.runtime.logs import LogStore
from appliance.store import Store


@dataclass(frozen=True)
class House:
    """`wake` makes the loops look at once. `health` is None while all is well, else the sentence. `doctor` looks around.

    `cards` are those that the machine has at this moment. `fail` ends the daemon: a write was lost in a request.
    """

    config: Config
    db: Database
    store: Store
    repos: Repos
    engine: Engine
    logs: LogStore
    wake: Callable[[], None]
    instance: str
    health: Callable[[], str | None]
    doctor: Callable[[], Sequence[Finding]]
    cards: Callable[[], Sequence[Card]] = tuple
    fail: Callable[[BaseException], None] = lambda _: None
