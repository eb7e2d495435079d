"""The REST API: one module for each noun, each handler one verb long."""

from __future__ import annotations

from collections.abc import Sequence

from litestar.handlers import HTTPRouteHandler

from appliance.web.api import accounts, machine, projects

HANDLERS: Sequence[HTTPRouteHandler] = (*accounts.HANDLERS, *machine.HANDLERS, *projects.HANDLERS)
