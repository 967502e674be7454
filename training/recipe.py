"""The fine-tuning of one user's adapter, from photos to weights, to be read from top to bottom.

DreamBooth-style LoRA: the base stays frozen, a low-rank adapter on its UNet learns that the token
means the subject of the photos. Shapes stand in trailing comments: n images, b images of a batch,
c latent channels, h and w latent height and width, t text tokens, d text width.

What was measured on the tiny base (two cores, AVX2, batch 8, rounds interleaved, a busy machine):

* VAE latents and the text embedding are computed once, before the first step.
* A batch is cut into ``CPU_SHARDS`` parts, each with its own thread and one OpenMP thread. At best
  that is as fast as two OpenMP threads for the whole batch (0.17 s against 0.18 s a step); when
  other programs take CPU time it keeps its fair share (0.8 s), where OpenMP's spinning barriers
  took 8 to 16 s a step.
* The fused AdamW saves a tenth of a step; channels_last, flushing denormals and malloc's settings
  made no difference that stood out of the noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from training.base import Base
from training.lora import adapter_tensors, add_adapter
from training.progress import step_line

WARMUP_STEPS: Final = 20
FINAL_LEARNING_RATE: Final = 0.1  # as a share of the peak
WEIGHT_DECAY: Final = 1e-4
MAX_GRADIENT_NORM: Final = 1.0
# Steps between two progress lines.
REPORT_EVERY: Final = 10
# Images that the VAE encodes at once.
ENCODE_BATCH: Final = 8
# Fixed, and not the number of CPUs: how a batch is cut decides the last bits of its sums, and the
# same photos and seed shall give the same bytes on every machine of a kind.
CPU_SHARDS: Final = 2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """What the fine-tuning leaves.

    Attributes:
        tensors: The adapter by diffusers' names, float32, on the CPU.
        loss: Mean loss of the last report's steps.
        train_seconds: Wall time of the optimizer steps.
        images_per_second: Images seen in a second of that time.
    """

    tensors: dict[str, Tensor]
    loss: float
    train_seconds: float
    images_per_second: float


def set_threads(cpus: int) -> None:
    """Gives each shard its share of the CPUs; call it once, before any work."""
    torch.set_num_threads(max(1, cpus // CPU_SHARDS))


def fine_tune(
    config: TrainingConfig, base: Base, photos: Sequence[Image.Image], say: Say
) -> Trained:
    """Trains an adapter on the base's UNet and leaves it there, active, for the previews.

    Args:
        config: Every choice of the fine-tune.
        base: The frozen base; its UNet gets the adapter.
        photos: RGB images of the subject.
        say: Takes the progress lines.

    Raises:
        LimnerError: ``TRAINING_DIVERGED``, if the loss or a weight is no longer a number.
    """
    unet, device = base.pipeline.unet, base.device
    torch.manual_seed(config.seed)  # for the initial adapter, which peft draws
    draw = torch.Generator().manual_seed(config.seed)  # for all else; on the CPU, on any device
    shards = 1 if device.type == "cuda" else min(CPU_SHARDS, config.batch_size)
    threads = torch.get_num_threads()

    # 1. Everything that does not change from step to step.
    latents = encode(base, augment(photos, config, base.card.resolution_px, draw))
    text = embed(base, config.instance_prompt)  # [1, t, d]

    # 2. The adapter and its optimizer.
    parameters = add_adapter(unet, rank=config.rank, target=config.target)
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_share(step, config.steps)
    )
    unet.train()

    def shard_gradients(
        shard: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        noisy, timesteps, wanted = shard  # [b/s, c, h, w], [b/s], [b/s, c, h, w]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            predicted = unet(noisy, timesteps, text.expand(len(noisy), -1, -1), return_dict=False)[
                0
            ]
        # The sum of the shards' losses is the mean over the batch.
        loss = (predicted.float() - wanted).square().mean((1, 2, 3)).sum() / config.batch_size
        return loss.detach(), torch.autograd.grad(loss, parameters)

    # 3. The loop.
    started = reported = time.perf_counter()
    losses: list[Tensor] = []
    mean_loss = math.nan
    with ThreadPoolExecutor(shards, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        for step in range(1, config.steps + 1):
            # How noisy images come to be, and what the base was trained to say of them, are the
            # base's own choices: its scheduler's betas and its prediction type.
            batch = sample_batch(base, latents, config.batch_size, draw)
            parts = zip(*(tensor.chunk(shards) for tensor in batch), strict=True)
            results = list(pool.map(shard_gradients, parts))

            for index, parameter in enumerate(parameters):
                gradient = results[0][1][index]
                for _, gradients in results[1:]:
                    gradient += gradients[index]
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()

            losses.append(torch.stack([loss for loss, _ in results]).sum())
            if step % REPORT_EVERY == 0 or step == config.steps:
                mean_loss = torch.stack(losses).mean().item()
                if not math.isfinite(mean_loss):
                    raise LimnerError("TRAINING_DIVERGED", f"The loss of step {step} is no number.")
                now = time.perf_counter()
                say(
                    step_line(
                        step=step,
                        steps=config.steps,
                        loss=mean_loss,
                        images_per_second=len(losses) * config.batch_size / (now - reported),
                    )
                )
                losses, reported = [], now
    train_seconds = time.perf_counter() - started

    unet.eval()
    tensors = adapter_tensors(unet)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise LimnerError("TRAINING_DIVERGED", "A weight of the adapter is no number.")
    return Trained(
        tensors=tensors,
        loss=mean_loss,
        train_seconds=train_seconds,
        images_per_second=config.steps * config.batch_size / train_seconds,
    )


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
            latents.append(vae.encode(x.to(base.device)).latent_dist.mean)
    scaled: Tensor = torch.cat(latents) * vae.config.scaling_factor
    return scaled


def embed(base: Base, prompt: str) -> Tensor:
    """The text embedding of a prompt, as generation computes it: [1, t, d]."""
    with torch.no_grad():
        embedding: Tensor = base.pipeline.encode_prompt(
            prompt, base.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
    return embedding


def sample_batch(
    base: Base, latents: Tensor, batch_size: int, draw: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws a batch: noisy latents [b, c, h, w], timesteps [b], what to predict [b, c, h, w]."""
    scheduler, device = base.noise_scheduler, base.device
    chosen = torch.randint(len(latents), (batch_size,), generator=draw)  # [b]
    clean = latents[chosen.to(device)]  # [b, c, h, w]
    noise = torch.randn(clean.shape, generator=draw).to(device)
    timesteps = torch.randint(
        scheduler.config.num_train_timesteps, (batch_size,), generator=draw
    ).to(device)  # [b]
    noisy = scheduler.add_noise(clean, noise, timesteps)
    match scheduler.config.prediction_type:  # load_base has refused all others
        case "epsilon":
            wanted = noise
        case "v_prediction":
            wanted = scheduler.get_velocity(clean, noise, timesteps)
        case _:
            wanted = clean
    return noisy, timesteps, wanted


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
