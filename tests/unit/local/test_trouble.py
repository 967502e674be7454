"""Trouble: faults are counted, buckets fill, plans replace each other."""

from __future__ import annotations

import pytest

from limner.local.errors import ServiceError
from limner.local.trouble import Fault, FaultKind, Plan, Trouble

CREATE = "sagemaker:CreateTrainingJob"


def calls(trouble: Trouble, operation: str, count: int, request: str = "{}") -> list[str]:
    outcome = []
    for _ in range(count):
        try:
            outcome.append(trouble.call(operation, request, lambda: "ok"))
        except ServiceError as error:
            outcome.append(error.code)
    return outcome


def test_a_good_day_lets_everything_pass() -> None:
    assert calls(Trouble(), CREATE, 3) == ["ok"] * 3


def test_a_fault_strikes_as_often_as_it_says_after_what_it_skips() -> None:
    trouble = Trouble()
    trouble.set(Plan(faults=(Fault("dynamodb:UpdateItem", times=2, code="X", skip=1),)))
    assert calls(trouble, "dynamodb:updateItem", 5) == ["ok", "X", "X", "ok", "ok"]


def test_a_fault_for_ever() -> None:
    trouble = Trouble()
    trouble.set(Plan(faults=(Fault(CREATE, times=None, code="X"),)))
    assert calls(trouble, CREATE, 4) == ["X"] * 4
    assert trouble.left() == {CREATE: None}


def test_what_is_left_of_faults_on_one_operation_is_added_up() -> None:
    trouble = Trouble()
    trouble.set(Plan(faults=(Fault(CREATE, times=2), Fault(CREATE, times=1), Fault("sns:Publish"))))
    assert trouble.left() == {CREATE: 3, "sns:Publish": 1}
    trouble.set(Plan(faults=(Fault(CREATE, times=None), Fault(CREATE))))
    assert trouble.left() == {CREATE: None}


def test_a_fault_aims_at_requests() -> None:
    trouble = Trouble()
    trouble.set(Plan(faults=(Fault("sns:Publish", code="X", matching="alice"),)))
    assert calls(trouble, "sns:publish", 1, '{"u": "bob"}') == ["ok"]
    assert calls(trouble, "sns:publish", 1, '{"u": "alice"}') == ["X"]


def test_a_lost_reply_executes_the_call() -> None:
    trouble, done = Trouble(), []
    trouble.set(Plan(faults=(Fault(CREATE, FaultKind.LOST_REPLY),)))
    with pytest.raises(ServiceError) as error:
        trouble.call(CREATE, "{}", lambda: done.append(1))
    assert done == [1]
    assert error.value.status == 500


def test_an_error_does_not_execute_the_call() -> None:
    trouble, done = Trouble(), []
    trouble.set(Plan(faults=(Fault(CREATE),)))
    with pytest.raises(ServiceError):
        trouble.call(CREATE, "{}", lambda: done.append(1))
    assert not done


def test_the_bucket_holds_a_burst_and_fills_with_time() -> None:
    now = [0.0]
    trouble = Trouble(now=lambda: now[0])
    trouble.set(Plan(rate_per_s=1.0, burst=2))
    assert calls(trouble, CREATE, 3) == ["ok", "ok", "ThrottlingException"]
    now[0] = 1.0
    assert calls(trouble, CREATE, 2) == ["ok", "ThrottlingException"]
    now[0] = 100.0
    assert calls(trouble, CREATE, 3) == ["ok", "ok", "ThrottlingException"]
    assert calls(trouble, "sagemaker:DescribeTrainingJob", 9) == ["ok"] * 9


@pytest.mark.parametrize(("ordered", "struck"), [(0, 0), (2, 2), (-1, 5)])
def test_capacity_failures(ordered: int, struck: int) -> None:
    trouble = Trouble()
    trouble.set(Plan(capacity_failures=ordered))
    assert sum(trouble.no_capacity() for _ in range(5)) == struck


@pytest.mark.parametrize(("ordered", "struck"), [(0, 0), (2, 2), (-1, 5)])
def test_spot_interruptions(ordered: int, struck: int) -> None:
    trouble = Trouble()
    trouble.set(Plan(spot_interruptions=ordered))
    assert sum(trouble.interrupts_spot() for _ in range(5)) == struck


def test_a_new_plan_forgets_the_old_one() -> None:
    trouble = Trouble()
    trouble.set(Plan(faults=(Fault(CREATE, times=None),), instance_quota=0))
    trouble.set(Plan())
    assert calls(trouble, CREATE, 1) == ["ok"]
    assert trouble.instance_quota is None


@pytest.mark.parametrize(
    "body",
    [
        {"unknown": 1},
        {"faults": [{"operation": "a:B", "kind": "no-such-kind"}]},
        {"faults": [{"operation": "a:B"}]},
        {"faults": "text"},
    ],
)
def test_plans_that_are_none(body: dict[str, object]) -> None:
    with pytest.raises(ServiceError, match="Trouble"):
        Plan.from_json(body)
