"""Keeps the slots of a cohort full: who is done leaves, and who waits enters.

::

    waiting ─ photos, latents, text ─> slot ─ steps ─> first images ─> artifact ─> outcome
                   │                     │                       │
                   └─── its own error ───┴───────────────────────┴───────────> outcome

Trouble of a request is its own outcome. Trouble of the machine, such as a full disk or a lost
accelerator, is nobody's: it ends the job, and what has no outcome yet is done on another machine.
That one goes on from the last checkpoint. Whom it names is trained along even if he had an outcome
since then, but has no second one: who shares a pass decides the last bits of its sums.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from limner.contracts.errors import LimnerError
from training.base import Base
from training.checkpoints import Checkpoint, Checkpoints, Member, Plan
from training.cohort import Cohort, Learner, Shape
from training.failures import unforeseen
from training.job import Work
from training.photos import keep_side_px, load_photos
from training.production import (
    Made,
    MemoryShortageError,
    draw_first_images,
    memory_errors,
    produce,
)
from training.progress import event_line, say
from training.stopping import STOP, Stop
from training.works import Source, Works

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
        share_s: Its part of them: of each step an equal part, and all of what was done for it
            alone. The shares of a host's works are the time of that host, which is what work is
            shared out by. None where an earlier start did a part, whose share nobody has noted.
    """

    work: Work
    made: Made | None
    error: LimnerError | None
    seconds: float
    share_s: float | None = None


@dataclass(eq=False)
class _Run:
    """A work that is in a cohort."""

    work: Work
    learner: Learner
    photos: int
    started: float
    share_s: float | None
    first_image_s: float | None = None
    error: LimnerError | None = None


