"""The live view, on a terminal and in a log."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from limner.cli.output import seconds
from limner.cli.view import ProgressView, describe
from limner.client import JobProgress, Progress, Request, StateVisit

START = datetime(2026, 1, 1, tzinfo=UTC)
BUSY = "SageMaker.AmazonSageMakerException"


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def request(status: str = "TRAINING") -> Request:
    return Request.model_validate(
        {
            "request_id": "r1",
            "user_id": "alice",
            "model_id": "default",
            "status": status,
            "created_at": "",
            "updated_at": "",
        }
    )


CLAIM = StateVisit("ClaimRequest", at(0), at(0.5))
TUNING = StateVisit("FineTune", at(1), None, failures=3, error=BUSY)
TUNED = StateVisit("FineTune", at(1), at(90), failures=3)
JOB = JobProgress("j", "InProgress", "Training", step=120, steps=300, loss=0.25)


def test_a_log_gets_a_line_for_each_change() -> None:
    out = io.StringIO()
    with ProgressView(Console(file=out, force_terminal=False, width=40)) as view:
        view.update(Progress(request(), (CLAIM,)))
        view.update(Progress(request(), (CLAIM, TUNING)))
        view.update(Progress(request(), (CLAIM, TUNING), JOB))
        view.update(Progress(request("READY"), (CLAIM, TUNED)))
    assert out.getvalue().splitlines() == [
        "  1  ClaimRequest",
        "     request r1 is TRAINING",
        f"  2  FineTune  3 x {BUSY}",
        f"  2  FineTune  3 x {BUSY}, Training step 120/300 loss 0.2500",
        "  2  FineTune  3 retries",
        "     request r1 is READY",
    ]


def test_a_request_without_states_says_where_it_stands() -> None:
    queued = request("QUEUED").model_copy(update={"queue": "3"})
    others = JobProgress("j", "InProgress", "Downloading")
    assert describe(Progress(queued)) == ["     request r1 is QUEUED, in the queue"]
    assert describe(Progress(request(), (), others)) == [
        "     request r1 is TRAINING, in a job with others: Downloading"
    ]
    out = io.StringIO()
    with ProgressView(Console(file=out, force_terminal=True, width=200)) as view:
        view.update(Progress(queued))
    assert "request r1 is QUEUED, in the queue" in out.getvalue()


def test_a_terminal_gets_a_table_with_the_states() -> None:
    out = io.StringIO()
    smoke = StateVisit("SmokeTest", at(91), at(92), failures=1, error="States.Timeout")
    with ProgressView(Console(file=out, force_terminal=True, width=200)) as view:
        view.update(Progress(request(), (CLAIM, TUNING), JOB))
        view.update(Progress(request("FAILED"), (CLAIM, TUNED, smoke)))
    text = out.getvalue()
    assert "Training step 120/300 loss 0.2500" in text
    last = text[text.rindex("ClaimRequest") :]
    assert "89 s" in last
    assert "✗" in last
    assert "1 x States.Timeout" in last


@pytest.mark.parametrize(
    ("value", "text"), [(0.44, "0.4 s"), (93.2, "93 s"), (725.0, "12 min 5 s")]
)
def test_durations(value: float, text: str) -> None:
    assert seconds(value) == text
