"""Renders a drawing as one SVG file that needs nothing else: no script, no style sheet, no link.

The document is built as a tree, so that whatever an error message holds is escaped.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from limner.graph import theme
from limner.graph.history import Drawing, Outcome, StateRun
from limner.graph.layout import Box, Point, Route, arrange
from limner.graph.machine import END, START, EdgeKind, Machine, Node
from limner.graph.text import BOLD, clean, duration, fit, width_of, wrap

_MARGIN: Final = 28.0
_NAME_PX: Final = 13.5
_SMALL_PX: Final = 11.0
_LINE: Final = 14.5
_PADDING: Final = 11.0
_TILE: Final = 30.0
_HEAD_HEIGHT: Final = 54.0
_PILL_HEIGHT: Final = 18.0
_MIN_WIDTH: Final = 244.0
_MAX_WIDTH: Final = 300.0
_MAX_ERROR_LINES: Final = 3
_MAX_CAUSE_LINES: Final = 7
_TERMINAL_SIZE: Final = (66.0, 28.0)
_MIN_CANVAS: Final = 860.0
_CORNER: Final = 8.0
_ARROW: Final = 8.0


@dataclass(frozen=True, slots=True)
class _Card:
    """One state's box before it is placed: its texts are wrapped, its size is known."""

    node: Node
    run: StateRun
    width: float
    height: float
    time: str
    pills: tuple[tuple[str, str], ...]
    error: tuple[str, ...]
    cause: tuple[str, ...]


def render(machine: Machine, drawing: Drawing) -> str:
    """Draws an execution on its machine's graph.

    Args:
        machine: The graph.
        drawing: What the execution did.

    Returns:
        The SVG document as text. The same input gives the same text.
    """
    width = _card_width(machine.nodes)
    cards = {node.name: _card(node, drawing.states[node.name], width) for node in machine.nodes}
    sizes = {name: (card.width, card.height) for name, card in cards.items()}
    ends = {edge.source for edge in machine.edges} | {edge.target for edge in machine.edges}
    sizes |= {name: _TERMINAL_SIZE for name in (START, END) if name in ends}
    layout = arrange(machine, sizes)

    canvas_width = max(layout.width + 2 * _MARGIN, _MIN_CANVAS)
    header, header_height = _header(drawing, canvas_width)
    legend, legend_height = _legend(canvas_width)
    canvas_height = header_height + layout.height + legend_height + _MARGIN
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "width": _num(canvas_width),
            "height": _num(canvas_height),
            "viewBox": f"0 0 {_num(canvas_width)} {_num(canvas_height)}",
            "font-family": theme.FONT,
            "role": "img",
        },
    )
    _add(root, "title").text = clean(f"{drawing.machine} {drawing.execution}: {drawing.status}")
    _add(root, "rect", width="100%", height="100%", fill=theme.PAPER)
    root.append(header)
    graph = _group(root, (canvas_width - layout.width) / 2, header_height)
    # What was taken lies on top of what was not.
    for route in sorted(layout.routes, key=lambda one: _is_taken(one, drawing)):
        graph.append(_edge(route, taken=_is_taken(route, drawing)))
    for name, box in layout.boxes.items():
        graph.append(
            _draw_card(cards[name], box)
            if name in cards
            else _terminal("Start" if name == START else "End", box, drawing, name)
        )
    legend.set("transform", f"translate(0 {_num(header_height + layout.height + 18)})")
    root.append(legend)
    return ET.tostring(root, encoding="unicode") + "\n"


# Cards ---------------------------------------------------------------------------------------


def _card_width(nodes: Sequence[Node]) -> float:
    """One width for all, wide enough for the longest name within limits."""
    longest = max(width_of(node.name, _NAME_PX, bold=True) for node in nodes)
    return min(_MAX_WIDTH, max(_MIN_WIDTH, longest + _TILE + 2 * _PADDING + 36))


def _card(node: Node, run: StateRun, width: float) -> _Card:
    inner = width - 2 * _PADDING
    # A state that succeeded in the end shows the error that it overcame in brief.
    cause_lines = 1 if run.outcome is Outcome.SUCCEEDED else _MAX_CAUSE_LINES
    # It may be set in bold.
    error = tuple(wrap(run.error or "", inner / BOLD, _SMALL_PX, _MAX_ERROR_LINES))
    cause = tuple(wrap(run.cause or "", inner, _SMALL_PX, cause_lines))
    pills = []
    if run.retries:
        noun = "retry" if run.retries == 1 else "retries"
        pills.append((f"{run.retries} {noun}", theme.RETRY_FILL))
    if run.entries > 1:
        pills.append((f"entered {run.entries} times", theme.ENTRIES_FILL))
    height = _HEAD_HEIGHT
    height += _PILL_HEIGHT + 6 if pills else 0
    height += (len(error) + len(cause)) * _LINE + 6 if error or cause else 0
    return _Card(
        node=node,
        run=run,
        width=width,
        height=height,
        time="" if run.duration_s is None or _is_instant(node) else duration(run.duration_s),
        pills=tuple(pills),
        error=error,
        cause=cause,
    )


