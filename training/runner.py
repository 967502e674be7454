"""Keeps the slots of a cohort full: who is done leaves, and who waits enters.

::

    waiting ─ photos, latents, text ─> slot ─ steps ─> first images, artifact ─> outcome
                   │                     │                       │
                   └─── its own error ───┴───────────────────────┴───────────> outcome

Trouble of a request is its own outcome. Trouble of the machine, such as a full disk or a lost
accelerator, is nobody's: it ends the job, and what has no outcome yet is done on another machine.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from limner.contracts.errors import LimnerError
from training.base import Base
from training.cohort import Cohort, Learner, Shape
from training.failures import unforeseen
from training.job import Work
from training.photos import keep_side_px, load_photos
from training.production import Made, MemoryShortageError, memory_errors, produce
from training.progress import event_line, say

# More adapters in one pass than this gain nothing that was measured.
MAX_SLOTS: Final = 32


@dataclass(frozen=True)
class Outcome:
    """What became of one request's work.

    Attributes:
        work: The work.
        made: What was made; None if it failed.
        error: Why it failed; None if it did not.
        seconds: Wall time from its first photo on, shared with the others in the cohort.
    """

    work: Work
    made: Made | None
    error: LimnerError | None
    seconds: float


@dataclass
class _Run:
    """A work that is in a cohort."""

    work: Work
    learner: Learner
    photos: int
    started: float


class Runner:
    """Does works on one base, many at once.

    Args:
        base: The frozen base.
        rows: Images that one pass through the UNet may hold.
        previews_dir: Where the first images of a work go; SageMaker's checkpoint sync takes them
            to S3.
        parts_dir: Where unfinished files lie.
        is_signed: Whether progress lines name their request.
    """

    def __init__(
        self,
        base: Base,
        *,
        rows: int,
        previews_dir: Callable[[Work], Path],
        parts_dir: Path,
        is_signed: bool,
    ) -> None:
        self._base = base
        self._rows = rows
        self._previews_dir = previews_dir
        self._parts_dir = parts_dir
        self._is_signed = is_signed

    def run(self, works: Iterable[Work]) -> Iterator[Outcome]:
        """Does all works; yields each outcome as soon as it is there.

        Works of the same shape share a cohort; the shapes are taken in the order in which they
        appear, and within them the works in their own order.
        """
        groups: dict[Shape, list[Work]] = {}
        for work in works:
            groups.setdefault(Shape.of(work.config), []).append(work)
        for shape, group in groups.items():
            yield from self._run_group(shape, deque(group))

    def _run_group(self, shape: Shape, waiting: deque[Work]) -> Iterator[Outcome]:
        slots = min(max(1, self._rows // shape.batch_size), MAX_SLOTS, len(waiting))
        while waiting:
            with self._cohort(shape, waiting, slots) as cohort:
                running: list[_Run] = []
                try:
                    yield from self._fill_and_step(cohort, waiting, running)
                except MemoryShortageError as error:
                    error.__cause__ = error.__traceback__ = None
                    if len(running) == 1:
                        yield self._failed(running[0].work, error, running[0].started)
                    else:
                        # Nobody's result depends on how many others there are.
                        waiting.extendleft(run.work for run in reversed(running))
            slots = max(1, slots // 2)
            self._recover()

    def _fill_and_step(
        self, cohort: Cohort, waiting: deque[Work], running: list[_Run]
    ) -> Iterator[Outcome]:
        while waiting or running:
            while waiting and cohort.has_room:
                work = waiting.popleft()
                started = time.perf_counter()
                if self._is_signed:
                    say(event_line("begun", request=work.request_id))
                try:
                    with self._own_errors():
                        running.append(self._begin(cohort, work, started))
                except LimnerError as error:
                    yield self._failed(work, error, started)
            if not running:
                continue
            with memory_errors():
                ended = cohort.step()
            for learner in ended:
                (run,) = (run for run in running if run.learner is learner)
                running.remove(run)
                yield self._end(cohort, run)
                cohort.leave(learner)

    def _begin(self, cohort: Cohort, work: Work, started: float) -> _Run:
        photos = load_photos(work.photos_dir, keep_side_px=keep_side_px(self._base.card))
        name = work.request_id if self._is_signed else ""
        learner = Learner.of(work.config, self._base, photos, name)
        cohort.enter(learner)
        return _Run(work, learner, len(photos), started)

    def _end(self, cohort: Cohort, run: _Run) -> Outcome:
        try:
            with self._own_errors():
                if run.learner.error is not None:
                    raise run.learner.error
                made = produce(
                    self._base,
                    cohort,
                    run.learner,
                    run.work,
                    photos=run.photos,
                    started=run.started,
                    previews_dir=self._previews_dir(run.work),
                    parts_dir=self._parts_dir,
                )
        except LimnerError as error:
            return self._failed(run.work, error, run.started)
        return Outcome(run.work, made, None, time.perf_counter() - run.started)

    def _failed(self, work: Work, error: LimnerError, started: float) -> Outcome:
        # The error holds its frames, and they hold tensors.
        error.__cause__ = error.__context__ = error.__traceback__ = None
        self._recover()
        return Outcome(work, None, error, time.perf_counter() - started)

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """What happens inside is one work's own trouble, in the words of the registry."""
        try:
            with memory_errors():
                yield
        except (LimnerError, OSError):
            raise
        except Exception as error:
            raise unforeseen(error) from error

    @contextmanager
    def _cohort(self, shape: Shape, waiting: Iterable[Work], slots: int) -> Iterator[Cohort]:
        cohort = Cohort(
            self._base,
            shape,
            rank=max(work.config.rank for work in waiting),
            slots=slots,
            say=say,
        )
        try:
            yield cohort
        finally:
            cohort.close()

    def _recover(self) -> None:
        """Gives back what a failed work held, and asks the accelerator for a sign of life.

        An accelerator that has met a fatal error answers every later call with it: all further
        works would fail, for nothing that they have done.
        """
        gc.collect()
        if self._base.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.ones(1, device=self._base.device).sum().item()
