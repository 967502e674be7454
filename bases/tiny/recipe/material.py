"""The material: drawn objects and creatures from four emoji sets, as small RGBA sprites.

The sets are npm packages (``npm install`` with the package.json beside this file), Apache-2.0 and
MIT; see ../README.md. Concepts in ``HELD_OUT`` never appear in training: they are subjects for
evaluation.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
import torch
from PIL import Image
from torch import Tensor

SETS = ("noto", "noto-v1", "fluent-emoji-flat", "fluent-emoji")
SPRITE_PX = 96
HELD_OUT = frozenset(
    {
        "teddy-bear",
        "owl",
        "koala",
        "rocket",
        "cupcake",
        "jack-o-lantern",
        "octopus",
        "penguin",
        "unicorn",
        "robot",
        "backpack",
        "teapot",
    }
)
CATEGORIES = ("Animals & Nature", "Food & Drink", "Activities", "Objects", "Travel & Places")
# Signs, letters, screens and near-duplicates: at 64 pixels they teach nothing but noise.
_UNSUITABLE = re.compile(
    r"button|oclock|thirty|-arrow|arrow-|input|japanese|keycap|letter|mailbox|banknote|quarter"
    r"|card|chart|calendar|bookmark|notepad|page|box-tray|speaker-|envelope|lock|slash|battery"
    r"|globe-showing|face-with|-face-|oncoming|sun-behind|dusk|night|cable|not-done|kaaba|hindu"
    r"|shinto|mosque|synagogue|map|traffic|barber|motorway|metro|station|tram|fog|milky|hotel"
    r"|department|store|construction|derelict|houses|stadium|mahjong|ceremony|tanabata|suit|flag"
    r"|joker|ticket|cinema|paperclip|placard|label|ledger|receipt|clipboard|newspaper|film|disk"
    r"|video|fax|pager|scroll|memo|control|satellite|x-ray|coffin|headstone|urn|nib|ruler|mail"
    r"|ballot|file|inbox|adhesive|syringe|link|chain|abacus|dna|window|elevator|seat|brick|hut"
    r"|stop|suspension|rail|trolley|minibus|aerial|arrival|departure|landslide|splatter|empty"
)
# The named concepts of the narrow stage. Fewer concepts, better drawn: the step that sharpened
# shapes most.
NAMED = tuple((Path(__file__).parent / "concepts.txt").read_text().split())


@dataclass(frozen=True)
class Sprites:
    """Sprites with their names.

    Attributes:
        images: uint8 ``[N, 4, 96, 96]``, straight (not premultiplied) RGBA.
        names: Concept of each sprite, such as ``"red-apple"``.
    """

    images: Tensor
    names: tuple[str, ...]

    def indices(self, names: frozenset[str]) -> list[int]:
        """Positions of the sprites with one of these names."""
        return [i for i, name in enumerate(self.names) if name in names]


def concepts(icon_sets: Path) -> list[str]:
    """Names of all concepts that suit a 64-pixel base, in a stable order."""
    categories = json.loads((icon_sets / "noto" / "metadata.json").read_text())["categories"]
    suitable = (
        name for group in CATEGORIES for name in categories[group] if not _UNSUITABLE.search(name)
    )
    return list(dict.fromkeys([*suitable, *NAMED, *sorted(HELD_OUT)]))


def rasterize(svg: str, size_px: int) -> Image.Image:
    """Renders an SVG text to an RGBA image of at most ``size_px`` a side."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size_px, height=size_px)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _icon_svg(icons: dict, name: str) -> str | None:
    icon = icons["icons"].get(name)
    if icon is None and (alias := icons.get("aliases", {}).get(name)):
        icon = icons["icons"].get(alias["parent"])
    if icon is None:
        return None
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _fitted(image: Image.Image) -> Image.Image | None:
    """The drawn part of an image, centred in a square of ``SPRITE_PX``."""
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((SPRITE_PX, SPRITE_PX), Image.Resampling.LANCZOS)


def load_sprites(icon_sets: Path, cache: Path) -> Sprites:
    """All training sprites: rendered once (20 s on one core), then read from the cache.

    Args:
        icon_sets: The folder ``node_modules/@iconify-json``.
        cache: An .npz file, written when it is missing.
    """
    if not cache.exists():
        images, names = [], []
        for icon_set in SETS:
            icons = json.loads((icon_sets / icon_set / "icons.json").read_text())
            for name in concepts(icon_sets):
                svg = None if name in HELD_OUT else _icon_svg(icons, name)
                sprite = _fitted(rasterize(svg, SPRITE_PX)) if svg else None
                if sprite is not None:
                    images.append(np.asarray(sprite))
                    names.append(name)
        np.savez_compressed(cache, images=np.stack(images), names=np.array(names))
    data = np.load(cache, allow_pickle=False)
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous()
    return Sprites(images, tuple(str(name) for name in data["names"]))