def _label(node: Node, room: float) -> str:
    """What the state is: the service and its call where there is room, else the service."""
    short = node.service or node.type
    full = " · ".join(filter(None, (short, node.action)))
    return full if width_of(full, _SMALL_PX) <= room else fit(short, room, _SMALL_PX)


def _is_instant(node: Node) -> bool:
    return node.type in ("Succeed", "Fail")


def _draw_card(card: _Card, box: Box) -> ET.Element:
    look = theme.LOOKS[card.run.outcome]
    reached = card.run.outcome is not Outcome.NOT_REACHED
    group = ET.Element("g", {"transform": f"translate({_num(box.x)} {_num(box.y)})"})
    group.set("data-state", clean(card.node.name))
    group.set("data-outcome", card.run.outcome.value)
    _add(group, "title").text = clean(_tooltip(card))
    frame = _add(group, "rect", width=box.width, height=box.height, rx=9, fill=look.fill)
    frame.attrib |= {"stroke": look.line, "stroke-width": "1.6" if reached else "1.2"}
    if card.run.outcome is Outcome.RUNNING:
        frame.set("stroke-dasharray", "7 4")
    _icon(group, card.node, reached=reached)
    left = _PADDING + _TILE + 9
    mark_room = 28 if look.mark else 0
    name = fit(card.node.name, box.width - left - mark_room - 4, _NAME_PX, bold=True)
    ink = theme.INK if reached else theme.INK_FAINT
    _text(group, name, left, 24, _NAME_PX, ink, bold=True)
    time_width = width_of(card.time, _SMALL_PX, bold=True) + 10 if card.time else 0
    label = _label(card.node, box.width - left - time_width - _PADDING)
    _text(group, label, left, 41, _SMALL_PX, theme.INK_SOFT if reached else theme.INK_FAINT)
    if card.time:
        right = box.width - _PADDING
        _text(group, card.time, right, 41, _SMALL_PX, ink, bold=True, anchor="end")
    if look.mark:
        _disc(group, look, box.width - 20, 19)
    _details(group, card, look)
    return group


def _details(group: ET.Element, card: _Card, look: theme.Look) -> None:
    y = _HEAD_HEIGHT - 2
    x = _PADDING
    for text, fill in card.pills:
        pill_width = width_of(text, _SMALL_PX, bold=True) + 14
        _add(group, "rect", x=x, y=y, width=pill_width, height=_PILL_HEIGHT, rx=9, fill=fill)
        middle = x + pill_width / 2
        _text(group, text, middle, y + 12.8, _SMALL_PX, "#ffffff", bold=True, anchor="middle")
        x += pill_width + 6
    y += _PILL_HEIGHT + 6 if card.pills else 0
    overcome = card.run.outcome is Outcome.SUCCEEDED
    ink = theme.INK_SOFT if overcome else look.text
    for line in card.error:
        _text(group, line, _PADDING, y + 10, _SMALL_PX, ink, bold=not overcome)
        y += _LINE
    for line in card.cause:
        _text(group, line, _PADDING, y + 10, _SMALL_PX, ink)
        y += _LINE


def _tooltip(card: _Card) -> str:
    run = card.run
    call = " · ".join(filter(None, (card.node.service or card.node.type, card.node.action)))
    parts = [f"{run.name} ({call}): {run.outcome.value}", card.node.comment]
    parts += [f"{run.error}: {run.cause}" if run.cause else run.error or ""]
    return "\n".join(filter(None, parts))


def _icon(group: ET.Element, node: Node, *, reached: bool) -> None:
    key = node.service or node.type
    path = theme.ICONS.get(key, theme.ICONS["Task"])
    tile = theme.TILES.get(key, theme.OTHER_TILE) if reached else "#b4bbc6"
    _add(group, "rect", x=_PADDING, y=12, width=_TILE, height=_TILE, rx=7, fill=tile)
    inset = (_TILE - 16) / 2
    _stroke(group, path, _PADDING + inset, 12 + inset, "#ffffff", 1.4)


