"""P4: state moves only forward, and a stale writer never wins.

Everybody who writes the tables does so at random, again and again, with what he believes: owners
of now and of before, the rules, reconcile with records that it read long ago, dispatchers whose
lease is over, and clients. The conditions are the real ones: those of the published machines, and
those that the code sends.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from limner.contracts.statuses import ALLOWED_FROM, TERMINAL, RequestStatus
from tests.support.faults.dynamo import Commit, Memory
from tests.support.faults.writers import Playground, random_steps, state_writers

STEPS = 100_000
# Allowed by the contract, and made by nobody.
UNUSED: dict[RequestStatus, frozenset[RequestStatus]] = {
    RequestStatus.WAITING_FOR_CAPACITY: frozenset({RequestStatus.QUEUED}),
}
# Notes beside the state: whether the end was announced, and whether somebody wants an end.
NOTES = frozenset({"unannounced", "cancel_requested"})
# What belongs to the dispatcher that holds the lease, whoever owns the request.
LEASE = frozenset({"lease_until", "lease_by", "lease_fence"})


class Judge:
    """Looks at every item that is written."""

    def __init__(self) -> None:
        self.transitions: Counter[tuple[str, str]] = Counter()
        self.writes = 0
        self.flips = 0
        self.illegal: list[str] = []
        self.stale: list[str] = []

    def __call__(self, commit: Commit) -> None:
        self.writes += 1
        if commit.table == "requests" and not commit.key[0].startswith("#"):
            self._request(commit)
        elif commit.table == "models" and "#" not in commit.key[1]:
            self._model(commit)
        elif commit.table == "models":
            self._version(commit)

    def _request(self, commit: Commit) -> None:
        old, new = commit.old or {}, commit.new or {}
        before, after = _text(old, "status"), _text(new, "status")
        if not after:
            self.illegal.append(f"a row without a status: {commit.call}")
            return
        if before != after:
            self.transitions[before or "-", after] += 1
            allowed = {s.value for s in ALLOWED_FROM[RequestStatus(after)]}
            new_row = not before and after in ("REGISTERED", "QUEUED")
            if before not in allowed and not new_row:
                self.illegal.append(f"{before} -> {after} by {commit.writer}: {commit.call}")
        # READY stays open until the app was told, so that reconcile finds it.
        told = after != "READY" or "unannounced" not in new
        if after in {s.value for s in TERMINAL} and before != after and told and "open" in new:
            self.illegal.append(f"{after}, but still open: {commit.call}")
        owner = _text(old, "owner")
        changed = {name for name in {*old, *new} if old.get(name) != new.get(name)} - NOTES - LEASE
        if commit.writer is not None and changed and owner and owner != commit.writer:
            self.stale.append(f"{commit.writer} over {owner}: {commit.call}")
        self._lease(commit, old, new)

    def _lease(self, commit: Commit, old: Any, new: Any) -> None:
        before, after = _text(old, "lease_by"), _text(new, "lease_by")
        in_force = _text(old, "lease_until") > _text(
            commit.call.get("ExpressionAttributeValues", {}), ":now"
        )
        if before and after and before != after and in_force:
            self.stale.append(f"{after} over the lease of {before}: {commit.call}")
        fences = [int(item.get("lease_fence", {}).get("N", "0")) for item in (old, new)]
        if fences[1] < fences[0]:
            self.stale.append(f"lease fence {fences}: {commit.call}")

    def _model(self, commit: Commit) -> None:
        """Only the request that holds a model writes it, and versions only go up."""
        old, new = commit.old or {}, commit.new or {}
        held = _text(old, "active_request")
        values = commit.call["ExpressionAttributeValues"]
        by = _text(values, ":request")
        if held and by and by != held:
            self.stale.append(f"{by} over {held}: {commit.call}")
        for name in ("last_version",):
            numbers = [int(item.get(name, {}).get("N", "0")) for item in (old, new)]
            if numbers[1] < numbers[0]:
                self.illegal.append(f"{name} {numbers}: {commit.call}")
        if commit.writer == "client":
            self._flip(commit, old, new)

    def _flip(self, commit: Commit, old: Any, new: Any) -> None:
        """A client changes what serves, and only if that is what it has read."""
        self.flips += 1
        changed = {name for name in {*old, *new} if old.get(name) != new.get(name)}
        if changed - {"live_version", "target_model", "updated_at"}:
            self.illegal.append(f"a client wrote {changed}: {commit.call}")
        if old.get("live_version") != commit.call["ExpressionAttributeValues"].get(":seen"):
            self.stale.append(f"over {old.get('live_version')}: {commit.call}")

    def _version(self, commit: Commit) -> None:
        """What a client lets serve has served."""
        if commit.writer == "client" and _text(commit.old or {}, "status") != "READY":
            self.illegal.append(f"a client activated {commit.old}: {commit.call}")


def _text(item: Any, name: str) -> str:
    value: str = item.get(name, {}).get("S", "")
    return value


def test_no_write_goes_back_and_no_stale_writer_wins(figure: Callable[[str], None]) -> None:
    memory, judge = Memory(), Judge()
    memory.observers.append(judge)
    playground = Playground(memory, random.Random(4))
    for _ in random_steps(playground, STEPS):
        assert not judge.illegal, judge.illegal[0]
        assert not judge.stale, judge.stale[0]
    seen = {after for _, after in judge.transitions}
    assert seen == {status.value for status in RequestStatus}, "the walk reaches every status"
    assert judge.flips > 50
    for after, allowed in ALLOWED_FROM.items():
        for before in allowed - UNUSED.get(after, frozenset()):
            assert judge.transitions[before.value, after.value], f"{before} -> {after} never seen"
    figure(
        f"P4   {STEPS:,} steps of {len(state_writers())} states and 14 kinds of code, "
        f"{judge.writes:,} writes let through ({judge.flips} of another live version), "
        f"{sum(judge.transitions.values()):,} transitions "
        f"of {len(judge.transitions)} kinds: {len(judge.illegal)} illegal, "
        f"{len(judge.stale)} by a stale owner"
    )


def weakened(without: str) -> Iterator[Judge]:
    """The walk with a part of all conditions taken out; the judge after each of its steps."""
    memory, judge = Memory(), Judge()
    memory.observers.append(judge)
    playground = Playground(memory, random.Random(4))
    for writer in playground.states:
        writer.weaken(without, "")
    return (judge for _ in random_steps(playground, 10_000))


def test_the_judge_sees_a_condition_that_forgets_the_owner() -> None:
    assert any(judge.stale for judge in weakened("#owner = :me AND "))


def test_the_judge_sees_a_condition_that_forgets_the_status() -> None:
    assert any(judge.illegal for judge in weakened(" AND #status IN (:training, :waiting)"))
