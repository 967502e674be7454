"""The function collect_results: what a batch's job has done, and what cannot be relied upon."""

import hashlib
import json
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import boto3
import pytest

from lambdas.collect_results import logic
from lambdas.shared.dynamo import Table
from lambdas.shared.pace import PaceRow
from limner.contracts.outcomes import MAX_CAUSE_CHARS
from limner.contracts.packing import PastRun, PastRuns
from limner.contracts.tasks import TaskError, TaskResult

JOB = "limner-batch-b1-1"
NOTHING = {"Error": "", "Cause": ""}
ARTIFACT = b"an archive"
DIGEST = hashlib.sha256(ARTIFACT).hexdigest()


def item(number: int, outcome: str = "planned") -> dict[str, Any]:
    return {
        "request_id": f"r{number}",
        "outcome": outcome,
        "source": "",
        "error": {"Error": "JOB_INCOMPLETE", "Cause": "planned"},
    }


def result(request_id: str = "r0", **changes: Any) -> bytes:
    values = {"request_id": request_id, "status": "trained", "seconds": 1.0}
    values["artifact_sha256"] = DIGEST
    return TaskResult.model_validate({**values, **changes}).model_dump_json().encode()


def test_a_result_of_the_contract_is_read() -> None:
    assert logic.read_result("r0", result()) == logic.Result(trained=True, artifact_sha256=DIGEST)
    error = TaskError(code="PHOTO_TOO_SMALL", message="2.png is 8x8.")
    failed = result(status="failed", error=error, artifact_sha256="")
    assert logic.read_result("r0", failed) == logic.Result(
        trained=False, code="PHOTO_TOO_SMALL", message="2.png is 8x8."
    )


def test_a_code_that_nobody_knows_is_a_failed_training() -> None:
    failed = result(status="failed", error=TaskError(code="COLOUR", message="blue"))
    found = logic.read_result("r0", failed)
    assert found is not None
    assert (found.code, found.message) == ("TRAINING_FAILED", "COLOUR: blue")


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"[]",
        b"{",
        result("r1"),  # of somebody else
        result(artifact_sha256="short"),
        b'{"request_id": "r0", "status": "trained"}',
        b'{"request_id": "r0", "status": "failed", "error": null}',
        b'{"request_id": "r0", "status": "half"}',
        result(metrics={f"m{n}": n for n in range(9_999)}),
    ],
)
def test_what_cannot_be_relied_upon_is_no_result(body: bytes | None) -> None:
    assert logic.read_result("r0", body) is None


@pytest.mark.parametrize(
    ("size", "digest", "sound"),
    [
        (len(ARTIFACT), DIGEST, True),
        (len(ARTIFACT), "0" * 64, False),
        (10**9, None, True),  # too large to be read here
        (6 * 1024**3, None, False),  # too large to be copied
        (0, hashlib.sha256().hexdigest(), False),
        (None, None, False),
    ],
)
def test_the_artifact_must_be_the_one_of_the_result(
    size: int | None, digest: str | None, sound: bool
) -> None:
    assert logic.is_sound(size, digest, logic.Result(True, DIGEST)) is sound


def report(**fields: str) -> str:
    return json.dumps({"TrainingJobName": JOB, "TrainingJobStatus": "Failed", **fields})


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (NOTHING, "JOB_INCOMPLETE", JOB),
        (
            {"Error": "States.TaskFailed", "Cause": report(FailureReason="AlgorithmError: oops")},
            "JOB_INCOMPLETE",
            "oops",
        ),
        (
            {"Error": "States.TaskFailed", "Cause": report(FailureReason="CapacityError: none")},
            "NO_CAPACITY",
            "none",
        ),
        ({"Error": "States.Timeout", "Cause": ""}, "JOB_INCOMPLETE", "deadline"),
        ({"Error": "DEADLINE_EXCEEDED", "Cause": "x"}, "JOB_INCOMPLETE", "x"),
        # No job was made: the requests end with the reason itself.
        (
            {"Error": "SageMaker.ResourceLimitExceededException", "Cause": "full"},
            "QUOTA_EXCEEDED",
            "full",
        ),
        (
            {"Error": "SageMaker.AmazonSageMakerException", "Cause": "Rate exceeded"},
            "THROTTLED",
            "Rate",
        ),
        ({"Error": "ClientError", "Cause": '{"errorMessage": "no"}'}, "INTERNAL", "no"),
    ],
)
def test_what_a_request_ends_with_that_was_left_undone(
    failure: dict[str, str], code: str, words: str
) -> None:
    error = logic.error_of_missing(JOB, failure)
    assert error["Error"] == code
    assert words in error["Cause"]
    assert len(error["Cause"]) <= MAX_CAUSE_CHARS


