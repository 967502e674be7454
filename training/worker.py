"""A job that stays: it takes requests as they come, and trains them ahead of their executions.

::

    queue ── take ──> fetch ──> slot of the running cohort ──> deliver ──> the row names this job
               │ a thread renews each lease at a third of its length          │
               └─ lost or cancelled: dropped at the next step                 └─ onboard_batch finds
                                                                                 the result, trains
                                                                                 nothing, publishes

The worker owns nothing and publishes nothing: claim, gate, smoke test and flip stay with the
machine, which takes the worker's result as what an earlier job has left of a request. So whatever
a worker does, or fails to do, costs time and never a promise (decision 032).
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from limner.contracts.errors import LimnerError
from limner.contracts.tasks import TaskResult
from training.job import Work
from training.orders import Lease, Order, Orders
from training.progress import event_line, say
from training.results import failure_of
from training.stopping import STOP, Stop

# Between two looks at the queue: what a request waits for, on average, is half of it.
LOOK_S: Final = 1.0
# Of a lease's length: when it is renewed.
_RENEW_AT: Final = 1 / 3
# SageMaker kills 120 s after SIGTERM; what is not given back by then ends by itself.
_LAST_RENEWAL_S: Final = 30
# A shelf that cannot be reached is no reason to train others for it.
_MOST_AWS_FAILURES: Final = 5


class Inbox:
    """The works of a worker: more of them come as long as it lives.

    A work that does not fit the cohort at work closes it: the cohort takes nobody in any more, and
    ends, so that nobody is overtaken for ever by what is more frequent.

    Args:
        orders: The queue.
        folder: Where photos and results lie until they are delivered: ``photos/<request>/`` and
            ``out/<request>/``.
        keep: Writes a result, as ``training.results`` does.
        idle_s: The worker ends after so long without work.
        lifetime_s: It takes nothing on any more after so long.
        now_s: A clock that never goes back, in seconds.
        stop: Whether to end at the next good moment.
        pause: Waits so many seconds.

    Attributes:
        share: None: nothing was planned for a worker.
        others: None, likewise.
        ended: None: what an earlier start has ended is no order any more.
        is_open: True: more may come.
    """

    share: Sequence[Work] = ()
    others: Sequence[Work] = ()
    ended: Sequence[Work] = ()
    is_open: Final = True

    def __init__(
        self,
        orders: Orders,
        folder: Path,
        *,
        keep: Callable[[TaskResult], None],
        idle_s: float,
        lifetime_s: float,
        now_s: Callable[[], float] = time.monotonic,
        stop: Stop = STOP,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._orders = orders
        self._folder = folder
        self._keep = keep
        self._idle_s = idle_s
        self._now_s = now_s
        self._stop = stop
        self._pause = pause
        self._closes_s = now_s() + lifetime_s
        self._worked_s = now_s()
        self._looked_s = float("-inf")
        self._found: deque[Order] = deque()
        self._misfit: Work | None = None
        # Never taken twice: who comes back has a fault that was not seen.
        self._seen: set[str] = set()
        self._shown: set[Path] = set()
        self._failures = 0
        self._delivered = 0
        # Shared with the thread that renews.
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._renewing = threading.Thread(target=self._renew_leases, name="leases", daemon=True)

    def __enter__(self) -> Inbox:
        """Begins to renew leases."""
        self._renewing.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Gives back what is not done: others may take it at once."""
        self._closing.set()
        self._renewing.join(_LAST_RENEWAL_S)
        for lease in self._leases.values():
            try:
                self._orders.give_back(lease)
            except LimnerError as error:  # it ends by itself
                say(event_line("not_given_back", reason=error.code))
        say(event_line("worker_ended", delivered=self._delivered))

    # -- What the runner asks (training.works.Works) ----------------------------------------------

    def begins(self, work: Work) -> bool:
        """Whether a work is still ours."""
        return self.holds(work)

    def holds(self, work: Work) -> bool:
        """Whether a work's lease is ours; what is no longer ours is not worth another step."""
        lease = self._lease(work.request_id)
        # By the clock, too: the thread that renews may hang in a call.
        return lease is not None and self._orders.now_s() < lease.until_s

    def drops(self, work: Work) -> None:
        """Forgets a work that is ours no longer: nothing of its user stays on this machine."""
        self._forget(work.request_id)

    def arrivals(self, fits: Callable[[Work], bool]) -> Sequence[Work]:
        """What can join those in training, without waiting for anything.

        Args:
            fits: Whether a work can be trained together with them.
        """
        if self._misfit is not None or self._is_closed():
            return ()
        work = self._look()
        if work is None:
            return ()
        if not fits(work):
            self._misfit = work
            return ()
        return (work,)

    def more(self, _kind: Callable[[Work], Hashable], _most: Callable[[Work], int]) -> list[Work]:
        """The next work, once there is one; none when the worker's time is over."""
        if self._misfit is not None:
            work, self._misfit = self._misfit, None
            return [work]
        self._worked_s = self._now_s()
        while not self._is_closed() and self._now_s() - self._worked_s < self._idle_s:
            if (found := self._look()) is not None:
                return [found]
            self._pause(LOOK_S)
        return []

    def shows(self, work: Work) -> None:
        """Sends first images on their way as soon as they are drawn."""
        lease = self._lease(work.request_id)
        for image in sorted(self._out(work.request_id).glob("preview-*.png")):
            if lease is not None and image not in self._shown:
                self._shown.add(image)
                try:
                    self._orders.show(lease.order, image)
                except LimnerError as error:  # the model is none the worse for it
                    say(event_line("not_shown", request=work.request_id, reason=error.code))

    def deliver(self, request_id: str) -> None:
        """Hands a result over, ``result.json`` and all that it speaks of, and forgets the work.

        Raises:
            LimnerError: ``AWS_ERROR``, if AWS does not take what is made, time and again.
        """
        lease = self._lease(request_id)
        is_ours = False
        try:
            if lease is not None:
                is_ours = self._orders.deliver(lease, self._out(request_id))
                self._failures = 0
        except LimnerError as error:
            # The lease ends by itself, and somebody trains it again.
            self._fail(error)
        finally:
            self._forget(request_id)
        say(event_line("delivered" if is_ours else "lost", request=request_id))
        self._delivered += is_ours

    # -- The queue --------------------------------------------------------------------------------

    def _is_closed(self) -> bool:
        return self._stop.is_asked or self._now_s() >= self._closes_s

    def _look(self) -> Work | None:
        """Takes the first free order; None if there is none, or nobody has looked long enough."""
        try:
            if not self._found and self._now_s() - self._looked_s >= LOOK_S:
                self._looked_s = self._now_s()
                self._found.extend(self._orders.find())
                self._failures = 0
            while self._found:
                order = self._found.popleft()
                if order.request_id in self._seen or not self._take(order):
                    continue
                if (work := self._fetch(order)) is not None:
                    return work
        except LimnerError as error:
            self._fail(error)
        return None

    def _take(self, order: Order) -> bool:
        lease = self._orders.take(order)
        if lease is None:
            return False
        with self._lock:
            self._leases[order.request_id] = lease
        return True

    def _fetch(self, order: Order) -> Work | None:
        """The work of an order that is ours; None if there is none, which its user is told.

        Raises:
            LimnerError: ``AWS_ERROR``; the order is somebody else's to take then.
        """
        photos_dir = self._folder / "photos" / order.request_id
        try:
            config = self._orders.fetch(order, photos_dir)
        except LimnerError as error:
            say(event_line("not_fetched", request=order.request_id, code=error.code))
            if error.code == "AWS_ERROR":
                lease = self._lease(order.request_id)
                self._forget(order.request_id)
                if lease is not None:
                    self._orders.give_back(lease)
                raise
            self._seen.add(order.request_id)
            self._keep(failure_of(order.request_id, error))
            self.deliver(order.request_id)
            return None
        self._seen.add(order.request_id)
        say(event_line("taken", request=order.request_id))
        return Work(order.request_id, order.model_id, config, photos_dir)

    def _out(self, request_id: str) -> Path:
        return self._folder / "out" / request_id

    def _lease(self, request_id: str) -> Lease | None:
        with self._lock:
            return self._leases.get(request_id)

    def _forget(self, request_id: str) -> None:
        """Removes a user's photos and results from this machine."""
        with self._lock:
            self._leases.pop(request_id, None)
        for folder in (self._folder / "photos" / request_id, self._out(request_id)):
            shutil.rmtree(folder, ignore_errors=True)

    def _fail(self, error: LimnerError) -> None:
        self._failures += 1
        say(event_line("no_answer", reason=error.code))
        if self._failures >= _MOST_AWS_FAILURES:
            raise error

    # -- The thread -------------------------------------------------------------------------------

    def _renew_leases(self) -> None:
        while not self._closing.wait(self._orders.lease_s * _RENEW_AT):
            self.renew()

    def renew(self) -> None:
        """Prolongs all leases; forgets those that are lost."""
        with self._lock:
            leases = list(self._leases.values())
        for lease in leases:
            request_id = lease.order.request_id
            try:
                renewed = self._orders.renew(lease)
            except LimnerError:
                renewed = lease if self._orders.now_s() < lease.until_s else None
            with self._lock:
                is_known = request_id in self._leases  # it may be delivered by now
                if is_known and renewed is not None:
                    self._leases[request_id] = renewed
                elif is_known:
                    del self._leases[request_id]
            if is_known and renewed is None:
                say(event_line("lease_lost", request=request_id))
