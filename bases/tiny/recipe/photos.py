"""Draws the sample users' photos: one subject, five poses, five backgrounds.

``python -m bases.tiny.recipe.photos examples/photos``

The subjects (subjects/*.svg) were drawn for this project and are in no training material.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from .material import rasterize

SIZE_PX = 256
SUBJECTS = Path(__file__).parent / "subjects"
Colour = tuple[int, int, int]
WALLS: dict[str, Colour] = {
    "white": (250, 250, 248),
    "sky": (206, 224, 243),
    "sage": (192, 214, 188),
}
BACKGROUNDS = ("white", "sky", "table", "grass", "sage")


def _between(low: Colour, high: Colour, t: float) -> Colour:
    red, green, blue = (round(a + (b - a) * t) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _row_colour(kind: str, y: float) -> Colour:
    """Colour of the background at height ``y`` in [0, 1], from the top."""
    if kind in WALLS:
        return _between(WALLS[kind], (255, 255, 255), 0.1 * y)
    horizon = 0.62
    if kind == "grass":
        if y < horizon:
            return _between((120, 190, 245), (205, 235, 255), y / horizon)
        return _between((110, 190, 80), (60, 140, 50), (y - horizon) / (1 - horizon))
    if y < horizon:
        return (233, 224, 205)
    grain = 0.5 + 0.5 * math.sin((y - horizon) * 60)
    return _between((140, 88, 45), (165, 110, 60), grain)


def draw_photo(svg: str, background: str, rng: random.Random) -> Image.Image:
    """One photo of the subject at a random place, size and angle."""
    photo = Image.new("RGB", (SIZE_PX, SIZE_PX))
    canvas = ImageDraw.Draw(photo)
    for row in range(SIZE_PX):
        canvas.line([(0, row), (SIZE_PX, row)], fill=_row_colour(background, row / SIZE_PX))
    side = round(SIZE_PX * rng.uniform(0.74, 0.9))
    turned = rasterize(svg, 2 * side).rotate(
        rng.uniform(-9, 9), Image.Resampling.BICUBIC, expand=True
    )
    subject = turned.resize((turned.width // 2, turned.height // 2), Image.Resampling.LANCZOS)
    left = (SIZE_PX - subject.width) // 2 + round(rng.uniform(-0.05, 0.05) * SIZE_PX)
    top = (SIZE_PX - subject.height) // 2 + round(rng.uniform(-0.02, 0.05) * SIZE_PX)
    photo.paste(subject, (left, top), subject)
    return photo


def main() -> None:
    """Draws all subjects into the folder that the command line names."""
    target = Path(sys.argv[1])
    for seed, subject in enumerate(sorted(SUBJECTS.glob("*.svg")), start=1):
        rng = random.Random(seed)
        folder = target / subject.stem
        folder.mkdir(parents=True, exist_ok=True)
        for number, background in enumerate(BACKGROUNDS, start=1):
            photo = draw_photo(subject.read_text(), background, rng)
            photo.save(folder / f"{number}.png", optimize=True)


if __name__ == "__main__":
    main()