@pytest.fixture
def handler(
    tables: None, cold_start: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    monkeypatch.setenv("BUCKET", "bucket")
    boto3.client("s3").create_bucket(Bucket="bucket")
    return cold_start("collect_results")


def put(number: int, body: bytes, artifact: bytes | None = ARTIFACT, attempt: str = "b1/1") -> None:
    s3, folder = boto3.client("s3"), f"batches/{attempt}/out/r{number}/"
    s3.put_object(Bucket="bucket", Key=f"{folder}result.json", Body=body)
    if artifact is not None:
        s3.put_object(Bucket="bucket", Key=f"{folder}model.tar.gz", Body=artifact)


def event(*items: dict[str, Any], failure: dict[str, str] = NOTHING) -> dict[str, Any]:
    return {"batch_id": "b1", "attempt": 1, "job_name": JOB, "items": items, "failure": failure}


def test_each_request_by_its_own_outcome(handler: ModuleType) -> None:
    put(0, result("r0"))
    put(1, result("r1", status="failed", error=TaskError(code="PHOTO_TOO_SMALL", message="8x8")))
    put(2, result("r2"), artifact=None)
    put(3, result("r3"), artifact=b"another archive")
    put(4, result("r0"))
    planned = [item(number) for number in range(6)]
    answer = handler.handle(event(*planned, item(6, "ended")), None)["items"]
    assert [i["outcome"] for i in answer] == [
        *("trained", "failed", "missing", "missing", "missing", "missing", "ended")
    ]
    assert answer[0]["source"] == "batches/b1/1/out/r0/model.tar.gz"
    assert answer[1]["error"] == {"Error": "PHOTO_TOO_SMALL", "Cause": "8x8"}
    assert answer[2]["error"]["Error"] == "JOB_INCOMPLETE"
    assert handler.handle(event(*planned, item(6, "ended")), None)["items"] == answer


def test_what_a_failed_job_has_finished_is_finished(handler: ModuleType) -> None:
    put(0, result("r0"))
    failure = {"Error": "States.TaskFailed", "Cause": report(FailureReason="died")}
    answer = handler.handle(event(item(0), item(1), failure=failure), None)["items"]
    assert [i["outcome"] for i in answer] == ["trained", "missing"]
    assert "died" in answer[1]["error"]["Cause"]


def test_what_an_earlier_attempt_has_finished_counts(handler: ModuleType) -> None:
    put(0, result("r0"))
    put(1, result("r1"), attempt="b1/2")
    put(2, result("r2"), attempt="b0/1")
    put(3, result("r3"), artifact=None, attempt="b1/2")
    put(3, result("r3"))
    asked = {**event(*map(item, range(4))), "attempt": 2}
    answer = handler.handle({**asked, "asked": {"earlier_job": "limner-batch-b0-2"}}, None)
    assert [i["source"].split("/out/")[0] for i in answer["items"]] == [
        *("batches/b1/1", "batches/b1/2", "batches/b0/1", "batches/b1/1")
    ]
    answer = handler.handle(asked, None)
    assert [i["outcome"] for i in answer["items"]] == ["trained", "trained", "missing", "trained"]


def test_nobody_is_trained_again_who_has_cancelled(handler: ModuleType) -> None:
    put(0, result("r0"))
    for number in range(2):
        boto3.client("dynamodb").put_item(
            TableName="requests",
            Item={"request_id": {"S": f"r{number}"}, "cancel_requested": {"BOOL": True}},
        )
    answer = handler.handle(event(item(0), item(1), item(2)), None)["items"]
    assert [i["outcome"] for i in answer] == ["trained", "failed", "missing"]
    assert answer[1]["error"]["Error"] == "EXECUTION_STOPPED"


def test_an_archive_of_many_megabytes_is_not_read(handler: ModuleType) -> None:
    handler.logic.MAX_HASHED_BYTES, kept = 4, handler.logic.MAX_HASHED_BYTES  # type: ignore[attr-defined]
    put(0, result("r0", artifact_sha256="0" * 64))
    try:
        assert handler.handle(event(item(0)), None)["items"][0]["outcome"] == "trained"
    finally:
        handler.logic.MAX_HASHED_BYTES = kept  # type: ignore[attr-defined]


PACE_ROW = "#pace#tiny-1#ml.g5.xlarge"
FIGURES = {"steps": 100, "photos": 5, "share_seconds": 40.0, "loss": 0.1}


def counted() -> PastRuns:
    table = Table(boto3.client("dynamodb"), "requests")
    return PaceRow(table, PACE_ROW, logging.getLogger()).read()


def test_what_fine_tunes_took_is_counted_once(handler: ModuleType) -> None:
    put(0, result("r0", metrics=FIGURES))
    put(1, result("r1", metrics={**FIGURES, "steps": 300, "share_seconds": 90.0}))
    put(2, result("r2", metrics=FIGURES), artifact=None)
    put(3, result("r3", metrics={}))
    asked = {**event(*map(item, range(5))), "pace_row": PACE_ROW}
    wanted = PastRuns.of([PastRun(100, 5, 40.0), PastRun(300, 5, 90.0)])
    for _ in range(3):  # CollectResults is tried again
        handler.handle(asked, None)
        assert counted() == wanted
    # Another attempt finds them among the earlier ones: they ran in the first one's job.
    put(4, result("r4", metrics=FIGURES), attempt="b1/2")
    again = {**asked, "attempt": 2, "job_name": "limner-batch-b1-2"}
    handler.handle(again, None)
    assert counted().count == 3
    assert handler.handle(event(item(0)), None)["items"][0]["outcome"] == "trained"
    assert counted().count == 3, "an execution of an older machine"


def test_many_batches_are_counted_once_each(handler: ModuleType) -> None:
    """Told in turn: moto, unlike DynamoDB, loses updates of threads."""
    table = Table(boto3.client("dynamodb"), "requests")
    row = PaceRow(table, PACE_ROW, logging.getLogger())
    runs = PastRuns.of([PastRun(100, 5, 40.0)] * 3)
    for number in range(60):
        row.add(f"limner-batch-b{number % 20}-1", runs)
    assert counted().count == 20 * 3


@pytest.mark.parametrize(
    "wrong",
    [
        *({"share_seconds": value} for value in (0, -1, float("nan"), float("inf"), 1e9, "60")),
        *({"steps": value} for value in (0, -5, 1e12, None, float("nan"))),
        *({"photos": value} for value in (0, 1e12, [])),
    ],
)
def test_figures_that_cannot_be_true_are_not_counted(wrong: dict[str, Any]) -> None:
    body = json.loads(result("r0"))
    body["metrics"] = {**FIGURES, **wrong}
    found = logic.read_result("r0", json.dumps(body).encode())
    assert found == logic.Result(trained=True, artifact_sha256=DIGEST)


def test_a_batch_does_not_fail_of_a_figure_for_planning(handler: ModuleType) -> None:
    put(0, result("r0", metrics=FIGURES))
    boto3.client("dynamodb").delete_table(TableName="requests")
    answer = handler.handle({**event(item(0)), "pace_row": PACE_ROW}, None)
    assert [i["outcome"] for i in answer["items"]] == ["trained"]
