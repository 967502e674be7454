"""What a host does, and in which order: its own share, then what others have not begun.

``training.worker.Inbox`` has the same methods, for a host whose works come one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, Protocol

from limner.contracts.errors import LimnerError
from training.claims import Claims
from training.job import Work
from training.progress import event_line, say


class Source(Protocol):
    """Where a runner's works come from.

    Attributes:
        share: What was planned for this host, in this order.
        others: What was planned for others.
        ended: What has a result already, and a checkpoint may still name.
        is_open: Whether more may come.
    """

    @property
    def share(self) -> Sequence[Work]: ...  # noqa: D102 - see above
    @property
    def others(self) -> Sequence[Work]: ...  # noqa: D102
    @property
    def ended(self) -> Sequence[Work]: ...  # noqa: D102
    @property
    def is_open(self) -> bool: ...  # noqa: D102

    def begins(self, work: Work) -> bool:
        """Whether a work may begin; asked just before it does."""
        ...

    def holds(self, work: Work) -> bool:
        """Whether a work that has begun is still this host's; asked before each step."""
        ...

    def arrivals(self, fits: Callable[[Work], bool], /) -> Sequence[Work]:
        """What has come and can join those in training, without waiting for it."""
        ...

    def drops(self, work: Work) -> None:
        """Told of a work that is this host's no longer, and has no outcome."""
        ...

    def shows(self, work: Work) -> None:
        """Told of each first image."""
        ...

    def more(
        self, kind: Callable[[Work], Hashable], most: Callable[[Work], int], /
    ) -> Sequence[Work]:
        """What comes when all that was known is done; waits for it, if it may still come."""
        ...


class Works:
    """The works of one host.

    Without claims they are its share, in the order of the plan. With claims, the longest comes
    first, and each is claimed before it begins, since others may be there first.

    Args:
        share: What was planned for this host.
        ended: What has a result already, and a checkpoint may still name.
        others: What was planned for other hosts; of no interest without claims.
        claims: This host's claims; None where nobody claims.

    Attributes:
        share: What was planned for this host and has no result.
        ended: As given.
        others: What was planned for others and has no result, the longest first.
        is_open: False: no more will come.
    """

    is_open: Final = False

    def __init__(
        self,
        share: Iterable[Work],
        *,
        ended: Iterable[Work] = (),
        others: Iterable[Work] = (),
        claims: Claims | None = None,
    ) -> None:
        self._claims = claims
        self._ours: set[str] = set()
        self.ended: Sequence[Work] = tuple(ended)
        self.share: Sequence[Work] = tuple(share)
        self.others: Sequence[Work] = ()
        if claims is not None:
            self.share = _longest_first(self.share)
            self.others = _longest_first(others)

    def begins(self, work: Work) -> bool:
        """Whether this host may begin a work; asked just before it does.

        Raises:
            LimnerError: ``AWS_ERROR``, if nobody knows: the job ends then, and another one does
                what is left. To begin all the same might do it twice, to leave it not at all.
        """
        if self._claims is None or work.request_id in self._ours:
            return True
        if not self._claims.take(work.request_id):
            say(event_line("left", request=work.request_id))
            return False
        self._ours.add(work.request_id)
        return True

    def holds(self, _work: Work) -> bool:
        """Whether a work that has begun is still this host's: nobody takes it away."""
        return True

    def arrivals(self, _fits: Callable[[Work], bool]) -> Sequence[Work]:
        """What can join those in training: nothing, since all of it was known before."""
        return ()

    def drops(self, _work: Work) -> None:
        """Told of what another host has claimed: its photos are nobody's secret on this one."""

    def shows(self, _work: Work) -> None:
        """Told of each first image: SageMaker's sync takes it to S3."""

    def more(self, kind: Callable[[Work], Hashable], most: Callable[[Work], int]) -> list[Work]:
        """Claims what others have not begun, when the own share is done.

        Half of what is free, the longest first, and of one kind, which can be trained together:
        half, so that its owner and other idle hosts find the rest.

        Args:
            kind: What works must have in common to be trained together.
            most: How many like this one can be trained together.

        Returns:
            The works that are this host's now; none if all are claimed.
        """
        if self._claims is None:
            return []
        found: list[Work] = []
        try:
            free = self._free(self._claims)
            for work in free:
                wanted = min((len(free) + 1) // 2, most(found[0])) if found else 1
                is_fit = not found or kind(work) == kind(found[0])
                if len(found) < wanted and is_fit and self._claims.take(work.request_id):
                    say(event_line("claimed", request=work.request_id))
                    self._ours.add(work.request_id)
                    found.append(work)
        except LimnerError as error:
            # Nobody waits for it: who was planned for it does it, or the next job.
            say(event_line("no_claims", reason=error.code))
        return found

    def _free(self, claims: Claims) -> Sequence[Work]:
        """What others have perhaps not begun, by one listing instead of a refusal of each.

        The listing also hides what this host has claimed before a restart: where nothing else is
        left, each is asked for.
        """
        free = [work for work in self.others if work.request_id not in self._ours]
        taken = claims.taken() if len(free) > 1 else frozenset()
        return [work for work in free if work.request_id not in taken] or free


def _longest_first(works: Iterable[Work]) -> tuple[Work, ...]:
    return tuple(sorted(works, key=lambda work: -work.predicted_s))
