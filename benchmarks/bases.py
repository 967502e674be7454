"""Bases of the benchmarks: real classes, random weights, sizes chosen for what they stand for.

=====  ==========================================================================================
G      SD 1.5's exact layer graph at a tenth of its width, 64 px: nearly all of its time is the
       dispatch of operations, which is what a fast GPU sees at batch 1
S      a small model, half overhead, half arithmetic, 128 px
M      arithmetic alone, on a CPU, 256 px
SD15   SD 1.5's real shape, 512 px, for GPUs
=====  ==========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from limner.contracts.base import CARD, BaseCard
from tests.support.pipelines import letter_tokenizer

TEXT_LENGTH: Final = 77
_DOWN, _CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
_UP, _CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"


@dataclass(frozen=True)
class Size:
    """How large a base is.

    Attributes:
        resolution_px: Side of its images.
        unet: Arguments of UNet2DConditionModel.
        vae_channels: Widths of the VAE's blocks; each but the last halves the image.
        vae_layers: Layers of each of these blocks.
        text_width: Width of the text encoder.
        text_layers: Its layers.
    """

    resolution_px: int
    unet: dict[str, Any]
    vae_channels: tuple[int, ...]
    vae_layers: int
    text_width: int
    text_layers: int


def _unet(widths: tuple[int, ...], cross: tuple[bool, ...], layers: int) -> dict[str, Any]:
    return {
        "block_out_channels": widths,
        "down_block_types": tuple(_CROSS_DOWN if c else _DOWN for c in cross),
        "up_block_types": tuple(_CROSS_UP if c else _UP for c in reversed(cross)),
        "layers_per_block": layers,
        "attention_head_dim": 8,
    }


SIZES: Final[dict[str, Size]] = {
    "G": Size(
        resolution_px=64,
        unet=_unet((32, 64, 128, 128), (True, True, True, False), 2),
        vae_channels=(16, 24, 48, 48),
        vae_layers=2,
        text_width=64,
        text_layers=12,
    ),
    "S": Size(
        resolution_px=128,
        unet=_unet((80, 96, 96), (True, True, False), 1) | {"norm_num_groups": 16},
        vae_channels=(16, 32, 48, 48),
        vae_layers=1,
        text_width=64,
        text_layers=2,
    ),
    "M": Size(
        resolution_px=256,
        unet=_unet((64, 128, 192), (True, True, False), 1),
        vae_channels=(16, 32, 64, 64),
        vae_layers=1,
        text_width=64,
        text_layers=2,
    ),
    "SD15": Size(
        resolution_px=512,
        unet=_unet((320, 640, 1280, 1280), (True, True, True, False), 2),
        vae_channels=(128, 256, 512, 512),
        vae_layers=2,
        text_width=768,
        text_layers=12,
    ),
}


def save_base(folder: Path, name: str) -> Path:
    """Saves a base of this name in a new folder; returns the folder."""
    size = SIZES[name]
    tokenizer = letter_tokenizer(TEXT_LENGTH)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        factor = 2 ** (len(size.vae_channels) - 1)
        unet = UNet2DConditionModel(
            sample_size=size.resolution_px // factor,
            in_channels=4,
            out_channels=4,
            cross_attention_dim=size.text_width,
            **size.unet,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(size.vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(size.vae_channels),
            block_out_channels=size.vae_channels,
            layers_per_block=size.vae_layers,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=size.resolution_px,
            scaling_factor=0.18215,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=size.text_width,
                intermediate_size=4 * size.text_width,
                num_hidden_layers=size.text_layers,
                num_attention_heads=4,
                max_position_embeddings=TEXT_LENGTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    card = BaseCard(
        base_id=f"bench-{name.lower()}",
        resolution_px=size.resolution_px,
        title="Random weights, for benchmarks",
    )
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return folder
