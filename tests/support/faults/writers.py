"""All writes to the two tables, made by anybody at any moment with whatever he believes.

What a state of a machine writes comes from the published definition; what the code writes, from
the code. Nothing is written down twice here: a writer only supplies who it is and what it has seen.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from botocore.exceptions import ClientError

from lambdas.dispatch.gate import Run
from lambdas.dispatch.logic import Candidate
from lambdas.dispatch.waiting import Lease, Waiting
from lambdas.reconcile.notes import Notes
from lambdas.reconcile.repairs import Repairs
from lambdas.record_failure.ledger import Ledger
from lambdas.record_failure.logic import Ending, Failure
from lambdas.register.stores import RequestBook
from lambdas.shared.clock import Clock, iso
from lambdas.shared.dynamo import Table
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.contracts.statuses import RequestStatus
from limner.registry import Model, Registry, Request, RequestFailure
from tests.support.faults.dynamo import Memory
from tests.support.faults.machine import compiled_template
from tests.support.faults.sites import MachineSite, machine_sites, table_writes
from tests.support.faults.world import EPOCH_MS

MODEL: Final = "default"
_EXECUTION: Final = "arn:aws:states:us-east-1:123456789012:execution"


@dataclass(frozen=True)
class Wish:
    """A request of the playground and the executions that may believe it is theirs."""

    request_id: str
    user_id: str

    @property
    def owners(self) -> list[str]:
        return [
            f"{_EXECUTION}:onboard:{keys.execution_name(self.request_id, 1)}",
            f"{_EXECUTION}:onboard:{keys.execution_name(self.request_id, 2)}",
            f"{_EXECUTION}:onboard_batch:b0",
        ]


class StateWriter:
    """A state of a published machine, as a write that can be made at any time.

    Args:
        site: The state.
    """

    def __init__(self, site: MachineSite) -> None:
        self.site = site
        self._build = compiled_template(site.body["Parameters"])
        self._transaction = site.integration.endswith(":transactWriteItems")

    def weaken(self, clause: str, instead: str) -> None:
        """Takes a clause out of the conditions: what the tests of the test need."""
        body = json.dumps(self.site.body["Parameters"]).replace(clause, instead)
        self._build = compiled_template(json.loads(body))

    def build(self, data: Mapping[str, Any], owner: str, now: str) -> dict[str, Any]:
        """The call that the state makes."""
        context = {
            "Execution": {"Id": owner, "Name": owner.rpartition(":")[2], "Input": data},
            "State": {"Name": self.site.state, "EnteredTime": now},
        }
        call: dict[str, Any] = self._build(data, context)
        # Each write of the playground is another visit of its state.
        call.pop("ClientRequestToken", None)
        return call

    def write(self, memory: Memory, data: Mapping[str, Any], owner: str, now: str) -> bool:
        """Makes the write as an execution; whether its condition held."""
        call = self.build(data, owner, now)
        try:
            if self._transaction:
                memory.transact_write_items(**call)
            else:
                memory.update_item(**call)
        except ClientError as error:
            if error.response["Error"]["Code"] == "ValidationException":
                raise
            return False
        return True


def state_writers() -> list[StateWriter]:
    """All states of all machines that write the tables."""
    return [StateWriter(site) for site in machine_sites() if table_writes(site)]


def state_data(wish: Wish, attempt: int, version: int) -> dict[str, Any]:
    """Everything that any state may read: what flows through the machines, all at once."""
    target = keys.target_model(wish.user_id, MODEL, version)
    return {
        "schema_version": 1,
        "request_id": wish.request_id,
        "user_id": wish.user_id,
        "model_id": MODEL,
        "attempt": attempt,
        "retrain": False,
        "model": {"Item": {"live_version": {"N": str(version)}}},
        "version": {
            "number": version,
            "row": keys.version_row(MODEL, version),
            "target_model": target,
            "artifact_key": keys.artifact_key(wish.user_id, MODEL, version),
        },
        "job": {"attempt": attempt, "name": keys.job_name(wish.request_id, attempt)},
        "outcome": "trained",
        "source": "",
        "failure": {"Error": "TRAINING_FAILED", "Cause": "x"},
    }


@dataclass
class Playground:
    """Requests, and every writer there is.

    Attributes:
        memory: The tables.
        rng: All chance.
        now_ms: The time; each step is a second.
        wishes: The requests that writers think of.
    """

    memory: Memory
    rng: random.Random
    now_ms: int = EPOCH_MS
    wishes_of_a_user: int = 3
    wishes_at_once: int = 6
    made: int = 0
    notified: int = 0

    def __post_init__(self) -> None:
        clock = Clock(lambda: self.now_ms, lambda _: None, lambda: 60_000)
        requests, models = Table(self._client, "requests"), Table(self._client, "models")
        self._registry = Registry(self._client, "models", "requests")
        self._book = RequestBook(requests)
        self._ledger = Ledger(models, requests)
        self._waiting = [Waiting(requests, clock, f"dispatcher-{n}", 30) for n in range(3)]
        self._notes = Notes(requests)
        self._repairs = Repairs(models, requests, self._notes, self._count, clock)
        self._leases: list[Lease] = []
        self._seen: list[dict[str, Any]] = []
        self._requests = requests
        self.wishes: list[Wish] = []
        self.states = state_writers()
        self._code: list[tuple[int, Callable[[Wish], None]]] = [
            (3, self._claim_look),
            (2, self._complete),
            (2, self._enqueue),
            (1, self._cancel),
            (1, self._ask_to_cancel),
            (2, self._lease),
            (1, self._give_back),
            (1, self._next_attempt),
            (1, self._end),
            (1, self._release),
            (1, self._mark_announced),
            (2, self._repair),
            (1, self._refuse),
            (2, self._activate),
        ]
        self._models_seen: list[Model] = []

    @property
    def _client(self) -> Any:
        return self.memory

    def _count(self, _: Mapping[str, Any]) -> None:
        self.notified += 1

    # -- Steps ------------------------------------------------------------------------------------

    def step(self) -> None:
        """Somebody writes something."""
        self.now_ms += 1_000
        while len(self.wishes) < self.wishes_at_once:
            self._new_wish()
        wish = self.rng.choice(self.wishes)
        record = self.memory.item("requests", wish.request_id) or {}
        # What has ended is written at for a while, and then gives way to something new.
        if "open" not in record and self.rng.random() < 0.05:
            self.wishes.remove(wish)
        if self.rng.random() < 0.85:
            self._write_state(wish)
        else:
            weights = [weight for weight, _ in self._code]
            ((_, act),) = self.rng.choices(self._code, weights)
            act(wish)
        self.memory.writer = None

    def _new_wish(self) -> None:
        self.made += 1
        wish = Wish(f"r{self.made}", f"u{self.made // self.wishes_of_a_user}")
        self.wishes.append(wish)
        self.memory.writer = "client"
        if self.rng.random() < 0.5:
            self._registry.create_request(
                Request.new(
                    wish.request_id,
                    wish.user_id,
                    MODEL,
                    retrain=False,
                    steps=10,
                    photos=3,
                    input_digest="0",
                    queued=self.rng.random() < 0.5,
                )
            )
        else:
            shard = keys.shard_of(wish.user_id)
            self._book.create(
                {
                    "request_id": wish.request_id,
                    "user_id": wish.user_id,
                    "model_id": MODEL,
                    "status": RequestStatus.REGISTERED.value,
                    "created_at": iso(self.now_ms),
                    "updated_at": iso(self.now_ms),
                    "shard": shard,
                    "open": shard,
                    "attempt": 1,
                }
            )

    def _write_state(self, wish: Wish) -> None:
        record = self.memory.item("requests", wish.request_id) or {}
        # Mostly somebody who owns it, so that requests get anywhere; else anybody.
        owner = record.get("owner", {}).get("S") if self.rng.random() < 0.75 else None
        owner = owner or self.rng.choice(wish.owners)
        row = self.memory.item("models", wish.user_id, MODEL) or {}
        version = int(row.get("last_version", {}).get("N", "1"))
        if self.rng.random() < 0.1:
            version = max(1, version - 1)
        self.memory.writer = owner
        data = state_data(wish, self.rng.randint(1, 3), version)
        self.rng.choice(self.states).write(self.memory, data, owner, iso(self.now_ms))

    # -- What the code writes ---------------------------------------------------------------------

    def _claim_look(self, wish: Wish) -> None:
        """Somebody reads a record, and will act on it later."""
        record = self._requests.read({"request_id": wish.request_id})
        if record is not None:
            self._seen = [*self._seen[-9:], record]

    def _request(self, wish: Wish) -> Request | None:
        try:
            return self._registry.request(wish.request_id)
        except LimnerError:
            return None

    def _complete(self, wish: Wish) -> None:
        self.memory.writer = "client"
        record = self._requests.read({"request_id": wish.request_id})
        request = self._request(wish)
        if record is not None and request is not None and self.rng.random() < 0.5:
            self._registry.complete(request)
        elif record is not None:
            self._book.complete(record, iso(self.now_ms), queued=self.rng.random() < 0.5)

    def _enqueue(self, wish: Wish) -> None:
        self.memory.writer = "client"
        request = self._request(wish)
        if request is not None and self.rng.random() < 0.5:
            self._registry.enqueue(request)
        elif request is not None:
            self._book.enqueue(
                {"request_id": wish.request_id, "user_id": wish.user_id}, iso(self.now_ms)
            )

    def _cancel(self, wish: Wish) -> None:
        self.memory.writer = "client"
        if self._request(wish) is not None:
            failure = RequestFailure(code="EXECUTION_STOPPED")
            self._registry.cancel_unclaimed(wish.request_id, failure)

    def _ask_to_cancel(self, wish: Wish) -> None:
        self.memory.writer = None  # a wish beside the status; anybody may wish
        if self._request(wish) is not None:
            self._registry.ask_to_cancel(wish.request_id)

    def _lease(self, wish: Wish) -> None:
        self.memory.writer = "dispatch"
        run = Run(wish.request_id, self.rng.randint(1, 2), wish.user_id, MODEL)
        lease = self.rng.choice(self._waiting).lease(Candidate(run, False, iso(self.now_ms)))
        if lease is not None:
            self._leases = [*self._leases[-9:], lease]

    def _give_back(self, _: Wish) -> None:
        self.memory.writer = "dispatch"
        if self._leases:
            self.rng.choice(self._waiting).give_back(self.rng.choice(self._leases))

    def _next_attempt(self, wish: Wish) -> None:
        self.memory.writer = "dispatch"
        run = Run(wish.request_id, self.rng.randint(1, 3), wish.user_id, MODEL)
        self.rng.choice(self._waiting).next_attempt(run)

    def _refuse(self, wish: Wish) -> None:
        """A row that no request can have; here it is any row, at the worst moment."""
        self.memory.writer = "dispatch"
        self.rng.choice(self._waiting).refuse({"request_id": wish.request_id})

    def _activate(self, wish: Wish) -> None:
        """The app lets another version serve, by what it read of the model at any time before."""
        self.memory.writer = "client"
        model = self._registry.model(wish.user_id, MODEL)
        if model is not None:
            self._models_seen = [*self._models_seen[-4:], model]
            seen = self.rng.choice(self._models_seen)
            self._registry.activate(seen, self.rng.randint(1, seen.last_version + 1))

    def _end(self, wish: Wish) -> None:
        owner = self.rng.choice(wish.owners)
        status = self.rng.choice([RequestStatus.FAILED, RequestStatus.CANCELLED])
        self.memory.writer = owner
        failure = Failure("TRAINING_FAILED", "x")
        ending = Ending(wish.request_id, owner, status, failure, self.rng.random() < 0.5)
        try:
            self._ledger.end(ending)
        except LimnerError:
            return
        self._ledger.release(self._ledger.read(wish.request_id) or {})

    def _release(self, _: Wish) -> None:
        """The repetition of a release, from a record that was read at any time after its end."""
        self.memory.writer = None
        for record in self._seen:
            if record["status"] in ("FAILED", "CANCELLED"):
                self._ledger.release(record)

    def _mark_announced(self, wish: Wish) -> None:
        self.memory.writer = None
        self._ledger.mark_announced(wish.request_id)

    def _repair(self, _: Wish) -> None:
        if not self._seen:
            return
        record = self.rng.choice(self._seen)
        self.memory.writer = record.get("owner", "reconcile")
        with_queue = "open" in record
        match self.rng.randrange(9):
            case 0 | 5 | 6 | 7 if "owner" in record and with_queue:
                self._repairs.requeue(record)
            case 1 if with_queue and "owner" not in record:
                self._repairs.enqueue(record, next_attempt=self.rng.random() < 0.5)
            case 2 if "lease_until" in record:
                self.memory.writer = "dispatch"
                self._repairs.clear_lease(record)
            case 3:
                self._repairs.fail(record, "JOB_INCOMPLETE", "x")
            case 4:
                self.memory.writer = None
                self._repairs.finish(record["request_id"])


def random_steps(playground: Playground, count: int) -> Iterator[int]:
    """Takes steps; yields their numbers."""
    for number in range(count):
        playground.step()
        yield number
