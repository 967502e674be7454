"""Continuous batching: one thread draws, and requests join and leave it between two steps.

::

    submit ──> queue (bounded) ──> [ step ] ──> [ step ] ──> [ step ] ──> images
                     │                ^ join       │ leave: done, late, or not wanted any more
                     └ ENDPOINT_BUSY  └────────────┘

Nobody waits for company: whoever comes first is drawn at once, and whoever comes while he is drawn
joins at the next step. Requests of any users, seeds, prompts, guidance and numbers of steps share
a pass of the UNet, if their images have one size; other sizes take turns, step by step. The order
is that of arrival: nobody is overtaken, however many rows he needs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import torch

from inference.engine.bank import Residency, Seat, shares_of
from inference.engine.crowd import crowded
from inference.engine.denoise import Artist, Drawing, Pass, Pixels
from inference.engine.memory import is_out_of_memory
from inference.engine.reader import Adapter
from inference.logs import log
from inference.reports import stopped
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest

Result = TypeVar("Result")

# After so many steps with as many rows as are allowed one more is. Where it is one too many, one
# request, or a few, begin anew, which is a small part of what was drawn meanwhile.
_CALM_STEPS: Final = 1000


@dataclass(frozen=True)
class Drawn:
    """The images of one order.

    Attributes:
        pixels: ``[images, height, width, 3]``, 0 to 255.
        queue_ms: Milliseconds between submission and start.
        denoise_ms: Milliseconds in the text encoder, the denoising loop and the decoder; whoever
            shared the passes has the same ones.
        hit: Whether the adapter was in a slot already.
        evictions: How many others had to leave their slots for it.
    """

    pixels: Pixels
    queue_ms: float
    denoise_ms: float
    hit: bool
    evictions: int


@dataclass(frozen=True, eq=False)
class Order:
    """One request on its way.

    Attributes:
        adapter: In memory until ``done`` is called.
        prompt: With the token filled in.
        request: Everything else.
        size: Height and width in latents.
        rows: What it counts of ``max_rows``.
        submitted: ``perf_counter`` of its submission.
        deadline: ``perf_counter`` after which nobody waits for it.
        is_wanted: Whether somebody does.
        on_step: Told how many steps are done, and of how many, after each; must return at once, and
            not raise. The first number begins anew where the drawing does.
        done: Called once, by the drawing thread, with the images or what went wrong; must not
            raise.
        hit: Whether its adapter was in a slot already each time that it began before.
        evictions: How many others had to leave their slots for it then.
    """

    adapter: Adapter
    prompt: str
    request: GenerateRequest
    size: tuple[int, int]
    rows: int
    submitted: float
    deadline: float
    is_wanted: Callable[[], bool]
    on_step: Callable[[int, int], None] | None
    done: Callable[[Drawn | Exception], None]
    hit: bool = True
    evictions: int = 0

    def why_not(self) -> LimnerError | None:
        """Why it need not be drawn any more, if so."""
        if not self.is_wanted():
            return LimnerError("GENERATION_CANCELLED")
        if time.perf_counter() > self.deadline:
            return LimnerError(
                "DEADLINE_EXCEEDED",
                f"The images were not drawn {self.deadline - self.submitted:g} s after they were"
                " asked for; ask for fewer or smaller images, or fewer steps.",
            )
        return None


@dataclass(frozen=True, eq=False)
class _Member:
    """An order that is being drawn."""

    order: Order
    seat: Seat
    drawing: Drawing
    started: float


@dataclass(frozen=True)
class _Batch:
    """Members whose images have one size, and their pass."""

    members: tuple[_Member, ...]
    work: Pass


class _Room:
    """How many rows are drawn together: fewer after a lack of memory, then one more at a time.

    Args:
        most: Rows at most.
    """

    def __init__(self, most: int) -> None:
        self.rows = most
        self._most = most
        self._calm = 0

    def shrink(self, rows: int) -> None:
        """Memory was short for more rows than these."""
        self.rows = min(self.rows, max(1, rows))
        self._calm = 0

    def step(self) -> None:
        """Memory has sufficed for a step of all these rows."""
        self._calm += 1
        if self._calm >= _CALM_STEPS:
            self.rows = min(self.rows + 1, self._most)
            self._calm = 0


class Batcher:
    """The queue and the drawing thread; safe to use from any thread.

    Args:
        artist: From now on only the drawing thread may use it.
        residency: Where adapters are while they draw.
        max_rows: Rows of all requests that are drawn at the same time. One that has more is drawn
            alone.
        max_queue: Requests that may wait; a quarter of them may be one model's.
    """

    def __init__(
        self, artist: Artist, residency: Residency, *, max_rows: int, max_queue: int
    ) -> None:
        self._artist = artist
        self._residency = residency
        self._max_queue = max_queue
        self._changed = threading.Condition()
        self._waiting: deque[Order] = deque()
        self._stopping = False
        self._failed = False
        # The drawing thread's own.
        self._room = _Room(max_rows)
        self._is_full = False
        # The head of the queue, if there was no memory for it beside the members; and whether one
        # of them has left since: only then memory can have come back.
        self._held: Order | None = None
        self._has_left = False
        self._members: list[_Member] = []
        self._is_lost = False
        self._batches: list[_Batch] | None = []
        self._thread = threading.Thread(target=self._draw, name="draw", daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Whether the drawing thread has ended unasked: nothing will ever be drawn again."""
        with self._changed:
            return self._failed

    def submit(self, order: Order) -> None:
        """Queues an order.

        Raises:
            LimnerError: ``ENDPOINT_BUSY``, if the queue or the model's share of it is full;
                ``GENERATION_FAILED``, if the batcher was closed. ``done`` is not called then.
        """
        with self._changed:
            if self._stopping:
                raise stopped()
            keys = [other.adapter.key for other in self._waiting]
            if busy := crowded(keys, order.adapter.key, self._max_queue):
                raise busy
            self._waiting.append(order)
            self._changed.notify()

    def close(self) -> None:
        """Ends all work at the next step, and takes no more."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    # -- The drawing thread -----------------------------------------------------------------------

    def _draw(self) -> None:
        try:
            while self._await_work():
                self._round()
        except Exception:  # noqa: BLE001 (the thread's boundary: nobody may wait for it for ever)
            log("drawing ended", {}, failed=True)
        with self._changed:
            self._failed = not self._stopping
            self._stopping = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for order in [*(member.order for member in self._members), *waiting]:
            order.done(stopped())

    def _round(self) -> None:
        self._sweep()
        self._admit()
        for batch in self._regroup():
            self._advance(batch)

    def _await_work(self) -> bool:
        """Returns when there is something to do: True to draw, False to end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or self._is_lost or self._waiting or self._members
            )
            return not (self._stopping or self._is_lost)

    def _sweep(self) -> None:
        """Ends what nobody waits for."""
        for member in list(self._members):
            if reason := member.order.why_not():
                self._leave(member, reason)
        with self._changed:
            gone = [(order, why) for order in self._waiting if (why := order.why_not())]
            for order, _ in gone:
                self._waiting.remove(order)
        for order, reason in gone:
            self._settle(order)
            order.done(reason)

    def _admit(self) -> None:
        """Lets orders join, in the order of their arrival, while there is room for their rows."""
        rows = self._rows()
        joining: list[tuple[Order, Seat]] = []
        # Only this thread takes from the queue, so its head stays while the lock is free.
        self._is_full = False
        while self._waiting:
            order = self._waiting[0]
            self._is_full = rows > 0 and rows + order.rows > self._room.rows
            if self._is_full or (rows and order is self._held and not self._has_left):
                break
            refused: list[Exception] = []
            seat = self._confined(partial(self._residency.pin, order.adapter), refused.append)
            # Where somebody is drawn, there will be a slot, or memory for one, when he leaves.
            if seat is None and not refused:
                break
            if seat is None and rows and _is_short(refused[0]):
                self._hold(order)
                break
            with self._changed:
                self._waiting.popleft()
            if seat is None:
                self._settle(order)
                order.done(refused[0])
                continue
            joining.append((order, seat))
            rows += order.rows
        if joining:
            self._begin(joining)

    def _begin(self, joining: Sequence[tuple[Order, Seat]]) -> None:
        started = time.perf_counter()

        def fail(error: Exception) -> None:
            waits = _is_short(error) and bool(self._members)
            if len(joining) == 1 and not waits:
                ((order, seat),) = joining
                self._unpin(seat)
                self._settle(order)
                order.done(error)
                return
            # Whose fault it was shows when each begins alone. Where memory is short beside those
            # who are drawn, nobody begins before one of them has left.
            begins = 0 if waits else 1
            for order, seat in reversed(joining[begins:]):
                head = self._put_back(order, seat)
            if begins:
                self._begin(joining[:begins])
            else:
                self._hold(head)

        wishes = [(order.prompt, order.request) for order, _ in joining]
        drawings = self._confined(lambda: self._artist.begin(wishes), fail)
        if drawings is not None:
            self._batches = None
            for (order, seat), drawing in zip(joining, drawings, strict=True):
                self._settle(order)
                self._members.append(_Member(order, seat, drawing, started))

    def _regroup(self) -> list[_Batch]:
        """Batches of the members; new ones only after somebody has joined or left."""
        if self._batches is None:
            by_size: dict[tuple[int, int], list[_Member]] = {}
            for member in self._members:
                by_size.setdefault(member.order.size, []).append(member)
            found = [self._group(members) for members in by_size.values()]
            batches = [batch for batch in found if batch]
            # Who had to leave meanwhile has asked for new ones.
            self._batches = batches if len(batches) == len(by_size) else None
            return batches
        return self._batches

    def _group(self, members: list[_Member]) -> _Batch | None:
        # Rows of one bank, and in it of one slot, stand together; slots in their order, so that
        # neighbours can be read where they are.
        members.sort(key=lambda member: (id(member.seat.bank), member.seat.slot))
        drawings = [member.drawing for member in members]

        def assemble() -> Pass:
            seats = [(member.seat, member.drawing.rows) for member in members]
            return self._artist.assemble(drawings, shares_of(seats))

        work = self._confined(assemble, lambda error: self._shrink(members, error))
        return _Batch(tuple(members), work) if work else None

    def _advance(self, batch: _Batch) -> None:
        """Takes one step, and ends the members whose last one it was."""

        def step() -> list[_Member]:
            self._artist.step(batch.work)
            return [member for member in batch.members if member.drawing.is_done]

        done = self._confined(step, lambda error: self._shrink(batch.members, error))
        if done is None:
            return
        if self._is_full:
            self._room.step()
        for member in batch.members:
            if member.order.on_step:
                member.order.on_step(member.drawing.step, member.drawing.steps)
        if not done:
            return
        drawings = [member.drawing for member in done]
        images = self._confined(
            lambda: self._artist.finish(drawings), lambda error: self._leave_all(done, error)
        )
        for member, pixels in zip(done, images or (), strict=images is not None):
            if pixels is None:
                self._leave(member, _not_finite())
                continue
            self._leave(
                member,
                Drawn(
                    pixels=pixels,
                    queue_ms=(member.started - member.order.submitted) * 1000,
                    denoise_ms=(time.perf_counter() - member.started) * 1000,
                    hit=member.order.hit and member.seat.hit,
                    evictions=member.order.evictions + member.seat.evictions,
                ),
            )

    def _shrink(self, members: Sequence[_Member], error: Exception) -> None:
        """Ends members whose pass failed, or, if memory was short, makes the pass smaller.

        Who joined last goes back to the head of the queue, and for a while no more rows are drawn
        together than are left. Each drawing knows how many steps it has done, so the others go on
        where they are; but whose step is torn goes back, too, and joins again at once.
        """
        if not _is_short(error) or len(members) == 1:
            self._leave_all(members, error)
            return
        last = max(members, key=self._members.index)
        self._room.shrink(self._rows() - last.order.rows)
        backwards = sorted(members, key=self._members.index, reverse=True)
        for member in backwards:
            if member is last or member.drawing.is_torn:
                self._forget(member)
                self._put_back(member.order, member.seat)
        log("memory is short", {"rows": self._room.rows})

    def _rows(self) -> int:
        return sum(member.order.rows for member in self._members)

    def _put_back(self, order: Order, seat: Seat) -> Order:
        """Lets an order that has begun wait again, at the head of the queue, without its slot.

        Returns:
            What waits now. It knows what its slot cost, which is free when it is asked for again.
        """
        self._unpin(seat)
        again = replace(
            order, hit=order.hit and seat.hit, evictions=order.evictions + seat.evictions
        )
        if order is self._held:
            self._held = again
        with self._changed:
            self._waiting.appendleft(again)
        return again

    def _hold(self, head: Order) -> None:
        """Lets the head of the queue, for which there is no memory, wait until somebody leaves."""
        if self._held is None:  # or it is said already
            log("memory is short to join", {"rows": self._rows()})
        self._held = head
        self._has_left = False

    def _settle(self, order: Order) -> None:
        """An order waits no more: it is drawn, or has ended."""
        if order is self._held:
            self._held = None

    def _unpin(self, seat: Seat) -> None:
        self._residency.unpin(seat)
        self._has_left = True

    def _leave_all(self, members: Sequence[_Member], error: Exception) -> None:
        for member in members:
            self._leave(member, error)

    def _leave(self, member: _Member, outcome: Drawn | Exception) -> None:
        self._vacate(member)
        member.order.done(outcome)

    def _vacate(self, member: _Member) -> None:
        self._forget(member)
        self._unpin(member.seat)

    def _forget(self, member: _Member) -> None:
        self._members.remove(member)
        self._batches = None

    def _confined(
        self, work: Callable[[], Result], fail: Callable[[Exception], None]
    ) -> Result | None:
        """What ``work`` returns; if it raises, tells those whom it was for, and returns None."""
        try:
            return work()
        except Exception as error:  # noqa: BLE001 (the thread's boundary: the others must go on)
            # Without its cause, whose frames would keep the memory that is short.
            failure = LimnerError("OUT_OF_MEMORY") if is_out_of_memory(error) else error
        # A device that has failed stays lost to this process, which must be started again.
        self._is_lost |= isinstance(failure, torch.AcceleratorError)
        fail(failure)
        return None


def _is_short(error: Exception) -> bool:
    return isinstance(error, LimnerError) and error.code == "OUT_OF_MEMORY"


def _not_finite() -> LimnerError:
    return LimnerError(
        "ARTIFACT_INVALID", "The model's adapter leads to numbers that are not finite."
    )
