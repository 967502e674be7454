"""The tasks of a batch on one base, each with its own end.

The tasks share what is frozen, and nothing else: an adapter that was trained here is the one that
would have been trained alone, and a task that fails leaves no trace in the others.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable

import torch

from limner.contracts.errors import LimnerError
from limner.contracts.tasks import ARTIFACT_FILE, TaskError, TaskResult
from training.archive import write_archive
from training.base import Base
from training.failures import MAX_FAILURE_CHARS, unforeseen
from training.job import Work
from training.photos import keep_side_px, load_photos
from training.production import make, memory_errors
from training.progress import event_line, say
from training.results import write_result
from training.settings import Settings


def train_all(settings: Settings, base: Base, works: Iterable[Work]) -> None:
    """Does the tasks one after the other; each result is kept before the next task begins.

    Args:
        settings: Where the results go.
        base: The frozen base.
        works: What is to be done, in this order.
    """
    for work in works:
        say(event_line("begun", request=work.request_id))
        result = train_task(settings, base, work)
        write_result(settings, result)
        code = {"code": result.error.code} if result.error else {}
        say(
            event_line(
                "task",
                request=work.request_id,
                status=result.status,
                seconds=result.seconds,
                **code,
            )
        )


def train_task(settings: Settings, base: Base, work: Work) -> TaskResult:
    """Does one task; its trouble becomes its result.

    Trouble of the machine is not the task's: a full disk or a lost accelerator ends the job, and
    the tasks without a result are done on another machine.

    Returns:
        What ``result.json`` shall say; the artifact is written already.
    """
    started = time.perf_counter()
    try:
        return _trained(settings, base, work, started)
    except LimnerError as error:
        failure = error
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a photo that trips a library ends its own task only
        failure = unforeseen(error)
    reason = TaskError(code=failure.code, message=failure.message[:MAX_FAILURE_CHARS])
    # The error holds its frames, and they hold tensors.
    failure.__cause__ = failure.__context__ = failure.__traceback__ = None
    _recover(base)
    return TaskResult(
        request_id=work.request_id,
        status="failed",
        seconds=time.perf_counter() - started,
        error=reason,
    )


def _trained(settings: Settings, base: Base, work: Work, started: float) -> TaskResult:
    folder = settings.task_dir(work.request_id)
    with memory_errors():
        photos = load_photos(work.photos_dir, keep_side_px=keep_side_px(base.card))
        made = make(base, work, photos, previews_dir=folder, parts_dir=settings.parts_dir)
        digest = write_archive(folder / ARTIFACT_FILE, made.members, parts=settings.parts_dir)
    return TaskResult(
        request_id=work.request_id,
        status="trained",
        seconds=time.perf_counter() - started,
        metrics={**made.metrics, **made.timings},
        artifact_sha256=digest,
    )


def _recover(base: Base) -> None:
    """Gives back what a failed task held, and asks the accelerator for a sign of life.

    An accelerator that has met a fatal error answers every later call with it: all further tasks
    would fail, for nothing that they have done.
    """
    gc.collect()
    if base.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.ones(1, device=base.device).sum().item()
