"""The tasks of a batch on one base, each with its own end.

The tasks share what is frozen, and nothing else: each gets the adapter that it would have got
alone, and a task that fails leaves no trace in the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from limner.contracts.tasks import ARTIFACT_FILE, TaskResult
from training.archive import write_archive
from training.base import Base
from training.checkpoints import Checkpoints
from training.job import Work
from training.progress import event_line, say
from training.results import failure_of, write_result
from training.runner import Outcome, Runner
from training.settings import Settings
from training.stopping import STOP, Stop
from training.works import Source


def train_all(
    settings: Settings,
    base: Base,
    works: Source | Iterable[Work],
    *,
    checkpoints: Checkpoints | None = None,
    kept: Callable[[str], None] = lambda _: None,
    stop: Stop = STOP,
) -> None:
    """Does the tasks, many at once; each result is kept as soon as it is there.

    Args:
        settings: Where the results go.
        base: The frozen base.
        works: What is to be done; what has the same shape is done in this order.
        checkpoints: What to go on from after an interruption; None if others begin anew.
        kept: Told of each request whose result is there.
        stop: Whether to end between two steps.
    """
    runner = Runner(
        base,
        rows=settings.rows,
        previews_dir=lambda work: settings.task_dir(work.request_id),
        parts_dir=settings.parts_dir,
        is_signed=True,
        checkpoints=checkpoints,
        stop=stop,
        quality=settings.quality,
    )
    for outcome in runner.run(works):
        result = _keep(settings, outcome)
        write_result(settings, result)
        code = {"code": result.error.code} if result.error else {}
        say(
            event_line(
                "task",
                request=result.request_id,
                status=result.status,
                seconds=result.seconds,
                **code,
            )
        )
        kept(result.request_id)
    if checkpoints is not None:
        checkpoints.finish()


def _keep(settings: Settings, outcome: Outcome) -> TaskResult:
    """Writes the artifact, if there is one; returns what ``result.json`` shall say."""
    request_id, made, error = outcome.work.request_id, outcome.made, outcome.error
    if made is None or error is not None:
        assert error is not None, "whoever made nothing says why"  # noqa: S101
        return failure_of(request_id, error, outcome.seconds)
    path = settings.task_dir(request_id) / ARTIFACT_FILE
    share = {} if outcome.share_s is None else {"share_seconds": outcome.share_s}
    return TaskResult(
        request_id=request_id,
        status="trained",
        seconds=outcome.seconds,
        metrics={**made.metrics, **made.timings, **share},
        artifact_sha256=write_archive(path, made.members, parts=settings.parts_dir),
    )
