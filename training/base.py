"""The frozen base under the adapter, read from a folder and from nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from limner.contracts.base import BaseCard, base_digest, read_card
from limner.contracts.errors import LimnerError

PREDICTION_TYPES: Final = ("epsilon", "v_prediction", "sample")

# Diffusion pipelines round sizes to multiples of eight pixels (StableDiffusionPipeline's
# check_inputs refuses others).
_SIZE_MULTIPLE_PX: Final = 8


@dataclass(frozen=True)
class Base:
    """A base that is ready to be trained on.

    Attributes:
        card: What the base says of itself.
        digest: Hash of its files; goes into the manifest.
        pipeline: The ``StableDiffusionPipeline``, float32, all parameters frozen.
        noise_scheduler: The forward process with the betas that the base was trained with.
        device: Where the pipeline lies.
    """

    card: BaseCard
    digest: str
    # diffusers ships no types.
    pipeline: Any
    noise_scheduler: Any
    device: torch.device


def load_base(folder: Path, device: torch.device) -> Base:
    """Loads the base and checks what the recipe relies on.

    Only safetensors are read (no pickle), and nothing is looked up on a model hub.

    Raises:
        LimnerError: ``BASE_INVALID``, saying what is wrong.
    """
    # Both libraries would print bars, hints, and the text of a prompt that they cut off. diffusers
    # imports its classes on first use, so this comes before the first one.
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    card = read_card(folder)
    try:
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            safety_checker=None,
            requires_safety_checker=False,
        )
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        ImportError,
        SafetensorError,
    ) as error:
        # What from_pretrained raises for a missing file, a broken config, or tensors that do not
        # fit; its text names files of the base, nothing of a user.
        raise LimnerError(
            "BASE_INVALID", f"The base {card.base_id} does not load: {type(error).__name__}."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    _check(card, pipeline)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(requires_grad=False)
    pipeline.to(device)
    return Base(
        card=card,
        digest=base_digest(folder),
        pipeline=pipeline,
        noise_scheduler=diffusers.DDPMScheduler.from_config(pipeline.scheduler.config),
        device=device,
    )


def _check(card: BaseCard, pipeline: Any) -> None:  # noqa: ANN401 - diffusers ships no types
    kind = pipeline.scheduler.config.prediction_type
    if kind not in PREDICTION_TYPES:
        raise LimnerError("BASE_INVALID", f"The base predicts {kind!r}, which is not known here.")
    unet_channels = pipeline.unet.config.in_channels
    vae_channels = pipeline.vae.config.latent_channels
    if not unet_channels == pipeline.unet.config.out_channels == vae_channels:
        raise LimnerError(
            "BASE_INVALID",
            f"The UNet takes {unet_channels} channels and the VAE makes {vae_channels}.",
        )
    multiple = max(_SIZE_MULTIPLE_PX, pipeline.vae_scale_factor)
    if card.resolution_px % multiple:
        raise LimnerError(
            "BASE_INVALID",
            f"The resolution of {card.resolution_px} px is no multiple of {multiple}.",
        )
