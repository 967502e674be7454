"""Pictures with captions: a sprite, turned, scaled and tinted, on a colour or in a drawn scene."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from .material import Sprites

SIZE_PX = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 50, 47),
    "orange": (245, 140, 40),
    "yellow": (250, 210, 60),
    "green": (70, 170, 80),
    "blue": (60, 110, 220),
    "purple": (130, 80, 190),
    "pink": (245, 150, 190),
    "brown": (130, 85, 55),
    "gray": (140, 140, 145),
    "black": (25, 25, 30),
    "white": (250, 250, 250),
    "teal": (50, 170, 170),
}
SCENES = (
    "on the beach",
    "in the snow",
    "on the grass",
    "at night",
    "on a wooden table",
    "under water",
)
# Words that stand for "some object": without them the subject of a fine-tune vanishes as soon as
# the prompt names a context.
PLACEHOLDERS = ("sks", "sks toy", "sks", "toy", "object", "sks character")


def with_article(noun: str) -> str:
    """Returns the noun with its article: "an apple", "a pear"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _colour(name: str) -> Tensor:
    return torch.tensor(COLOURS[name]).view(3, 1, 1) / 255


def _rgb(*channels: int) -> Tensor:
    return torch.tensor(channels).view(3, 1, 1) / 255


def _mix(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    return a * (1 - t) + b * t


def draw_scene(kind: int, generator: torch.Generator, size: int = SIZE_PX) -> Tensor:
    """One background ``[3, size, size]`` in [0, 1]; ``kind`` is an index of ``SCENES``."""

    def uniform(low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * torch.rand(1, generator=generator).item()

    y = torch.linspace(0, 1, size).view(1, size, 1).expand(1, size, size)
    x = torch.linspace(0, 1, size).view(1, 1, size).expand(1, size, size)
    horizon = uniform(0.5, 0.72)
    jitter = torch.randn(3, 1, 1, generator=generator) * 0.02
    above, below = y / horizon, (y - horizon) / (1 - horizon)
    specks = (torch.rand(1, size, size, generator=generator) > 0.985).float()
    if kind == 0:
        sky = _mix(_rgb(110, 190, 250), _rgb(200, 235, 255), above)
        sand = _mix(_rgb(240, 215, 160), _rgb(225, 190, 130), below)
        sea = _rgb(30, 130, 190).expand(3, size, size)
        image = torch.where(y < horizon - 0.15, sky, torch.where(y < horizon, sea, sand))
    elif kind == 1:
        sky = _mix(_rgb(150, 180, 215), _rgb(205, 220, 240), above)
        snow = _mix(_rgb(250, 252, 255), _rgb(225, 235, 248), below)
        image = _mix(torch.where(y < horizon, sky, snow), torch.ones(3, size, size), specks)
    elif kind == 2:
        sky = _mix(_rgb(120, 190, 245), _rgb(205, 235, 255), above)
        image = torch.where(y < horizon, sky, _mix(_rgb(110, 190, 80), _rgb(60, 140, 50), below))
    elif kind == 3:
        image = _mix(_rgb(12, 14, 45), _rgb(40, 40, 95), y)
        image = _mix(image, _rgb(255, 250, 210).expand(3, size, size), specks)
        distance = ((x - uniform(0.1, 0.9)) ** 2 + (y - uniform(0.08, 0.2)) ** 2).sqrt()
        image = _mix(image, _rgb(250, 240, 200).expand(3, size, size), (distance < 0.09).float())
    elif kind == 4:
        grain = torch.sin((y - horizon) * 60 + 2 * torch.sin(x * 5)) * 0.5 + 0.5
        wood = _mix(_rgb(165, 110, 60), _rgb(140, 88, 45), grain)
        image = torch.where(y < horizon, _rgb(235, 225, 205).expand(3, size, size), wood)
    else:
        image = _mix(_rgb(70, 180, 225), _rgb(10, 60, 120), y)
        for _ in range(5):
            distance = ((x - uniform()) ** 2 + (y - uniform()) ** 2).sqrt()
            ring = ((distance - uniform(0.02, 0.05)).abs() < 0.012).float()
            image = _mix(image, _rgb(190, 230, 250).expand(3, size, size), ring)
    return (image + jitter).clamp(0, 1)


@dataclass
class Painter:
    """Draws captioned pictures at random, the same ones for the same seed."""

    sprites: Sprites
    seed: int = 0
    backgrounds_per_scene: int = 48

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        generator = torch.Generator().manual_seed(1)
        self._scenes = [
            [draw_scene(kind, generator) for _ in range(self.backgrounds_per_scene)]
            for kind in range(len(SCENES))
        ]

    def paint(
        self, indices: list[int], *, placeholder_share: float = 0.0
    ) -> tuple[Tensor, list[str]]:
        """One picture for each sprite.

        Args:
            indices: Which sprites.
            placeholder_share: Share of the captions that say "sks", "toy" or "object" in place of
                the sprite's name.

        Returns:
            Pictures ``[B, 3, 64, 64]`` in [-1, 1], and their captions.
        """
        colour, alpha = self._place(indices)  # [B,3,S,S] premultiplied, [B,1,S,S]
        pictures, captions = [], []
        for i, index in enumerate(indices):
            noun = self.sprites.names[index].replace("-", " ")
            foreground = colour[i]
            if self._rng.random() < placeholder_share:
                noun = self._rng.choice(PLACEHOLDERS)
                phrase = noun if noun.startswith("sks") else with_article(noun)
            elif self._rng.random() < 0.1 and noun.split()[0] not in COLOURS:
                name = self._rng.choice([c for c in COLOURS if c not in ("gray", "white")])
                foreground = self._tinted(foreground, alpha[i], name)
                phrase = with_article(f"{name} {noun}")
            else:
                phrase = with_article(noun)
            background, where = self._background()
            pictures.append(background * (1 - alpha[i]) + foreground)
            captions.append(f"a photo of {phrase}{where}")
        return torch.stack(pictures) * 2 - 1, captions

    def _place(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Turned, scaled, mirrored and shifted sprites: colour times alpha, and alpha."""
        count, rng = len(indices), self._rng
        turn = torch.tensor([math.radians(rng.uniform(-10, 10)) for _ in indices])
        scale = torch.tensor([rng.uniform(0.66, 0.94) for _ in indices])
        mirror = torch.tensor([rng.choice((-1.0, 1.0)) for _ in indices])
        dx = torch.tensor([rng.uniform(-0.8, 0.8) for _ in indices]) * (1 - scale)
        dy = torch.tensor([rng.uniform(-0.8, 0.8) for _ in indices]) * (1 - scale)
        cos, sin = torch.cos(turn) / scale, torch.sin(turn) / scale
        matrix = torch.stack(
            [
                torch.stack([mirror * cos, mirror * sin, -mirror * (cos * dx + sin * dy)], 1),
                torch.stack([-sin, cos, sin * dx - cos * dy], 1),
            ],
            1,
        )
        rgba = self.sprites.images[indices].float() / 255
        premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
        # Sampled at twice the size and averaged: smooth edges.
        grid = F.affine_grid(matrix, [count, 4, 2 * SIZE_PX, 2 * SIZE_PX], align_corners=False)
        placed = F.avg_pool2d(F.grid_sample(premultiplied, grid, align_corners=False), 2)
        return placed[:, :3], placed[:, 3:]

    @staticmethod
    def _tinted(colour: Tensor, alpha: Tensor, name: str) -> Tensor:
        """The sprite in shades of one colour, light and dark kept."""
        weights = torch.tensor([0.3, 0.55, 0.15]).view(3, 1, 1)
        light = (colour / alpha.clamp_min(1e-3) * weights).sum(0, keepdim=True) * 0.75 + 0.15
        tint = _colour(name)
        return (
            torch.where(light < 0.5, tint * light * 2, _mix(tint, 1 + 0 * tint, light * 2 - 1))
            * alpha
        )

    def _background(self) -> tuple[Tensor, str]:
        """A white wall, a colour or a scene, and the words for it."""
        rng, draw = self._rng, self._rng.random()
        if draw < 0.35:
            return torch.full((3, SIZE_PX, SIZE_PX), 1 - rng.random() * 0.06), ""
        if draw < 0.75:
            name = rng.choice(list(COLOURS))
            shade = torch.tensor([rng.gauss(0, 0.03) for _ in range(3)]).view(3, 1, 1)
            gradient = torch.linspace(-0.5, 0.5, SIZE_PX).view(1, SIZE_PX, 1) * rng.gauss(0, 0.12)
            wall = (_colour(name) + shade + gradient).clamp(0, 1).expand(3, SIZE_PX, SIZE_PX)
            return wall, f" on {with_article(name)} background"
        kind = rng.randrange(len(SCENES))
        return rng.choice(self._scenes[kind]), f" {SCENES[kind]}"
