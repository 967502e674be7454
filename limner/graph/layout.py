"""Places a state machine's graph: boxes and edge routes, from top to bottom.

The layered layout and the routing of edges around nodes is graphlay's (MIT or Apache-2.0; this is
the only module that knows it). We add one thing that is special to state machines: where many
states catch their errors with the same handler, their edges share one rail beside the graph instead
of a line each.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import graphlay

from limner.graph.machine import Edge, EdgeKind, Machine

#: From this number of catchers on, a handler gets a rail.
RAIL_FROM: Final = 3

_LAYER_GAP: Final = 42.0
_STUB: Final = 16.0
#: How far below its row a catch edge turns to the rail: above where graphlay's edges turn.
_HOOK: Final = 6.0
_RAIL_GAP: Final = 26.0
_RAIL_PITCH: Final = 14.0
_OPTIONS: Final[Mapping[str, Any]] = {
    "spacing": {
        "layer_gap": _LAYER_GAP,
        "node_gap": 32.0,
        "dummy_gap": 18.0,
        "port_gap": 16.0,
        "stub": _STUB,
    },
    # Loops point up; everything else points down, even where that makes the drawing longer.
    "cycles": {"strategy": "follow_flow"},
    "routing": {"port_sides": "facing_only"},
    "coords": {"placement": "brandes_koepf"},
}
_SPINE_WEIGHT: Final = 12.0
_NEXT_WEIGHT: Final = 2.0
_CATCH_WEIGHT: Final = 0.5

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A node's place: upper left corner and size, in px."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The x of the right side."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """The y of the lower side."""
        return self.y + self.height

    @property
    def middle(self) -> Point:
        """The centre."""
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Route:
    """An edge's line.

    Attributes:
        edge: The edge.
        points: The corners from the source's border to the target's, in px.
        own: The part of it that no other line of the same rail covers: all of it, or its
            beginning down to where it meets the next line.
    """

    edge: Edge
    points: tuple[Point, ...]
    own: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything goes. All coordinates are in px, from (0, 0) to (width, height)."""

    width: float
    height: float
    boxes: Mapping[str, Box]
    routes: tuple[Route, ...]


def arrange(machine: Machine, sizes: Mapping[str, tuple[float, float]]) -> Layout:
    """Lays a machine out.

    Args:
        machine: The graph.
        sizes: Width and height in px of each node that is to be placed, `START` and `END`
            included where an edge names them.

    Returns:
        The layout; the same input gives the same one.
    """
    railed = _railed(machine.edges)
    main = set(machine.spine)
    steps = set(itertools.pairwise(machine.spine))
    ways_in = {(edge.source, edge.target) for edge in machine.edges if edge.target in main}
    # graphlay's heuristics depend on the order of the edges and on which of them are heavy; a
    # layout takes some milliseconds, so we ask for a few, and take the straightest, then narrowest.
    orders = (machine.edges, sorted(machine.edges, key=lambda edge: edge.source in main))
    layouts = [
        _completed(_layered(_without_rails(order, railed), heavy, sizes), railed)
        for order in orders
        for heavy in (steps, steps | ways_in)
    ]
    return min(layouts, key=lambda layout: (_bend(machine.spine, layout), layout.width))


def _completed(placed: tuple[dict[str, Box], list[Route]], railed: Sequence[Edge]) -> Layout:
    boxes, routes = placed
    drawn = [route for route in routes if route.edge not in railed]
    drawn = _with_leaves_straight(drawn, boxes)
    drawn += _rails(railed, boxes)
    return _moved_to_origin(boxes, drawn)


def _bend(spine: Sequence[str], layout: Layout) -> int:
    """How far the main path leaves the straight line, in whole px."""
    middles = [layout.boxes[name].middle[0] for name in spine if name in layout.boxes]
    return round(max(middles, default=0.0) - min(middles, default=0.0))


def _railed(edges: Sequence[Edge]) -> list[Edge]:
    catchers: dict[str, list[Edge]] = {}
    for edge in edges:
        if edge.kind is EdgeKind.CATCH:
            catchers.setdefault(edge.target, []).append(edge)
    return [one for group in catchers.values() if len(group) >= RAIL_FROM for one in group]


def _without_rails(edges: Sequence[Edge], railed: Sequence[Edge]) -> list[Edge]:
    """The edges to lay out: of each rail the last one only, so that the rail leads down."""
    anchors = {edge.target: edge for edge in edges if edge in railed}
    return [*(edge for edge in edges if edge not in railed), *anchors.values()]


def _layered(
    edges: Sequence[Edge],
    heavy: Container[tuple[str, str]],
    sizes: Mapping[str, tuple[float, float]],
) -> tuple[dict[str, Box], list[Route]]:
    graph = graphlay.Graph()
    for name, (width, height) in sizes.items():
        graph.node(name, width=width, height=height)
    for edge in edges:
        weight = _CATCH_WEIGHT if edge.kind is EdgeKind.CATCH else _NEXT_WEIGHT
        if edge.kind is EdgeKind.NEXT and (edge.source, edge.target) in heavy:
            weight = _SPINE_WEIGHT
        graph.edge(edge.source, edge.target, weight=weight)
    placed = graphlay.layout(graph, preset="process_map", options=dict(_OPTIONS))
    boxes = {
        name: Box(x - sizes[name][0] / 2, y - sizes[name][1] / 2, *sizes[name])
        for name, (x, y) in placed.positions().items()
    }
    routes = []
    for edge, drawn in zip(edges, placed.edges, strict=True):
        points = tuple((point["x"], point["y"]) for point in drawn["points"])
        routes.append(Route(edge, points, points))
    return boxes, routes


