"""What every shape uses: pages of a list, times that may be left out, addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from appliance.config import Config
from appliance.records import Page

Json = dict[str, Any]
T = TypeVar("T")
TEAM_ID = "team"
TEAM = {"id": TEAM_ID, "namespace": TEAM_ID}


def page(found: Page[T], of: Callable[[T], Json]) -> Json:
    return {
        "items": [of(item) for item in found.items],
        "hasMore": found.next_page is not None,
        "nextPage": found.next_page,
    }


def whole(items: Iterable[T], of: Callable[[T], Json]) -> Json:
    """A list that has one page."""
    return {"items": [of(item) for item in items], "hasMore": False, "nextPage": None}


def base_url(config: Config) -> str:
    """The dashboard's best address, which is the first of `config.dashboard_urls()` without looking at the network."""
    host = f"[{config.host_name}]" if ":" in config.host_name else config.host_name
    return f"https://{host}" + ("" if config.https_port == 443 else f":{config.https_port}")


def camel(record: Any) -> Json:
    """A plain record of ours with its own field names in camelCase."""
    return {_camel(name): value for name, value in asdict(record).items()}


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def known(values: Mapping[str, Any]) -> Json:
    return {name: value for name, value in values.items() if value is not None}
