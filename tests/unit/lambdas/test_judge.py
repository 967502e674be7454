"""Which failures end which requests."""

import json
from typing import Any

import pytest

from lambdas.record_failure.logic import Ending, Verdict, failed_body, judge, read_ending
from limner.contracts.onboarding import OnboardingFailed
from limner.contracts.statuses import RequestStatus

ME, OTHER = "arn:execution:me", "arn:execution:other"


def by_state(**failure: str) -> dict[str, Any]:
    return {"request_id": "r1", "owner": ME, "failure": failure}


def by_rule(status: str, **detail: Any) -> dict[str, Any]:
    return {
        "detail-type": "Step Functions Execution Status Change",
        "detail": {
            "executionArn": ME,
            "status": status,
            "input": json.dumps({"request_id": "r1"}),
            **detail,
        },
    }


def ending(event: dict[str, Any]) -> Ending:
    found = read_ending(event)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("event", "status", "code"),
    [
        (by_state(Error="MODEL_BUSY", Cause="Busy."), "FAILED", "MODEL_BUSY"),
        (by_state(Error="States.Timeout"), "FAILED", "DEADLINE_EXCEEDED"),
        (by_rule("ABORTED"), "CANCELLED", "EXECUTION_STOPPED"),
        (by_rule("ABORTED", error="X", cause="by hand"), "CANCELLED", "EXECUTION_STOPPED"),
        (by_rule("TIMED_OUT"), "FAILED", "DEADLINE_EXCEEDED"),
        (by_rule("FAILED", error="States.Runtime", cause="x"), "FAILED", "INTERNAL"),
        (by_rule("FAILED"), "FAILED", "INTERNAL"),
    ],
)
def test_both_doors(event: dict[str, Any], status: str, code: str) -> None:
    found = ending(event)
    assert (found.request_id, found.owner) == ("r1", ME)
    assert (found.status, found.failure.code) == (status, code)
    assert found.by_rule == ("detail" in event)


def test_the_words_of_whoever_stopped_it_are_kept() -> None:
    assert ending(by_rule("ABORTED", cause="by hand")).failure.message == "by hand"


@pytest.mark.parametrize(
    "given",
    [None, "", "{}", "[]", '{"request_id": 7}', '{"request_id": "../x"}', "no json"],
)
def test_an_execution_without_a_request_ends_nothing(given: str | None) -> None:
    assert read_ending(by_rule("ABORTED", input=given)) is None


@pytest.mark.parametrize("status", sorted(set(RequestStatus)))
@pytest.mark.parametrize("owner", [None, ME, OTHER])
def test_verdicts(status: RequestStatus, owner: str | None) -> None:
    record = {"status": status.value, **({"owner": owner} if owner else {})}
    verdict = judge(record, ending(by_state(Error="X", Cause="y")))
    if owner == OTHER:
        assert verdict is Verdict.NOT_OURS
    elif not status.is_terminal:
        assert verdict is Verdict.END_NOW
    elif owner == ME and status is not RequestStatus.READY:
        assert verdict is Verdict.ENDED_BEFORE
    else:
        assert verdict is Verdict.NOT_OURS


def test_a_request_that_does_not_exist_is_not_ours() -> None:
    assert judge(None, ending(by_rule("ABORTED"))) is Verdict.NOT_OURS


def test_the_body_is_the_one_of_the_contract() -> None:
    error = ending(by_state(Error="MODEL_BUSY", Cause="Busy.")).failure.to_error()
    record = {"request_id": "r1", "user_id": "ada", "model_id": "default"}
    body = failed_body(record, error)
    assert OnboardingFailed.model_validate(body, strict=True, extra="forbid").model_dump() == body
