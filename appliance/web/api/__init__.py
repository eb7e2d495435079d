"""The REST API: one module for each noun, each handler one verb long."""

from __future__ import annotations

from collections.abc import Sequence

from litestar.handlers import HTTPRouteHandler

from appliance.web.api import accounts, datasets, deployments, machine, models, projects, runs

HANDLERS: Sequence[HTTPRouteHandler] = (
    *accounts.HANDLERS,
    *machine.HANDLERS,
    *projects.HANDLERS,
    *datasets.HANDLERS,
    *models.HANDLERS,
    *runs.HANDLERS,
    *deployments.HANDLERS,
)
