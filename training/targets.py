"""Which layers of a UNet get an adapter."""

from __future__ import annotations

from typing import Any, Final

import torch

_ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER: Final = (*_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_ALL: Final = (*_TRANSFORMER, "conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj")

# Suffixes of layer names of diffusers' UNet2DConditionModel; ``conv`` is the convolution of the
# samplers between resolutions. A name fits as peft's ``target_modules`` has it.
TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "attention": _ATTENTION,
    "transformer": _TRANSFORMER,
    "all": _ALL,
}


def adapted_layers(unet: Any, target: str) -> list[tuple[str, Any]]:  # noqa: ANN401
    """Names and modules of the layers that get an adapter, in the UNet's own order."""
    suffixes = tuple(f".{suffix}" for suffix in TARGETS[target])
    return [
        (name, module)
        for name, module in unet.named_modules()
        if f".{name}".endswith(suffixes) and isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]
