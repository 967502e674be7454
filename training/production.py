"""From good photos to first images and the artifact: the part of a job that needs torch."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from training.artifact import members_of
from training.base import Base, load_base
from training.cohort import Cohort, Learner, set_threads
from training.files import write_atomically
from training.job import Work
from training.progress import event_line, say
from training.quality import measure
from training.recipe import preview
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


def draw_first_images(
    base: Base,
    cohort: Cohort,
    learner: Learner,
    work: Work,
    *,
    started: float,
    previews_dir: Path,
    parts_dir: Path,
    pause: Callable[[], None],
) -> float:
    """Draws the images that a user sees first.

    Args:
        base: The frozen base.
        cohort: Where the learner is.
        learner: Whose training is over.
        work: What was trained.
        started: When the work began, by ``time.perf_counter``.
        previews_dir: Where the images go; SageMaker's checkpoint sync takes them to S3.
        parts_dir: Where unfinished files lie.
        pause: Called after each image: a moment at which the work may be interrupted.

    Returns:
        Seconds from the work's begin to its first image; 0 if none is asked for.

    Raises:
        LimnerError: ``TRAINING_DIVERGED``, or ``TRAINING_FAILED`` where the memory is too small.
    """
    cohort.tensors(learner)  # numbers all of them, or there is nothing to be drawn
    first_image_s = 0.0
    with cohort.drawing_as(learner):
        for index, prompt in enumerate(work.config.preview_prompts):
            _write_preview(work.config, base, prompt, index, previews_dir, parts_dir)
            first_image_s = first_image_s or time.perf_counter() - started
            pause()
    return first_image_s


def produce(
    base: Base,
    cohort: Cohort,
    learner: Learner,
    work: Work,
    *,
    photos: int,
    first_image_s: float,
    pause: Callable[[], None],
    quality: bool = True,
) -> Made:
    """Makes the artifact of a trained learner.

    Args:
        base: The frozen base.
        cohort: Where the learner is.
        learner: Whose training is over.
        work: What was trained.
        photos: How many photos there were.
        first_image_s: What ``draw_first_images`` said.
        pause: Called between images: a moment at which the work may be interrupted.
        quality: Whether to draw quality figures.

    Raises:
        LimnerError: ``TRAINING_DIVERGED``, or ``TRAINING_FAILED`` where the memory is too small.
    """
    tensors = cohort.tensors(learner)
    figures = measure(base, cohort, learner, pause) if quality else {}
    metrics = {
        "loss": learner.loss,
        "steps": work.config.steps,
        "photos": photos,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        **figures,
    }
    images = work.config.steps * work.config.batch_size
    timings = {
        "train_seconds": learner.seconds,
        "images_per_second": images / learner.seconds,
        **({"first_image_seconds": first_image_s} if work.config.preview_prompts else {}),
    }
    return Made(members_of(work, base, tensors, metrics), metrics, timings)


class MemoryShortageError(LimnerError):
    """The machine's memory is too small for what it was asked to hold at once."""

    def __init__(self) -> None:
        super().__init__(
            "TRAINING_FAILED",
            "The machine's memory is too small for this base and batch size; lower batch_size.",
        )


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns every form of "out of memory" into ``MemoryShortageError``, with advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MemoryShortageError from error
    except RuntimeError as error:
        if _CPU_ALLOCATOR not in str(error):
            raise
        raise MemoryShortageError from error


def _write_preview(
    config: TrainingConfig, base: Base, prompt: str, index: int, folder: Path, parts_dir: Path
) -> None:
    png = io.BytesIO()
    preview(config, base, prompt, seed=config.seed + index).save(png, "PNG")
    path = folder / f"preview-{index:02d}.png"
    write_atomically(path, png.getvalue(), parts=parts_dir)
    say(event_line("preview", index=index))
