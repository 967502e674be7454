"""The drawing itself: prompts in, images out, rows of many requests in one pass of the UNet.

The same mathematics as ``StableDiffusionPipeline.__call__`` (a test compares the images), taken
apart at its step boundaries: a ``Drawing`` is one request's state between two steps, a ``Pass``
is a set of drawings of one size that take their steps together. Each drawing has a scheduler, a
guidance and a timestep of its own; timesteps go to the UNet as one number a row.

Nothing here knows of threads, queues or slots.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from inference.engine.base import ResidentBase
from inference.engine.lora import Share
from inference.engine.memory import is_out_of_memory
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest

Pixels = npt.NDArray[np.uint8]

# The decoder works at eight times the latents' resolution, so its memory bounds a batch first.
_DECODED_AT_ONCE: Final = 8


@dataclass
class Drawing:
    """One request between two steps.

    Attributes:
        context: Text embeddings, ``[rows, tokens, width]``: all rows without the prompt (if
            guided), then all rows with it.
        latents: ``[images, channels, h, w]``, in the base's type.
        guidance: Scale of classifier-free guidance.
        guided: Whether each image takes two rows.
        scheduler: Its own; it has state.
        extra: Further arguments of the scheduler's step.
        step: Steps that are done.
        is_torn: Whether its scheduler is ahead of ``step``, since a step of it did not end. It must
            begin anew.
    """

    context: Tensor
    latents: Tensor
    guidance: float
    guided: bool
    scheduler: Any
    extra: dict[str, Any]
    step: int = 0
    is_torn: bool = False

    @property
    def rows(self) -> int:
        """Rows of a pass that it takes."""
        return len(self.context)

    @property
    def is_done(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.steps

    @property
    def steps(self) -> int:
        """Steps that it takes in all: with PNDM one more than were asked for."""
        return len(self.scheduler.timesteps)


@dataclass(frozen=True)
class Pass:
    """Drawings of one size that take their steps together.

    Attributes:
        drawings: In the order of their rows.
        context: All their text embeddings, ``[rows, tokens, width]``.
        shares: Which adapter each row has.
        counts: Rows of each drawing, on the base's device; None for a single one.
    """

    drawings: tuple[Drawing, ...]
    context: Tensor
    shares: tuple[Share, ...]
    counts: Tensor | None


class Artist:
    """Draws on one base; to be used by one thread at a time.

    Args:
        base: The base; its selection is set here only.
    """

    def __init__(self, base: ResidentBase) -> None:
        self._base = base
        accepts = inspect.signature(base.scheduler.step).parameters
        self._takes_generator = "generator" in accepts

    @torch.inference_mode()
    def begin(self, wishes: Sequence[tuple[str, GenerateRequest]]) -> list[Drawing]:
        """Everything before the first step, for some requests at once.

        Args:
            wishes: Prompt with the token filled in, and everything else; the request's own
                ``prompt`` is not read.

        Raises:
            LimnerError: ``INVALID_INPUT``, if the base cannot make a size.
        """
        texts: list[str] = []
        for prompt, request in wishes:
            texts += [request.negative_prompt, prompt] if is_guided(request) else [prompt]
        # A text that several ask for (mostly the empty negative prompt) is encoded once.
        distinct = list(dict.fromkeys(texts))
        encoded = dict(zip(distinct, self._encode(distinct).chunk(len(distinct)), strict=True))
        return [self._begin(prompt, request, encoded) for prompt, request in wishes]

    def assemble(self, drawings: Sequence[Drawing], shares: tuple[Share, ...]) -> Pass:
        """A pass of drawings of one size.

        Args:
            drawings: In the order of their rows.
            shares: Which adapter each row has.
        """
        if len(drawings) == 1:
            return Pass((drawings[0],), drawings[0].context, shares, None)
        counts = torch.tensor([drawing.rows for drawing in drawings], device=self._base.device)
        context = torch.cat([drawing.context for drawing in drawings])
        return Pass(tuple(drawings), context, shares, counts)

    @torch.inference_mode()
    def step(self, batch: Pass) -> None:
        """Takes the next step of each drawing of a pass.

        Where it raises, it may be taken again by all drawings that are not torn.
        """
        base = self._base
        times = [drawing.scheduler.timesteps[drawing.step] for drawing in batch.drawings]
        inputs: list[Tensor] = []
        for drawing, time in zip(batch.drawings, times, strict=True):
            scaled = drawing.scheduler.scale_model_input(drawing.latents, time)
            inputs += [scaled, scaled] if drawing.guided else [scaled]
        sample = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
        base.selection.shares = batch.shares
        try:
            noises = base.unet(
                sample,
                self._row_times(times, batch, len(sample)),
                encoder_hidden_states=batch.context,
                return_dict=False,
            )[0]
        finally:
            # An unloaded adapter's memory must not be kept alive by the selection.
            base.selection.shares = ()
        rows = [drawing.rows for drawing in batch.drawings]
        parts = torch.split(noises, rows)
        latents: list[Tensor] = []
        for drawing, time, noise in zip(batch.drawings, times, parts, strict=True):
            if drawing.guided:
                without, given = noise.chunk(2)
                noise = without + drawing.guidance * (given - without)
            # A scheduler's state (PNDM's history, Euler's count, generators) cannot be put back.
            drawing.is_torn = True
            latents += drawing.scheduler.step(
                noise, time, drawing.latents, **drawing.extra, return_dict=False
            )[:1]
        # All or none: where memory ran out above, nobody's count is ahead of the others'.
        for drawing, new in zip(batch.drawings, latents, strict=True):
            drawing.latents = new
            drawing.step += 1
            drawing.is_torn = False

    @torch.inference_mode()
    def finish(self, drawings: Sequence[Drawing]) -> list[Pixels | None]:
        """The images of drawings of one size whose steps are done.

        Returns:
            Of each drawing ``[images, height, width, 3]``, 0 to 255; None if what the decoder made
            of one is not finite, so that there is no image.
        """
        decoded, sound = self._decode(
            torch.cat([drawing.latents for drawing in drawings]), _DECODED_AT_ONCE
        )
        images = [len(drawing.latents) for drawing in drawings]
        parts = zip(torch.split(decoded, images), torch.split(sound, images), strict=True)
        return [part.numpy() if bool(is_sound.all()) else None for part, is_sound in parts]

    def _begin(self, prompt: str, request: GenerateRequest, encoded: dict[str, Tensor]) -> Drawing:
        base = self._base
        guided = is_guided(request)
        texts = [request.negative_prompt, prompt] if guided else [prompt]
        context = torch.cat([encoded[text] for text in texts])
        # Image i comes from a generator of its own, so it is the same alone and in a batch. Drawn
        # on the CPU, so that a seed means the same image on every machine.
        generators = [
            torch.Generator("cpu").manual_seed(request.seed + i) for i in range(request.images)
        ]
        scheduler = type(base.scheduler).from_config(base.scheduler.config)
        # Timesteps stay on the CPU: schedulers look numbers up by them, and a GPU would have to
        # be waited for.
        scheduler.set_timesteps(request.steps)
        shape = (request.images, base.unet.config.in_channels, *latent_size(base, request))
        latents = randn_tensor(shape, generators, base.device, base.dtype)
        return Drawing(
            context=context.repeat_interleave(request.images, dim=0),
            latents=latents * scheduler.init_noise_sigma,
            guidance=request.guidance,
            guided=guided,
            scheduler=scheduler,
            extra={"generator": generators} if self._takes_generator else {},
        )

    def _row_times(self, times: Sequence[Tensor], batch: Pass, rows: int) -> Tensor:
        """The timestep of each row, ``[rows]``."""
        if batch.counts is None:
            return times[0].to(self._base.device).expand(rows)
        stacked = torch.stack(list(times)).to(self._base.device)
        return stacked.repeat_interleave(batch.counts, output_size=rows)

    def _encode(self, texts: list[str]) -> Tensor:
        """Text embeddings, ``[texts, tokens, width]``; longer texts are cut at the limit."""
        base = self._base
        tokens = base.tokenizer(
            texts,
            padding="max_length",
            max_length=base.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        embeddings: Tensor = base.text_encoder(tokens.to(base.device))[0]
        return embeddings.to(base.dtype)

    def _decode(self, latents: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
        """Images of latents ``[n, channels, h, w]``, some at a time, fewer where memory is short.

        Returns:
            On the host: ``[n, height, width, 3]``, uint8; and which of them were finite, ``[n]``.
        """
        try:
            parts = [self._decode_part(part) for part in torch.split(latents, at_once)]
        except (MemoryError, RuntimeError) as error:
            if at_once == 1 or not is_out_of_memory(error):
                raise
        else:
            images, sound = zip(*parts, strict=True)
            return torch.cat(images), torch.cat(sound)
        # Outside of the handler, which would keep the frames that hold the memory.
        return self._decode(latents, at_once // 2)

    def _decode_part(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        vae = self._base.vae
        decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0].float()
        # Asked of the images: finite latents, too, may be too large for the decoder's type.
        sound = decoded.isfinite().flatten(1).all(1)
        images = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return images.permute(0, 2, 3, 1).cpu(), sound.cpu()


def is_guided(request: GenerateRequest) -> bool:
    """Whether each image takes two rows of a pass: one with the prompt, one without."""
    return request.guidance > 1


def latent_size(base: ResidentBase, request: GenerateRequest) -> tuple[int, int]:
    """Height and width of a request's images, in latents.

    Raises:
        LimnerError: ``INVALID_INPUT``, if the base cannot make the size.
    """
    factor = base.pixels_per_latent
    height = request.height or base.resolution_px
    width = request.width or base.resolution_px
    if height % factor or width % factor:
        raise LimnerError(
            "INVALID_INPUT", f"height and width must be multiples of {factor} on this base."
        )
    return height // factor, width // factor
