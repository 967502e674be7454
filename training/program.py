"""One training job from its config files to its artifact."""

from __future__ import annotations

import io
import time

import torch

from limner.contracts.errors import LimnerError
from training.artifact import remove_artifact, write_artifact
from training.base import load_base
from training.files import write_atomically
from training.job import read_job
from training.photos import load_photos
from training.progress import event_line, say
from training.recipe import fine_tune, preview, set_threads
from training.settings import Settings, cpu_count

# Photos are kept at this multiple of the base's resolution: enough for every crop to be scaled
# down, little enough for fifty of them to fit into memory.
_KEEP_SCALE = 2


def train(settings: Settings) -> None:
    """Runs the job that the container's config files describe.

    The photos of one request are the work of one machine. Where a job has several hosts, the first
    of ``hosts`` trains; the others say so, leave their ``model/`` empty and end well, and SageMaker
    packs the first host's artifact.

    Raises:
        LimnerError: With what went wrong; ``model/`` holds no artifact then.
    """
    started = time.perf_counter()
    job = read_job(settings)
    config = job.config
    if job.resources.index > 0:
        say(event_line("idle", host=job.resources.index, hosts=len(job.resources.hosts)))
        return
    set_threads(cpu_count())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = load_base(job.base_dir, device)
    photos = load_photos(job.photos_dir, keep_side_px=_KEEP_SCALE * base.card.resolution_px)
    say(event_line("prepared", photos=len(photos), seconds=time.perf_counter() - started))
    try:
        trained = fine_tune(config, base, photos, say)
        for index, prompt in enumerate(config.preview_prompts):
            buffer = io.BytesIO()
            preview(config, base, prompt, seed=config.seed + index).save(buffer, "PNG")
            write_atomically(
                settings.checkpoint_dir / f"preview-{index:02d}.png", buffer.getvalue()
            )
            say(event_line("preview", index=index))
    except torch.OutOfMemoryError as error:
        raise LimnerError(
            "TRAINING_FAILED",
            "The machine's memory is too small for this base and batch size; lower batch_size.",
        ) from error
    seconds = time.perf_counter() - started
    try:
        write_artifact(
            settings,
            config,
            base,
            trained.tensors,
            {
                "loss": trained.loss,
                "steps": config.steps,
                "photos": len(photos),
                "seconds": seconds,
                "train_seconds": trained.train_seconds,
                "images_per_second": trained.images_per_second,
                "parameters": sum(tensor.numel() for tensor in trained.tensors.values()),
            },
        )
    except BaseException:
        remove_artifact(settings.model_dir)
        raise
    say(event_line("trained", seconds=seconds))