def _disc(group: ET.Element, look: theme.Look, x: float, y: float) -> None:
    """The outcome's mark on a disc with its centre at (x, y)."""
    _add(group, "circle", cx=x, cy=y, r=9, fill=look.line)
    _stroke(group, look.mark, x - 8, y - 8, "#ffffff", 2.0)


def _terminal(label: str, box: Box, drawing: Drawing, name: str) -> ET.Element:
    """The start or the end of the graph: a capsule."""
    reached = any(name in pair for pair in drawing.taken)
    group = ET.Element("g", {"transform": f"translate({_num(box.x)} {_num(box.y)})"})
    fill, ink = (theme.EDGE_TAKEN, "#ffffff") if reached else (theme.PAPER, theme.INK_FAINT)
    line = theme.EDGE_TAKEN if reached else theme.LOOKS[Outcome.NOT_REACHED].line
    frame = _add(group, "rect", width=box.width, height=box.height, rx=box.height / 2, fill=fill)
    frame.set("stroke", line)
    _text(group, label, box.width / 2, 18.5, 12.5, ink, bold=True, anchor="middle")
    return group


# Edges ---------------------------------------------------------------------------------------


def _is_taken(route: Route, drawing: Drawing) -> bool:
    return (route.edge.source, route.edge.target) in drawing.taken


def _edge(route: Route, *, taken: bool) -> ET.Element:
    catch = route.edge.kind is EdgeKind.CATCH
    if catch:
        colour = theme.CATCH_TAKEN if taken else theme.CATCH_FAINT
    else:
        colour = theme.EDGE_TAKEN if taken else theme.EDGE_FAINT
    group = ET.Element("g", {"data-edge": "catch" if catch else "next"})
    group.set("data-taken", "yes" if taken else "no")
    # Lines that nothing took leave their rail to the next one: dashes that overlap read as a line.
    points = route.points if taken else route.own
    arrives = points[-1] == route.points[-1]
    shaft = _shortened(points) if arrives else points
    line = _add(group, "path", d=_rounded(shaft), fill="none", stroke=colour)
    line.set("stroke-width", "2.4" if taken else "1.4")
    if catch:
        line.set("stroke-dasharray", "7 4" if taken else "3 4")
    if arrives:
        _add(group, "path", d=_arrow_head(points, _ARROW if taken else 6.5), fill=colour)
    return group


def _shortened(points: Sequence[Point]) -> list[Point]:
    """The line without its last px, which the arrow head covers."""
    (x1, y1), (x2, y2) = points[-2:]
    length = math.hypot(x2 - x1, y2 - y1)
    keep = max(0.0, length - 4) / length if length else 0.0
    return [*points[:-1], (x1 + (x2 - x1) * keep, y1 + (y2 - y1) * keep)]


