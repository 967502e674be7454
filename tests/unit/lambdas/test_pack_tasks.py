"""The function pack_tasks: what a batch's job is told, and what a request fails of by itself."""

import json
from collections.abc import Callable
from dataclasses import asdict
from types import ModuleType
from typing import Any

import boto3
import pytest

from lambdas.pack_tasks import logic
from lambdas.shared.settings import PackTasksSettings
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.contracts.packing import Pace, PastRun, PastRuns
from limner.contracts.tasks import Task
from limner.contracts.training import TrainingConfig

BATCH = logic.Batch("b1", 1, longest_s=14_400)


def item(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "request_id": f"r{number}",
        "user_id": f"user-{number}",
        "model_id": "default",
        "attempt": 1,
        "outcome": "planned",
        "version": {"number": 1},
        "source": "",
        "error": {"Error": "JOB_INCOMPLETE", "Cause": "x"},
        **changes,
    }


def material(number: int, steps: int = 160) -> logic.Material:
    config = TrainingConfig(steps=steps).model_dump(mode="json")
    return logic.Material(item(number), config, [f"user-{number}/r{number}/a.png"] * 4)


def plan(*steps: int, most: int = 4, target_s: float = 100) -> logic.Plan:
    materials = [material(number, each) for number, each in enumerate(steps)]
    pace = Pace(fixed_s=0, step_s=1, photo_s=0)
    return logic.make_plan(
        BATCH, "bucket", materials, pace=pace, most_instances=most, target_s=target_s
    )


@pytest.mark.parametrize(
    ("steps", "instances"),
    [
        ((10,), 1),
        ((40, 40), 1),  # one machine is soon enough
        ((60, 60), 2),
        ((60, 60, 60), 3),  # 120 s on two
        ((500, 10), 1 + 1),  # the target cannot be met: as fast as it can be
        ((99,) * 9, 4),  # no more machines than there may be
    ],
)
def test_the_fewest_machines_that_meet_the_target(steps: tuple[int, ...], instances: int) -> None:
    made = plan(*steps)
    assert made.instances == instances
    assert {task["instance"] for task in made.tasks} == set(range(instances))


def test_a_task_is_what_the_training_program_reads() -> None:
    made = plan(40, 500, 20)
    tasks = [Task.model_validate_json(line) for line in made.tasks_jsonl().splitlines()]
    assert [(t.request_id, t.user_id, t.photos) for t in tasks] == [
        (f"r{n}", f"user-{n}", f"user-{n}/r{n}/") for n in range(3)
    ]
    assert [t.config.steps for t in tasks] == [40, 500, 20]
    manifest = json.loads(made.photos_manifest())
    assert manifest[0] == {"prefix": "s3://bucket/uploads/"}
    assert len(manifest) == 1 + 12


def test_the_figures_of_the_packing_are_told() -> None:
    answer = plan(99, 99, 99, 50, most=2).answer(BATCH, "job")
    assert (answer["makespan_s"], answer["lower_bound_s"]) == (198, 173.5)
    assert answer["bound"] == round(4 / 3 - 1 / 6, 4)
    assert answer["prefix"] == keys.batch_prefix("b1", 1)


@pytest.mark.parametrize(("steps", "runtime_s"), [(1, 3_600), (2_000, 8_000), (20_000, 14_400)])
def test_a_job_may_take_far_longer_than_predicted_but_not_for_ever(
    steps: int, runtime_s: int
) -> None:
    assert plan(steps).max_runtime_s == runtime_s


def test_nothing_to_do_is_a_plan_too() -> None:
    answer = plan().answer(BATCH, "job")
    assert (answer["tasks"], answer["instances"]) == (0, 0)


@pytest.mark.parametrize(
    "body", [None, b"", b"[]", b"{", b'{"steps": 0}', b'{"colour": "blue"}', b" " * 70_000]
)
def test_a_config_that_cannot_be_read(body: bytes | None) -> None:
    with pytest.raises(LimnerError, match="INVALID_INPUT"):
        logic.read_config(body)


def test_photos_that_are_not_there() -> None:
    with pytest.raises(LimnerError, match="TOO_FEW_PHOTOS"):
        logic.check_photos([], is_all=True)
    with pytest.raises(LimnerError, match="TOO_MANY_PHOTOS"):
        logic.check_photos(["uploads/u/r/a"], is_all=False)


def test_settings_take_another_pace() -> None:
    environ = {"BUCKET": "b", "REQUESTS_TABLE": "r", "PACE_STEP_S": "0.5"}
    environ |= {"BATCH_INSTANCES": "2", "BATCH_TARGET_S": "60"}
    assert PackTasksSettings.from_env(environ).pace == Pace(step_s=0.5)


