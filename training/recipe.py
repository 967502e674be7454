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
from collections.abc import Mapping, Sequence
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
# Images that the VAE encodes at once, and that the bare base draws at once.
ENCODE_BATCH: Final = 8
# How many sets of class images a base keeps; a set is some MB.
KEPT_DRAWINGS: Final = 8


@dataclass(frozen=True)
class Material:
    """What a fine-tune looks at, computed once.

    Attributes:
        latents: Crops of the photos in the UNet's scale, in float32 at least: [n, c, h, w].
        text: Embedding of the caption: [1, t, d].
        added: What SDXL's UNet is told beside the text: ``text_embeds`` [1, p] and ``time_ids``
            [1, 6]; empty for other UNets.
        weights: What an error at each timestep counts: [timesteps].
        prior: Latents of class images, their caption and what their errors count; None where there
            are none.
    """

    latents: Tensor
    text: Tensor
    added: Mapping[str, Tensor]
    weights: Tensor
    prior: Material | None = None

    @property
    def parts(self) -> tuple[Material, ...]:
        """What a batch is drawn from, equally many rows from each: photos, then class images."""
        return (self,) if self.prior is None else (self, self.prior)


def prepare(
    config: TrainingConfig, base: Base, photos: Sequence[Image.Image], draw: torch.Generator
) -> Material:
    """Crops, encodes and embeds; the bare base draws the class images, if the config wants any."""
    images = augment(photos, config, base.card.resolution_px, draw)
    weights = min_snr(base, config.snr_gamma)
    prior = None
    if config.prior_images:
        text, added = embed(base, config.class_caption)
        latents = draw_class(base, config)
        prior = Material(latents, text, added, config.prior_weight * weights)
    latents = encode(base, images)
    return Material(latents, *embed(base, config.instance_prompt), weights, prior)


def draw_class(base: Base, config: TrainingConfig) -> Tensor:
    """Latents of what the bare base draws of the subject's class: [n, c, h, w].

    Ruiz et al., "DreamBooth" (2022), section 3.2: the base's own images keep it from forgetting
    what other members of the class look like. The draws are seeded with a constant, and not with
    the user's seed: all whose subject is a dog look at the same dogs, which are drawn once a job.
    They stay what the UNet has made; decoding and encoding them again would only blur them.
    """
    return draw_bare(config, base, config.class_caption, config.prior_images)


def draw_bare(config: TrainingConfig, base: Base, prompt: str, count: int) -> Tensor:
    """Latents of what the bare base draws, kept for who asks next: [count, c, h, w].

    Args:
        config: How to draw.
        base: The base; nobody's adapter may be in use.
        prompt: What to draw.
        count: How many images; all are of seed 0.
    """
    key = (prompt, count, config.preview_steps, config.preview_guidance)
    if key not in base.drawings:
        draw = torch.Generator().manual_seed(0)
        drawn = []
        for start in range(0, count, ENCODE_BATCH):
            size = min(ENCODE_BATCH, count - start)
            drawn.append(draw_latents(config, base, prompt, size, draw))
        while len(base.drawings) >= KEPT_DRAWINGS:
            del base.drawings[next(iter(base.drawings))]
        base.drawings[key] = torch.cat(drawn)
    return base.drawings[key]


def min_snr(base: Base, gamma: float) -> Tensor:
    """What an error at each timestep counts: [timesteps], in float64; ones if ``gamma`` is 0.

    Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy" (2023): the error of
    the clean image counts min(snr, gamma). Said of what the UNet predicts, that is divided by snr
    for the noise, and by snr + 1 for the velocity. Written so that nothing is divided by the snr,
    which is zero at the last step of a schedule with zero terminal snr: there the noise's weight is
    1, that of velocity and image 0.
    """
    kept: Tensor = base.noise_scheduler.alphas_cumprod.to(base.device, torch.float64)
    if not gamma:
        return torch.ones_like(kept)
    snr = kept / (1 - kept)
    share = gamma / snr.clamp(min=gamma)  # min(snr, gamma) / snr
    match base.noise_scheduler.config.prediction_type:
        case "epsilon":
            return share
        case "v_prediction":
            return share * kept
        case _:
            return snr.clamp(max=gamma)


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
    return _at_least_single(scaled)


def embed(base: Base, prompt: str) -> tuple[Tensor, dict[str, Tensor]]:
    """A prompt as generation has it: the text's embedding [1, t, d], and ``Material.added``.

    SDXL is also told the size of the original image, the corner of its crop, and the size that is
    wanted (Podell et al., "SDXL", 2023, section 2.2). These are what generation asks for, so that
    the subject is learnt under the conditions under which it will be drawn.
    """
    with torch.no_grad():
        answer = base.pipeline.encode_prompt(
            prompt=prompt,
            device=base.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    if not base.is_xl:
        return answer[0], {}
    side = base.card.resolution_px
    time_ids = torch.tensor([[side, side, 0, 0, side, side]], device=base.device)
    return answer[0], {"text_embeds": answer[2], "time_ids": time_ids}


def _at_least_single(latents: Tensor) -> Tensor:
    """Noise is added in float32 at least: bfloat16 cannot tell neighbouring timesteps apart."""
    return latents.to(torch.promote_types(latents.dtype, torch.float32))


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
    draw = torch.Generator().manual_seed(seed)
    words = prompt.replace("{token}", config.subject_phrase)
    latents = draw_latents(config, base, words, 1, draw)
    vae = base.pipeline.vae
    with torch.no_grad():
        decoded = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    image: Image.Image = base.pipeline.image_processor.postprocess(decoded)[0]
    return image


def draw_latents(
    config: TrainingConfig, base: Base, prompt: str, count: int, draw: torch.Generator
) -> Tensor:
    """Latents of images of one prompt, as the pipeline draws them now: [count, c, h, w]."""
    side = base.card.resolution_px
    latents: Tensor = base.pipeline(
        prompt,
        num_images_per_prompt=count,
        num_inference_steps=config.preview_steps,
        guidance_scale=config.preview_guidance,
        height=side,
        width=side,
        generator=draw,
        output_type="latent",
    ).images
    return _at_least_single(latents)
