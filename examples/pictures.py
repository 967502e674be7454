"""The picture that `make demo` leaves: photos, what the base draws, what each own model draws."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL_PX = 150
GAP_PX = 6
GROUP_GAP_PX = 26
LABEL_PX = 26
MARGIN_PX = 24
INK = (24, 28, 38)
FAINT = (110, 118, 132)


@dataclass(frozen=True)
class Row:
    """One user.

    Attributes:
        title: Said above the row.
        groups: Heading and images (PNG bytes, with a caption each) from left to right.
    """

    title: str
    groups: Sequence[tuple[str, Sequence[tuple[bytes, str]]]]


def _cell(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGB")
    return image.resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)


def _group_width(count: int) -> int:
    return count * CELL_PX + (count - 1) * GAP_PX


def draw_comparison(rows: Sequence[Row], target: Path) -> None:
    """Writes the rows below each other as one PNG."""
    title_font = ImageFont.load_default(size=20)
    label_font = ImageFont.load_default(size=13)
    row_height = 2 * LABEL_PX + CELL_PX + LABEL_PX + 8
    width = 2 * MARGIN_PX + max(
        sum(_group_width(len(images)) for _, images in row.groups)
        + GROUP_GAP_PX * (len(row.groups) - 1)
        for row in rows
    )
    sheet = Image.new("RGB", (width, 2 * MARGIN_PX + row_height * len(rows)), "white")
    canvas = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top, left = MARGIN_PX + number * row_height, MARGIN_PX
        canvas.text((left, top), row.title, INK, title_font)
        for heading, images in row.groups:
            canvas.text((left, top + LABEL_PX + 4), heading, FAINT, label_font)
            for column, (png, caption) in enumerate(images):
                x, y = left + column * (CELL_PX + GAP_PX), top + 2 * LABEL_PX
                sheet.paste(_cell(png), (x, y))
                canvas.text((x, y + CELL_PX + 4), caption, FAINT, label_font)
            left += _group_width(len(images)) + GROUP_GAP_PX
    sheet.save(target, optimize=True)
