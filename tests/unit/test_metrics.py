"""Figures per model from a container's log, on the laptop and from CloudWatch Logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from inference import logs as container_logs
from limner.client import metrics as cloudwatch
from limner.contracts.errors import LimnerError
from limner.contracts.metrics import fingerprint
from limner.metrics import percentile, summarize

TARGET = "alice/default/v1.tar.gz"


def line(model: str, at: int = 1000, **values: float) -> str:
    return json.dumps(
        {"event": "metrics", "_aws": {"Timestamp": at}, "Model": fingerprint(model), **values}
    )


def drawn(model: str, denoise: float, *, hit: int = 1, at: int = 1000, evictions: int = 0) -> str:
    values = {"QueueMs": denoise / 10, "DenoiseMs": denoise, "SlotHits": hit}
    rest = {"SlotMisses": 1 - hit, "Evictions": evictions, "ResidentBytes": at * 10}
    return line(model, at, **values, **rest)


LOG = [
    "a library says something",
    '{"event": "metrics", "broken',
    '["event"]',
    line("a", LoadMs=5, ResidentBytes=1),
    drawn("b", 10, at=3000),
    drawn("a", 10, hit=0, evictions=1),
    drawn("a", 30, at=2000),
    json.dumps({"event": "invoke", "model": "a", "target": fingerprint(TARGET)}),
    json.dumps({"event": "invoke", "target": fingerprint(TARGET)}),
    json.dumps({"event": "metrics", "CapturesWritten": 1}),
]


def test_rows_by_generations_and_their_total() -> None:
    a, b, total = summarize(LOG)
    assert (a.model, a.generations, a.hit_rate) == (fingerprint("a"), 2, 0.5)
    assert (a.loads, a.load_ms_p50, a.evictions, a.resident_bytes) == (1, 5, 1, 20000)
    assert (a.queue_ms_p50, a.queue_ms_p95) == (1, 3)
    assert (a.denoise_ms_p50, a.denoise_ms_p95) == (10, 30)
    assert (b.generations, b.hit_rate, b.load_ms_p50) == (1, 1, None)
    assert (total.model, total.generations, total.resident_bytes) == ("total", 3, 30000)


def test_older_lines_are_left_out() -> None:
    rows = summarize(LOG, since_ms=2000)
    assert [row.generations for row in rows] == [1, 1, 2]
    assert summarize(LOG, since_ms=9999) == []


def test_a_targets_model_is_found_by_its_requests() -> None:
    rows = summarize(LOG, targets=[TARGET])
    assert [row.model for row in rows] == [fingerprint("a"), "total"]
    assert summarize(LOG, targets=["bob/default/v1.tar.gz"]) == []
    assert summarize(LOG, targets=[]) == []


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile([], 50) is None
    assert percentile([1], 95) == 1
    assert [percentile(range(1, 101), p) for p in (50, 95, 100)] == [50, 95, 100]


def test_fingerprints_are_the_containers() -> None:
    assert fingerprint("name") == container_logs.fingerprint("name")


@pytest.fixture
def logs() -> Iterator[tuple[Any, Stubber]]:
    client = boto3.client(
        "logs", region_name="us-east-1", aws_access_key_id="t", aws_secret_access_key="t"
    )
    with Stubber(client) as stub:
        yield client, stub
        stub.assert_no_pending_responses()


def asked(pattern: str, **more: str) -> dict[str, Any]:
    group = "/aws/sagemaker/Endpoints/ep"
    return {"logGroupName": group, "startTime": 7, "filterPattern": pattern, **more}


def test_all_pages_of_the_log_group_are_read(logs: tuple[Any, Stubber]) -> None:
    client, stub = logs
    pattern = '{ $.event = "metrics" }'
    stub.add_response(
        "filter_log_events", {"events": [{"message": "1"}], "nextToken": "n"}, asked(pattern)
    )
    stub.add_response(
        "filter_log_events", {"events": [{"message": "2"}]}, asked(pattern, nextToken="n")
    )
    assert list(cloudwatch.read(client, "ep", 7)) == ["1", "2"]


def test_requests_are_read_where_a_user_is_looked_for(logs: tuple[Any, Stubber]) -> None:
    client, stub = logs
    pattern = '{ ($.event = "metrics") || ($.event = "invoke") }'
    stub.add_response("filter_log_events", {"events": []}, asked(pattern))
    assert list(cloudwatch.read(client, "ep", 7, with_requests=True)) == []


def test_an_endpoint_that_never_logged_has_no_lines(logs: tuple[Any, Stubber]) -> None:
    client, stub = logs
    stub.add_client_error("filter_log_events", "ResourceNotFoundException")
    assert list(cloudwatch.read(client, "ep", 7)) == []
    stub.add_client_error("filter_log_events", "AccessDeniedException")
    with pytest.raises(LimnerError) as error:
        list(cloudwatch.read(client, "ep", 7))
    assert error.value.code == "AWS_ERROR"


def test_the_client_is_the_sessions() -> None:
    session: Any = SimpleNamespace(client=lambda service: service)
    assert cloudwatch.logs_client(session) == "logs"
