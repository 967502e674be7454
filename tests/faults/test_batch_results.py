"""What a batch's job has finished is never trained again, whatever becomes of the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from lambdas.shared.dynamo import to_plain
from tests.support.faults.machine import Call, Fault
from tests.support.faults.stories import (
    Summary,
    System,
    batch,
    batch_cancelled,
    batch_dies,
    batch_half_done,
    cancelled_while_it_is_started,
    paid_jobs,
    unsound,
)
from workflows import retries

OUTAGE = "Lambda.ServiceException"


def statuses(system: System) -> Counter[str]:
    return Counter(status for status, _ in Summary.of(system.world).requests.values())


def tasks_of(system: System) -> Counter[str]:
    """How often each request was a task of a job."""
    files = [body for key, body in system.world.objects.items() if key.endswith("tasks.jsonl")]
    return Counter(
        line.partition('"request_id": "')[2].partition('"')[0]
        for body in files
        for line in body.decode().splitlines()
    )


def test_an_outage_of_lambda_after_the_job_costs_nobody_a_second_job() -> None:
    def decide(call: Call) -> Fault | None:
        return Fault(OUTAGE) if call.state == "CollectResults" and call.attempt < 9 else None

    system = System(decide=decide)
    batch(system)
    assert statuses(system) == {"READY": 6}
    assert len(paid_jobs(system.world)) == 1
    assert unsound(system.world) == []


def test_results_that_nobody_could_collect_are_taken_by_the_next_executions() -> None:
    """The outage outlasts all patience: the batch dies, and its artifacts are found later."""
    struck: list[str] = []

    def decide(call: Call) -> Fault | None:
        if call.state != "CollectResults" or struck[:1] not in ([], [call.execution.arn]):
            return None
        struck.append(call.execution.arn)
        return Fault(OUTAGE)

    system = System(decide=decide)
    batch(system)
    system.settle(rounds=4)
    assert len(struck) == 1 + retries.COLLECT.attempts
    first = system.world.executions[struck[0]]
    assert (first.status, first.visits[-1]) == ("FAILED", "ResultsNotCollected")
    assert statuses(system) == {"READY": 6}
    assert len(paid_jobs(system.world)) == 1, "each went on alone, and was trained already"
    assert unsound(system.world) == []


def test_a_new_attempt_trains_what_is_left(figure: Callable[[str], None]) -> None:
    system = System()
    batch_half_done(system)
    assert statuses(system) == {"READY": 6}
    trained = tasks_of(system)
    assert sorted(trained.values()) == [1, 1, 2, 2, 2, 2]
    packed = [e for e in system.world.executions.values() if "FineTuneBatch" in e.visits]
    assert len(packed) == 1
    assert unsound(system.world) == []
    figure("P1 (batch): of a job lost half-way, 2 of 6 tasks were done, and none of them again")


@pytest.mark.parametrize("story", [batch_cancelled, batch_dies])
def test_a_cancelled_request_is_not_trained_again(story: Callable[[System], None]) -> None:
    system = System()
    story(system)
    assert statuses(system) == {"READY": 5, "CANCELLED": 1}
    (cancelled,) = (
        name
        for name, (status, _) in Summary.of(system.world).requests.items()
        if status == "CANCELLED"
    )
    assert tasks_of(system)[cancelled] == 1
    row = system.world.memory.tables["requests"][cancelled,]
    assert to_plain(row["attempt"]) == 1
    assert unsound(system.world) == []


def test_a_request_that_is_cancelled_before_its_claim_buys_nothing() -> None:
    system = System()
    cancelled_while_it_is_started(system)
    assert statuses(system) == {"CANCELLED": 1}
    assert system.world.jobs == {}