def _rounded(points: Sequence[Point]) -> str:
    """Path data of a line with rounded corners."""
    steps = [f"M{_pair(points[0])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(_CORNER, math.dist(before, corner) / 2, math.dist(corner, after) / 2)
        steps.append(f"L{_pair(_towards(corner, before, radius))}")
        steps.append(f"Q{_pair(corner)} {_pair(_towards(corner, after, radius))}")
    steps.append(f"L{_pair(points[-1])}")
    return "".join(steps)


def _towards(start: Point, goal: Point, distance: float) -> Point:
    length = math.dist(start, goal)
    part = distance / length if length else 0.0
    return start[0] + (goal[0] - start[0]) * part, start[1] + (goal[1] - start[1]) * part


def _arrow_head(points: Sequence[Point], size: float) -> str:
    tip, before = points[-1], points[-2]
    base = _towards(tip, before, size)
    dx, dy = (tip[0] - base[0]) * 0.5, (tip[1] - base[1]) * 0.5
    wings = (base[0] - dy, base[1] + dx), (base[0] + dy, base[1] - dx)
    return f"M{_pair(tip)}L{_pair(wings[0])}L{_pair(wings[1])}Z"


# Header and legend ---------------------------------------------------------------------------


def _header(drawing: Drawing, canvas_width: float) -> tuple[ET.Element, float]:
    """The title block and its height in px."""
    group = ET.Element("g")
    room = canvas_width - 2 * _MARGIN
    outcome = theme.STATUS_OUTCOMES.get(drawing.status, Outcome.RUNNING)
    look = theme.LOOKS[outcome]
    status = drawing.status.replace("_", " ").capitalize()
    pill_width = width_of(status, 13, bold=True) + 44
    title = fit(drawing.execution or "(no name)", room - pill_width - 16, 20, bold=True)
    _text(group, title, _MARGIN, 46, 20, theme.INK, bold=True)
    x = canvas_width - _MARGIN - pill_width
    pill = _add(group, "rect", x=x, y=25, width=pill_width, height=30, rx=15, fill=look.fill)
    pill.attrib |= {"stroke": look.line, "stroke-width": "1.4"}
    _disc(group, look, x + 17, 40)
    _text(group, status, x + 33, 44.6, 13, look.text, bold=True)
    facts = [f"State machine {drawing.machine}"] if drawing.machine else []
    if drawing.started_at is not None:
        facts.append(f"started {drawing.started_at:%Y-%m-%d %H:%M:%S} UTC")
    if drawing.duration_s is not None:
        facts.append(f"total {duration(drawing.duration_s)}")
    retries = sum(run.retries for run in drawing.states.values())
    if retries:
        facts.append(f"{retries} {'retry' if retries == 1 else 'retries'}")
    _text(group, fit("  ·  ".join(facts), room, 13), _MARGIN, 72, 13, theme.INK_SOFT)
    y = 72.0
    message = ": ".join(filter(None, (drawing.error, drawing.cause)))
    for line in wrap(message, room, 12.5, 3):
        y += 18
        _text(group, line, _MARGIN, y, 12.5, look.text)
    rule = _add(group, "path", d=f"M{_num(_MARGIN)} {_num(y + 16)}h{_num(room)}", fill="none")
    rule.set("stroke", theme.RULE)
    return group, y + 38


def _legend(canvas_width: float) -> tuple[ET.Element, float]:
    """The key of marks and lines, and its height in px."""
    group = ET.Element("g")
    _add(
        group, "path", d=f"M{_num(_MARGIN)} 0h{_num(canvas_width - 2 * _MARGIN)}", stroke="#e3e7ed"
    )
    x, y = _MARGIN, 26.0
    for outcome, look in theme.LOOKS.items():
        label = outcome.value.capitalize()
        step = 26 + width_of(label, 11.5) + 16
        if x + step > canvas_width - _MARGIN:
            x, y = _MARGIN, y + 26
        if look.mark:
            _disc(group, look, x + 9, y)
        else:
            _add(group, "circle", cx=x + 9, cy=y, r=8.4, fill=look.fill, stroke=look.line)
        _text(group, label, x + 24, y + 4, 11.5, theme.INK_SOFT)
        x += step
    x, y = _MARGIN, y + 26
    for label, colour, dashes in (
        ("Transition taken", theme.EDGE_TAKEN, ""),
        ("Not taken", theme.EDGE_FAINT, ""),
        ("Error caught", theme.CATCH_TAKEN, "7 4"),
        ("Catch, not needed", theme.CATCH_FAINT, "3 4"),
    ):
        line = _add(group, "path", d=f"M{_num(x)} {_num(y)}h30", fill="none", stroke=colour)
        line.set("stroke-width", "2.2")
        if dashes:
            line.set("stroke-dasharray", dashes)
        _text(group, label, x + 38, y + 4, 11.5, theme.INK_SOFT)
        x += 38 + width_of(label, 11.5) + 18
    return group, y + 24


# The tree ------------------------------------------------------------------------------------


def _num(value: float) -> str:
    """A coordinate with at most two decimals and no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def _pair(point: Point) -> str:
    return f"{_num(point[0])} {_num(point[1])}"


def _add(parent: ET.Element, tag: str, **attributes: float | str) -> ET.Element:
    texts: Mapping[str, str] = {
        key: value if isinstance(value, str) else _num(value) for key, value in attributes.items()
    }
    return ET.SubElement(parent, tag, dict(texts))


def _group(parent: ET.Element, x: float, y: float) -> ET.Element:
    return _add(parent, "g", transform=f"translate({_num(x)} {_num(y)})")


def _stroke(
    parent: ET.Element, path: str, x: float, y: float, colour: str, line_width: float
) -> None:
    element = _add(parent, "path", d=path, fill="none", stroke=colour)
    element.attrib |= {
        "transform": f"translate({_num(x)} {_num(y)})",
        "stroke-width": _num(line_width),
        "stroke-linecap": "round",
        "stroke-linejoin": "round",
    }


def _text(
    parent: ET.Element,
    text: str,
    x: float,
    y: float,
    size: float,
    fill: str,
    *,
    bold: bool = False,
    anchor: str = "start",
) -> None:
    element = _add(parent, "text", x=x, y=y, fill=fill)
    element.set("font-size", _num(size))
    if bold:
        element.set("font-weight", "600")
    if anchor != "start":
        element.set("text-anchor", anchor)
    element.text = clean(text)
