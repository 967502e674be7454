"""One request drawn by hand, step by step, without queue, thread or slots."""

import numpy as np

from inference.engine.base import ResidentBase
from inference.engine.denoise import Artist
from limner.contracts.generation import GenerateRequest


def draw(base: ResidentBase, prompt: str, request: GenerateRequest) -> np.ndarray:
    """The bare base's images, ``[images, height, width, 3]``."""
    artist = Artist(base)
    (drawing,) = artist.begin([(prompt, request)])
    alone = artist.assemble([drawing], ())
    while not drawing.is_done:
        artist.step(alone)
    (pixels,) = artist.finish([drawing])
    assert pixels is not None
    return pixels
