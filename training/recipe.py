"""The recipe of one fine-tune: what is seen, how noisy it is made, and how fast is learnt.

DreamBooth-style LoRA (Ruiz et al., "DreamBooth", 2022; Hu et al., "LoRA", 2021): the base stays
frozen, a low-rank adapter on its UNet learns that the token means the subject of the photos. All
that does not change from step to step, the latents of the photos and the embedding of the prompt,
is computed once. ``training.cohort`` runs the steps, for one user or for many at once.

Shapes stand in trailing comments: n images, b images of a batch, c latent channels, h and w latent
height and width, t text tokens, d text width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.contracts.training import TrainingConfig
from training.base import Base

WARMUP_STEPS: Final = 20
FINAL_LEARNING_RATE: Final = 0.1  # as a share of the peak
WEIGHT_DECAY: Final = 1e-4
MAX_GRADIENT_NORM: Final = 1.0
# Images that the VAE encodes at once.
ENCODE_BATCH: Final = 8


@dataclass(frozen=True)
class Material:
    """What a fine-tune looks at, computed once.

    Attributes:
        latents: Crops of the photos in the UNet's scale: [n, c, h, w].
        text: Embedding of the caption: [1, t, d].
    """

    latents: Tensor
    text: Tensor


def prepare(
    config: TrainingConfig, base: Base, photos: Sequence[Image.Image], draw: torch.Generator
) -> Material:
    """Crops, encodes and embeds."""
    images = augment(photos, config, base.card.resolution_px, draw)
    return Material(latents=encode(base, images), text=embed(base, config.instance_prompt))


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear warm-up, then half a cosine down to a tenth."""
    warm_up = min(1.0, (step + 1) / WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
    return warm_up * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def augment(
    photos: Sequence[Image.Image], config: TrainingConfig, side_px: int, draw: torch.Generator
) -> list[Image.Image]:
    """Random square crops: ``config.augmentations`` of each photo, ``side_px`` wide.

    Nothing is mirrored: a subject with a handle on one side, or with letters, is not its own mirror
    image, and the tiny base's mug grew two handles.
    """
    images = []
    for photo in photos:
        shorter = min(photo.size)
        for _ in range(config.augmentations):
            size_draw, x_draw, y_draw = torch.rand(3, generator=draw).tolist()
            side = max(1, int(shorter * (config.min_crop + (1 - config.min_crop) * size_draw)))
            left = int(x_draw * (photo.width - side + 1))
            top = int(y_draw * (photo.height - side + 1))
            image = photo.resize(
                (side_px, side_px),
                Image.Resampling.LANCZOS,
                box=(left, top, left + side, top + side),
            )
            images.append(image)
    return images


def encode(base: Base, images: Sequence[Image.Image]) -> Tensor:
    """Latents of images in the scale that the UNet works in: [n, c, h, w].

    The mean of the VAE's distribution is taken, not a sample: a cache of samples would repeat the
    same few noises for the whole training.
    """
    vae = base.pipeline.vae
    latents = []
    for start in range(0, len(images), ENCODE_BATCH):
        pixels = np.stack([np.asarray(image) for image in images[start : start + ENCODE_BATCH]])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1  # [n, 3, H, W]
        with torch.no_grad():
            latents.append(vae.encode(x.to(base.device, vae.dtype)).latent_dist.mean)
    scaled: Tensor = torch.cat(latents) * vae.config.scaling_factor
    return scaled


def embed(base: Base, prompt: str) -> Tensor:
    """The text embedding of a prompt, as generation computes it: [1, t, d]."""
    with torch.no_grad():
        embedding: Tensor = base.pipeline.encode_prompt(
            prompt, base.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
    return embedding


def draw_batch(
    base: Base, latents: Tensor, batch_size: int, draw: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws clean latents [b, c, h, w], noise of the same shape, and timesteps [b]."""
    device = base.device
    chosen = torch.randint(len(latents), (batch_size,), generator=draw)  # [b]
    clean = latents[chosen.to(device)]  # [b, c, h, w]
    noise = torch.randn(clean.shape, generator=draw).to(clean)
    steps: int = base.noise_scheduler.config.num_train_timesteps
    timesteps = torch.randint(steps, (batch_size,), generator=draw).to(device)  # [b]
    return clean, noise, timesteps


def add_noise(base: Base, clean: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and what the UNet is to predict from them: [b, c, h, w] each.

    How noisy images come to be, and what the base was trained to say of them, are the base's own
    choices: its scheduler's betas and its prediction type.
    """
    scheduler = base.noise_scheduler
    noisy: Tensor = scheduler.add_noise(clean, noise, timesteps)
    match scheduler.config.prediction_type:  # load_base has refused all others
        case "epsilon":
            wanted = noise
        case "v_prediction":
            wanted = scheduler.get_velocity(clean, noise, timesteps)
        case _:
            wanted = clean
    return noisy, wanted


def preview(config: TrainingConfig, base: Base, prompt: str, seed: int) -> Image.Image:
    """One image of the freshly trained model; ``{token}`` in the prompt becomes the subject."""
    image: Image.Image = base.pipeline(
        prompt.replace("{token}", config.subject_phrase),
        num_inference_steps=config.preview_steps,
        guidance_scale=config.preview_guidance,
        height=base.card.resolution_px,
        width=base.card.resolution_px,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    return image
