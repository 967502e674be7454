"""Executions of earlier versions, on the machines, functions and contracts of this one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from limner.contracts.errors import LimnerError
from limner.contracts.onboarding import (
    BatchInput,
    OnboardingFailed,
    OnboardingInput,
    OnboardingReady,
)
from tests.support.engines.moto_stack import BUCKET, REQUESTS, definition, moto_stack
from tests.upgrades import record
from tests.upgrades.histories import History, Step, all_histories
from tests.upgrades.replay import MIGRATIONS as MIGRATIONS_FILE
from tests.upgrades.replay import (
    UNRECORDED,
    Migration,
    Replayed,
    Script,
    all_migrations,
    replay,
    summary,
)

HISTORIES = all_histories()
MIGRATIONS = all_migrations()
ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {history.name: history for history in HISTORIES}
NEW_USER = BY_NAME["0.1.0-a-new-user"]


@pytest.fixture(scope="module")
def results() -> list[Replayed]:
    return [replay(history, MIGRATIONS) for history in HISTORIES]


# -- The machines ---------------------------------------------------------------------------------


def test_recorded_executions_go_the_same_way(
    results: list[Replayed], capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\n{summary(results)}")  # noqa: T201 - what this test is asked for
    differences = {result.history.name: result.differences for result in results}
    assert {name: found for name, found in differences.items() if found} == {}


def test_every_migration_is_needed_and_explained(results: list[Replayed]) -> None:
    used = [migration for result in results for migration in result.migrations]
    for migration in MIGRATIONS:
        assert migration in used, migration.history
        assert len(migration.why.split()) > 10, migration.history


# -- A replay that cannot fail is no test ---------------------------------------------------------


def renamed(machine: dict[str, Any]) -> None:
    states = machine["States"]
    states["FirstInference"] = states.pop("SmokeTest")
    states["PublishArtifact"]["Next"] = "FirstInference"


def wrong_choice(machine: dict[str, Any]) -> None:
    machine["States"]["IsModelReady"]["Default"] = "RecordAlreadyReady"


def without_catch(machine: dict[str, Any]) -> None:
    del machine["States"]["FineTune"]["Catch"]


def other_path(machine: dict[str, Any]) -> None:
    plan = machine["States"]["PlanTraining"]["Parameters"]
    plan["user_id.$"] = "$.user.id"


@pytest.mark.parametrize(
    ("breakage", "history", "words"),
    [
        (renamed, "a-new-user", "PublishArtifact > FirstInference"),
        (wrong_choice, "a-new-user", "IsModelReady > RecordAlreadyReady"),
        (without_catch, "the-training-fails", "ended FAILED States.TaskFailed"),
        (other_path, "a-new-user", "States."),
    ],
)
def test_a_broken_machine_is_noticed(
    breakage: Callable[[dict[str, Any]], None], history: str, words: str
) -> None:
    machine = json.loads(definition("onboard"))
    breakage(machine)
    result = replay(BY_NAME[f"0.1.0-{history}"], MIGRATIONS, json.dumps(machine))
    assert words in "; ".join(result.differences)


BATCH = "unreleased-a-batch-one-fails-one-is-missing"


def other_item_first(machine: dict[str, Any]) -> None:
    """Failed requests are taken for trained ones."""
    choice = inside(machine, "FinishAll")["WhatCameOfIt"]
    choice["Choices"][0]["Next"] = choice["Choices"][1]["Next"]


def without_requeue(machine: dict[str, Any]) -> None:
    inside(machine, "FinishAll")["CanTryAgain"]["Choices"][0]["Next"] = "RecordFailure"


def item_without_version(machine: dict[str, Any]) -> None:
    del machine["States"]["FinishAll"]["ItemSelector"]["version.$"]


def ended_early(machine: dict[str, Any]) -> None:
    machine["States"]["TakeResults"]["Next"] = "BatchDone"


def inside(machine: dict[str, Any], name: str) -> dict[str, Any]:
    """The states that a Map leads each item through."""
    states: dict[str, Any] = machine["States"][name]["ItemProcessor"]["States"]
    return states


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (other_item_first, "WhatCameOfIt > RecordFailure"),
        (without_requeue, "RecordFailure asked for an answer that was never given"),
        (item_without_version, "ended FAILED AWS_ERROR"),
        (ended_early, "TakeResults > BatchDone"),
    ],
)
def test_a_broken_machine_of_batches_is_noticed(
    breakage: Callable[[dict[str, Any]], None], words: str
) -> None:
    machine = json.loads(definition("onboard_batch"))
    breakage(machine)
    assert words in "; ".join(replay(BY_NAME[BATCH], MIGRATIONS, json.dumps(machine)).differences)


def test_each_item_of_a_batch_is_answered_from_its_own_record() -> None:
    """Items that take another way than their neighbours get their own answers all the same."""
    answers = {
        step.item: step.tries[-1]["output"]
        for step in BY_NAME["unreleased-a-batch-all-ready"].steps
        if step.state == "SmokeTest"
    }
    assert set(answers) == {0, 1}
    script = Script(BY_NAME["unreleased-a-batch-all-ready"], {})
    for script.item in (1, 0):
        assert script.answer("SmokeTest") == {"output": answers[script.item]}
    assert script.answer("SmokeTest")["error"] == UNRECORDED


def test_a_migration_excuses_nothing_but_what_it_names() -> None:
    history = BY_NAME["0.1.0-the-training-fails"]
    meant = Migration("0.1.0-*", ("NotifyFailure", "Failed"), ("NotifyFailure", "Told"), "why")
    assert replay(history, [meant], definition("onboard")).differences


# -- Old executions call new functions ------------------------------------------------------------


def lambda_steps() -> list[Any]:
    """Each different call of a function in the records."""
    different: dict[str, Any] = {}
    for history in HISTORIES:
        for step in history.steps:
            if isinstance(step.input, dict) and "FunctionName" in step.input:
                key = json.dumps(step.input)
                name = f"{history.name}-{step.state}"
                different.setdefault(key, pytest.param(history, step, id=name))
    return list(different.values())


@pytest.mark.parametrize(("history", "step"), lambda_steps())
def test_todays_functions_understand_what_executions_of_then_tell_them(
    history: History, step: Step
) -> None:
    """They answer, or refuse in our own words; an old event or row must not be their downfall."""
    name = step.input["FunctionName"].rpartition(":")[2]
    payload = step.input["Payload"]
    with moto_stack({}) as stack:
        for row in _claimed(history):
            stack.table("RequestsTableName").put_item(Item=row)
        target = payload.get("target_model", "none")
        stack.laptop.s3.put_object(Bucket=BUCKET, Key=f"models/{target}", Body=b"an adapter")
        try:
            answer = stack.world.functions.call(name, payload)
        except LimnerError as refusal:
            assert refusal.code != "INTERNAL", refusal
            return
        assert _shape(answer) >= _shape(step.tries[-1].get("output", {}).get("Payload")), (
            "the machine of then reads these"
        )
        if name == "record_failure":
            row = stack.laptop.client("dynamodb").get_item(
                TableName=REQUESTS, Key={"request_id": {"S": payload["request_id"]}}
            )["Item"]
            assert row["status"] == {"S": "FAILED"}


def _claimed(history: History) -> list[dict[str, Any]]:
    """The rows of the requests as that version had them while their execution was at work."""
    execution = f"{history.input.get('batch_id') or history.row['request_id']}-1"
    owner = f"arn:aws:states:us-east-1:123456789012:execution:{history.machine}:{execution}"
    return [{**row, "status": "TRAINING", "owner": owner} for row in history.rows]


def _shape(answer: Any) -> set[str]:
    return set(answer) if isinstance(answer, dict) else set()


@pytest.mark.parametrize("status", ["FAILED", "ABORTED", "TIMED_OUT"])
@pytest.mark.parametrize("name", ["0.1.0-a-new-user", "0.1.0-the-training-fails"])
def test_todays_rule_ends_executions_of_then(name: str, status: str) -> None:
    """Their inputs are what EventBridge quotes to the function."""
    history = BY_NAME[name]
    with moto_stack({}) as stack:
        (row,) = _claimed(history)
        stack.table("RequestsTableName").put_item(Item=row)
        event = {
            "source": "aws.states",
            "detail-type": "Step Functions Execution Status Change",
            "detail": {
                "executionArn": row["owner"],
                "stateMachineArn": row["owner"].rpartition(":")[0],
                "name": row["owner"].rpartition(":")[2],
                "status": status,
                "input": json.dumps(history.input),
                "error": "States.TaskFailed",
                "cause": "whatever",
            },
        }
        told = stack.world.functions.call("record_failure", event)
        assert told["request_id"] == row["request_id"]
        ended = stack.table("RequestsTableName").get_item(Key={"request_id": row["request_id"]})
        assert ended["Item"]["status"] == ("CANCELLED" if status == "ABORTED" else "FAILED")


# -- What was told, and what is read --------------------------------------------------------------


def bodies() -> list[Any]:
    """Each different body of a notification in the records."""
    different: dict[str, Any] = {}
    for history in HISTORIES:
        for step in history.steps:
            message = step.input.get("Message") if isinstance(step.input, dict) else None
            if message is not None:
                body = json.loads(message) if isinstance(message, str) else message
                name = f"{history.name}-{step.state}"
                version = history.name.partition("-")[0]
                different.setdefault(json.dumps(body), pytest.param(version, body, id=name))
    return list(different.values())


MODELS = {"limner.onboarding.ready": OnboardingReady, "limner.onboarding.failed": OnboardingFailed}


@pytest.mark.parametrize(("version", "body"), bodies())
def test_todays_contracts_read_what_was_told_then(version: str, body: dict[str, Any]) -> None:
    """A notification may lie in a subscriber's queue for two weeks."""
    known = {field for entry in _told(version, body["type"]) for field in entry["lacks"]}
    try:
        MODELS[body["type"]].model_validate(body)
    except ValidationError as error:
        lacking = {str(each["loc"][0]) for each in error.errors() if each["type"] == "missing"}
        assert lacking == known, error
        assert len(lacking) == error.error_count(), error
    else:
        assert not known, "migrations.toml speaks of a difference that is none"


