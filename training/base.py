"""The frozen base under the adapter, read from a folder and from nowhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from limner.contracts.base import BaseCard, base_digest, read_card
from limner.contracts.errors import LimnerError

PREDICTION_TYPES: Final = ("epsilon", "v_prediction", "sample")

# Diffusion pipelines round sizes to multiples of eight pixels (StableDiffusionPipeline's
# check_inputs refuses others).
_SIZE_MULTIPLE_PX: Final = 8
# What a base may be, by ``model_index.json``, and how each is opened without its extras.
_XL: Final = "StableDiffusionXLPipeline"
_OPTIONS: Final[dict[str, dict[str, object]]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
    _XL: {"add_watermarker": False},
}
# SDXL's three sizes, of two numbers each: original, crop's corner, target.
_TIME_IDS: Final = 6


@dataclass
class Base:
    """A base that is ready to be trained on.

    Attributes:
        folder: Where it was read from.
        card: What the base says of itself.
        digest: Hash of its files; goes into the manifest.
        pipeline: The ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``, all parameters
            frozen; the VAE in float32, all else in ``dtype``.
        noise_scheduler: The forward process with the betas that the base was trained with.
        device: Where the pipeline lies.
        dtype: What ``use`` was last asked for.
        drawings: Latents that the bare base has drawn, kept for the next who asks for the same.
    """

    folder: Path
    card: BaseCard
    digest: str
    # diffusers ships no types.
    pipeline: Any
    noise_scheduler: Any
    device: torch.device
    dtype: torch.dtype
    drawings: dict[object, Tensor] = field(default_factory=dict)

    @property
    def is_xl(self) -> bool:
        """Whether its UNet wants a pooled embedding and sizes beside the text."""
        return bool(self.pipeline.unet.config.addition_embed_type)

    def use(self, precision: str) -> None:
        """Sees to the precision of the frozen weights; reads them anew if it is another one.

        Nobody may be in training then.

        Args:
            precision: As ``TrainingConfig`` has it.

        Raises:
            LimnerError: ``BASE_INVALID``, if the files are no longer what they were.
        """
        dtype = dtype_of(precision, self.device)
        if dtype == self.dtype:
            return
        self.pipeline = None  # two of them may be too many for the machine
        self.pipeline = _open(self.folder, self.card, dtype, self.device)
        self.dtype = dtype
        self.drawings.clear()


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """What a precision of ``TrainingConfig`` means on a device.

    ``auto`` is bfloat16 where the accelerator multiplies it by itself (NVIDIA's T4 only pretends
    to), and float32 elsewhere.
    """
    if precision == "auto":
        is_fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if is_fast else "float32"
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]


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
    dtype = dtype_of("auto", device)
    pipeline = _open(folder, card, dtype, device)
    return Base(
        folder=folder,
        card=card,
        digest=base_digest(folder),
        pipeline=pipeline,
        noise_scheduler=diffusers.DDPMScheduler.from_config(pipeline.scheduler.config),
        device=device,
        dtype=dtype,
    )


def _open(folder: Path, card: BaseCard, dtype: torch.dtype, device: torch.device) -> Any:  # noqa: ANN401
    """The frozen pipeline on its device."""
    try:
        name = json.loads((folder / "model_index.json").read_bytes())["_class_name"]
        if name not in _OPTIONS:
            raise LimnerError("BASE_INVALID", f"The base is no {' and no '.join(_OPTIONS)}.")
        pipeline = getattr(diffusers, name).from_pretrained(
            folder,
            # The VAE sees each photo once, and that of SDXL loses its way in half precision.
            dtype={"default": dtype, "vae": torch.float32},
            use_safetensors=True,
            local_files_only=True,
            **_OPTIONS[name],
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
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if (module := getattr(pipeline, part, None)) is not None:
            module.requires_grad_(requires_grad=False)
    return pipeline.to(device)


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
    if pipeline.vae.config.latents_mean is not None:
        raise LimnerError("BASE_INVALID", "The VAE moves its latents, which is not known here.")
    _check_conditions(pipeline)
    multiple = max(_SIZE_MULTIPLE_PX, pipeline.vae_scale_factor)
    if card.resolution_px % multiple:
        raise LimnerError(
            "BASE_INVALID",
            f"The resolution of {card.resolution_px} px is no multiple of {multiple}.",
        )


def _check_conditions(pipeline: Any) -> None:  # noqa: ANN401
    """Whether the UNet takes what the pipeline's text encoders make."""
    config = pipeline.unet.config
    if type(pipeline).__name__ != _XL:
        wanted, width, made = None, config.cross_attention_dim, _width(pipeline.text_encoder)
    elif pipeline.text_encoder is None or pipeline.text_encoder_2 is None:
        raise LimnerError("BASE_INVALID", "The base lacks one of SDXL's two text encoders.")
    else:
        second = pipeline.text_encoder_2
        wanted, width = "text_time", config.cross_attention_dim
        made = _width(pipeline.text_encoder) + _width(second)
        pooled = second.config.projection_dim + _TIME_IDS * (config.addition_time_embed_dim or 0)
        if config.projection_class_embeddings_input_dim != pooled:
            raise LimnerError("BASE_INVALID", "The UNet does not take the pooled embedding.")
    if config.addition_embed_type != wanted or width != made:
        raise LimnerError(
            "BASE_INVALID", f"The UNet takes text of {width} numbers, and gets {made}."
        )


def _width(encoder: Any) -> int:  # noqa: ANN401
    return int(encoder.config.hidden_size)
