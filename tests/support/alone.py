"""A user trained by himself with peft and torch, as diffusers' example does: nothing is cached.

The peer that ``training.cohort`` is compared with. It draws the same numbers in the same order, and
shares the recipe's constants and pure functions, but no layer, no gradient and no optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor

from limner.contracts.training import TrainingConfig
from training.base import Base
from training.recipe import (
    MAX_GRADIENT_NORM,
    WEIGHT_DECAY,
    add_noise,
    augment,
    draw_batch,
    draw_class,
    embed,
    encode,
    learning_rate_share,
)
from training.targets import TARGETS


@dataclass(frozen=True)
class Trained:
    """An adapter.

    Attributes:
        tensors: By peft's names, ``<layer>.lora_A.weight`` and ``lora_B``, in the base's precision.
        change: The largest change of a weight since the start.
    """

    tensors: dict[str, Tensor]
    change: float


def train_alone_with_peft(
    base: Base, config: TrainingConfig, photos: Sequence[Image.Image]
) -> Trained:
    """Trains one user; the base keeps peft's layers, so it is good for nothing else then."""
    unet = base.pipeline.unet
    draw = torch.Generator().manual_seed(config.seed)
    images = augment(photos, config, base.card.resolution_px, draw)
    class_latents = draw_class(base, config) if config.prior_images else None
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.rank,
        init_lora_weights="gaussian",
        target_modules=list(TARGETS[config.target]),
    )
    unet.add_adapter(lora)
    for module in unet.modules():
        if hasattr(module, "lora_A"):
            a = module.lora_A["default"].weight
            a.data = (torch.randn(a.shape, generator=draw) / config.rank).to(a)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_share(step, config.steps)
    )
    unet.train()
    for _ in range(config.steps):
        loss = _loss(base, config, encode(base, images), config.instance_prompt, draw)
        if class_latents is not None:
            prior = _loss(base, config, class_latents, config.class_caption, draw)
            loss = loss + config.prior_weight * prior
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
    pairs = zip(parameters, before, strict=True)
    return Trained(
        tensors={name: tensor.detach() for name, tensor in get_peft_model_state_dict(unet).items()},
        change=max(float((now.detach() - then).abs().max()) for now, then in pairs),
    )


def _loss(
    base: Base, config: TrainingConfig, latents: Tensor, prompt: str, draw: torch.Generator
) -> Tensor:
    """Mean loss of a batch of one caption, with a pass through the UNet of its own."""
    text, added = embed(base, prompt)
    clean, noise, timesteps = draw_batch(base, latents, config.batch_size, draw)
    noisy, wanted = add_noise(base, clean, noise, timesteps)
    rows = len(noisy)
    predicted = base.pipeline.unet(
        noisy,
        timesteps,
        text.expand(rows, -1, -1),
        added_cond_kwargs={name: value.expand(rows, -1) for name, value in added.items()},
        return_dict=False,
    )[0]
    losses = (predicted - wanted).square().mean((1, 2, 3))
    if config.snr_gamma:
        losses = losses * _min_snr(base, config.snr_gamma, timesteps)
    return losses.mean()


def _min_snr(base: Base, gamma: float, timesteps: Tensor) -> Tensor:
    """As the paper has it, and diffusers' example: the weight of the image's error, divided."""
    kept = base.noise_scheduler.alphas_cumprod.double()[timesteps]
    snr = kept / (1 - kept)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return snr.clamp(max=gamma) / divisor[base.noise_scheduler.config.prediction_type]
