"""Whatever stands still is moved on or ended: once, by whoever may, and the app is told."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lambdas.reconcile import logic
from lambdas.reconcile.logic import Action, Facts, Run
from limner.contracts import keys
from limner.contracts.onboarding import OnboardingFailed, OnboardingReady
from tests.support.dispatching import (
    MACHINES,
    START_MS,
    World,
    iso,
    moment,
    new_world,
    quick_world,
    refusal,
)
from workflows import retries

HOUR_S = 3600


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(keys, "SHARDS", 1)
    with new_world() as made:
        yield made


def code(world: World, request_id: str = "r1") -> str:
    row = world.row(request_id)
    assert not {"open", "queue", "unannounced"} & set(row), row
    found: str = row["error"]["code"]
    return found


def told(world: World) -> list[str]:
    return [OnboardingFailed.model_validate(body).code for body in world.published]


# -- The numbers ----------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_machines() -> None:
    assert retries.MAX_ATTEMPTS == logic.MAX_ATTEMPTS
    assert logic.OWNED_S > retries.MACHINE_TIMEOUT_S
    assert retries.SERVICE.longest_wait_s() + 3600 < logic.JOB_GRACE_S


# -- Before anybody owns it -----------------------------------------------------------------------


def test_photos_that_never_came(world: World) -> None:
    world.request("r1", status="REGISTERED", queue=None, queued_at=None)
    world.time.pass_s(20 * HOUR_S)
    assert world.reconcile().stuck == 0
    world.time.pass_s(5 * HOUR_S)
    tally = world.reconcile()
    assert (tally.stuck, tally.repaired) == (1, 1)
    assert (world.row("r1")["status"], code(world)) == ("FAILED", "UPLOAD_EXPIRED")
    assert told(world) == ["UPLOAD_EXPIRED"]
    assert world.reconcile().seen == 0


def test_a_request_in_no_queue_is_put_into_it(world: World) -> None:
    world.request("r1", queue=None, queued_at=None)
    assert world.reconcile().seen == 0, "it has time to be started by whoever made it"
    world.time.pass_s(1000)
    assert world.reconcile().repaired == 1
    row = world.row("r1")
    assert (row["queue"], row["attempt"], row["queued_at"]) == ("0", 1, iso(world.time.now_ms))
    world.dispatch()
    assert world.states.starts == ["r1-1"]


@pytest.mark.parametrize(
    ("status", "attempt", "queued"), [("RUNNING", 1, False), ("FAILED", 2, True)]
)
def test_a_request_whose_own_execution_is_there(
    world: World, status: str, attempt: int, queued: bool
) -> None:
    world.request("r1", queue=None)
    world.end_execution("r1-1", status)
    world.time.pass_s(1000)
    world.reconcile()
    row = world.row("r1")
    assert (row["attempt"], "queue" in row) == (attempt, queued)


def test_a_lease_that_is_over_is_cleared_and_a_newer_one_is_not(world: World) -> None:
    past = iso(world.time.now_ms - 1)
    world.request("r1", lease_until=past, lease_by="dead", lease_fence=3)
    world.request("r2", lease_until=iso(world.time.now_ms + 10**8), lease_by="alive")
    world.time.pass_s(1000)
    assert world.reconcile().stuck == 0
    assert "lease_until" not in world.row("r1")
    assert world.row("r1")["lease_fence"] == 3, "the fence only grows"
    assert "lease_until" in world.row("r2")


def test_what_waits_for_a_week_is_told_so(world: World) -> None:
    world.request("r1")
    world.time.pass_s(logic.QUEUE_S + 1)
    world.reconcile()
    assert code(world) == "DEADLINE_EXCEEDED"


# -- Its execution is over ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words", "ended", "reason"),
    [
        ("FAILED", {"error": "MODEL_BUSY", "cause": "Busy."}, "FAILED", "MODEL_BUSY"),
        ("FAILED", {"error": "States.Runtime", "cause": "$.x"}, "FAILED", "INTERNAL"),
        ("TIMED_OUT", {}, "FAILED", "DEADLINE_EXCEEDED"),
        ("ABORTED", {}, "CANCELLED", "EXECUTION_STOPPED"),
        ("SUCCEEDED", {}, "FAILED", "INTERNAL"),
        (None, {}, "FAILED", "DEADLINE_EXCEEDED"),
    ],
)
def test_a_single_request_ends_as_its_execution_did(
    world: World, status: str | None, words: dict[str, str], ended: str, reason: str
) -> None:
    world.request("r1")
    world.claim("r1", "r1-1")
    if status:
        world.end_execution("r1-1", status, **words)
    world.time.pass_s(1000)
    assert world.reconcile().repaired == 1
    assert (world.row("r1")["status"], code(world)) == (ended, reason)
    assert "active_request" not in (world.model("user-r1") or {})
    assert told(world) == [reason]
    world.reconcile()
    assert told(world) == [reason]


def test_an_execution_at_work_is_left_alone(world: World) -> None:
    world.request("r1")
    world.claim("r1", "r1-1")
    world.end_execution("r1-1", "RUNNING")
    world.time.pass_s(5 * HOUR_S)
    before = world.row("r1")
    assert world.reconcile().stuck == 0
    assert world.row("r1") == before


def test_a_batch_that_is_over_gives_its_requests_back(world: World) -> None:
    for name in ("r1", "r2"):
        world.request(name)
        world.claim(name, "b1", batch=True)
    world.put("models", {"user_id": "user-r2", "model_row": "default", "active_request": "other"})
    world.end_execution("b1", "FAILED", batch=True)
    world.time.pass_s(1000)
    assert world.reconcile().repaired == 2
    for name in ("r1", "r2"):
        row = world.row(name)
        assert (row["status"], row["attempt"], row["queue"]) == ("QUEUED", 2, "0")
        assert "owner" not in row
    assert "active_request" not in (world.model("user-r1") or {})
    assert (world.model("user-r2") or {})["active_request"] == "other"
    assert told(world) == []
    world.dispatch()
    assert sorted(world.states.starts) == ["r1-2", "r2-2"]


def test_three_batches_are_enough(world: World) -> None:
    world.request("r1", attempt=3)
    world.claim("r1", "b1", batch=True)
    world.end_execution("b1", "FAILED", batch=True)
    world.time.pass_s(1000)
    world.reconcile()
    assert code(world) == "JOB_INCOMPLETE"
    assert told(world) == ["JOB_INCOMPLETE"]


def test_a_trained_request_of_a_dead_batch_is_told_what_happened(world: World) -> None:
    world.request("r1")
    owner = world.claim("r1", "b1", batch=True)
    world.request("r1", status="TRAINED", owner=owner, version=1, queue=None)
    world.put(
        "models",
        {"user_id": "user-r1", "model_row": "default#v1", "status": "TRAINED", "request_id": "r1"},
    )
    world.end_execution("b1", "FAILED", batch=True, error="AWS_ERROR", cause="S3 was away.")
    world.time.pass_s(1000)
    world.reconcile()
    assert code(world) == "AWS_ERROR"
    assert (world.model("user-r1", "default#v1") or {})["status"] == "FAILED"


@pytest.mark.parametrize("status", ["TRAINING", "WAITING_FOR_CAPACITY"])
def test_a_cancelled_request_of_a_dead_batch_does_not_come_back(world: World, status: str) -> None:
    world.request("r1")
    owner = world.claim("r1", "b1", batch=True)
    world.request("r1", status=status, owner=owner, cancel_requested=True, queue=None)
    world.end_execution("b1", "FAILED", batch=True)
    tally = world.new_sweep().execution_ended(ended_event("b1", ["r1"]))
    assert tally.repaired == 1
    assert (world.row("r1")["status"], code(world)) == ("CANCELLED", "EXECUTION_STOPPED")
    assert "active_request" not in (world.model("user-r1") or {})
    assert told(world) == ["EXECUTION_STOPPED"]


@pytest.mark.parametrize("queue", ["0", None])
def test_a_cancelled_request_in_the_queue_is_not_started(world: World, queue: str | None) -> None:
    world.request("r1", cancel_requested=True, queue=queue)
    world.dispatch()
    assert world.states.starts == []
    world.time.pass_s(1000)
    assert world.reconcile().repaired == 1
    assert (world.row("r1")["status"], code(world)) == ("CANCELLED", "EXECUTION_STOPPED")
    assert told(world) == ["EXECUTION_STOPPED"]


def test_a_wish_to_cancel_that_comes_while_a_request_goes_back_wins(world: World) -> None:
    world.request("r1")
    world.claim("r1", "b1", batch=True)
    record = world.row("r1")
    world.put("requests", {**record, "cancel_requested": True})
    assert not world.new_sweep()._repairs.requeue(record)
    assert world.row("r1")["status"] == "TRAINING", "the next run ends it"


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("heard", [False, True])
def test_ready_is_told_if_its_execution_could_not(world: World, batch: bool, heard: bool) -> None:
    world.request("r1")
    name = "b1" if batch else "r1-1"
    owner = world.claim("r1", name, batch=batch)
    ready = {"status": "READY", "owner": owner, "version": 3, "queue": None, "unannounced": True}
    world.request("r1", **ready)
    world.end_execution(name, "FAILED", batch=batch)
    if heard:
        world.new_sweep().execution_ended(ended_event(name, ["r1"], batch=batch))
    else:
        world.time.pass_s(1000)
        assert world.reconcile().stuck == 0
    (body,) = world.published
    assert body == OnboardingReady.model_validate(body).model_dump()
    assert (body["version"], body["target_model"]) == (3, "user-r1/default/v3.tar.gz")
    assert not {"open", "unannounced"} & set(world.row("r1"))
    world.time.pass_s(1000)
    world.reconcile()
    assert len(world.published) == 1


def ended_event(name: str, requests: list[str], *, batch: bool = True) -> dict[str, Any]:
    told = [{"request_id": request} for request in requests]
    return {
        "executionArn": MACHINES.execution(name, batch=batch),
        "status": "ABORTED",
        "input": json.dumps({"batch_id": name, "requests": told} if batch else told[0]),
    }


def test_the_end_of_a_batch_is_answered_at_once(world: World) -> None:
    world.request("r1")
    world.claim("r1", "b1", batch=True)
    world.request("r2")  # its claim never came
    world.request("r3")
    world.claim("r3", "r3-1")  # somebody else's by now
    world.sagemaker.jobs["limner-r1-1"] = {"TrainingJobStatus": "InProgress"}
    before = world.row("r2"), world.row("r3")
    event = ended_event("b1", ["r1", "r2", "r3", "gone", "NO ID", ""])
    tally = world.new_sweep().execution_ended(event)
    assert (tally.repaired, tally.jobs_stopped) == (1, 1)
    assert world.row("r1")["status"] == "QUEUED"
    assert (world.row("r2"), world.row("r3")) == before
    again = world.new_sweep().execution_ended(event)
    assert again.repaired == 0


@pytest.mark.parametrize("document", [None, "", "[]", "{", '{"requests": 3}', '{"requests": [1]}'])
def test_an_event_without_requests(world: World, document: str | None) -> None:
    event = {**ended_event("b1", []), "input": document}
    assert world.new_sweep().execution_ended(event).seen == 0


# -- Jobs -----------------------------------------------------------------------------------------


def test_a_job_that_outlived_its_execution_is_stopped(world: World) -> None:
    world.request("r1")
    world.claim("r1", "r1-1")
    world.end_execution("r1-1", "ABORTED")
    job = world.sagemaker.jobs["limner-r1-1"] = {"TrainingJobStatus": "InProgress"}
    world.time.pass_s(1000)
    assert world.reconcile().jobs_stopped == 1
    assert job["TrainingJobStatus"] == "Stopping"


def test_jobs_that_a_batch_could_not_stop_are_stopped(world: World) -> None:
    world.request("r1", attempt=2)  # back in the queue, or another's: the batch has let go
    jobs = {1: "Failed", 2: "InProgress", 4: "InProgress"}
    for attempt, status in jobs.items():
        world.sagemaker.jobs[f"limner-batch-b1-{attempt}"] = {"TrainingJobStatus": status}
    tally = world.new_sweep().execution_ended(ended_event("b1", ["r1"]))
    assert tally.jobs_stopped == 1, "the fourth is none of its jobs: there was no third"
    assert world.sagemaker.jobs["limner-batch-b1-2"]["TrainingJobStatus"] == "Stopping"
    assert logic.MOST_JOBS == retries.MOST_INSTANCE_TYPES


def test_also_when_record_failure_was_faster(world: World) -> None:
    world.request("r1")
    owner = world.claim("r1", "r1-1")
    world.request("r1", status="CANCELLED", owner=owner, job_name="limner-r1-1", queue=None)
    world.sagemaker.jobs["limner-r1-1"] = {"TrainingJobStatus": "InProgress"}
    tally = world.new_sweep().execution_ended(ended_event("r1-1", ["r1"], batch=False))
    assert (tally.jobs_stopped, tally.repaired) == (1, 0)


def test_a_job_that_is_not_ours_is_never_touched(world: World) -> None:
    world.request("r1")
    owner = world.claim("r1", "r1-1")
    world.request("r1", status="TRAINING", owner=owner, job_name="payroll-1", queue=None)
    world.end_execution("r1-1", "ABORTED")
    world.sagemaker.jobs["payroll-1"] = {"TrainingJobStatus": "InProgress"}
    world.time.pass_s(1000)
    assert world.reconcile().jobs_stopped == 0
    assert world.sagemaker.jobs["payroll-1"]["TrainingJobStatus"] == "InProgress"


@pytest.mark.parametrize(
    ("job", "stopped"),
    [
        (None, True),
        ({"TrainingJobStatus": "InProgress"}, False),
        ({"TrainingJobStatus": "Completed", "TrainingEndTime": moment(START_MS)}, True),
        (
            {"TrainingJobStatus": "Failed", "LastModifiedTime": moment(START_MS + 8 * 3_600_000)},
            False,
        ),
    ],
)
def test_an_execution_that_waits_for_no_job(
    world: World, job: dict[str, Any] | None, stopped: bool
) -> None:
    world.request("r1")
    world.claim("r1", "r1-1")
    world.end_execution("r1-1", "RUNNING")
    if job:
        world.sagemaker.jobs["limner-r1-1"] = job
    world.time.pass_s(5 * HOUR_S)
    world.reconcile()
    assert world.running() == ["r1-1"]
    world.time.pass_s(4 * HOUR_S)
    world.reconcile()
    assert world.running() == ([] if stopped else ["r1-1"])
    if stopped:
        world.reconcile()  # or the rule, which does the same
        assert world.row("r1")["status"] == "CANCELLED"


def test_nothing_is_owned_for_ever() -> None:
    record = {
        "status": "WAITING_FOR_CAPACITY",
        "owner": "x",
        "updated_at": iso(START_MS),
        "request_id": "r1",
    }
    late = START_MS + (logic.OWNED_S + 1) * 1000
    assert logic.judge(record, Facts(Run.RUNNING), late) is Action.STOP
    del record["owner"]
    assert logic.judge(record, Facts(), late) is Action.OVERDUE


# -- The gate -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "after_s", "kept"),
    [
        ("RUNNING", 1000, True),
        ("RUNNING", 11 * 24 * HOUR_S, False),
        ("SUCCEEDED", 0, False),
        ("FAILED", 0, False),
        (None, 10, True),  # about to start
        (None, 1000, False),
    ],
)
def test_a_place_of_the_gate(world: World, status: str | None, after_s: int, kept: bool) -> None:
    world.request("r1")
    world.dispatch()
    arn = MACHINES.execution("r1-1", batch=False)
    if status:
        world.states.executions[arn]["status"] = status
    else:
        del world.states.executions[arn]
    world.time.pass_s(after_s)
    tally = world.reconcile()
    assert set(world.holders) == ({"r1-1"} if kept else set())
    assert tally.places_freed == (not kept)


def test_a_place_that_aws_refuses_to_look_at_keeps_nobody_from_repair(world: World) -> None:
    for name in ("r1", "r2"):
        world.request(name)
    world.dispatch()
    world.request("r3", queue=None)
    world.end_execution("r1-1", "SUCCEEDED")
    world.end_execution("r2-1", "SUCCEEDED")
    world.time.pass_s(1000)
    describe = world.states.describe_execution

    def refuse(*, executionArn: str) -> Any:  # noqa: N803
        if executionArn.endswith("r1-1"):
            raise refusal("AccessDeniedException", "DescribeExecution")
        return describe(executionArn=executionArn)

    world.states.describe_execution = refuse  # type: ignore[method-assign]
    tally = world.reconcile()
    assert (tally.failures, tally.places_freed) == (1, 1)
    assert set(world.holders) == {"r1-1"}
    assert "queue" in world.row("r3")


# -- Runs -----------------------------------------------------------------------------------------


def test_a_run_goes_on_where_the_last_one_has_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lambdas.reconcile.sweep.ROWS_PER_SHARD", 4)
    for number in range(10):
        world.request(f"r{number}", updated_at=iso(START_MS + number))
        # At work for hours, always the oldest, and nothing to be done about them.
        world.claim(f"r{number}", f"r{number}-1")
        world.end_execution(f"r{number}-1", "RUNNING")
        world.time.pass_s(1)
    world.end_execution("r9-1", "ABORTED")
    world.time.pass_s(1000)
    assert [world.reconcile().seen for _ in range(3)] == [4, 4, 2]
    assert world.row("r9")["status"] == "CANCELLED"
    assert world.reconcile().seen == 4


def test_a_short_life_is_no_loss(world: World) -> None:
    for number in range(3):
        world.request(f"r{number}", queue=None, updated_at=iso(START_MS + number))
    world.time.pass_s(1000)
    sweep = world.new_sweep()
    one = world.calls.one

    def slow(name: str) -> Any:
        world.time.pass_s(20)
        return one(name)

    world.calls.one = slow  # type: ignore[method-assign]
    sweep.run()
    world.calls.one = one  # type: ignore[method-assign]
    assert "queue" not in world.row("r2")
    world.reconcile()
    world.reconcile()
    assert all("queue" in world.row(f"r{number}") for number in range(3))


def test_a_spoiled_row_does_not_keep_the_others_from_repair(world: World) -> None:
    world.request("bad", status="NO_SUCH_STATUS", updated_at=iso(START_MS - 5))
    world.request("r1", queue=None)
    world.time.pass_s(1000)
    tally = world.reconcile()
    assert (tally.failures, tally.repaired) == (1, 1)


def test_aws_being_away_ends_the_run(world: World) -> None:
    for number in range(8):
        world.request(f"r{number}", queue=None)
    world.time.pass_s(1000)

    def away(**_: Any) -> Any:
        raise refusal("InternalFailure", "DescribeExecution", 500)

    world.states.describe_execution = away  # type: ignore[method-assign]
    with pytest.raises(ClientError):
        world.reconcile()


def test_two_runs_at_once_announce_once(world: World) -> None:
    """The second one begins while the first is between ending and announcing."""
    world.request("r1", status="REGISTERED", queue=None)
    world.time.pass_s(30 * HOUR_S)
    publish, other = world._publish, []

    def interrupted(body: Any) -> None:
        if not other:
            other.append(world.new_sweep())
            other[0].run()
        publish(body)

    world._publish = interrupted  # type: ignore[method-assign]
    world.reconcile()
    assert told(world) == ["UPLOAD_EXPIRED"]


# -- Every death ----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_reconcile_may_die_at_every_call(after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: whatever call it dies at, two more runs end all, and everybody is told."""
    monkeypatch.setattr(keys, "SHARDS", 1)
    cut = 0
    while True:
        cut += 1
        world = quick_world()
        world.request("r1")
        world.claim("r1", "r1-1")
        world.end_execution("r1-1", "ABORTED")
        world.sagemaker.jobs["limner-r1-1"] = {"TrainingJobStatus": "InProgress"}
        world.request("r2")
        world.claim("r2", "b1", batch=True)
        world.end_execution("b1", "FAILED", batch=True)
        world.request("r3", queue=None)
        world.request("r4", "user-r4")
        world.dispatch()
        world.end_execution("r4-1", "SUCCEEDED")
        world.time.pass_s(1000)
        world.calls.count, world.calls.die_at, world.calls.after = 0, cut, after
        world.survive(world.reconcile)
        over, world.calls.die_at = world.calls.count < cut, None
        for _ in range(2):
            world.time.pass_s(300)
            world.reconcile()
        assert code(world) == "EXECUTION_STOPPED", f"cut {cut}"
        assert "active_request" not in (world.model("user-r1") or {})
        assert set(told(world)) == {"EXECUTION_STOPPED"}, f"cut {cut}"
        assert len(world.published) <= 2, "at least once, and hardly ever twice"
        assert (world.row("r2")["status"], world.row("r2")["attempt"]) == ("QUEUED", 2)
        assert "queue" in world.row("r3")
        assert world.sagemaker.jobs["limner-r1-1"]["TrainingJobStatus"] == "Stopping"
        assert world.holders == {}
        assert not world.row("#reconcile").get("owed")
        if over:
            break
    print(  # noqa: T201
        f"\n{cut - 1} deaths of reconcile {'after' if after else 'before'} a call's effect:"
        " all ended within two more runs"
    )
    assert cut > 20
