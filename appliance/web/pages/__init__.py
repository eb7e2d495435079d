"""The HTML pages and the static files: what `app` adds to the API. One module for each noun, as in api/.

What this keeps true: a handler decodes, calls verbs of the domain (never the API over HTTP), and renders; a page works
without scripts wherever that makes sense, and a change is followed by a redirect; nothing inline (the Content Security
Policy forbids it) and nothing from elsewhere, so pages work with no internet; no page shows what its reader may not see,
because every record comes from a verb that was given the actor.

    view       templates, words for times and sizes, redirects       static     the files that pages load
    account    signing in, one-time links                            home       all projects
    project    one project and its tabs                              run        one run, its graph and its jobs
    graph      where a run's boxes and arrows stand (pure)           versioned  what datasets and models share
    files      a version's files and small safe previews             deployment one deployment, `trying` it
    settings   members, keys, the machine                            changes    what makes a page look again

Why apart: the API must not depend on how its pages look.
"""

from __future__ import annotations

from collections.abc import Sequence

from litestar.types import ControllerRouterHandler

from appliance.web.pages import account, changes, deployment, home, project, run, settings, static, versioned
from appliance.web.pages.view import error_page

HANDLERS: Sequence[ControllerRouterHandler] = (
    *static.HANDLERS,
    *account.HANDLERS,
    *home.HANDLERS,
    *project.HANDLERS,
    *run.HANDLERS,
    *versioned.HANDLERS,
    *deployment.HANDLERS,
    *settings.HANDLERS,
    *changes.HANDLERS,
)

__all__ = ["HANDLERS", "error_page"]
