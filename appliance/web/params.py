"""The query parameters that several routes share, spelled once.

`Limit` above the most is the most, since clients ask for round numbers.
"""

from __future__ import annotations

from typing import Annotated

from litestar.params import QueryParameter

MOST = 1000

ProjectId = Annotated[str | None, QueryParameter(name="projectId")]
After = Annotated[str | None, QueryParameter(name="after", description="The `nextPage` of the page before.")]
Limit = Annotated[int, QueryParameter(name="limit", ge=1, description="At most so many items, and never over 1000.")]


def limited(limit: int) -> int:
    return min(limit, MOST)
