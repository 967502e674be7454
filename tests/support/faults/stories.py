"""Stories: what happens to requests from an app's call to their ends, on a whole system in memory.

Each story plays with everything: the client ``Limner``, the functions' handlers, both machines, the
rules between them. A story is told to its end, and ``Summary`` says what is left of it; told again
with one reply lost, it must leave the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, TypeAlias, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from PIL import Image

from lambdas.shared.clock import iso
from limner.client import Clients, Deployment, Limner
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.registry import Request
from tests.support.faults.machine import Call, Execution, Fault
from tests.support.faults.world import (
    BUCKET,
    ENVIRONMENT,
    UNFINISHED,
    World,
    client_of,
    in_world,
)

T = TypeVar("T")
Story: TypeAlias = Callable[["System"], None]
Decide = Callable[[Call], "Fault | None"]
# Longer than any grace of the functions; shorter than a day.
LATER_S: Final = 900
# The app's own name of the first wish of a user.
FIRST: Final = "t1"
_SERVICES: Final = {"runtime": "sagemaker-runtime", "functions": "lambda"}
_PASSING: Final = frozenset({"AWS_ERROR", "THROTTLED"})


@cache
def photos() -> tuple[bytes, ...]:
    """Three photos that pass all checks."""
    found = []
    for number in range(3):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 48), (number * 60, 10, 90)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return tuple(found)


@dataclass
class Crash:
    """The death of an execution, at one of its turns.

    Attributes:
        turn: Number of the turn that it does not take any more, over all executions of a story.
        unheard: Whether the event of its end is lost.
        orphaned: Whether its training job goes on without it.
        where: The state in which it died; empty if the story was over before.
        owner: ARN of the dead execution.
        ticks: Runs of reconcile until no request was left to the dead.
        passed: The states of the turns that were taken before.
    """

    turn: int
    unheard: bool
    orphaned: bool
    where: str = ""
    owner: str = ""
    ticks: int = 0
    passed: list[str] = field(default_factory=list)

    def strike(self, world: World, execution: Execution, call: Call) -> bool:
        """Counts a turn, and kills the execution if it is the one."""
        if self.where:
            return False
        if len(self.passed) < self.turn:
            self.passed.append(call.state)
            return False
        self.where, self.owner = call.state, execution.arn
        if self.orphaned:
            for job in world.jobs.values():
                job.request.pop("_execution", None)
        world.stop(execution)
        if self.unheard:
            world.lose_endings()
        return True

    def is_stuck(self, world: World) -> bool:
        """Whether a request still belongs to the dead."""
        return bool(self.owner) and any(
            row.get("owner", {}).get("S") == self.owner and "open" in row
            for row in world.memory.tables["requests"].values()
        )


@dataclass
class System:
    """A deployed stage in memory, and the app that uses it."""

    world: World = field(default_factory=World)
    decide: Decide = lambda _: None
    crash: Crash | None = None

    @property
    def limner(self) -> Limner:
        clients = {
            f.name: client_of(_SERVICES.get(f.name, f.name)) for f in dataclasses.fields(Clients)
        }
        deployment = Deployment(
            bucket=BUCKET,
            models_table="models",
            requests_table="requests",
            onboard_machine_arn=ENVIRONMENT["ONBOARD_MACHINE_ARN"],
            onboard_batch_machine_arn=ENVIRONMENT["BATCH_MACHINE_ARN"],
            endpoint_name="endpoint",
            base_id="tiny-1",
            register_function="register",
            bus_name="bus",
        )
        return Limner(Clients(**clients), deployment)  # type: ignore[arg-type]

    def ask(self, call: Callable[[Limner], T]) -> T:
        """A call of the app, which makes it again if AWS was in trouble."""
        with in_world(self.world):
            for _ in range(3):
                try:
                    return call(self.limner)
                except LimnerError as error:
                    if error.code not in _PASSING:
                        raise
            return call(self.limner)

    def onboard(self, user: str = "alice", token: str = FIRST, **options: Any) -> Request:
        """The app asks for a model."""
        return self.ask(
            lambda limner: limner.onboard(user, list(photos()), client_token=token, **options)
        )

    def stream(self) -> None:
        """The table's stream tells of what came into the queue."""
        rows = [row for row in self.world.memory.tables["requests"].values() if "queue" in row]
        records = [
            {
                "eventName": "MODIFY",
                "dynamodb": {
                    "SequenceNumber": str(number),
                    "Keys": {"request_id": row["request_id"]},
                    "NewImage": row,
                },
            }
            for number, row in enumerate(rows, 1)
        ]
        if records:
            self.world.deliver("dispatch", {"Records": records})

    def tick(self) -> None:
        """The schedules strike."""
        self.world.deliver("dispatch", {})
        if self.crash is not None and self.crash.is_stuck(self.world):
            self.crash.ticks += 1
        self.world.deliver("reconcile", {})

    def running(self) -> Iterator[Execution]:
        """Executions that have not ended."""
        return (e for e in list(self.world.executions.values()) if e.status == "RUNNING")

    def run(self) -> None:
        """Takes the turns of all executions, in turn, until none is left."""
        standing: dict[str, Call | None] = {}
        while True:
            going = list(self.running())
            if not going:
                return
            for execution in going:
                call = standing.get(execution.arn)
                crash = self.crash
                if call and crash and crash.strike(self.world, execution, call):
                    continue
                fault = self.decide(call) if call is not None else None
                standing[execution.arn] = self.world.advance(execution, fault)
            self.world.tell_endings()

    def settle(self, rounds: int = 4) -> None:
        """Lets time pass, with schedules and executions, until everything has come to rest."""
        self.run()
        self.world.tell_endings()
        for _ in range(rounds):
            self.world.passes(LATER_S)
            self.tick()
            self.run()
            self.world.tell_endings()


