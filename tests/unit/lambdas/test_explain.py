"""Errors of Step Functions, SageMaker and our own programs in the words of the registry."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdas.record_failure.logic import MAX_MESSAGE_CHARS, explain
from limner.contracts.errors import NOT_RECORDED, REGISTRY, LimnerError

OWN = str(LimnerError("TOO_FEW_PHOTOS", "There are 2 photos, 3 are needed."))


def job(reason: str = "", status: str = "Failed", secondary: str = "Failed") -> str:
    return json.dumps(
        {
            "TrainingJobName": "limner-r1-1",
            "TrainingJobStatus": status,
            "SecondaryStatus": secondary,
            **({"FailureReason": reason} if reason else {}),
        }
    )


def lambda_error(kind: str, message: str) -> str:
    return json.dumps({"errorMessage": message, "errorType": kind, "stackTrace": []})


FAILED = "States.TaskFailed"
SERVICE = "SageMaker.AmazonSageMakerException"


@pytest.mark.parametrize(
    ("error", "cause", "code"),
    [
        (FAILED, job(OWN), "TOO_FEW_PHOTOS"),
        (FAILED, job(f"AlgorithmError: {OWN}, exit code: 1"), "TOO_FEW_PHOTOS"),
        (FAILED, job("CapacityError: Unable to provision capacity."), "NO_CAPACITY"),
        (FAILED, job("", "Stopped", "MaxRuntimeExceeded"), "DEADLINE_EXCEEDED"),
        (FAILED, job("", "Stopped", "Stopped"), "TRAINING_STOPPED"),
        (FAILED, job("AlgorithmError: , exit code: 137"), "TRAINING_FAILED"),
        (FAILED, job("ClientError: No S3 objects found under S3 URL"), "TRAINING_FAILED"),
        (FAILED, job(), "TRAINING_FAILED"),
        (SERVICE, "Rate exceeded (Error Code: ThrottlingException)", "THROTTLED"),
        (SERVICE, "User is not authorized (Error Code: AccessDeniedException)", "AWS_ERROR"),
        ("SageMaker.ResourceLimitExceededException", "The account-level limit", "QUOTA_EXCEEDED"),
        (SERVICE, "(Error Code: ResourceLimitExceeded)", "QUOTA_EXCEEDED"),
        ("DynamoDB.ProvisionedThroughputExceededException", "", "THROTTLED"),
        ("Lambda.TooManyRequestsException", "Rate Exceeded.", "THROTTLED"),
        (
            "DynamoDb.TransactionCanceledException",
            "reasons [None, ConditionalCheckFailed]",
            "REQUEST_ALREADY_CLAIMED",
        ),
        ("S3.NoSuchKeyException", "The specified key does not exist.", "AWS_ERROR"),
        ("Lambda.Unknown", "The function timed out.", "AWS_ERROR"),
        ("States.Timeout", "", "DEADLINE_EXCEEDED"),
        ("States.Timeout", None, "DEADLINE_EXCEEDED"),
        ("States.HeartbeatTimeout", "", "DEADLINE_EXCEEDED"),
        ("States.Runtime", "The JSONPath '$.x' could not be found in '{...}'", "INTERNAL"),
        ("MODEL_BUSY", "Another onboarding is in progress.", "MODEL_BUSY"),
        (
            "LimnerError",
            lambda_error("LimnerError", str(LimnerError("SMOKE_TEST_FAILED", "One colour only."))),
            "SMOKE_TEST_FAILED",
        ),
        (
            "ModelNotReadyError",
            lambda_error("ModelNotReadyError", str(LimnerError("MODEL_LOADING", "Not yet."))),
            "MODEL_LOADING",
        ),
        ("KeyError", lambda_error("KeyError", "'target_model'"), "INTERNAL"),
        (NOT_RECORDED, json.dumps({"Error": FAILED, "Cause": job(OWN)}), "TOO_FEW_PHOTOS"),
        (NOT_RECORDED, json.dumps({"Error": "MODEL_BUSY", "Cause": ""}), "MODEL_BUSY"),
        (NOT_RECORDED, "not json", "INTERNAL"),
        (None, None, "INTERNAL"),
    ],
)
def test_codes(error: str | None, cause: str | None, code: str) -> None:
    failure = explain(error, cause)
    assert failure.code == code
    assert failure.message


def test_the_containers_own_words_are_kept_and_nothing_else() -> None:
    failure = explain(FAILED, job(f"AlgorithmError: {OWN}, exit code: 1"))
    assert failure.message == "There are 2 photos, 3 are needed."


def test_own_words_that_were_cut_off_are_still_understood() -> None:
    # SageMaker keeps 1,024 characters of the failure file: the fix may be missing.
    failure = explain(FAILED, job("AlgorithmError: TRAINING_DIVERGED: The loss of step 7 is no"))
    assert (failure.code, failure.message) == ("TRAINING_DIVERGED", "The loss of step 7 is no")


def test_words_that_only_look_like_a_code_are_passed_over() -> None:
    failure = explain(FAILED, job("RuntimeError: CUDA: NO_CAPACITY: All machines are taken."))
    assert (failure.code, failure.message) == ("NO_CAPACITY", "All machines are taken.")


def test_the_input_that_step_functions_quotes_is_not_repeated() -> None:
    quoted = "The JSONPath '$.x' could not be found in the input '{\"prompt\": \"my secret\"}'"
    assert "secret" not in explain("States.Runtime", quoted).message


def test_messages_end_somewhere() -> None:
    assert len(explain(SERVICE, "x" * 50_000).message) == MAX_MESSAGE_CHARS


@given(error=st.none() | st.text(max_size=60), cause=st.none() | st.text(max_size=200))
def test_anything_at_all_is_explained(error: str | None, cause: str | None) -> None:
    failure = explain(error, cause)
    assert failure.code in REGISTRY
    assert set(failure.to_error()) == {"code", "message", "retryable", "fault", "fix"}


@given(cause=st.recursive(st.none() | st.booleans() | st.text(), st.lists, max_leaves=5))
def test_any_json_as_cause_is_explained(cause: object) -> None:
    assert explain(FAILED, json.dumps(cause)).code in REGISTRY
