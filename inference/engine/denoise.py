"""One generation: prompt in, images out, on the base with whatever adapter is selected.

The same mathematics as ``StableDiffusionPipeline.__call__`` (a test compares the images), in a
loop of our own: it can be stopped between steps, and it is where rows of several users will meet
in one batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from inference.engine.base import ResidentBase
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest

Pixels = npt.NDArray[np.uint8]


def draw(
    base: ResidentBase, prompt: str, request: GenerateRequest, go_on: Callable[[], None]
) -> Pixels:
    """Draws the images of one request, as one batch.

    Args:
        base: The base, with its selection set.
        prompt: The text to draw, with the token filled in.
        request: Everything else; its own ``prompt`` is not read.
        go_on: Called before each step; what it raises ends the work.

    Returns:
        ``[images, height, width, 3]``. Image i comes from a generator of its own, seeded with
        seed + i, so it is the same image alone and in a batch (but for rounding).

    Raises:
        LimnerError: ``INVALID_INPUT``, if the base cannot make the size; what ``go_on`` raises.
    """
    size = _latent_size(base, request)
    guided = request.guidance > 1
    with torch.inference_mode():
        texts = [request.negative_prompt, prompt] if guided else [prompt]
        # [texts * images, tokens, width]: all rows without the prompt, then all rows with it.
        context = _encode(base, texts).repeat_interleave(request.images, dim=0)
        generators = [
            torch.Generator("cpu").manual_seed(request.seed + i) for i in range(request.images)
        ]
        scheduler = type(base.scheduler).from_config(base.scheduler.config)
        scheduler.set_timesteps(request.steps, device=base.device)
        accepts = inspect.signature(scheduler.step).parameters
        extra: dict[str, Any] = {"generator": generators} if "generator" in accepts else {}
        shape = (request.images, base.unet.config.in_channels, *size)
        # Drawn on the CPU, so that a seed means the same image on every machine.
        latents = randn_tensor(shape, generators, base.device, base.dtype)
        latents = latents * scheduler.init_noise_sigma
        for step in scheduler.timesteps:
            go_on()
            rows = torch.cat([latents, latents]) if guided else latents
            rows = scheduler.scale_model_input(rows, step)
            noise = base.unet(rows, step, encoder_hidden_states=context, return_dict=False)[0]
            if guided:
                without, given = noise.chunk(2)
                noise = without + request.guidance * (given - without)
            latents = scheduler.step(noise, step, latents, **extra, return_dict=False)[0]
        return _decode(base, latents)


def _latent_size(base: ResidentBase, request: GenerateRequest) -> tuple[int, int]:
    """Height and width in latents."""
    factor = base.pixels_per_latent
    height = request.height or base.resolution_px
    width = request.width or base.resolution_px
    if height % factor or width % factor:
        raise LimnerError(
            "INVALID_INPUT", f"height and width must be multiples of {factor} on this base."
        )
    return height // factor, width // factor


def _encode(base: ResidentBase, texts: list[str]) -> Tensor:
    """Text embeddings, ``[texts, tokens, width]``; longer texts are cut at the encoder's limit."""
    tokens = base.tokenizer(
        texts,
        padding="max_length",
        max_length=base.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    embeddings: Tensor = base.text_encoder(tokens.to(base.device))[0]
    return embeddings.to(base.dtype)


def _decode(base: ResidentBase, latents: Tensor) -> Pixels:
    """Images of latents ``[n, channels, h, w]``: ``[n, height, width, 3]``, 0 to 255."""
    images = base.vae.decode(latents / base.vae.config.scaling_factor, return_dict=False)[0]
    images = (images.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels: Pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    return pixels