@dataclass(frozen=True)
class Summary:
    """What is left of a story.

    Attributes:
        requests: Status and error code of each request.
        models: Live version and holder of each model.
        versions: Status of each version.
        paid: Training jobs that took a machine.
        executions: Executions by machine and status.
        told: What was announced to whom, once or more often.
        objects: What lies in the bucket, but for the traces of jobs.
    """

    requests: dict[str, tuple[str, str]]
    models: dict[str, tuple[str, str]]
    versions: dict[str, str]
    paid: int
    told: frozenset[tuple[str, str]]
    objects: frozenset[str]

    @classmethod
    def of(cls, world: World) -> Summary:
        requests, models, versions = {}, {}, {}
        for (name,), row in world.memory.tables["requests"].items():
            if not name.startswith("#"):
                code = row.get("error", {}).get("M", {}).get("code", {}).get("S", "")
                requests[name] = (row["status"]["S"], code)
        for (user, name), row in world.memory.tables["models"].items():
            if "#" in name:
                versions[f"{user}/{name}"] = row["status"]["S"]
            else:
                live = row.get("live_version", {}).get("N", "")
                models[f"{user}/{name}"] = (live, row.get("active_request", {}).get("S", ""))
        return cls(
            requests=requests,
            models=models,
            versions=versions,
            paid=len(paid_jobs(world)),
            told=frozenset((m["type"], m["request_id"]) for m in world.messages),
            objects=frozenset(
                key for key in world.objects if key.startswith(("uploads/", "models/", "configs/"))
            ),
        )


def no_worse(summary: Summary, before: Summary) -> bool:
    """Whether a story ended at least as well: what was READY is, and nobody waits in vain.

    An invocation that is made again comes a little later, and may find a model free that was busy.
    """
    return (
        summary.requests.keys() == before.requests.keys()
        and all(
            ending == before.requests[request] or ending[0] == "READY"
            for request, ending in summary.requests.items()
        )
        and all(
            summary.models[model] == held or int(summary.models[model][0]) > int(held[0] or 0)
            for model, held in before.models.items()
        )
    )


def paid_jobs(world: World) -> list[str]:
    """Jobs that took a machine."""
    return [name for name, job in world.jobs.items() if not job.reason.startswith("CapacityError")]


