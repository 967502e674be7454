"""The resident base: the parts of a ``StableDiffusionPipeline``, loaded once for all users.

The parts are loaded one by one, and not through the pipeline class, whose import costs a second
and which owns a denoising loop for one user (ours is in ``denoise`` and ``batcher``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from inference.engine.lean import make_lean
from inference.engine.lora import LayerShape, Selection, make_adaptable
from limner.contracts.base import base_digest, read_card
from limner.contracts.errors import LimnerError

# What a base may be made of. Names from a file are compared with these, never imported freely.
_PARTS: Final = {
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@dataclass(frozen=True, eq=False)
class ResidentBase:
    """The base in memory; equal to nothing but itself.

    Attributes:
        base_id: Name of the base.
        sha256: ``base_digest`` of its folder.
        resolution_px: Side of an image whose size is not asked for.
        tokenizer: ``CLIPTokenizer``.
        text_encoder: ``CLIPTextModel``.
        unet: ``UNet2DConditionModel`` with adapted layers.
        vae: ``AutoencoderKL``.
        scheduler: Template of the scheduler; each generation makes its own from its config.
        selection: Which adapters the UNet reads.
        layers: What can be adapted.
        device: Where the weights lie.
        dtype: Type of the weights.
    """

    base_id: str
    sha256: str
    resolution_px: int
    tokenizer: Any
    text_encoder: Any
    unet: Any
    vae: Any
    scheduler: Any
    selection: Selection
    layers: tuple[LayerShape, ...]
    device: torch.device
    dtype: torch.dtype

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along one side of a latent."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def load_base(folder: Path, device: str = "cpu") -> ResidentBase:
    """Loads a base, from local safetensors files only.

    Args:
        folder: A diffusers ``StableDiffusionPipeline`` with its card, ``limner-base.json``.
        device: ``cpu`` (fp32) or ``cuda`` (fp16).

    Raises:
        LimnerError: ``BASE_INVALID``, if the folder is not such a base.
    """
    card = read_card(folder)
    place = torch.device(device)
    # Half precision is slow on most CPUs, and single precision wastes a GPU.
    dtype = torch.float16 if place.type == "cuda" else torch.float32
    try:
        parts = _load_parts(folder, dtype)
        sha256 = base_digest(folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise LimnerError(
            "BASE_INVALID", f"The base {card.base_id} cannot be loaded: {type(error).__name__}."
        ) from error
    unet, vae = parts["unet"], parts["vae"]
    if unet.config.in_channels != vae.config.latent_channels:
        raise LimnerError("BASE_INVALID", "The UNet and the VAE have different latent channels.")
    for name in ("text_encoder", "unet", "vae"):
        parts[name].to(place).eval().requires_grad_(requires_grad=False)
    selection, layers = make_adaptable(unet)
    make_lean(unet)
    return ResidentBase(
        base_id=card.base_id,
        sha256=sha256,
        resolution_px=card.resolution_px,
        selection=selection,
        layers=layers,
        device=place,
        dtype=dtype,
        **parts,
    )


def _load_parts(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Loads each part that ``model_index.json`` names, if it is one of those we know."""
    index = json.loads((folder / "model_index.json").read_bytes())
    for part, expected in _PARTS.items():
        if index[part] != expected:
            raise LimnerError("BASE_INVALID", f"The base's {part} must be a {expected[1]}.")
    transformers_logging.disable_progress_bar()
    scheduler = _scheduler_class(index)
    safe = {"local_files_only": True, "use_safetensors": True}
    return {
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype, **safe),
        "unet": UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype, **safe),
        "vae": AutoencoderKL.from_pretrained(folder / "vae", dtype=dtype, **safe),
        "scheduler": scheduler.from_pretrained(folder / "scheduler", local_files_only=True),
    }


def _scheduler_class(index: dict[str, Any]) -> Any:  # noqa: ANN401 (diffusers has no types)
    library, name = index["scheduler"]
    found = getattr(diffusers, name, None) if library == "diffusers" else None
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise LimnerError("BASE_INVALID", "The base's scheduler must be one of diffusers.")
    return found
