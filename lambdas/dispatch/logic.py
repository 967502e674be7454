"""Who is next, in which execution, and what an event means. Pure.

Fairness: a user's requests wait behind each other, and users take turns. The next request is that
of the user with the fewest requests at work or picked before it; among equals, of the user who was
served longest ago; then the one that has waited longest. That is deficit round robin with a
quantum of one request, and it needs no record for users who are not served: a flood of one user
delays the others by one turn.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lambdas.dispatch.gate import Gate, Holder, Limits, Run
from lambdas.shared.clock import to_ms
from lambdas.shared.inputs import SCHEMA_VERSION, onboarding_input
from limner.contracts import keys, writes
from limner.contracts.errors import LimnerError

# A machine ends its executions earlier (workflows.retries.MACHINE_TIMEOUT_S; a test compares):
# whatever still holds a place then has been forgotten.
HOLD_S: Final = 10 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Rules:
    """How launches are made.

    Attributes:
        limits: What the gate keeps.
        batch_from: So many users in the queue are worth a batch.
        batch_size: Requests of one batch.
        batch_instances: Instances of a batch's job at most.
        lease_s: How long a request belongs to the invocation that starts it.
        workers: Workers at most; 0 if there are none.
        worker_backlog: Users that wait, from which another worker starts.
        worker_patience_s: How long a new request waits for a worker before it gets a job.
    """

    limits: Limits
    batch_from: int
    batch_size: int
    batch_instances: int
    lease_s: int
    workers: int = 0
    worker_backlog: int = 1
    worker_patience_s: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that waits.

    Attributes:
        run: The attempt that comes next.
        retrain: Whether to train a new version when the model is ready already.
        queued_at: When it entered the queue.
        lease_until: Until when somebody is starting it; empty if nobody is.
        earlier_job: The job, of a batch or a worker, on whose shelf its result may lie; empty if
            there is none.
        is_trained: Whether a worker says that it does.
        worker_tries: How many workers have taken it.
    """

    run: Run
    retrain: bool
    queued_at: str
    lease_until: str = ""
    earlier_job: str = ""
    is_trained: bool = False
    worker_tries: int = 0