def unsound(world: World) -> list[str]:
    """What must never be, whatever has happened; empty if all is well."""
    found = []
    summary = Summary.of(world)
    for request, (status, _) in summary.requests.items():
        row = world.memory.tables["requests"][request,]
        if status not in ("READY", "FAILED", "CANCELLED"):
            found.append(f"request {request} stands still as {status}")
            continue
        found += [
            f"request {request} has ended, but is in {i}" for i in ("open", "queue") if i in row
        ]
        told = {kind for kind, name in summary.told if name == request}
        silent = row.get("already_ready") or "owner" not in row
        if not told and not silent:
            found.append(f"request {request} ended {status}, and nobody was told")
        versions = [
            row
            for (_, name), row in world.memory.tables["models"].items()
            if "#" in name and row["request_id"]["S"] == request and row["status"]["S"] == "READY"
        ]
        if len(versions) > 1 or (versions and status != "READY"):
            found.append(f"request {request} is {status} with {len(versions)} READY versions")
    for model, (live, holder) in summary.models.items():
        if holder:
            found.append(f"model {model} is held by {holder}")
        target = f"{model}/v{live}.tar.gz"
        if live and target not in world.served:
            found.append(f"{target} is live and has never served")
    gate = world.memory.item("requests", keys.GATE_ROW) or {}
    held = list(gate.get("holders", {}).get("M", {}))
    if held:
        found.append(f"the gate is held by {held}")
    found += [f"job {n} is at work" for n, j in world.jobs.items() if j.status in UNFINISHED]
    per_request = Counter(
        name.removeprefix("limner-").rpartition("-")[0]
        for name in paid_jobs(world)
        if not name.startswith("limner-batch-")
    )
    found += [f"request {r} paid for {n} jobs" for r, n in per_request.items() if n > 1]
    return found


# -- What stories are made of ----------------------------------------------------------------------


def _six_queue(system: System) -> None:
    """Six users ask by the queue, which is enough for a batch, and the stream tells of them."""
    for number in range(6):
        system.onboard(user=f"user{number}", queue=True)
    system.stream()


def _trains(call: Call) -> bool:
    return call.resource.endswith("createTrainingJob.sync")


def _advance_to(system: System, wanted: Callable[[Call], bool]) -> Execution:
    """Brings the only execution to a call, which is not carried out yet."""
    (execution,) = system.running()
    call = system.world.advance(execution)
    while call is not None and not wanted(call):
        call = system.world.advance(execution, system.decide(call))
    return execution


def _fill_quota(system: System) -> None:
    """The first six calls for a job are refused."""
    refused = iter([True] * 6)
    inner = system.decide

    def decide(call: Call) -> Fault | None:
        if _trains(call) and next(refused, False):
            return inner(call) or Fault("SageMaker.ResourceLimitExceededException")
        return inner(call)

    system.decide = decide


def _no_machine_at_first(system: System) -> None:
    """First jobs find no machine, second ones do."""
    system.world.outcome = lambda job: (
        ("Failed", "CapacityError: none") if job.name.endswith("-1") else ("Completed", "")
    )


def _spoil_photos(system: System) -> None:
    """Each job fails by the user's data."""
    reason = "AlgorithmError: PHOTO_TOO_SMALL: 1.png. Fix: no., exit code: 1"
    system.world.outcome = lambda _: ("Failed", reason)


# -- The stories ----------------------------------------------------------------------------------


def direct(system: System) -> None:
    """A user gets a model; the app calls twice with its token."""
    system.onboard()
    system.onboard()
    system.settle()


def leavings(system: System) -> None:
    """A call with the same token and other photos broke off; then the right one comes."""
    request_id = keys.request_id_of_token("alice", "t1")
    system.world.objects[f"uploads/alice/{request_id}/stray.png"] = b"photo"
    system.onboard()
    system.settle()


def already_ready(system: System) -> None:
    """The second request of a user whose model serves."""
    system.onboard()
    system.settle()
    system.onboard(token="t2")
    system.settle()


def again(system: System) -> None:
    """A user trains a second version."""
    system.onboard()
    system.settle()
    system.onboard(token="t2", retrain=True)
    system.settle()


def rolled_back(system: System) -> None:
    """A second version is no good, the first one serves again, and then a third is trained."""
    again(system)
    system.ask(lambda limner: limner.roll_back("alice", from_version=2))
    system.onboard(token="t3", retrain=True)
    system.settle()
    system.ask(lambda limner: limner.activate("alice", "default", 2))


def adopted(system: System) -> None:
    """The reply to CreateTrainingJob is lost: the job is looked at until it ends."""
    lost = iter([Fault("SageMaker.AmazonSageMakerException", after=True)])
    inner = system.decide

    def decide(call: Call) -> Fault | None:
        if _trains(call) and call.attempt == 0:
            return next(lost, None) or inner(call)
        return inner(call)

    system.decide = decide
    system.world.outcome = lambda _: ("Completed", "")
    system.onboard()
    system.settle()


