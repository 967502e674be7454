"""From good photos to first images and the artifact: the part of a job that needs torch."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from PIL import Image

from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from training.artifact import remove_artifact, write_artifact
from training.base import Base, load_base
from training.files import write_atomically
from training.job import Job
from training.progress import event_line, say
from training.recipe import fine_tune, preview, set_threads
from training.settings import Settings, cpu_count


def produce(settings: Settings, job: Job, photos: Sequence[Image.Image], *, started: float) -> None:
    """Trains, draws the first images, writes the artifact.

    Args:
        settings: Where things lie.
        job: What to train.
        photos: RGB images of the subject.
        started: ``time.perf_counter()`` at the start of the job, for the manifest's metrics.

    Raises:
        LimnerError: ``BASE_INVALID``, ``TRAINING_DIVERGED``, or ``TRAINING_FAILED`` where the
            accelerator's memory is too small.
    """
    set_threads(cpu_count())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = load_base(job.base_dir, device)
    say(event_line("loaded", base=base.card.base_id, seconds=time.perf_counter() - started))
    try:
        trained = fine_tune(job.config, base, photos, say)
        write_previews(settings, job.config, base)
    except torch.OutOfMemoryError as error:
        raise LimnerError(
            "TRAINING_FAILED",
            "The machine's memory is too small for this base and batch size; lower batch_size.",
        ) from error
    metrics = {
        "loss": trained.loss,
        "steps": job.config.steps,
        "photos": len(photos),
        "seconds": time.perf_counter() - started,
        "train_seconds": trained.train_seconds,
        "images_per_second": trained.images_per_second,
        "parameters": sum(tensor.numel() for tensor in trained.tensors.values()),
    }
    with ExitStack() as undo:
        undo.callback(remove_artifact, settings.model_dir)
        write_artifact(settings, job.config, base, trained.tensors, metrics)
        undo.pop_all()  # whole: it stays


def write_previews(settings: Settings, config: TrainingConfig, base: Base) -> None:
    """Draws the first images and puts them where the checkpoint sync takes them to S3.

    Nothing is ever deleted there. A hidden ``.preview-….png.part`` lives for a moment beside each.
    """
    for index, prompt in enumerate(config.preview_prompts):
        png = io.BytesIO()
        preview(config, base, prompt, seed=config.seed + index).save(png, "PNG")
        write_atomically(settings.checkpoint_dir / f"preview-{index:02d}.png", png.getvalue())
        say(event_line("preview", index=index))
