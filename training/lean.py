"""Residual blocks without the operations that change nothing.

diffusers' ResnetBlock2D divides its sum by ``output_scale_factor``, which is one in Stable
Diffusion, and calls a dropout of nothing: on a small UNet two more passes over all activations, and
as many in the gradient. Blocks that are of another kind keep their own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F  # noqa: N812 - what the whole world calls it
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


def install(unet: Any) -> list[Any]:  # noqa: ANN401 - diffusers ships no types
    """Gives the plain residual blocks a lean forward; returns them, for ``remove``."""
    blocks = [module for module in unet.modules() if is_plain(module)]
    for block in blocks:
        block.forward = _lean(block)
    return blocks


def remove(blocks: list[Any]) -> None:
    """Gives the blocks their own forward again."""
    for block in blocks:
        vars(block).pop("forward", None)


def is_plain(module: Any) -> bool:  # noqa: ANN401
    """Whether a module is a residual block as those of Stable Diffusion."""
    return (
        isinstance(module, ResnetBlock2D)
        and module.upsample is None
        and module.downsample is None
        and module.time_emb_proj is not None
        and module.time_embedding_norm == "default"
        and not module.skip_time_act
        and isinstance(module.nonlinearity, nn.SiLU)
        and module.output_scale_factor == 1
        and module.dropout.p == 0
    )


def _lean(block: Any) -> Callable[..., Tensor]:  # noqa: ANN401
    def forward(x: Tensor, temb: Tensor, *_: object, **__: object) -> Tensor:
        h = block.conv1(F.silu(block.norm1(x)))
        h = h + block.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = block.conv2(F.silu(block.norm2(h)))
        if block.conv_shortcut is not None:
            x = block.conv_shortcut(x)
        summed: Tensor = x + h
        return summed

    return forward