def adopted_for_ever(system: System) -> None:
    """The adopted job never ends; its looks do."""
    inner = system.decide

    def decide(call: Call) -> Fault | None:
        if _trains(call) and call.attempt == 0:
            return inner(call) or Fault("SageMaker.AmazonSageMakerException", after=True)
        if call.resource.endswith("describeTrainingJob"):
            system.world.jobs[call.parameters["TrainingJobName"]].looks = 9
        return inner(call)

    system.decide = decide
    system.onboard()
    system.settle()


def no_capacity(system: System) -> None:
    """The first job finds no machine, the second one does."""
    _no_machine_at_first(system)
    system.onboard()
    system.settle()


def quota(system: System) -> None:
    """The quota is full for a while."""
    _fill_quota(system)
    system.onboard()
    system.settle()


def training_fails(system: System) -> None:
    """The training fails by the user's data."""
    _spoil_photos(system)
    system.onboard()
    system.settle()


def stopped(system: System) -> None:
    """The app cancels a request at work."""
    request = system.onboard()
    execution = _advance_to(system, _trains)
    system.world.advance(execution)
    system.ask(lambda limner: limner.cancel(request.request_id))
    system.world.tell_endings()
    system.settle()


def cancelled_while_it_is_started(system: System) -> None:
    """The app cancels a request that is in an execution's hands, and not yet claimed."""
    request = system.onboard(queue=True)
    system.stream()
    _advance_to(system, lambda call: call.state == "ClaimRequest")
    system.ask(lambda limner: limner.cancel(request.request_id))
    system.settle()


def cancelled_in_queue(system: System) -> None:
    """The app cancels a request that waits."""
    request = system.onboard(queue=True)
    system.ask(lambda limner: limner.cancel(request.request_id))
    system.settle()


def queued(system: System) -> None:
    """The queue starts a request."""
    system.onboard(queue=True)
    system.stream()
    system.settle()


def batch(system: System) -> None:
    """Six users share a job."""
    _six_queue(system)
    system.settle()


def batch_with_a_ready_user(system: System) -> None:
    """One of the users of a batch has a model already, another one has a busy one."""
    system.onboard(user="user0")
    system.settle()
    system.onboard(user="user1", token="busy")
    for number in range(6):
        system.onboard(user=f"user{number}", token="t2", queue=True)
    system.stream()
    system.settle()


def batch_dies(system: System) -> None:
    """A batch is stopped at work; its requests are done by another one."""
    _six_queue(system)
    execution = _advance_to(system, _trains)
    system.world.advance(execution)
    (request_id,) = sorted(Summary.of(system.world).requests)[:1]
    system.ask(lambda limner: limner.cancel(request_id))
    system.world.stop(execution)
    system.world.tell_endings()
    system.settle(rounds=8)


def batch_incomplete(system: System) -> None:
    """The first job of a batch fails; its requests come again."""
    system.world.outcome = lambda _: (
        ("Failed", "InternalServerError") if len(system.world.jobs) == 1 else ("Completed", "")
    )
    _six_queue(system)
    system.settle(rounds=8)


def batch_half_done(system: System) -> None:
    """A job is lost to missing capacity after it has done some of its tasks."""
    system.world.swift = frozenset({"user1", "user4"})
    _no_machine_at_first(system)
    _six_queue(system)
    system.settle()


def batch_cancelled(system: System) -> None:
    """A user cancels while the job runs, which ends without having done anything."""
    system.world.outcome = lambda _: (
        ("Failed", "InternalServerError") if len(system.world.jobs) == 1 else ("Completed", "")
    )
    _six_queue(system)
    _advance_to(system, _trains)
    (request_id,) = sorted(Summary.of(system.world).requests)[:1]
    system.ask(lambda limner: limner.cancel(request_id))
    system.settle(rounds=8)


def batch_with_bad_photos(system: System) -> None:
    """One user's photos are spoiled; the others of the batch get their models."""
    system.world.spoiled = frozenset({"user3"})
    _six_queue(system)
    system.settle()


def batch_no_capacity(system: System) -> None:
    """A batch finds no machine at first."""
    _no_machine_at_first(system)
    _six_queue(system)
    system.settle()


