"""How things look: colours, the marks of outcomes, and the icons of services.

Every outcome has a mark besides its colour. Text on its fill has a contrast of at least 4.5 to 1.
Marks and icons are SVG path data in a square of 16 by 16, drawn with a line, not filled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from limner.graph.history import Outcome

FONT: Final = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
PAPER: Final = "#ffffff"
INK: Final = "#1b2430"
INK_SOFT: Final = "#56606e"
INK_FAINT: Final = "#6b7482"

RULE: Final = "#e3e7ed"

EDGE_TAKEN: Final = "#33415c"
EDGE_FAINT: Final = "#c2c9d4"
CATCH_TAKEN: Final = "#b45309"
CATCH_FAINT: Final = "#dccdbb"
RETRY_FILL: Final = "#8a4b08"
ENTRIES_FILL: Final = "#475569"


@dataclass(frozen=True, slots=True)
class Look:
    """Colours and mark of one outcome.

    Attributes:
        fill: The box.
        line: The box's border and the disc behind the mark.
        text: Error text inside the box.
        mark: Path data of the mark; "" for none.
    """

    fill: str
    line: str
    text: str
    mark: str


LOOKS: Final[Mapping[Outcome, Look]] = {
    Outcome.SUCCEEDED: Look("#e9f6ee", "#1a7f45", "#14532d", "M3.5 8.5l3 3 6-7"),
    Outcome.CAUGHT: Look("#fff3df", "#b45309", "#7c3a06", "M8 3v6M8 12.2v.6"),
    Outcome.FAILED: Look("#fdeceb", "#c02217", "#8c1810", "M4.2 4.2l7.6 7.6M11.8 4.2l-7.6 7.6"),
    Outcome.TIMED_OUT: Look("#fbebf5", "#a3186f", "#7a1254", "M8 3.8V8l3 2.2"),
    Outcome.ABORTED: Look("#efedf5", "#5d5378", "#443c5c", "M5 5h6v6H5z"),
    Outcome.RUNNING: Look("#e6f0fd", "#1c5fc4", "#17458c", "M4 8h.6M7.7 8h.6M11.4 8h.6"),
    Outcome.NOT_REACHED: Look("#ffffff", "#c7cdd7", INK_FAINT, ""),
}

STATUS_OUTCOMES: Final[Mapping[str, Outcome]] = {
    "SUCCEEDED": Outcome.SUCCEEDED,
    "FAILED": Outcome.FAILED,
    "ABORTED": Outcome.ABORTED,
    "TIMED_OUT": Outcome.TIMED_OUT,
}

#: Icons by service, and by type for states that call none. Our own drawings.
ICONS: Final[Mapping[str, str]] = {
    "DynamoDB": "M3 4c0-2.4 10-2.4 10 0s-10 2.4-10 0v8c0 2.4 10 2.4 10 0V4M3 8c0 2.4 10 2.4 10 0",
    "SageMaker": "M8 2l5.2 3v6L8 14l-5.2-3V5zM8 2v5M8 9v5M2.8 5L7 7.4M13.2 5L9 7.4"
    "M2.8 11L7 8.6M13.2 11L9 8.6",
    "S3": "M2.5 4l1.5 9.2c2 1.1 6 1.1 8 0L13.5 4c0-2-11-2-11 0s11 2 11 0",
    "Lambda": "M4 2.5h2.6l5 11H14M7.4 6.4L3 13.5",
    "SNS": "M3 11.5h10c-1.5-1-1.5-3-1.5-5a3.5 3.5 0 0 0-7 0c0 2 0 4-1.5 5zM6.7 13.6h2.6",
    "SQS": "M2 4h12v8H2zM2 4l6 4.5L14 4",
    "EventBridge": "M2 8h4M10 4h4M10 12h4M6 8l4-4M6 8l4 4",
    "Choice": "M8 1.8L14.2 8 8 14.2 1.8 8zM6.4 6.6a1.6 1.6 0 1 1 2.4 1.4c-.6.3-.8.6-.8 1.1M8 11v.3",
    "Wait": "M8 2a6 6 0 1 1-.01 0zM8 4.8V8l2.4 1.6",
    "Pass": "M2 8h11M9.4 4.4L13 8l-3.6 3.6",
    "Succeed": "M8 2a6 6 0 1 1-.01 0zM5.2 8.2l2 2 3.6-4.2",
    "Fail": "M8 2a6 6 0 1 1-.01 0zM5.9 5.9l4.2 4.2M10.1 5.9l-4.2 4.2",
    "Parallel": "M3 3v10M8 3v10M13 3v10",
    "Map": "M3 3h10v3H3zM3 8h10M3 10.5h10M3 13h10",
    "Task": "M3 3h10v10H3zM5.5 8.2l1.8 1.8 3.2-4",
}

#: Colours of the icons' tiles; what is not named gets `OTHER_TILE`.
TILES: Final[Mapping[str, str]] = {
    "DynamoDB": "#3b48cc",
    "SageMaker": "#047a73",
    "S3": "#3f7d20",
    "Lambda": "#b4500b",
    "SNS": "#b0246e",
    "SQS": "#b0246e",
    "EventBridge": "#b0246e",
}
OTHER_TILE: Final = "#5b6675"