class Runner:
    """Does works on one base, many at once.

    Args:
        base: The frozen base.
        rows: Images that one pass through the UNet may hold.
        previews_dir: Where the first images of a work go; SageMaker's checkpoint sync takes them
            to S3.
        parts_dir: Where unfinished files lie.
        is_signed: Whether progress lines name their request.
        checkpoints: What an earlier start left, and what this one leaves; None for a host that
            keeps nothing, whose works others begin anew.
        stop: Whether to end between two steps.
        quality: Whether to draw quality figures.
    """

    def __init__(
        self,
        base: Base,
        *,
        rows: int,
        previews_dir: Callable[[Work], Path],
        parts_dir: Path,
        is_signed: bool,
        checkpoints: Checkpoints | None,
        stop: Stop = STOP,
        quality: bool = True,
    ) -> None:
        self._base = base
        self._rows = rows
        self._previews_dir = previews_dir
        self._parts_dir = parts_dir
        self._is_signed = is_signed
        self._checkpoints = checkpoints
        self._stop = stop
        self._quality = quality
        self._works: Source = Works(())
        self._room: dict[tuple[Shape, int], int] = {}
        self._ended: frozenset[str] = frozenset()

    def run(self, works: Source | Iterable[Work]) -> Iterator[Outcome]:
        """Does all works; yields each outcome as soon as it is there.

        Works of the same shape share a cohort; the shapes are taken in the order in which they
        appear, and within them the works in their own order. A cohort that a checkpoint knows
        comes first; what other hosts have not begun, if there are claims, comes last. Where works
        come as they are asked for, those of the shape at work enter its free slots.

        Args:
            works: What is to be done.

        Raises:
            StoppedError: If that was asked for; the state is saved then.
            LimnerError: ``AWS_ERROR``, if nobody knows whose a work is.
        """
        works = Works(works) if isinstance(works, Iterable) else works
        self._works = works
        todo = {work.request_id: work for work in works.share}
        known = {work.request_id: work for work in (*works.share, *works.others, *works.ended)}
        self._ended = frozenset(work.request_id for work in works.ended)
        found = self._find(known)
        if found is not None and not self._ended.issuperset(found.plan.names):
            named = [known[name] for name in found.plan.names]
            yield from self._run_group(Shape.of(named[0].config), deque(named), found)
            todo = {name: work for name, work in todo.items() if name not in found.plan.names}
        groups: dict[Shape, list[Work]] = {}
        for work in todo.values():
            groups.setdefault(Shape.of(work.config), []).append(work)
        for shape, group in groups.items():
            yield from self._run_group(shape, deque(group))
        while more := works.more(_shape, lambda work: self._slots(_shape(work))):
            yield from self._run_group(_shape(more[0]), deque(more))

    def _slots(self, shape: Shape) -> int:
        return min(max(1, self._rows // shape.rows), MAX_SLOTS)

    def _run_group(
        self, shape: Shape, waiting: deque[Work], found: Checkpoint | None = None
    ) -> Iterator[Outcome]:
        while waiting:
            rank = max(work.config.rank for work in waiting)
            room = self._room.get((shape, rank), self._slots(shape))
            slots = room if self._works.is_open else min(room, len(waiting))
            if found is not None:
                slots, rank = found.plan.slots, found.plan.rank
            running: list[_Run] = []
            try:
                with self._cohort(shape, rank, slots) as cohort:
                    if found is not None:
                        running, found = self._resume(cohort, waiting, found), None
                    with self._stop.patience():
                        yield from self._fill_and_step(cohort, waiting, running)
            except MemoryShortageError as error:
                error.__cause__ = error.__traceback__ = None
                # Nobody's result depends on how many others there are, or could be.
                waiting.extendleft(run.work for run in reversed(running))
                started = running[0].started if running else time.perf_counter()
                if slots > 1:
                    self._room[shape, rank] = slots // 2
                elif self._is_wanted(failed := waiting.popleft()):
                    yield self._failed(failed, error, started)
            self._recover()

    def _fill_and_step(
        self, cohort: Cohort, waiting: deque[Work], running: list[_Run]
    ) -> Iterator[Outcome]:
        """The loop.

        What a turn does follows from what a checkpoint has, and, where works come as they are asked
        for, which have no checkpoints, from who has come.
        """
        if len(waiting) > 1 and not running:
            # Before the first outcome: a restart without that work would have other passes.
            self._save(cohort, waiting, running)
        pause = partial(self._pause, cohort, waiting, running)
        while any(map(self._is_wanted, (*waiting, *(run.work for run in running)))):
            for lost in [run for run in running if not self._works.holds(run.work)]:
                running.remove(lost)
                cohort.leave(lost.learner)
                self._works.drops(lost.work)
            self._draw_first_images(cohort, running, pause)
            while (run := _first_ended(cohort, running)) is not None:
                if self._is_wanted(run.work):
                    yield self._end(cohort, run, pause)
                running.remove(run)
                cohort.leave(run.learner)
            while cohort.has_room and self._awaits(cohort, waiting):
                pause()
                work = waiting.popleft()
                if self._is_wanted(work) and not self._works.begins(work):
                    self._works.drops(work)
                    continue
                started = time.perf_counter()
                if self._is_signed:
                    say(event_line("begun", request=work.request_id))
                try:
                    with self._own_errors():
                        running.append(self._begin(cohort, work, started))
                except MemoryShortageError as error:
                    waiting.appendleft(work)
                    raise error from None
                except LimnerError as error:
                    failed = self._failed(work, error, started)
                    if self._is_wanted(work):
                        yield failed
            if running:
                pause()
                stepped = time.perf_counter()
                with memory_errors():
                    cohort.step()
                _share(running, time.perf_counter() - stepped)
        waiting.clear()  # who is left has his outcome

    def _awaits(self, cohort: Cohort, waiting: deque[Work]) -> bool:
        """Whether somebody waits for a slot, or has just come who fits."""
        if not waiting:
            rank, shape = cohort.bank.rank, cohort.shape
            waiting.extend(
                self._works.arrivals(lambda w: _shape(w) == shape and w.config.rank <= rank)
            )
        return bool(waiting)

    def _begin(self, cohort: Cohort, work: Work, started: float) -> _Run:
        photos = load_photos(work.photos_dir, keep_side_px=keep_side_px(self._base.card))
        name = work.request_id if self._is_signed else ""
        learner = Learner.of(work.config, self._base, photos, name)
        cohort.enter(learner)
        return _Run(work, learner, len(photos), started, time.perf_counter() - started)

    def _draw_first_images(
        self, cohort: Cohort, running: Sequence[_Run], pause: Callable[[], None]
    ) -> None:
        """All who have ended see their images before anybody's figures are drawn."""
        while (run := _first_unseen(cohort, running)) is not None:
            began = time.perf_counter()
            try:
                run.error = run.learner.error
                if run.error is None and self._is_wanted(run.work):
                    with self._own_errors():
                        run.first_image_s = draw_first_images(
                            self._base,
                            cohort,
                            run.learner,
                            run.work,
                            started=run.started,
                            previews_dir=self._previews_dir(run.work),
                            parts_dir=self._parts_dir,
                            pause=partial(self._shown, run, pause),
                        )
            except LimnerError as error:
                run.error = error
            run.first_image_s = run.first_image_s or 0.0
            _share([run], time.perf_counter() - began)

    def _shown(self, run: _Run, pause: Callable[[], None]) -> None:
        self._works.shows(run.work)
        pause()

    def _end(self, cohort: Cohort, run: _Run, pause: Callable[[], None]) -> Outcome:
        ended = time.perf_counter()
        try:
            with self._own_errors():
                if run.error is not None:
                    raise run.error
                made = produce(
                    self._base,
                    cohort,
                    run.learner,
                    run.work,
                    photos=run.photos,
                    first_image_s=run.first_image_s or 0.0,
                    pause=pause,
                    quality=self._quality,
                )
        except LimnerError as error:
            return self._failed(run.work, error, run.started)
        now = time.perf_counter()
        share_s = None if run.share_s is None else run.share_s + now - ended
        return Outcome(run.work, made, None, now - run.started, share_s)

    def _is_wanted(self, work: Work) -> bool:
        """Whether a work is without an outcome from an earlier start."""
        return work.request_id not in self._ended

    def _failed(self, work: Work, error: LimnerError, started: float) -> Outcome:
        self._forget(error)
        return Outcome(work, None, error, time.perf_counter() - started)

    # -- Interruptions ----------------------------------------------------------------------------

    def _pause(self, cohort: Cohort, waiting: Sequence[Work], running: Sequence[_Run]) -> None:
        """A moment between two steps, or two images: saves if it is time, ends if that is asked."""
        if self._stop.is_asked or (self._checkpoints is not None and self._checkpoints.is_due):
            self._save(cohort, waiting, running)
        self._stop.obey()

    def _find(self, known: Mapping[str, Work]) -> Checkpoint | None:
        if self._checkpoints is None:
            return None
        return self._checkpoints.find(self._base.digest, known)

    def _save(self, cohort: Cohort, waiting: Sequence[Work], running: Sequence[_Run]) -> None:
        if self._checkpoints is None:
            return
        now = time.perf_counter()
        runs = {id(run.learner): run for run in running}
        in_slots = [runs[id(learner)] for learner in cohort.learners]
        plan = Plan(
            base_sha256=self._base.digest,
            layout=cohort.layout(),
            rank=cohort.bank.rank,
            slots=cohort.bank.slots,
            running=tuple(Member.of(run.work, now - run.started) for run in in_slots),
            waiting=tuple(Member.of(work) for work in waiting),
        )
        self._checkpoints.save(plan, cohort.state())

    def _resume(self, cohort: Cohort, waiting: deque[Work], found: Checkpoint) -> list[_Run]:
        """Puts the first of those who wait where a checkpoint had them.

        Returns:
            Who is in training now; nobody if the checkpoint is of no use here.
        """
        running: list[_Run] = []
        try:
            if found.plan.layout != cohort.layout():
                raise LimnerError("TRAINING_FAILED", "The bank has another layout.")
            with self._own_errors():
                now = time.perf_counter()
                for member, work in zip(found.plan.running, waiting, strict=False):
                    running.append(self._begin(cohort, work, now - member.elapsed_s))
                cohort.restore(found.tensors)
        except LimnerError as error:
            # A photo that is gone, a smaller machine: the loop will meet it again, and say whose
            # trouble it is.
            self._forget(error)
            for run in reversed(running):
                cohort.leave(run.learner)
            say(event_line("passed_over", checkpoint="found", reason=error.code))
            return []
        for run in running:
            run.share_s = None
            waiting.popleft()
        say(event_line("resumed", learners=len(running), waiting=len(waiting)))
        return running

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
    def _cohort(self, shape: Shape, rank: int, slots: int) -> Iterator[Cohort]:
        with memory_errors():
            cohort = Cohort(self._base, shape, rank=rank, slots=slots, say=say)
        try:
            yield cohort
        finally:
            cohort.close()

    def _forget(self, error: LimnerError) -> None:
        """Lets go of an error's frames, which hold tensors."""
        error.__cause__ = error.__context__ = error.__traceback__ = None
        self._recover()

    def _recover(self) -> None:
        """Gives back what a failed work held, and asks the accelerator for a sign of life.

        An accelerator that has met a fatal error answers every later call with it: all further
        works would fail, for nothing that they have done.
        """
        gc.collect()
        if self._base.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.ones(1, device=self._base.device).sum().item()


def _shape(work: Work) -> Shape:
    return Shape.of(work.config)


def _share(running: Sequence[_Run], seconds: float) -> None:
    """Each of those who made a step has an equal part of it."""
    for run in running:
        if run.share_s is not None:
            run.share_s += seconds / len(running)


def _first_unseen(cohort: Cohort, running: Iterable[_Run]) -> _Run | None:
    """Of those who have ended and whose images are not drawn yet, the one in the first slot."""
    unseen = {id(run.learner): run for run in running if run.first_image_s is None}
    ended = (unseen.get(id(learner)) for learner in cohort.learners if learner.has_ended)
    return next(filter(None, ended), None)


def _first_ended(cohort: Cohort, running: Iterable[_Run]) -> _Run | None:
    """Of those who have ended, the one in the first slot."""
    for learner in cohort.learners:
        if learner.has_ended:
            return next(run for run in running if run.learner is learner)
    return None