def _with_leaves_straight(routes: Sequence[Route], boxes: dict[str, Box]) -> list[Route]:
    """Moves each last state with one way in right below the state before it, if that is free.

    graphlay likes to set the end of a side branch apart; a reader likes it below. `boxes` is
    changed in place.
    """
    result = list(routes)
    sources = {route.edge.source for route in routes}
    for number, route in enumerate(routes):
        source, target = route.edge.source, route.edge.target
        ways_in = sum(other.edge.target == target for other in routes)
        if target in sources or ways_in > 1:
            continue
        parent, box = boxes[source], boxes[target]
        moved = Box(parent.middle[0] - box.width / 2, box.y, box.width, box.height)
        shaft = Box(parent.middle[0], parent.bottom, 0.0, box.y - parent.bottom)
        in_the_way = [other for name, other in boxes.items() if name not in (source, target)]
        lines = [one for other in result if other is not route for one in _segments(other)]
        if not any(_near(moved, other) or _near(shaft, other) for other in in_the_way + lines):
            boxes[target] = moved
            line = ((shaft.x, shaft.y), (shaft.x, shaft.bottom))
            result[number] = Route(route.edge, line, line)
    return result


def _segments(route: Route) -> list[Box]:
    """The straight parts of a route as boxes without a thickness."""
    pairs = zip(route.points, route.points[1:], strict=False)
    return [
        Box(min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)) for (x1, y1), (x2, y2) in pairs
    ]


def _near(one: Box, other: Box, margin: float = 9.0) -> bool:
    """Whether two boxes overlap or come closer than `margin` px."""
    return (
        one.x < other.right + margin
        and other.x < one.right + margin
        and one.y < other.bottom + margin
        and other.y < one.bottom + margin
    )


def _rails(railed: Sequence[Edge], boxes: Mapping[str, Box]) -> list[Route]:
    """Routes each handler's catch edges over one vertical line beside the graph."""
    routes: list[Route] = []
    left = min(box.x for box in boxes.values())
    right = max(box.right for box in boxes.values())
    for number, target in enumerate(dict.fromkeys(edge.target for edge in railed)):
        group = [edge for edge in railed if edge.target == target]
        ends = [boxes[edge.source] for edge in group] + [boxes[target]]
        offset = _RAIL_GAP + number * _RAIL_PITCH
        to_left = sum(box.x - left for box in ends)
        to_right = sum(right - box.right for box in ends)
        rail_x = left - offset if to_left < to_right else right + offset
        arrival = _entry(boxes[target], rail_x, boxes)
        departures = [_exit(boxes[edge.source], rail_x, boxes) for edge in group]
        for edge, departure in zip(group, departures, strict=True):
            y, goal = departure[-1][1], arrival[0][1]
            between = [
                other[-1][1] for other in departures if min(y, goal) < other[-1][1] < max(y, goal)
            ]
            meets = min(between, key=lambda one: abs(one - y), default=None)
            points = (*departure, *arrival)
            own = points if meets is None else (*departure, (rail_x, meets))
            routes.append(Route(edge, points, own))
    return routes


def _exit(box: Box, rail_x: float, boxes: Mapping[str, Box]) -> tuple[Point, ...]:
    """From a state to the rail: out of its side if the way is free, else below its row."""
    side, corner = _towards_rail(box, rail_x)
    y = box.middle[1]
    if not _blockers(box, side, rail_x, y, boxes):
        return (side, y), (rail_x, y)
    y = box.bottom + _HOOK
    while blockers := _blockers(box, corner, rail_x, y, boxes):
        y = max(other.bottom for other in blockers) + _HOOK
    return (corner, box.bottom), (corner, y), (rail_x, y)


def _entry(box: Box, rail_x: float, boxes: Mapping[str, Box]) -> tuple[Point, ...]:
    """From the rail to the handler: into its side if the way is free, else from above its row."""
    side, corner = _towards_rail(box, rail_x)
    y = box.middle[1]
    if not _blockers(box, side, rail_x, y, boxes):
        return (rail_x, y), (side, y)
    y = box.y - _STUB
    while blockers := _blockers(box, corner, rail_x, y, boxes):
        y = min(other.y for other in blockers) - _STUB
    return (rail_x, y), (corner, y), (corner, box.y)


def _towards_rail(box: Box, rail_x: float) -> tuple[float, float]:
    """The x of the box's side that faces the rail, and of a place near that corner."""
    return (box.x, box.x + 16) if rail_x < box.x else (box.right, box.right - 16)


def _blockers(box: Box, x: float, rail_x: float, y: float, boxes: Mapping[str, Box]) -> list[Box]:
    """The other boxes that a level line from x to the rail would touch."""
    left, right = sorted((x, rail_x))
    return [
        other
        for other in boxes.values()
        if other is not box
        and other.x < right
        and other.right > left
        and other.y - 4 < y < other.bottom + 4
    ]


def _moved_to_origin(boxes: Mapping[str, Box], routes: Sequence[Route]) -> Layout:
    xs = [x for route in routes for x, _ in route.points]
    xs += [x for box in boxes.values() for x in (box.x, box.right)]
    ys = [y for route in routes for _, y in route.points]
    ys += [y for box in boxes.values() for y in (box.y, box.bottom)]
    x0, y0 = min(xs), min(ys)
    return Layout(
        width=max(xs) - x0,
        height=max(ys) - y0,
        boxes={
            name: Box(box.x - x0, box.y - y0, box.width, box.height) for name, box in boxes.items()
        },
        routes=tuple(_moved(route, -x0, -y0) for route in routes),
    )


def _moved(route: Route, dx: float, dy: float) -> Route:
    def shifted(points: tuple[Point, ...]) -> tuple[Point, ...]:
        return tuple((x + dx, y + dy) for x, y in points)

    return Route(route.edge, shifted(route.points), shifted(route.own))