@pytest.fixture
def handler(
    tables: None, cold_start: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    for name, value in {"BUCKET": "bucket", "BATCH_INSTANCES": "2", "BATCH_TARGET_S": "1"}.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    return cold_start("pack_tasks")


def put_request(number: int, config: bytes = b"{}", photos: int = 3) -> None:
    s3 = boto3.client("s3")
    s3.put_object(Bucket="bucket", Key=f"configs/r{number}/config.json", Body=config)
    for photo in range(photos):
        s3.put_object(
            Bucket="bucket", Key=f"uploads/user-{number}/r{number}/{photo}.png", Body=b"x"
        )


def event(*items: dict[str, Any]) -> dict[str, Any]:
    return {
        "batch_id": "b1",
        "attempt": 2,
        "job_name": "limner-batch-b1-2",
        "longest_s": 14_400,
        "items": list(items),
    }


def test_one_bad_request_fails_by_itself(handler: ModuleType) -> None:
    put_request(0)
    put_request(1, config=b"{}", photos=0)
    put_request(2, config=b"no JSON")
    put_request(3)
    ended = item(4, outcome="ended", version={})
    answer = handler.handle(event(*(item(n) for n in range(4)), ended), None)
    assert [i["outcome"] for i in answer["items"]] == [
        *("planned", "failed", "failed", "planned", "ended")
    ]
    assert [i["error"]["Error"] for i in answer["items"][1:3]] == [
        *("TOO_FEW_PHOTOS", "INVALID_INPUT")
    ]
    assert answer["items"][0] == item(0)
    assert (answer["plan"]["tasks"], answer["plan"]["instances"]) == (2, 2)
    s3 = boto3.client("s3")
    lines = s3.get_object(Bucket="bucket", Key="batches/b1/2/tasks/tasks.jsonl")["Body"].read()
    assert [json.loads(line)["request_id"] for line in lines.splitlines()] == ["r0", "r3"]


def test_twice_is_once(handler: ModuleType) -> None:
    put_request(0)
    first = handler.handle(event(item(0)), None)
    keys_of = lambda: [  # noqa: E731
        (o["Key"], o["ETag"])
        for o in boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix="batches/")["Contents"]
    ]
    written = keys_of()
    assert handler.handle(event(item(0)), None) == first
    assert keys_of() == written


def test_nothing_is_written_where_nothing_is_to_do(handler: ModuleType) -> None:
    answer = handler.handle(event(item(0)), None)
    assert answer["plan"]["tasks"] == 0
    assert boto3.client("s3").list_objects_v2(Bucket="bucket")["KeyCount"] == 0


def test_the_largest_batch_stays_far_below_a_payload(handler: ModuleType) -> None:
    user, model = "u" * 64, "m" * 32
    version = {
        "number": 999_999,
        "row": f"{model}#v999999",
        "target_model": f"{user}/{model}/v999999.tar.gz",
        "artifact_key": f"models/{user}/{model}/v999999.tar.gz",
    }
    long = "x" * 5_000
    items = []
    for number in range(100):
        name = f"r{number:039d}"
        one = item(number, request_id=name, user_id=user, model_id=model, version=version)
        items.append(logic.failed(one, LimnerError("INVALID_INPUT", long)))
    answer = handler.handle(event(*items), None)
    assert len(json.dumps(answer)) < 262_144 / 2


PACE_ROW = "#pace#tiny-1#ml.g5.xlarge"


def predictions() -> list[float]:
    s3 = boto3.client("s3")
    lines = s3.get_object(Bucket="bucket", Key="batches/b1/2/tasks/tasks.jsonl")["Body"].read()
    return [json.loads(line)["predicted_s"] for line in lines.splitlines()]


def test_what_past_fine_tunes_took_is_what_the_next_are_planned_with(handler: ModuleType) -> None:
    put_request(0, config=b'{"steps": 500}')
    asked = {**event(item(0)), "pace_row": PACE_ROW}
    handler.handle(asked, None)
    assert predictions() == [round(Pace().predict_s(500, 3), 1)], "nothing is known yet"
    runs = PastRuns.of([PastRun(500, 3, 1_000.0)] * 400)
    boto3.client("dynamodb").put_item(
        TableName="requests",
        Item={
            "request_id": {"S": PACE_ROW},
            **{name: {"N": str(value)} for name, value in asdict(runs).items()},
        },
    )
    handler.handle(asked, None)
    assert predictions() == [pytest.approx(1_000, rel=0.02)]
    handler.handle(event(item(0)), None)
    assert predictions() == [round(Pace().predict_s(500, 3), 1)], "an execution of an older machine"


def test_a_plan_needs_no_past(handler: ModuleType) -> None:
    put_request(0)
    boto3.client("dynamodb").delete_table(TableName="requests")
    answer = handler.handle({**event(item(0)), "pace_row": PACE_ROW}, None)
    assert answer["plan"]["tasks"] == 1