@dataclass(frozen=True, slots=True)
class Launch:
    """An execution to be started.

    Attributes:
        name: Its name; the same requests and attempts give the same name.
        batch: Whether it is one of batches.
        candidates: Its requests, in the order of its input.
        instances: Training instances that it may use; 0 if it has nothing to train.
    """

    name: str
    batch: bool
    candidates: tuple[Candidate, ...]
    instances: int = 1

    @classmethod
    def of(cls, candidates: Sequence[Candidate], *, batch: bool, instances: int = 1) -> Launch:
        """The launch of one request, or of a batch: no more instances than tasks."""
        names = [keys.execution_name(c.run.request_id, c.run.attempt) for c in candidates]
        name = keys.batch_id(names) if batch else names[0]
        return cls(name, batch, tuple(candidates), min(instances, len(candidates)))

    def holder(self, now_ms: int) -> Holder:
        """What the gate keeps of it."""
        return Holder(
            runs=tuple(candidate.run for candidate in self.candidates),
            instances=self.instances,
            until_s=now_ms // 1000 + HOLD_S,
            batch=self.batch,
            since_s=now_ms // 1000,
        )

    def document(self) -> str:
        """The execution's input: the contract's, byte by byte, since StartExecution compares."""
        told = [
            onboarding_input(
                candidate.run.request_id,
                candidate.run.user_id,
                candidate.run.model_id,
                attempt=candidate.run.attempt,
                retrain=candidate.retrain,
            )
            for candidate in self.candidates
        ]
        earlier = [c.earlier_job for c in self.candidates if c.earlier_job]
        batch = {
            "schema_version": SCHEMA_VERSION,
            "batch_id": self.name,
            "attempt": 1,
            # What a worker says it has left may be lost; then one machine makes it again.
            "instances": max(1, self.instances),
            # Whoever have one have the same one.
            "earlier_job": earlier[0] if earlier else "",
            "requests": told,
        }
        return json.dumps(batch if self.batch else told[0], separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Trigger:
    """What an event asks for.

    Attributes:
        ended: Name of an execution that is over.
        fresh: Requests that came into the queue.
        poison: Sequence numbers of records that nobody can read.
        look: Whether the queue is worth a look: something came, or a worker has trained it.
    """

    ended: str = ""
    fresh: int = 0
    poison: tuple[str, ...] = ()
    look: bool = True


def read_event(event: Mapping[str, Any]) -> Trigger:
    """Reads the event of any of the three triggers: stream, ended execution, schedule."""
    if "Records" in event:
        return _read_records(event["Records"])
    detail = event.get("detail")
    if isinstance(detail, Mapping) and "executionArn" in detail:
        return Trigger(ended=str(detail["executionArn"]).rpartition(":")[2])
    return Trigger()


def _read_records(records: Iterable[Any]) -> Trigger:
    fresh, trained, poison = 0, 0, []
    for record in records:
        try:
            fresh += _is_arrival(record["dynamodb"])
            trained += _is_trained(record["dynamodb"])
        except (KeyError, TypeError, ValueError, AttributeError, LimnerError):
            poison.append(_sequence_number(record))
    # Without a number Lambda cannot know where to go on: an empty name fails all records.
    return Trigger(
        fresh=fresh,
        poison=("",) if "" in poison else tuple(poison),
        look=fresh + trained > 0 or bool(poison),
    )


def _is_arrival(change: Mapping[str, Any]) -> bool:
    """Whether a change of a row put a request into the queue."""
    if change["Keys"]["request_id"]["S"].startswith("#"):
        return False  # the gate's row, and reconcile's
    new, old = change.get("NewImage", {}), change.get("OldImage", {})
    if "queue" not in new:
        return False
    read_candidate({name: _plain(value) for name, value in new.items()})
    return "queue" not in old or old.get("queued_at") != new["queued_at"]


def _is_trained(change: Mapping[str, Any]) -> bool:
    """Whether a change of a row says that a worker has trained its request."""
    new, old = change.get("NewImage", {}), change.get("OldImage", {})
    return "queue" in new and "trained_by" in new and "trained_by" not in old


def _plain(value: Mapping[str, Any]) -> Any:  # noqa: ANN401 - whatever was written
    ((kind, written),) = value.items()
    return int(written) if kind == "N" and written.isdigit() else written


def _sequence_number(record: object) -> str:
    change = record.get("dynamodb") if isinstance(record, Mapping) else None
    number = change.get("SequenceNumber") if isinstance(change, Mapping) else None
    return number if isinstance(number, str) else ""


def read_candidate(item: Mapping[str, Any]) -> Candidate:
    """The candidate of a row of the index ``queue``.

    Raises:
        LimnerError: ``INVALID_INPUT``, if the row is not that of a request.
    """
    attempt, retrain = item.get("attempt", 1), item.get("retrain", False)
    if not isinstance(attempt, int) or attempt < 1 or not isinstance(retrain, bool):
        raise LimnerError("INVALID_INPUT", "attempt must be 1 or more, and retrain true or false.")
    ids = [item.get(name) for name in ("request_id", "user_id", "model_id", "queued_at")]
    texts = [value for value in ids if isinstance(value, str)]
    if len(texts) < len(ids):
        raise LimnerError("INVALID_INPUT", "An id, or the time of queuing, is missing.")
    request_id, user_id, model_id, queued_at = texts
    run = Run(
        keys.check_request_id(request_id),
        attempt,
        keys.check_user_id(user_id),
        keys.check_model_id(model_id),
    )
    _check_moment(queued_at)
    return to_candidate(item, run, retrain=retrain, queued_at=queued_at)


def to_candidate(
    item: Mapping[str, Any], run: Run, *, retrain: bool = False, queued_at: str = ""
) -> Candidate:
    """The candidate of a row whose ids are known to be good."""
    is_first = run.attempt == 1
    # Of a first attempt a worker may have a result; of a later one the job that has left it undone.
    name = str(item.get("trained_by" if is_first else "job_name") or "")
    name = name if keys.batch_of_job(name) else ""
    tries = item.get("worker_tries", 0)
    return Candidate(
        run,
        retrain,
        queued_at,
        lease_until=str(item.get("lease_until") or ""),
        earlier_job=name,
        is_trained=is_first and bool(name),
        worker_tries=tries if isinstance(tries, int) else 0,
    )


def is_for_workers(candidate: Candidate, rules: Rules, now: str) -> bool:
    """Whether a request is left to the workers, for now.

    Args:
        candidate: The request.
        rules: How launches are made.
        now: The present moment, as rows write it.
    """
    return (
        rules.workers > 0
        and candidate.run.attempt == 1
        and not candidate.is_trained
        and candidate.worker_tries < writes.WORKER_TRIES
        and to_ms(now) - to_ms(candidate.queued_at) < rules.worker_patience_s * 1000
    )


def _check_moment(written: str) -> None:
    try:
        to_ms(written)
    except ValueError as error:
        raise LimnerError("INVALID_INPUT", "The time of queuing is not a moment.") from error


def stranded(candidates: Iterable[Candidate], gate: Gate, now: str) -> list[str]:
    """Holders whose requests still wait, though nobody is starting them any more.

    Either their execution has started and has not claimed them yet, or their dispatcher died
    between gate and start. Starting the same execution again is right in both cases.
    """
    inside = gate.requests()
    found: dict[str, None] = {}
    for candidate in candidates:
        name = inside.get(candidate.run.request_id)
        if (
            name is not None
            and candidate.lease_until <= now
            and (candidate.run in gate.holders[name].runs)
        ):
            found[name] = None
    return list(found)


def next_launch(
    candidates: Iterable[Candidate], gate: Gate, rules: Rules, now: str
) -> Launch | None:
    """The execution that should start next, if anybody may start one.

    Args:
        candidates: What waits.
        gate: Who is inside.
        rules: How launches are made.
        now: The present moment, as rows write it.
    """
    eligible = _eligible(list(candidates), gate, rules, now)
    if not eligible:
        return None
    if trained := [candidate for candidate in eligible if candidate.is_trained]:
        # Nothing is left to do but to publish it, which takes no machine and no turn.
        shelf = trained[0].earlier_job
        same = [candidate for candidate in trained if candidate.earlier_job == shelf]
        return Launch.of(same[: rules.batch_size], batch=True, instances=0)
    group: dict[str, Candidate] = {}
    for candidate in eligible:
        if candidate.run.attempt == 1:
            group.setdefault(candidate.run.user_id, candidate)
    # A request that one job has left undone may be what ended the job: it goes on alone, so that
    # it cannot take others with it again. If that was a batch's job it goes on as a batch of one,
    # since that machine looks first whether the job has finished it after all.
    if eligible[0].run.attempt == 1 and len(group) >= rules.batch_from:
        # What is free, not what a batch may use at most: a batch that waits for the last places
        # would keep them empty, and everybody behind it waiting. The job asks for no more.
        free = max(1, rules.limits.max_instances - gate.instances)
        chosen = list(group.values())[: rules.batch_size]
        return Launch.of(chosen, batch=True, instances=min(rules.batch_instances, free))
    return Launch.of(eligible[:1], batch=bool(eligible[0].earlier_job))


def waits_for_worker(candidates: Sequence[Candidate], rules: Rules, now: str) -> int:
    """How many users wait for a worker: it takes one request of each who has none with a worker.

    Args:
        candidates: What waits.
        rules: How launches are made.
        now: The present moment, as rows write it.
    """
    served = {c.run.user_id for c in candidates if c.is_trained or c.lease_until > now}
    asking = {c.run.user_id for c in candidates if is_for_workers(c, rules, now)}
    return len(asking - served)


def _eligible(
    candidates: Sequence[Candidate], gate: Gate, rules: Rules, now: str
) -> list[Candidate]:
    active, models, inside = gate.active(), set(gate.models()), gate.requests()
    for candidate in candidates:
        # Somebody is starting it, or a worker trains it: its user and model are at work.
        if candidate.lease_until > now and candidate.run.request_id not in inside:
            active[candidate.run.user_id] += 1
            models.add((candidate.run.user_id, candidate.run.model_id))
    ours = [candidate for candidate in candidates if not is_for_workers(candidate, rules, now)]
    chosen = []
    for candidate in _ranked(ours, gate):
        run = candidate.run
        if run.request_id in inside or candidate.lease_until > now:
            continue
        if active[run.user_id] >= rules.limits.user_active or (run.user_id, run.model_id) in models:
            continue
        active[run.user_id] += 1
        models.add((run.user_id, run.model_id))
        chosen.append(candidate)
    return chosen


def _ranked(candidates: Iterable[Candidate], gate: Gate) -> list[Candidate]:
    by_user: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_user[candidate.run.user_id].append(candidate)
    active: Counter[str] = gate.active()
    ranks = []
    for user, waiting in by_user.items():
        waiting.sort(key=lambda c: (c.queued_at, c.run.request_id))
        for turn, candidate in enumerate(waiting, start=active[user]):
            ranks.append((turn, gate.served.get(user, 0), candidate.queued_at, candidate))
    ranks.sort(key=lambda rank: (*rank[:3], rank[3].run.request_id))
    return [candidate for *_, candidate in ranks]
