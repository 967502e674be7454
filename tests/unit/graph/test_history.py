"""What a history is folded into, over recorded histories of both dialects.

``laptop_*.json`` were recorded from ministack 1.5.33; the others are written the way AWS writes
them (GetExecutionHistory in the Step Functions API reference).
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from limner.graph.history import MAX_CAUSE_CHARS, Outcome, as_datetime, fold, short_cause
from limner.graph.machine import END, START

HERE = Path(__file__).parent
DEFINITION = json.loads((HERE / "onboard_like.asl.json").read_text())
HEAD = ["CheckModelStatus", "IsModelReady", "ClaimRequest", "ReserveVersion"]
TAIL = ["RecordModel", "PublishArtifact", "SmokeTest", "ActivateModel", "NotifyReady", "Onboarded"]
FAILURE = ["RecordFailure", "NotifyFailure"]


def recorded(name):
    return json.loads((HERE / "histories" / f"{name}.json").read_text())


def folded(name, **kwargs):
    history = recorded(name)
    return fold(DEFINITION, history["execution"], history["events"], **kwargs)


def outcomes(drawing):
    return {
        name: run.outcome
        for name, run in drawing.states.items()
        if run.outcome is not Outcome.NOT_REACHED
    }


def all_succeeded(names):
    return dict.fromkeys(names, Outcome.SUCCEEDED)


@pytest.mark.parametrize(
    ("name", "status", "expected"),
    [
        ("happy", "SUCCEEDED", all_succeeded([*HEAD, "FineTune", *TAIL])),
        ("throttled", "SUCCEEDED", all_succeeded([*HEAD, "FineTune", *TAIL])),
        ("laptop_throttled", "SUCCEEDED", all_succeeded([*HEAD, "FineTune", *TAIL])),
        (
            "ready",
            "SUCCEEDED",
            all_succeeded(
                ["CheckModelStatus", "IsModelReady", "RecordAlreadyReady", "AlreadyReady"]
            ),
        ),
        (
            "training_failed",
            "FAILED",
            all_succeeded([*HEAD, "ReadJobFailure", "IsCapacityFailure", *FAILURE])
            | {"FineTune": Outcome.CAUGHT, "Failed": Outcome.FAILED},
        ),
        (
            "smoke_test_timed_out",
            "FAILED",
            all_succeeded([*HEAD, "FineTune", "RecordModel", "PublishArtifact", *FAILURE])
            | {"SmokeTest": Outcome.CAUGHT, "Failed": Outcome.FAILED},
        ),
        (
            "laptop_task_timeout",
            "FAILED",
            all_succeeded([*HEAD, *FAILURE])
            | {"FineTune": Outcome.CAUGHT, "Failed": Outcome.FAILED},
        ),
        ("aborted", "ABORTED", all_succeeded(HEAD) | {"FineTune": Outcome.ABORTED}),
        ("laptop_stopped", "ABORTED", all_succeeded(HEAD) | {"FineTune": Outcome.ABORTED}),
        ("timed_out", "TIMED_OUT", all_succeeded(HEAD) | {"FineTune": Outcome.TIMED_OUT}),
        ("running", "RUNNING", all_succeeded(HEAD) | {"FineTune": Outcome.RUNNING}),
    ],
)
def test_every_state_has_its_outcome(name, status, expected):
    drawing = folded(name)
    assert drawing.status == status
    assert outcomes(drawing) == expected


@pytest.mark.parametrize("name", ["throttled", "laptop_throttled"])
def test_failed_attempts_before_the_success_are_retries(name):
    run = folded(name).states["FineTune"]
    assert (run.retries, run.entries, run.error) == (2, 1, "SageMaker.AmazonSageMakerException")
    assert run.cause == "ThrottlingException: Rate exceeded"


def test_the_last_failed_attempt_is_no_retry():
    run = folded("smoke_test_timed_out").states["SmokeTest"]
    assert (run.retries, run.error) == (3, "States.Timeout")


def test_a_state_that_waits_for_its_next_attempt_counts_the_failed_ones():
    assert folded("running").states["FineTune"].retries == 1


def test_the_containers_reason_is_the_cause():
    run = folded("training_failed").states["FineTune"]
    assert run.error == "States.TaskFailed"
    assert run.cause.startswith("AlgorithmError: PHOTO_TOO_SMALL: photos/cat-3.png")


def test_a_fail_state_shows_the_executions_error():
    drawing = folded("training_failed")
    assert drawing.states["Failed"].error == drawing.error == "PHOTO_TOO_SMALL"


def test_loops_count_entries_and_add_up_time():
    drawing = folded("capacity")
    fine_tune, wait = drawing.states["FineTune"], drawing.states["WaitForCapacity"]
    assert (fine_tune.entries, fine_tune.outcome, fine_tune.retries) == (3, Outcome.SUCCEEDED, 0)
    assert (wait.entries, wait.outcome) == (2, Outcome.SUCCEEDED)
    assert wait.duration_s == pytest.approx(120, abs=0.1)
    assert fine_tune.duration_s == pytest.approx(610 + 610 + 398, abs=2)


def test_taken_transitions():
    assert folded("ready").taken == {
        (START, "CheckModelStatus"),
        ("CheckModelStatus", "IsModelReady"),
        ("IsModelReady", "RecordAlreadyReady"),
        ("RecordAlreadyReady", "AlreadyReady"),
        ("AlreadyReady", END),
    }
    assert ("FineTune", "RecordFailure") in folded("laptop_task_timeout").taken
    assert ("WaitForCapacity", "FineTune") in folded("capacity").taken
    assert not any(END in pair for pair in folded("training_failed").taken)


def test_durations_are_seconds():
    drawing = folded("happy")
    assert drawing.states["FineTune"].duration_s == pytest.approx(402.3, abs=0.5)
    assert drawing.states["Failed"].duration_s is None
    assert drawing.duration_s == pytest.approx(408, abs=2)


def test_a_running_execution_is_measured_only_up_to_a_given_now():
    assert folded("running").duration_s is None
    assert folded("running").states["FineTune"].duration_s is None
    start = folded("running").started_at
    drawing = folded("running", now=start + timedelta(seconds=90))
    assert drawing.duration_s == 90
    assert 80 < drawing.states["FineTune"].duration_s < 90


def test_the_history_is_newer_than_the_description():
    history = recorded("happy")
    execution = {**history["execution"], "status": "RUNNING", "stopDate": None}
    assert fold(DEFINITION, execution, history["events"]).status == "SUCCEEDED"


def test_a_redriven_execution_goes_on_after_its_end():
    history = recorded("timed_out")
    last = history["events"][-1]["id"]
    redriven = [
        {"id": last + 1, "type": "ExecutionRedriven", "timestamp": "2025-11-23T08:00:00+00:00"},
        {
            "id": last + 2,
            "previousEventId": last + 1,
            "type": "TaskScheduled",
            "timestamp": "2025-11-23T08:00:01+00:00",
        },
    ]
    execution = {**history["execution"], "status": "RUNNING", "stopDate": None}
    drawing = fold(DEFINITION, execution, history["events"] + redriven)
    assert drawing.states["FineTune"].outcome is Outcome.RUNNING


def test_the_order_of_events_does_not_matter():
    history = recorded("throttled")
    backwards = fold(DEFINITION, history["execution"], history["events"][::-1])
    assert backwards == folded("throttled")


def test_an_error_inside_a_parallel_is_not_the_outer_states_attempt():
    definition = {
        "StartAt": "Both",
        "States": {"Both": {"Type": "Parallel", "Branches": [], "End": True}},
    }
    names = ["ParallelStateEntered", "TaskStateEntered", "TaskFailed", "TaskStateExited"]
    names += ["ParallelStateSucceeded", "ParallelStateExited", "ExecutionSucceeded"]
    previous = [0, 1, 2, 3, 1, 5, 6]
    events = [
        {"id": i + 1, "previousEventId": previous[i], "type": kind, "timestamp": 1000.0 + i}
        for i, kind in enumerate(names)
    ]
    events[0]["stateEnteredEventDetails"] = {"name": "Both"}
    events[1]["stateEnteredEventDetails"] = {"name": "Inner"}
    events[2]["taskFailedEventDetails"] = {"error": "E", "cause": "c"}
    events[3]["stateExitedEventDetails"] = {"name": "Inner"}
    events[5]["stateExitedEventDetails"] = {"name": "Both"}
    drawing = fold(definition, {"status": "SUCCEEDED"}, events)
    both = drawing.states["Both"]
    assert (both.outcome, both.retries, both.error) == (Outcome.SUCCEEDED, 0, None)
    assert drawing.taken == {(START, "Both"), ("Both", END)}


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        ('{"FailureReason": "CapacityError: none left"}', "CapacityError: none left"),
        ('{"errorMessage": "no photo", "errorType": "X"}', "no photo"),
        ("Not there. (Service: S3, Status Code: 404, Request ID: 1)", "Not there."),
        (
            "Rate exceeded (Service: S; Error Code: ThrottlingException; Request ID: 1)",
            "ThrottlingException: Rate exceeded",
        ),
        ("two\n  lines", "two lines"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_short_cause(cause, expected):
    assert short_cause(cause) == expected


def test_a_long_cause_is_cut():
    cut = short_cause("word " * 500)
    assert len(cut) <= MAX_CAUSE_CHARS
    assert cut.endswith("…")


@pytest.mark.parametrize(
    "value",
    ["2026-11-22T20:43:30.500Z", 1795380210.5, datetime(2026, 11, 22, 20, 43, 30, 500000, UTC)],
)
def test_times_of_every_source(value):
    assert as_datetime(value) == datetime(2026, 11, 22, 20, 43, 30, 500000, UTC)
