"""From good photos to first images and the artifact: the part of a job that needs torch."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from PIL import Image

from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from training.artifact import members_of
from training.base import Base, load_base
from training.files import write_atomically
from training.job import Work
from training.lora import remove_adapter
from training.progress import event_line, say
from training.recipe import fine_tune, preview, set_threads
from training.settings import cpu_count

# torch has no error of its own for this one; c10/core/impl/alloc_cpu.cpp writes the word.
_CPU_ALLOCATOR: Final = "DefaultCPUAllocator"


@dataclass(frozen=True)
class Made:
    """What the work has come to.

    Attributes:
        members: Content of each member of the artifact.
        metrics: Figures that follow from photos, config and base; they are in the manifest too.
        timings: Figures that also follow from the machine and the moment. The manifest does not
            have them, so that the same work gives the same artifact.
    """

    members: Mapping[str, bytes]
    metrics: Mapping[str, float]
    timings: Mapping[str, float]


def open_base(folder: Path) -> Base:
    """Loads the base onto the machine's accelerator, or its CPUs where it has none.

    Raises:
        LimnerError: ``BASE_INVALID``.
    """
    started = time.perf_counter()
    set_threads(cpu_count())
    base = load_base(folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    say(event_line("loaded", base=base.card.base_id, seconds=time.perf_counter() - started))
    return base


def make(
    base: Base, work: Work, photos: Sequence[Image.Image], *, previews_dir: Path, parts_dir: Path
) -> Made:
    """Trains an adapter, draws the first images, and takes the adapter off the base again.

    However it ends, the base is as it was: what is made next on it does not depend on this work.

    Args:
        base: The frozen base.
        work: What to train.
        photos: RGB images of the subject.
        previews_dir: Where the first images go; SageMaker's checkpoint sync takes them to S3.
        parts_dir: Where unfinished files lie.

    Raises:
        LimnerError: ``TRAINING_DIVERGED``, or ``TRAINING_FAILED`` where the memory is too small.
    """
    try:
        with memory_errors():
            trained = fine_tune(work.config, base, photos, say)
            _write_previews(work.config, base, previews_dir, parts_dir)
            metrics = {
                "loss": trained.loss,
                "steps": work.config.steps,
                "photos": len(photos),
                "parameters": sum(tensor.numel() for tensor in trained.tensors.values()),
            }
            return Made(
                members=members_of(work, base, trained.tensors, metrics),
                metrics=metrics,
                timings={
                    "train_seconds": trained.train_seconds,
                    "images_per_second": trained.images_per_second,
                },
            )
    finally:
        remove_adapter(base.pipeline.unet)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns every form of "out of memory" into ``TRAINING_FAILED`` with advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_small() from error
    except RuntimeError as error:
        if _CPU_ALLOCATOR not in str(error):
            raise
        raise _too_small() from error


def _too_small() -> LimnerError:
    return LimnerError(
        "TRAINING_FAILED",
        "The machine's memory is too small for this base and batch size; lower batch_size.",
    )


def _write_previews(
    config: TrainingConfig, base: Base, previews_dir: Path, parts_dir: Path
) -> None:
    for index, prompt in enumerate(config.preview_prompts):
        png = io.BytesIO()
        preview(config, base, prompt, seed=config.seed + index).save(png, "PNG")
        path = previews_dir / f"preview-{index:02d}.png"
        write_atomically(path, png.getvalue(), parts=parts_dir)
        say(event_line("preview", index=index))
