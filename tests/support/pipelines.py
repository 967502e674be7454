"""A genuine diffusers pipeline of some hundred kB with random weights, made on the spot.

It has every kind of layer that an adapter may sit on (attention, feed-forward, projections,
resnet convolutions, up- and downsampling), so that code is tested on the real classes in
milliseconds. Its pictures are noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from limner.contracts.base import CARD, BaseCard

RANDOM_BASE_ID = "random-1"
RANDOM_RESOLUTION_PX = 32
_TEXT_LENGTH = 24
# The schedulers that published bases have. Only DDIM's has no state but its timesteps.
SCHEDULERS: Final = ("ddim", "pndm", "euler")


def letter_tokenizer(length: int) -> CLIPTokenizer:
    """A CLIP tokenizer of single bytes: no merges, every text has a spelling.

    Args:
        length: Tokens of a prompt, padding included.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary["<|startoftext|>"] = len(vocabulary)
    vocabulary["<|endoftext|>"] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def save_random_pipeline(
    folder: Path, *, seed: int = 0, latent_channels: int = 4, scheduler: str = "ddim"
) -> Path:
    """Saves a very small StableDiffusionPipeline with random weights, and its card.

    Args:
        folder: Where to; made if it does not exist.
        seed: Other seeds give other weights, and so another base digest.
        latent_channels: Channels of the VAE's latents.
        scheduler: One of ``SCHEDULERS``.

    Returns:
        The folder.
    """
    tokenizer = letter_tokenizer(_TEXT_LENGTH)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=latent_channels,
            out_channels=latent_channels,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=2,
        )
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=4,
            sample_size=RANDOM_RESOLUTION_PX,
            scaling_factor=0.5,
            mid_block_add_attention=False,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=_TEXT_LENGTH,
                projection_dim=16,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    card = BaseCard(
        base_id=RANDOM_BASE_ID,
        resolution_px=RANDOM_RESOLUTION_PX,
        title="Random weights, for tests",
    )
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return folder


def _scheduler(name: str) -> Any:
    if name == "ddim":
        return DDIMScheduler(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing="trailing",
        )
    # As in Stable Diffusion 1.5 (PNDM) and in bases made from it (Euler).
    published = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    if name == "pndm":
        return PNDMScheduler(**published, skip_prk_steps=True, set_alpha_to_one=False)
    return EulerDiscreteScheduler(**published, timestep_spacing="leading")
