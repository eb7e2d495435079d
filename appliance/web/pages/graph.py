"""Where the boxes and arrows of a run's jobs stand. Pure.

What this keeps true: a job stands right of all that it needs; an arrow that others imply is not drawn; the picture is as
wide and high as its boxes.

Why on the server: jobs are few, and a page whose picture needs no script is there at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 176, 46
GAP_X, GAP_Y, EDGE = 52, 16, 4


@dataclass(frozen=True)
class Box:
    name: str
    x: int
    y: int


@dataclass(frozen=True)
class Graph:
    """Boxes, and the SVG path of each arrow, in a picture of `width` by `height`."""

    boxes: tuple[Box, ...]
    arrows: tuple[str, ...]
    width: int
    height: int


def layout(needs: Mapping[str, Sequence[str]]) -> Graph:
    """`needs` maps each job to those it needs, without a cycle; needs of unknown jobs are passed over."""
    direct = {name: _direct(needs, name) for name in needs}
    depths = {name: _depth(direct, name) for name in needs}
    columns: dict[int, list[str]] = {}
    for name in needs:
        columns.setdefault(depths[name], []).append(name)
    tallest = max((len(column) for column in columns.values()), default=0)
    boxes = {
        name: _box(name, depth, row, len(column), tallest)
        for depth, column in columns.items()
        for row, name in enumerate(column)
    }
    arrows = [_arrow(boxes[before], boxes[name]) for name in needs for before in direct[name]]
    width = max(1, len(columns)) * (WIDTH + GAP_X) - GAP_X + 2 * EDGE
    height = max(1, tallest) * (HEIGHT + GAP_Y) - GAP_Y + 2 * EDGE
    return Graph(tuple(boxes[name] for name in needs), tuple(arrows), width, height)


def _box(name: str, depth: int, row: int, rows: int, tallest: int) -> Box:
    top = (tallest - rows) * (HEIGHT + GAP_Y) // 2
    return Box(name, EDGE + depth * (WIDTH + GAP_X), EDGE + top + row * (HEIGHT + GAP_Y))


def _arrow(start: Box, end: Box) -> str:
    x1, y1 = start.x + WIDTH, start.y + HEIGHT // 2
    x2, y2 = end.x - 5, end.y + HEIGHT // 2
    bend = max(20, (x2 - x1) // 2)
    return f"M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"


def _direct(needs: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """What `name` needs, less what one of its other needs waits for anyway."""
    own = [each for each in needs[name] if each in needs]
    return [each for each in own if not any(each in _above(needs, other) for other in own if other != each)]


def _above(needs: Mapping[str, Sequence[str]], name: str) -> set[str]:
    found: set[str] = set()
    left = list(needs[name])
    while left:
        each = left.pop()
        if each in needs and each not in found:
            found.add(each)
            left += needs[each]
    return found


def _depth(direct: Mapping[str, Iterable[str]], name: str) -> int:
    return 1 + max((_depth(direct, each) for each in direct[name]), default=-1)
