"""The handlers of dispatch and reconcile: events in, answers and metrics out."""

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from lambdas.shared import metrics
from lambdas.shared.clock import iso
from lambdas.shared.dynamo import Table, to_attribute
from limner.contracts.times import utc_now
from tests.support.dispatching import ARN, MACHINES, World, quick_world

ENVIRONMENT = {
    "ONBOARD_MACHINE_ARN": f"{ARN}:onboard",
    "BATCH_MACHINE_ARN": f"{ARN}:onboard_batch",
    "STAGE": "test",
    "MAX_INSTANCES": "100",
    "LAUNCHES_PER_SECOND": "100",
    "BURST": "100",
    "DAILY_LAUNCHES": "1000",
    "USER_ACTIVE": "1",
    "BATCH_FROM": "1000",
    "BATCH_SIZE": "100",
    "BATCH_INSTANCES": "2",
    "LEASE_S": "120",
    "WORKER_MACHINE_ARN": f"{ARN}:worker",
    "WORKERS": "0",
    "WORKER_BACKLOG": "8",
    "WORKER_PATIENCE_S": "900",
    "JOB_PREFIX": "limner-",
    "GRACE_S": "900",
}


class Context:
    """Lambda's."""

    aws_request_id = "invocation"

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


class Handlers:
    """Both handlers on one world."""

    def __init__(self, load: Callable[[str], ModuleType]) -> None:
        self.world: World = quick_world()
        self._dispatch, self._reconcile = load("dispatch"), load("reconcile")
        self._dispatch._REQUESTS = Table(self.world.dynamodb, "requests")  # type: ignore[attr-defined]
        self._dispatch._STATES = self.world.states  # type: ignore[attr-defined]
        self._reconcile._DYNAMODB = self.world.dynamodb  # type: ignore[attr-defined]
        self._reconcile._STATES = self.world.states  # type: ignore[attr-defined]
        self._reconcile._SAGEMAKER = self.world.sagemaker  # type: ignore[attr-defined]
        self._reconcile._SNS.publish = self._publish  # type: ignore[attr-defined]
        self.published: list[dict[str, Any]] = []

    def _publish(self, **call: Any) -> None:
        self.published.append(call)

    def dispatch(self, event: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._dispatch.handle(event, Context())
        return answer

    def reconcile(self, event: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = self._reconcile.handle(event, Context())
        return answer

    def record(self, request_id: str) -> dict[str, Any]:
        """The stream's record of a row that has come."""
        image = {name: to_attribute(value) for name, value in self.world.row(request_id).items()}
        return {
            "eventName": "INSERT",
            "dynamodb": {
                "Keys": {"request_id": image["request_id"]},
                "NewImage": image,
                "SequenceNumber": f"seq-{request_id}",
            },
        }


@pytest.fixture
def handlers(
    environment: None, monkeypatch: pytest.MonkeyPatch, cold_start: Callable[[str], ModuleType]
) -> Handlers:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return Handlers(cold_start)


def figures(output: str) -> dict[str, Any]:
    (line,) = (line for line in output.splitlines() if '"_aws"' in line)
    found: dict[str, Any] = json.loads(line)
    return found


def arrivals(output: str) -> int:
    lines = [json.loads(line) for line in output.splitlines() if '"_aws"' in line]
    return sum(line.get(metrics.QUEUED_REQUESTS, 0) for line in lines)


def test_poison_does_not_block(handlers: Handlers, capsys: pytest.CaptureFixture[str]) -> None:
    """P23: 1 poison in 100 records: 99 start once, 1 is named; again, and nothing doubles."""
    records = []
    for number in range(100):
        handlers.world.request(f"r{number:02}", attempt="poison" if number == 40 else 1)
        records.append(handlers.record(f"r{number:02}"))
    for _ in range(2):
        answer = handlers.dispatch({"Records": records})
        assert answer["batchItemFailures"] == [{"itemIdentifier": "seq-r40"}]
    starts = handlers.world.states.starts
    assert len(starts) == len(set(starts)) == 99
    assert handlers.world.row("r40")["error"]["code"] == "INVALID_INPUT"
    print(f"\n1 poison in 100 records, delivered twice: {len(starts)} started once")  # noqa: T201
    capsys.readouterr()


def test_metrics_are_figures_and_no_ids(
    handlers: Handlers, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers.world.request("r1", "ada")
    handlers.dispatch({"Records": [handlers.record("r1")]})
    output = capsys.readouterr().out
    assert arrivals(output) == 1
    told = figures(output.partition("\n")[2])
    assert (told["Stage"], told[metrics.LAUNCHED]) == ("test", 1)
    (definition,) = told["_aws"]["CloudWatchMetrics"]
    assert (definition["Namespace"], definition["Dimensions"]) == ("Limner", [["Stage"]])
    assert {metric["Name"] for metric in definition["Metrics"]} == set(told) - {"_aws", "Stage"}
    assert "ada" not in output
    assert "r1" not in output


def test_arrivals_are_counted_also_when_another_has_the_turn(
    handlers: Handlers, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers.world.request("r1")
    later = iso(handlers.world.time.now_ms + 10**12)
    handlers.world.put("requests", {"request_id": "#dispatch", "by": "other", "until": later})
    handlers.dispatch({"Records": [handlers.record("r1")]})
    assert handlers.world.states.starts == []
    assert arrivals(capsys.readouterr().out) == 1


def test_what_is_no_arrival_makes_no_round(handlers: Handlers) -> None:
    handlers.world.request("r1")
    record = handlers.record("r1")
    record["dynamodb"]["OldImage"] = record["dynamodb"]["NewImage"]
    assert handlers.dispatch({"Records": [record]}) == {"batchItemFailures": []}
    assert handlers.world.states.starts == []
    assert handlers.dispatch({})["launched"] == 1


def test_the_end_of_an_execution_frees_its_place(handlers: Handlers) -> None:
    handlers.world.request("r1")
    handlers.dispatch({})
    handlers.world.claim("r1", "r1-1")
    handlers.world.end_execution("r1-1", "SUCCEEDED")
    handlers.dispatch({"detail": {"executionArn": MACHINES.execution("r1-1", batch=False)}})
    assert handlers.world.holders == {}


def test_reconcile_tells_what_it_found(
    handlers: Handlers, capsys: pytest.CaptureFixture[str]
) -> None:
    world, long_ago = handlers.world, "2020-01-01T00:00:00.000Z"
    world.request("r1", status="REGISTERED", queue=None, updated_at=long_ago)
    owner = MACHINES.execution("b1", batch=True)
    world.request("r2", status="TRAINING", queue=None, owner=owner, updated_at=utc_now())
    world.end_execution("b1", "ABORTED", batch=True)
    found = handlers.reconcile({"detail-type": "Scheduled Event", "detail": {}})
    assert (found["stuck"], found["repaired"]) == (1, 1)
    told = figures(capsys.readouterr().out)
    assert (told[metrics.STUCK_REQUESTS], told[metrics.REPAIRED_REQUESTS]) == (1, 1)
    (call,) = handlers.published
    assert json.loads(call["Message"])["code"] == "UPLOAD_EXPIRED"
    assert call["MessageAttributes"]["type"]["StringValue"] == "limner.onboarding.failed"
    event = {
        "detail": {
            "executionArn": MACHINES.execution("b1", batch=True),
            "status": "ABORTED",
            "input": json.dumps({"requests": [{"request_id": "r2"}]}),
        }
    }
    assert handlers.reconcile(event)["repaired"] == 1
    assert world.row("r2")["status"] == "QUEUED"