def batch_adopted(system: System) -> None:
    """The reply to a batch's CreateTrainingJob is lost, and its job never ends."""
    adopted_inner = system.decide

    def decide(call: Call) -> Fault | None:
        if _trains(call) and call.attempt == 0:
            return adopted_inner(call) or Fault("SageMaker.AmazonSageMakerException", after=True)
        if call.resource.endswith("describeTrainingJob") and system.world.now_ms % 2 == 0:
            system.world.jobs[call.parameters["TrainingJobName"]].looks = 9
        return adopted_inner(call)

    system.decide = decide
    _six_queue(system)
    system.settle(rounds=8)


def _register(system: System) -> str:
    promised = [
        {"sha256": hashlib.sha256(p).hexdigest(), "size": len(p), "type": "image/png"}
        for p in photos()
    ]
    event = {"action": "register", "user_id": "alice", "client_token": "t1", "photos": promised}

    def ask() -> dict[str, Any]:
        for _ in range(3):
            try:
                answer: dict[str, Any] = system.world.invoke("register", event)
            except (ClientError, BotoCoreError):
                continue
            if "error" not in answer:
                return answer
        raise AssertionError("register does not answer")

    answer = ask()
    by_hash = {hashlib.sha256(photo).hexdigest(): photo for photo in photos()}
    for form in answer["posts"]:
        system.world.objects[form["fields"]["key"]] = by_hash[form["sha256"]]
    return str(answer["request_id"])


def _submit(system: System, request_id: str, start: str) -> None:
    event = {"action": "submit", "request_id": request_id, "user_id": "alice", "start": start}
    for _ in range(4):
        try:
            answer = system.world.invoke("register", event)
        except (ClientError, BotoCoreError):
            continue
        if "error" not in answer:
            return
    raise AssertionError(f"submit does not answer: {json.dumps(answer)}")


def registered(system: System) -> None:
    """The photos come by forms, and the queue starts the request."""
    _submit(system, _register(system), "queue")
    system.stream()
    system.settle()


def announced(system: System) -> None:
    """The photos come by forms, and an event starts the request."""
    _submit(system, _register(system), "event")
    system.settle()


def onboarded_after_register(system: System) -> None:
    """The app registers, and then brings the photos itself."""
    _register(system)
    system.onboard()
    system.settle()


def never_submitted(system: System) -> None:
    """Nobody submits what was registered."""
    _register(system)
    system.world.passes(25 * 3600)
    system.settle()


def enqueued_late(system: System) -> None:
    """A request that was submitted as an event goes to the queue, where the event was lost."""
    request_id = _register(system)
    system.world.lose_starts = True
    _submit(system, request_id, "event")
    system.world.lose_starts = False
    _submit(system, request_id, "queue")
    system.stream()
    system.settle()


def onboarded_late(system: System) -> None:
    """The start of an execution was lost; the app asks again, for the queue."""
    system.world.lose_starts = True
    system.onboard()
    system.world.lose_starts = False
    system.onboard(queue=True)
    system.stream()
    system.settle()


def start_lost(system: System) -> None:
    """An app dies between its request and the start: reconcile puts it into the queue."""
    system.world.lose_starts = True
    system.onboard()
    system.world.lose_starts = False
    system.settle(rounds=6)


def event_lost(system: System) -> None:
    """An execution is stopped, and nobody hears of it but reconcile."""
    system.onboard()
    execution = _advance_to(system, _trains)
    system.world.advance(execution)
    for job in system.world.jobs.values():
        job.request.pop("_execution")  # the best effort to stop its job has failed, too
    system.world.stop(execution)
    system.world.lose_endings()
    system.settle()


def bad_row(system: System) -> None:
    """A row in the queue that no request can have."""
    system.world.memory.put_item(
        TableName="requests",
        Item={
            "request_id": {"S": "bad"},
            "user_id": {"N": "7"},
            "model_id": {"S": "default"},
            "status": {"S": "QUEUED"},
            "queue": {"S": "0"},
            "open": {"S": "0"},
            "queued_at": {"S": system.world.now_iso()},
            "updated_at": {"S": system.world.now_iso()},
        },
    )
    system.onboard(queue=True)
    system.stream()
    system.settle()


