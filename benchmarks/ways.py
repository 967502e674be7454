"""Ways to draw for many users on one base: those that diffusers and peft offer, and ours.

All on the same device, in the same type, with the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer

from inference.engine.base import ResidentBase, load_base
from inference.engine.denoise import Artist
from inference.engine.engine import Engine
from limner.contracts import artifact
from limner.contracts.generation import GenerateRequest

USERS: Final = 16
STEPS: Final = 10
GUIDANCE: Final = 3.0
PROMPT: Final = "a photo of sks"
MAX_RANK: Final = 64

Images = np.ndarray
Way = Callable[[Sequence[int]], list[Images]]
"""Draws one image for each of these users."""


def wish(seed: int, steps: int = STEPS) -> GenerateRequest:
    """What every way draws."""
    return GenerateRequest(prompt=PROMPT, steps=steps, guidance=GUIDANCE, seed=seed)


@dataclass(frozen=True)
class Scene:
    """What all ways have in common.

    Attributes:
        name: The base's.
        folder: Where the base lies.
        adapters: Folder of each user's artifact.
        device: Where the weights lie.
        steps: Of each image.
    """

    name: str
    folder: Path
    adapters: tuple[Path, ...]
    device: torch.device
    steps: int = STEPS

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights: the one that ``load_base`` takes on this device."""
        return torch.float16 if self.device.type == "cuda" else torch.float32

    def resident(self) -> ResidentBase:
        """The base, as ours has it."""
        base = load_base(self.folder, self.device.type)
        assert base.dtype == self.dtype
        return base

    def wish(self, seed: int) -> GenerateRequest:
        """What every way draws."""
        return wish(seed, self.steps)


# -- The peers ------------------------------------------------------------------------------------


def pipeline_of(scene: Scene) -> Any:  # noqa: ANN401 (diffusers has no types)
    """A diffusers pipeline of the base."""
    found = StableDiffusionPipeline.from_pretrained(scene.folder, dtype=scene.dtype)
    found.set_progress_bar_config(disable=True)
    return found.to(scene.device)


def drawn(pipeline: Any, users: Sequence[int], scene: Scene) -> list[Images]:  # noqa: ANN401
    """One call of a pipeline, with one image for each of these users."""
    images = pipeline(
        [PROMPT] * len(users),
        negative_prompt=[""] * len(users),
        num_inference_steps=scene.steps,
        guidance_scale=GUIDANCE,
        # On the CPU, as ours: a seed then means the same noise on every device.
        generator=[torch.Generator().manual_seed(user) for user in users],
        output_type="np",
    ).images
    return list((images * 255).round())


def load(pipeline: Any, folder: Path, name: str, **options: object) -> None:  # noqa: ANN401
    """Loads a user's adapter, as diffusers does it."""
    pipeline.load_lora_weights(folder, weight_name=artifact.ADAPTER, adapter_name=name, **options)


def whole_pipeline(scene: Scene) -> Way:
    """A pipeline of his own for each request."""

    def way(users: Sequence[int]) -> list[Images]:
        images = []
        for user in users:
            pipeline = pipeline_of(scene)
            load(pipeline, scene.adapters[user], "own")
            images += drawn(pipeline, [user], scene)
        return images

    return way


def load_and_unload(scene: Scene) -> Way:
    """A resident base; each request loads its adapter and takes it off again."""
    pipeline = pipeline_of(scene)

    def way(users: Sequence[int]) -> list[Images]:
        images = []
        for user in users:
            load(pipeline, scene.adapters[user], "own")
            images += drawn(pipeline, [user], scene)
            pipeline.unload_lora_weights()
        return images

    return way


def hotswap(scene: Scene) -> Way:
    """A resident base with one adapter, whose weights each request replaces."""
    pipeline = pipeline_of(scene)
    load(pipeline, scene.adapters[0], "own")

    def way(users: Sequence[int]) -> list[Images]:
        images = []
        for user in users:
            load(pipeline, scene.adapters[user], "own", hotswap=True)
            images += drawn(pipeline, [user], scene)
        return images

    return way


def all_resident(scene: Scene) -> Any:  # noqa: ANN401
    """A pipeline with everybody's adapter."""
    pipeline = pipeline_of(scene)
    for user, folder in enumerate(scene.adapters):
        load(pipeline, folder, f"u{user}")
    return pipeline


def set_adapters(pipeline: Any, scene: Scene) -> Way:  # noqa: ANN401
    """Everybody's adapter is resident; each request chooses one."""

    def way(users: Sequence[int]) -> list[Images]:
        images = []
        for user in users:
            pipeline.set_adapters(f"u{user}")
            images += drawn(pipeline, [user], scene)
        return images

    return way


@contextmanager
def adapter_names(unet: torch.nn.Module, names: list[str]) -> Iterator[None]:
    """Each row with its own adapter, the way ``PeftModel.forward(adapter_names=…)`` does it."""

    def hook(_: object, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
        return args, {**kwargs, "adapter_names": names}

    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mixed_batch(pipeline: Any, scene: Scene) -> Way:  # noqa: ANN401
    """Everybody's adapter is resident; one batch holds rows of all of them."""

    def way(users: Sequence[int]) -> list[Images]:
        # The rows without the prompt come first, then those with it.
        with adapter_names(pipeline.unet, [f"u{user}" for user in users] * 2):
            return drawn(pipeline, users, scene)

    return way


# -- Ours -----------------------------------------------------------------------------------------


def ours(base: ResidentBase, scene: Scene) -> Way:
    """Each request loads its model, as the platform would have it; all are drawn together."""
    engine = Engine(base, max_models=USERS, max_rank=MAX_RANK, max_rows=2 * USERS)

    def way(users: Sequence[int]) -> list[Images]:
        for user in users:
            engine.load(f"u{user}", scene.adapters[user])
        futures = [engine.submit(f"u{user}", scene.wish(user)) for user in users]
        images = [future.result().pixels[0].astype(float) for future in futures]
        for user in users:
            engine.unload(f"u{user}")
        return images

    return way


def bare(base: ResidentBase, scene: Scene) -> Way:
    """The base without adapters: what no way of having them can beat at the same batch."""
    artist = Artist(base)

    def way(users: Sequence[int]) -> list[Images]:
        drawings = artist.begin([(PROMPT, scene.wish(user)) for user in users])
        batch = artist.assemble(drawings, ())
        for _ in range(scene.steps):
            artist.step(batch)
        return [pixels[0] for pixels in artist.finish(drawings) if pixels is not None]

    return way
