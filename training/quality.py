"""How good a trained model is, in a handful of figures that need no other network.

::

    photos ──────────────────────────── latents ─┐
    the subject, as the base draws it ── latents ─┤         ┌─ similarity, gain over the base
    the subject, as the model draws it ─ latents ─┼─ compare ┼─ prompt response
    … and both of it in another place ── latents ─┘         ├─ diversity
                                                            └─ novelty (low: photos are copied)

Every image is compared with what the bare base draws from the very same noise, so that a figure
speaks of the fine-tune and not of the base. The images stay latents: nothing is decoded. They are
``IMAGES`` images of ``STEPS`` denoising steps each, few and coarse: the figures tell a failed
fine-tune from a sound one, and do not rank two sound ones. The same photos, config and base give
the same figures on machines of one kind. docs/quality.md has what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from limner.contracts.training import TrainingConfig
from training.base import Base
from training.cohort import Cohort, Learner
from training.recipe import add_noise, draw_bare, draw_latents, embed

# Images of each prompt.
IMAGES: Final = 4
# Denoising steps of each, at most; previews have more.
STEPS: Final = 8
# A context that a base of any size knows.
CONTEXT: Final = " on a blue background"
# How noisy an image is when the UNet looks at it, as a share of its timesteps: enough for the UNet
# to be at home, too little to hide the subject.
GLANCE: Final = 0.15
# Digits that are worth keeping; further ones depend on who shared a pass.
_DIGITS: Final = 3


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured; "features" are explained at ``features``.

    Attributes:
        similarity: Mean, over the model's images of the subject, of the cosine between the image's
            features and those of the nearest photo, both taken from the mean features of the base's
            own images. From -1 to 1; 1 is a photo, 0 has nothing in common with any.
        similarity_gain: ``similarity`` less that of the base's images of the same prompt and noise.
            From -2 to 2; 0 is a model that has learnt nothing.
        prompt_response: How far another place in the prompt moves the model's images along the
            way that it moves the base's, as a share of that way. 1 is as obedient as the base, 0
            is deaf; neither end is bounded.
        diversity: Mean distance between the latents of the model's images of the subject, as a
            share of that between the base's. From 0 (always the same image) up; 1 is as the base.
        novelty: Mean distance of the model's images to the nearest crop of a photo, as a share of
            the mean distance of a photo to the nearest crop of another one; distances between
            latents. From 0 (a copy) up; 1 is as far from the photos as they are from each other.
    """

    similarity: float
    similarity_gain: float
    prompt_response: float
    diversity: float
    novelty: float


def measure(
    base: Base, cohort: Cohort, learner: Learner, pause: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """The figures of a learner whose training is over, by name.

    A figure that is no number, as that of a base whose images know no difference, is left out.

    Args:
        base: The frozen base.
        cohort: Where the learner is.
        learner: Who.
        pause: Called between two sets of images: a moment at which work may be interrupted.
    """
    config = learner.config
    config = config.model_copy(update={"preview_steps": min(STEPS, config.preview_steps)})
    plain = config.instance_prompt
    base_plain = draw_bare(config, base, plain, IMAGES)
    base_moved = draw_bare(config, base, plain + CONTEXT, IMAGES)
    pause()
    with cohort.drawing_as(learner):
        own_plain = _draw(config, base, plain)
        pause()
        own_moved = _draw(config, base, plain + CONTEXT)
    text = embed(base, "")
    photos, own, bare = (
        features(base, latents, text)
        for latents in (
            learner.material.latents[:: config.augmentations],
            own_plain,
            base_plain,
        )
    )
    center = bare.mean(0)
    likeness = similarity(own - center, photos - center)
    figures = Figures(
        similarity=likeness,
        similarity_gain=likeness - similarity(bare - center, photos - center),
        prompt_response=response(own_moved - own_plain, base_moved - base_plain),
        diversity=(spread(own_plain) / spread(base_plain)).item(),
        novelty=novelty(own_plain, learner.material.latents, config.augmentations),
    )
    return {
        name: round(value, _DIGITS)
        for name, value in asdict(figures).items()
        if math.isfinite(value)
    }


def _draw(config: TrainingConfig, base: Base, prompt: str) -> Tensor:
    """Latents of the model's images, from the noise that ``draw_bare`` begins with."""
    return draw_latents(config, base, prompt, IMAGES, torch.Generator().manual_seed(0))


@torch.no_grad()
def features(base: Base, latents: Tensor, text: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
    """What the bare UNet's middle block makes of images with a little noise: [n, d].

    Diffusion features of Tang et al., "Emergent Correspondence from Image Diffusion" (2023): the
    middle block has seen everything and remembers where it was, coarsely. No adapter may be in
    use: all images are looked at with the same eyes, and with the same noise.

    Args:
        base: The frozen base.
        latents: The images: [n, c, h, w].
        text: The empty prompt, as ``recipe.embed`` gives it.
    """
    unet, count = base.pipeline.unet, len(latents)
    noise = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(0))
    step = int(GLANCE * base.noise_scheduler.config.num_train_timesteps)
    steps = torch.full((count,), step, device=latents.device)
    noisy, _ = add_noise(base, latents, noise.to(latents).expand_as(latents), steps)
    seen: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> None:
        seen.append(output.flatten(1).float())

    handle = unet.mid_block.register_forward_hook(keep)
    try:
        for row in range(count):  # one by one: no more memory than a step of training
            unet(
                noisy[row : row + 1].to(text[0].dtype),
                steps[row : row + 1],
                text[0],
                added_cond_kwargs=text[1],
            )
    finally:
        handle.remove()
    return functional.normalize(torch.cat(seen))


def similarity(images: Tensor, photos: Tensor) -> float:
    """Mean cosine of the features of images [n, d] to the nearest photo's [m, d]."""
    cosines = functional.normalize(images) @ functional.normalize(photos).T  # [n, m]
    return cosines.amax(1).mean().item()


def response(own: Tensor, base: Tensor) -> float:
    """Mean way of one set of images along that of another, as a share of it.

    Args:
        own: From the model's images of one prompt to those of the other: [n, c, h, w].
        base: The same for the base.
    """
    ours, theirs = own.mean(0).flatten(), base.mean(0).flatten()
    return (ours @ theirs / (theirs @ theirs)).item()


def spread(latents: Tensor) -> Tensor:
    """Mean distance between any two images of [n, c, h, w]; a scalar."""
    return torch.pdist(latents.flatten(1)).mean()


def novelty(images: Tensor, crops: Tensor, crops_each: int) -> float:
    """See ``Figures.novelty``; no number where there is a single photo.

    Args:
        images: [n, c, h, w].
        crops: Those of the first photo, those of the second …: [m, c, h, w].
        crops_each: How many there are of each photo.
    """
    images, crops = images.flatten(1), crops.flatten(1)
    photo = torch.arange(len(crops), device=crops.device) // crops_each  # [m]
    firsts = slice(None, None, crops_each)
    between = torch.cdist(crops[firsts], crops)  # [p, m]
    between = between.masked_fill(photo[firsts, None] == photo, torch.inf)
    apart = between.amin(1).mean()
    if apart.isinf():
        return torch.nan
    return (torch.cdist(images, crops).amin(1).mean() / apart).item()
