"""Pipelines of Stable Diffusion 1.5 and SDXL as they are published, but narrow and random.

Classes and configs are those of the real ones, as far as they decide what is computed: kinds and
number of blocks, heads' layout, projections, conditions, schedulers. Only widths, the depth of the
text encoders, the vocabulary and, in SDXL, the ten transformer layers of the lowest level (two
here) are smaller.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from limner.contracts.base import CARD, BaseCard
from tests.support.pipelines import letter_tokenizer

RESOLUTION_PX = 64
TEXT_LENGTH = 24
TEXT_WIDTH = 16
SECOND_WIDTH = 24
POOLED_WIDTH = 20
# Betas of all published Stable Diffusion bases.
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def save_narrow_sd15(folder: Path) -> Path:
    """Saves a narrow Stable Diffusion 1.5 and its card; returns the folder."""
    tokenizer = letter_tokenizer(TEXT_LENGTH)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            vae=_vae(scaling_factor=0.18215),
            text_encoder=CLIPTextModel(_text_config(tokenizer, TEXT_WIDTH, "quick_gelu")),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=8,
                down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
                up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
                block_out_channels=(8, 16, 24, 24),
                layers_per_block=2,
                attention_head_dim=4,
                cross_attention_dim=TEXT_WIDTH,
                norm_num_groups=4,
            ),
            scheduler=PNDMScheduler(
                **_BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _save(pipeline, folder, "narrow-sd15")


def save_narrow_xl(folder: Path) -> Path:
    """Saves a narrow SDXL and its card; returns the folder."""
    tokenizer = letter_tokenizer(TEXT_LENGTH)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionXLPipeline(
            vae=_vae(scaling_factor=0.13025),
            text_encoder=CLIPTextModel(_text_config(tokenizer, TEXT_WIDTH, "quick_gelu")),
            text_encoder_2=CLIPTextModelWithProjection(
                _text_config(tokenizer, SECOND_WIDTH, "gelu")
            ),
            tokenizer=tokenizer,
            tokenizer_2=letter_tokenizer(TEXT_LENGTH),
            unet=UNet2DConditionModel(
                sample_size=8,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(8, 16, 32),
                layers_per_block=2,
                transformer_layers_per_block=[1, 1, 2],
                attention_head_dim=[1, 2, 4],
                cross_attention_dim=TEXT_WIDTH + SECOND_WIDTH,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=6 * 256 + POOLED_WIDTH,
                norm_num_groups=4,
            ),
            scheduler=EulerDiscreteScheduler(
                **_BETAS, steps_offset=1, timestep_spacing="leading", use_karras_sigmas=False
            ),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    return _save(pipeline, folder, "narrow-sdxl")


def _save(
    pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline, folder: Path, base_id: str
) -> Path:
    pipeline.save_pretrained(folder, safe_serialization=True)
    card = BaseCard(base_id=base_id, resolution_px=RESOLUTION_PX, title="Random weights, for tests")
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return folder


def _vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=RESOLUTION_PX,
        scaling_factor=scaling_factor,
        force_upcast=True,
    )


def _text_config(tokenizer: CLIPTokenizer, width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act=activation,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=POOLED_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
