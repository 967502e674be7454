"""How the tasks of a batch ended: one folder a task among the checkpoints, ``result.json`` last.

SageMaker copies that folder to S3 while the job runs, and back before a job that was interrupted
starts again (SageMaker developer guide, "Use checkpoints in Amazon SageMaker AI"). So a result is
kept as soon as it is written, whatever becomes of the job, and nothing here is ever deleted.
"""

from __future__ import annotations

import hashlib

from limner.contracts.errors import LimnerError
from limner.contracts.tasks import ARTIFACT_FILE, RESULT_FILE, TaskError, TaskResult
from training.failures import MAX_FAILURE_CHARS
from training.files import write_atomically
from training.forms import read_form
from training.settings import Settings


def failure_of(request_id: str, error: LimnerError, seconds: float = 0.0) -> TaskResult:
    """The result of a task that has failed."""
    told = TaskError(code=error.code, message=error.message[:MAX_FAILURE_CHARS])
    return TaskResult(request_id=request_id, status="failed", seconds=seconds, error=told)


def write_result(settings: Settings, result: TaskResult) -> None:
    """Writes ``result.json``; all that it speaks of must be there before."""
    write_atomically(
        settings.task_dir(result.request_id) / RESULT_FILE,
        (result.model_dump_json(indent=2) + "\n").encode(),
        parts=settings.parts_dir,
    )


def finished(settings: Settings, request_id: str) -> TaskResult | None:
    """The result that an earlier start of this job left; None if the task is still to be done.

    A result without the very artifact that it speaks of counts for nothing: the copy may have been
    cut off between the two.
    """
    folder = settings.task_dir(request_id)
    try:
        result = read_form(folder / RESULT_FILE, TaskResult)
    except LimnerError:
        return None
    if result.request_id != request_id:
        return None
    if result.status == "trained":
        artifact = folder / ARTIFACT_FILE
        if not artifact.is_file():
            return None
        with artifact.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != result.artifact_sha256:
                return None
    return result