def _told(version: str, kind: str) -> list[dict[str, Any]]:
    listed = tomllib.loads(MIGRATIONS_FILE.read_text(encoding="utf-8")).get("told", [])
    return [one for one in listed if (one["version"], one["type"]) == (version, kind)]


def test_todays_inputs_are_todays_contract() -> None:
    latest = [history for history in HISTORIES if not history.name.startswith("0.1.0-")]
    assert latest
    contracts = {"onboard": OnboardingInput, "onboard_batch": BatchInput}
    assert {history.machine for history in latest} == set(contracts)
    for history in latest:
        contracts[history.machine].model_validate(history.input)


# -- The recorder ---------------------------------------------------------------------------------


def test_recording_twice_gives_the_same_file(tmp_path: Path) -> None:
    (case,) = [case for case in record.CASES if case.name == "the training fails"]
    first, second = (record.record(case, "test").save(tmp_path).read_bytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("case", record.BATCHES, ids=lambda case: case.name)
def test_recording_a_batch_twice_gives_the_same_file(
    case: record.BatchCase, tmp_path: Path
) -> None:
    first, second = (
        record.record_batch(case, "test").save(tmp_path).read_bytes() for _ in range(2)
    )
    assert first == second


def test_histories_hold_nothing_personal_and_stay_small() -> None:
    for history in HISTORIES:
        text = (ROOT / f"tests/upgrades/histories/{history.name}.json").read_text("utf-8")
        assert len(text) < 40_000, history.name
        assert "somebody" in text
