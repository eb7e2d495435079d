"""Where the boxes and arrows of a run's jobs stand. Pure.

What this keeps true: a job stands right of all that it needs; an arrow that others imply is not drawn; the picture is as
wide and high as its boxes.

Why on the server: jobs are few, and a page whose picture needs no script is there at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

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
    known = {name: [each for each in before if each in needs] for name, before in needs.items()}
    above: dict[str, set[str]] = {}
    columns: dict[int, list[str]] = {}
    depths: dict[str, int] = {}
    for name in TopologicalSorter(known).static_order():
        above[name] = set(known[name]).union(*(above[each] for each in known[name]))
        depths[name] = 1 + max((depths[each] for each in known[name]), default=-1)
    for name in needs:
        columns.setdefault(depths[name], []).append(name)
    tallest = max((len(column) for column in columns.values()), default=0)
    boxes = {
        name: _box(name, depth, row, len(column), tallest)
        for depth, column in columns.items()
        for row, name in enumerate(column)
    }
    # An arrow is left out where another of the job's needs waits for the same one anyway.
    drawn = [
        (each, name)
        for name, before in known.items()
        for each in before
        if not any(each in above[other] for other in before)
    ]
    width = max(1, len(columns)) * (WIDTH + GAP_X) - GAP_X + 2 * EDGE
    height = max(1, tallest) * (HEIGHT + GAP_Y) - GAP_Y + 2 * EDGE
    arrows = tuple(_arrow(boxes[start], boxes[end]) for start, end in drawn)
    return Graph(tuple(boxes[name] for name in needs), arrows, width, height)


def _box(name: str, depth: int, row: int, rows: int, tallest: int) -> Box:
    top = (tallest - rows) * (HEIGHT + GAP_Y) // 2
    return Box(name, EDGE + depth * (WIDTH + GAP_X), EDGE + top + row * (HEIGHT + GAP_Y))


def _arrow(start: Box, end: Box) -> str:
    x1, y1 = start.x + WIDTH, start.y + HEIGHT // 2
    x2, y2 = end.x - 5, end.y + HEIGHT // 2
    bend = max(20, (x2 - x1) // 2)
    return f"M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"