def untouched(system: System) -> None:
    """An execution of the request's name ended without touching it; the next attempt does it."""
    request = system.onboard(queue=True)
    data = {
        "schema_version": 1,
        "request_id": request.request_id,
        "user_id": "alice",
        "model_id": "default",
        "attempt": 1,
        "retrain": False,
    }
    execution = system.world.start(f"{request.request_id}-1", data)
    execution.status, execution.error = "FAILED", "States.Runtime"
    system.world.lose_endings()
    system.stream()
    system.settle()


def lease_left(system: System) -> None:
    """A dispatcher died with a lease, and nobody else wanted the request meanwhile."""
    request = system.onboard(queue=True)
    row = system.world.memory.tables["requests"][request.request_id,]
    row["lease_until"] = {"S": system.world.now_iso()}
    row["lease_by"] = {"S": "gone"}
    row["lease_fence"] = {"N": "3"}
    system.world.passes(LATER_S)
    system.world.deliver("reconcile", {})
    system.stream()
    system.settle()


def throttled_start(system: System) -> None:
    """StartExecution is throttled: place and lease are given back."""
    system.onboard(queue=True)
    system.world.throttled_starts = 7
    system.stream()
    system.settle()


def unannounced(system: System) -> None:
    """A failure is recorded, and its announcement fails: the rules make up for it."""
    _spoil_photos(system)
    inner = system.decide

    def decide(call: Call) -> Fault | None:
        if call.resource.endswith("sns:publish"):
            return inner(call) or Fault("SNS.InternalErrorException")
        return inner(call)

    system.decide = decide
    system.onboard()
    system.settle()


def turn_taken(system: System) -> None:
    """A dispatcher is at work when the stream calls another one, and dies at it."""
    system.onboard(queue=True)
    later = system.world.now_ms + 60_000
    system.world.memory.put_item(
        TableName="requests",
        Item={
            "request_id": {"S": "#dispatch"},
            "by": {"S": "gone"},
            "until": {"S": iso(later)},
        },
    )
    system.stream()
    assert not list(system.running())
    system.settle()


def busy(system: System) -> None:
    """Two requests of one model at the same time, and one of them is executed twice."""
    first = system.onboard()
    system.onboard(token="t2")
    data = next(system.running()).input
    system.world.start(f"{first.request_id}-other", data)
    system.settle()


def adopted_fails(system: System) -> None:
    """The adopted job finds no machine; the next one does."""
    _no_machine_at_first(system)
    inner = system.decide

    def decide(call: Call) -> Fault | None:
        first = call.attempt == 0 and len(system.world.jobs) == 0
        if _trains(call) and first:
            return inner(call) or Fault("SageMaker.AmazonSageMakerException", after=True)
        return inner(call)

    system.decide = decide
    system.onboard()
    system.settle()


def batch_quota(system: System) -> None:
    """The quota is full when a batch wants its machines."""
    _fill_quota(system)
    _six_queue(system)
    system.settle()


def batch_dies_early(system: System) -> None:
    """A batch is stopped when its requests are claimed, and their models are not."""
    _six_queue(system)
    execution = _advance_to(system, lambda call: call.state.endswith("ReserveVersion"))
    system.world.stop(execution)
    system.world.tell_endings()
    system.settle(rounds=8)


def job_over(system: System) -> None:
    """An execution waits for a job that is long over."""
    system.onboard()
    execution = _advance_to(system, _trains)
    system.world.advance(execution)
    for job in system.world.jobs.values():
        job.status, job.reason = "Failed", "InternalServerError"
    system.world.passes(30 * 3600)
    system.world.deliver("reconcile", {})
    system.settle()


STORIES: Final[tuple[Story, ...]] = (
    direct,
    leavings,
    already_ready,
    again,
    adopted,
    adopted_for_ever,
    no_capacity,
    quota,
    training_fails,
    stopped,
    cancelled_in_queue,
    queued,
    batch,
    batch_with_a_ready_user,
    batch_incomplete,
    batch_half_done,
    batch_cancelled,
    batch_with_bad_photos,
    batch_no_capacity,
    batch_adopted,
    registered,
    announced,
    onboarded_after_register,
    never_submitted,
    enqueued_late,
    onboarded_late,
    start_lost,
    event_lost,
    bad_row,
    untouched,
    lease_left,
    throttled_start,
    unannounced,
    turn_taken,
    busy,
    adopted_fails,
    batch_quota,
    batch_dies,
    batch_dies_early,
    job_over,
    cancelled_while_it_is_started,
    rolled_back,
)
