"""Workers: how many there are, what is left to them, and how what they have trained goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lambdas.dispatch.gate import Gate, Limits, Refusal, admit, release, withdraw
from lambdas.dispatch.logic import Launch, read_candidate, read_event
from lambdas.dispatch.workers import PERIOD_S
from limner.contracts import writes
from tests.support.dispatching import MACHINES, World, iso, new_world, refusal

JOB = "limner-batch-w0-17-1"


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        made.with_rules(workers=2, worker_backlog=4, worker_patience_s=600, batch_from=2)
        yield made


# -- How many ------------------------------------------------------------------------------------


def test_workers_come_with_the_queue_up_to_their_number(world: World) -> None:
    assert world.keep_workers(0) == []
    assert [name.partition("-")[0] for name in world.keep_workers(1)] == ["w0"]
    assert [name.partition("-")[0] for name in world.keep_workers(4)] == ["w0"]
    assert [name.partition("-")[0] for name in world.keep_workers(5)] == ["w0", "w1"]
    assert len(world.keep_workers(500)) == 2


def test_a_worker_that_fails_at_once_is_not_started_in_a_loop(world: World) -> None:
    (name,) = world.keep_workers(1)
    arn = f"{MACHINES.worker_arn.replace('stateMachine', 'execution')}:{name}"
    world.states.executions[arn]["status"] = "FAILED"
    for _ in range(10):
        assert len(world.keep_workers(1)) == 1, "nor in another slot: the image may be bad"
    world.time.pass_s(PERIOD_S)
    assert len(world.keep_workers(1)) == 2
    assert len(world.keep_workers(100)) == 3
    for execution in world.states.executions.values():
        execution["status"] = "FAILED"
    for _ in range(10):
        assert len(world.keep_workers(100)) == 3


def test_a_stage_without_workers_asks_nobody(world: World) -> None:
    world.with_rules(workers=0)
    assert world.keep_workers(100) == []
    assert world.calls.names == []


def test_throttled_starts_are_left_to_the_next_round(world: World) -> None:
    world.states.refuse = [refusal("ThrottlingException", "StartExecution")] * 5
    assert world.keep_workers(100) == []
    assert len(world.keep_workers(100)) == 2


def test_a_throttled_look_at_workers_spoils_no_round(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise refusal("ThrottlingException", "ListExecutions")

    with monkeypatch.context() as patched:
        patched.setattr(world.states, "list_executions", refuse)
        assert world.keep_workers(1) == []
    assert len(world.keep_workers(1)) == 1


# -- What is left to them ------------------------------------------------------------------------


def test_new_requests_wait_for_a_worker_and_then_for_nobody(world: World) -> None:
    for name in ("r1", "r2", "r3"):
        world.request(name)
    tally = world.dispatch()
    assert (tally.executions, tally.for_workers) == (0, 3)
    world.time.pass_s(600)
    tally = world.dispatch()
    assert (tally.launched, tally.for_workers) == (3, 0)


def test_a_flood_of_one_user_is_one_user(world: World) -> None:
    """A worker takes one request of a user at a time: more workers would do nothing for him."""
    for number in range(20):
        world.request(f"r{number}", user_id="flood")
    assert world.dispatch().for_workers == 1
    world.request("r20", user_id="flood", lease_until=iso(world.time.now_ms + 60_000))
    assert world.dispatch().for_workers == 0


def test_whoever_has_one_with_a_worker_has_one_at_work(world: World) -> None:
    """His next request gets no job beside it, though nobody has taken it for long."""
    world.request("r1", user_id="Ann", lease_until=iso(world.time.now_ms + 900_000))
    world.request("r2", user_id="Ann")
    world.time.pass_s(700)
    assert world.dispatch().launched == 0
    world.time.pass_s(300)
    assert world.dispatch().launched == 1, "the lease is over"


@pytest.mark.parametrize(
    "changes", [{"attempt": 2}, {"worker_tries": writes.WORKER_TRIES}], ids=["attempt", "tries"]
)
def test_what_is_no_longer_theirs_gets_a_job_at_once(world: World, changes: dict[str, int]) -> None:
    world.request("r1", **changes)
    assert world.dispatch().launched == 1


def test_what_a_worker_has_is_left_alone(world: World) -> None:
    world.request("r1", lease_until=iso(world.time.now_ms + 700_000), lease_by="worker")
    world.time.pass_s(650)
    tally = world.dispatch()
    assert (tally.launched, tally.for_workers) == (0, 0)
    world.time.pass_s(60)
    assert world.dispatch().launched == 1


# -- What they have trained ----------------------------------------------------------------------


def test_what_was_trained_is_published_without_a_machine_or_a_turn(world: World) -> None:
    world.with_limits(max_instances=1, burst=1, daily_launches=1)
    world.request("busy", attempt=2)  # takes the one instance, the one turn and the day's launch
    assert world.dispatch().launched == 1
    for name in ("r1", "r2"):
        world.request(name, trained_by=JOB)
    world.request("r3", trained_by="limner-batch-w1-17-1")
    tally = world.dispatch()
    assert (tally.executions, tally.launched) == (2, 3), "one for each shelf"
    batch, other = (
        json.loads(execution["input"])
        for arn, execution in world.states.executions.items()
        if arn.startswith(MACHINES.execution("", batch=True))
    )
    assert [request["request_id"] for request in batch["requests"]] == ["r1", "r2"]
    assert (batch["earlier_job"], batch["instances"]) == (JOB, 1)
    assert other["earlier_job"] == "limner-batch-w1-17-1"
    assert world.row("#gate")["launched"] == 1


def test_a_dispatcher_that_dies_before_the_start_is_made_up_for(world: World) -> None:
    world.request("r1", trained_by=JOB)
    for die_at in range(1, 30):
        world.calls.count, world.calls.die_at = 0, die_at
        world.survive(world.dispatch)
    world.calls.die_at = None
    world.time.pass_s(200)
    world.dispatch()
    (execution,) = world.states.executions.values()
    assert json.loads(execution["input"])["earlier_job"] == JOB


def test_a_name_that_is_no_workers_is_no_shelf(world: World) -> None:
    world.request("r1", trained_by="limner-r1-1")
    (candidate,) = [read_candidate(world.row("r1"))]
    assert (candidate.is_trained, candidate.earlier_job) == (False, "")


def test_later_attempts_look_on_the_shelf_of_the_job_that_left_them(world: World) -> None:
    world.request("r1", attempt=2, trained_by=JOB, job_name="limner-batch-b1-1")
    candidate = read_candidate(world.row("r1"))
    assert (candidate.is_trained, candidate.earlier_job) == (False, "limner-batch-b1-1")


def test_a_place_without_a_machine_is_given_back_without_a_launch() -> None:
    limits = Limits(1, 1, 1, daily_launches=1, user_active=1)
    candidate = read_candidate(
        {
            "request_id": "r1",
            "user_id": "u",
            "model_id": "default",
            "queued_at": iso(0),
            "trained_by": JOB,
        }
    )
    launch = Launch.of([candidate], batch=True, instances=0)
    full = Gate(tat_ms=10**15, day="1970-01-01", launched=1)
    inside = admit(full, launch.name, launch.holder(0), limits, 0)
    assert isinstance(inside, Gate)
    assert (inside.launched, inside.tat_ms, inside.instances) == (1, 10**15, 0)
    assert withdraw(inside, launch.name) == release(inside, launch.name) == full
    again = admit(inside, "other", launch.holder(0), limits, 0)
    assert isinstance(again, Refusal), "one user, one request at work"


# -- The stream ----------------------------------------------------------------------------------


def test_a_workers_word_wakes_dispatch_and_is_no_arrival() -> None:
    row = {
        "request_id": {"S": "r1"},
        "user_id": {"S": "u"},
        "model_id": {"S": "default"},
        "queue": {"S": "3"},
        "queued_at": {"S": iso(0)},
        "worker_tries": {"N": "1"},
    }
    keys = {"request_id": {"S": "r1"}}
    trained = {**row, "trained_by": {"S": JOB}}

    def event(old: dict[str, object], new: dict[str, object]) -> dict[str, object]:
        return {"Records": [{"dynamodb": {"Keys": keys, "OldImage": old, "NewImage": new}}]}

    told = read_event(event(row, trained))
    assert (told.fresh, told.look, told.poison) == (0, True, ())
    assert not read_event(event(trained, trained)).look
    assert not read_event(event(row, {**row, "lease_until": {"S": iso(1)}})).look


# -- Their end -----------------------------------------------------------------------------------


def test_a_job_that_outlives_its_worker_s_execution_is_stopped(world: World) -> None:
    (name,) = world.keep_workers(1)
    job = f"limner-batch-{name}-1"
    world.sagemaker.jobs[job] = {"TrainingJobName": job, "TrainingJobStatus": "InProgress"}
    arn = f"{MACHINES.worker_arn.replace('stateMachine', 'execution')}:{name}"
    execution = world.states.executions[arn] | {"status": "ABORTED"}
    world.new_sweep().execution_ended(execution)
    assert world.sagemaker.jobs[job]["TrainingJobStatus"] == "Stopping"
