"""Crowds on the laptop: a real engine, real processes, the deployed stack, the real client.

* the laptop's cells of the fault matrix, all at once: each must end as it did in memory
* P1: 50 threads ask for the same onboarding
* P24: 30 % of the client's calls and of the machine's are throttled
* P23: one row of a hundred in the queue is poison
"""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from PIL import Image

from limner.client import Clients, Deployment, Limner
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.local.trouble import Fault
from tests.support.faults.laptop_cells import Staged, laptop_cells, staged
from tests.support.faults.light_laptop import MODEL, LightLaptop, light_laptop
from tests.support.faults.plan import Kind, Plan, Rule
from tests.support.laptop import until

THREADS = 50
THROTTLED_ONBOARDINGS = 20
THROTTLES = 0.3
RECORDS = 100


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightLaptop]:
    with light_laptop(tmp_path_factory.mktemp("crowd")) as laptop:
        yield laptop


def stage(crowd: LightLaptop, cell: Staged) -> None:
    if cell.has_model:
        crowd.put_model(cell.user_id)
    crowd.put(cell.request_id, cell.user_id, fails=cell.fails)


def test_cells_end_on_the_laptop_as_they_do_in_memory(
    crowd: LightLaptop, figure: Callable[[str], None]
) -> None:
    cells = [staged(cell, number) for number, cell in enumerate(laptop_cells())]
    crowd.each(lambda cell: stage(crowd, cell), cells)
    crowd.laptop.control.trouble(faults=[fault for cell in cells for fault in cell.faults])
    crowd.each(lambda cell: crowd.start(cell.request_id, cell.user_id), cells)
    crowd.rest([cell.request_id for cell in cells])
    crowd.laptop.control.trouble()
    rows = crowd.reconcile([cell.request_id for cell in cells])
    until(crowd.models, lambda rows: not any("active_request" in row for row in rows.values()))

    models, jobs, wrong = crowd.models(), Counter(crowd.jobs()), []
    silent = {cell.request_id for cell in cells if "already_ready" in rows[cell.request_id]}
    wanted = {cell.request_id for cell in cells} - silent
    told = until(crowd.told, lambda heard: wanted <= heard.keys(), 30)
    for cell in cells:
        row = rows[cell.request_id]
        code = row.get("error", {}).get("M", {}).get("code", {}).get("S", "")
        if (row["status"]["S"], code) != cell.expected:
            wrong.append(f"{cell.cell}: {row['status']['S']} {code}, in memory {cell.expected}")
        versions = [
            version
            for (user, name), version in models.items()
            if user == cell.user_id and "#" in name and version["status"]["S"] == "READY"
        ]
        paid = jobs[keys.job_name(cell.request_id, 1)] + jobs[keys.job_name(cell.request_id, 2)]
        live = models.get((cell.user_id, MODEL), {}).get("live_version")
        if len(versions) > 1 or paid > 1 or (versions and live is None):
            wrong.append(f"{cell.cell}: {len(versions)} versions, {paid} jobs, live {live}")
        if cell.request_id not in silent and not told[cell.request_id]:
            wrong.append(f"{cell.cell}: nobody was told")
        if "open" in row:
            wrong.append(f"{cell.cell}: has ended, and is still open")
    assert not wrong, "\n".join(wrong)
    assert not crowd.gate()
    endings = Counter(row["status"]["S"] for row in rows.values())
    figure(
        f"matrix  {len(cells)} of its cells at once on the laptop: all as in memory ("
        + ", ".join(f"{n} {status}" for status, n in sorted(endings.items()))
        + ")"
    )


# -- P1 and P24: the real client ------------------------------------------------------------------


def photos() -> list[bytes]:
    found = []
    for number in range(3):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 48), (90 * number, 0, 0)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def client(crowd: LightLaptop, plan: Plan | None = None) -> Limner:
    session = boto3.Session(
        region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    url = crowd.laptop.laptop.endpoint_url
    clients = Clients.of(session, endpoint_url=url, path_style=True)
    if plan is not None:
        for field in fields(clients):
            plan.install(getattr(clients, field.name))
    return Limner(clients, Deployment.from_outputs(crowd.outputs))


def test_fifty_threads_ask_for_the_same_onboarding(
    crowd: LightLaptop, figure: Callable[[str], None]
) -> None:
    limner, pictures = client(crowd), photos()

    def ask(_: int) -> str:
        return limner.onboard("fifty", pictures, client_token="once").request_id

    with ThreadPoolExecutor(THREADS) as pool:
        (request_id,) = set(pool.map(ask, range(THREADS)))
    row = crowd.rest([request_id])[request_id]
    assert row["status"]["S"] == "READY"
    jobs = [name for name in crowd.jobs() if request_id in name]
    versions = [
        version
        for (user, name), version in crowd.models().items()
        if user == "fifty" and "#" in name
    ]
    assert jobs == [keys.job_name(request_id, 1)]
    assert [version["status"]["S"] for version in versions] == ["READY"]
    assert crowd.models()["fifty", MODEL]["live_version"] == {"N": "1"}
    figure(
        f"P1   {THREADS} threads onboard the same user with one token: 1 request, 1 job, 1 READY"
    )


def throttles(rng: random.Random) -> list[Fault]:
    """30 % of the next calls of each kind that the machine makes."""
    codes = {
        "dynamodb:GetItem": "ProvisionedThroughputExceededException",
        "dynamodb:UpdateItem": "ProvisionedThroughputExceededException",
        "dynamodb:TransactWriteItems": "ThrottlingException",
        "s3:CopyObject": "SlowDown",
        "lambda:Invoke": "TooManyRequestsException",
        "sns:Publish": "ThrottledException",
        "sagemaker:CreateTrainingJob": "ThrottlingException",
    }
    return [
        Fault(operation, code=code, message="Rate exceeded", skip=number)
        for operation, code in codes.items()
        for number in range(6 * THROTTLED_ONBOARDINGS)
        if rng.random() < THROTTLES
    ]


def test_throttles_slow_and_never_break(
    crowd: LightLaptop, monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]
) -> None:
    # botocore's back-off is real time; nothing here depends on it.
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))
    plan = Plan([Rule("*", Kind.THROTTLE, probability=THROTTLES)], seed=24)
    limner, pictures = client(crowd, plan), photos()
    faults = throttles(random.Random(24))
    crowd.laptop.control.trouble(faults=faults)

    def ask(number: int) -> str:
        def again() -> str:
            token = f"throttled-{number}"
            return limner.onboard(token, pictures, client_token=token).request_id

        return persist(again)

    with ThreadPoolExecutor(8) as pool:
        wanted = list(pool.map(ask, range(THROTTLED_ONBOARDINGS)))
    rows = crowd.rest(wanted)
    left = crowd.laptop.control.trouble_left()
    crowd.laptop.control.trouble()
    endings = Counter(row["status"]["S"] for row in rows.values())
    assert endings == {"READY": THROTTLED_ONBOARDINGS}
    jobs = Counter(name for name in crowd.jobs() if any(request in name for request in wanted))
    assert len(jobs) == THROTTLED_ONBOARDINGS
    struck = len(faults) - sum(count or 0 for count in left.values())
    share = plan.struck() / plan.calls.total()
    assert plan.struck() > 0 and struck > 0
    figure(
        f"P24  {share:.0%} of {plan.calls.total():,} client calls and {struck:,} calls of the "
        f"machine throttled: {endings['READY']} of {THROTTLED_ONBOARDINGS} onboardings READY"
    )


def persist(call: Callable[[], str]) -> str:
    """An app that is told THROTTLED calls again with its token."""
    for _ in range(20):
        try:
            return call()
        except LimnerError as error:
            assert error.code == "THROTTLED", error
    raise AssertionError("throttled for ever")


# -- P23: poison ----------------------------------------------------------------------------------


def dead_letters(crowd: LightLaptop) -> list[dict[str, Any]]:
    """What lies in the dead-letter queue of the stream."""
    found: dict[str, dict[str, Any]] = {}
    url = crowd.outputs["FailedEventsQueueUrl"]
    while messages := crowd.sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=1
    ).get("Messages", []):
        for message in messages:
            found[message["MessageId"]] = json.loads(message["Body"])
    return [body for body in found.values() if "DDBStreamBatchInfo" in body]


def batches(crowd: LightLaptop) -> list[list[str]]:
    """The requests of each execution that the queue has started, of either machine."""
    found = []
    for machine in ("OnboardBatchMachineArn", "OnboardMachineArn"):
        pages = crowd.laptop.states.get_paginator("list_executions").paginate(
            stateMachineArn=crowd.outputs[machine]
        )
        for execution in (e for page in pages for e in page["executions"]):
            told = json.loads(
                crowd.laptop.states.describe_execution(executionArn=execution["executionArn"])[
                    "input"
                ]
            )
            names = [wish["request_id"] for wish in told.get("requests", [told])]
            found.append([name for name in names if name.startswith("pq")])
    return found


def test_one_poisoned_row_of_a_hundred_stops_nobody(
    crowd: LightLaptop, figure: Callable[[str], None]
) -> None:
    crowd.laptop.control.clock(0.05)  # with skipped waits no schedule would strike
    names = [f"pq{number:03}" for number in range(RECORDS)]
    poison, *sound = names

    def put(name: str) -> None:
        # Users who have a model already: nothing to train, what counts here is the queue.
        crowd.put_model(f"user-{name}")
        crowd.put(name, f"user-{name}", queued=True, poisoned=name == poison)

    crowd.each(put, names)
    rows = crowd.rest(names)
    assert {rows[name]["status"]["S"] for name in sound} == {"READY"}
    letters = until(lambda: dead_letters(crowd), lambda found: len(found) == 1)
    assert {rows[name]["already_ready"]["BOOL"] for name in sound} == {True}
    claims = Counter(name for batch in batches(crowd) for name in batch)
    assert claims == Counter(dict.fromkeys(sound, 1)), "each was in one execution, once"
    assert rows[poison]["status"]["S"] == "FAILED"
    assert letters[0]["DDBStreamBatchInfo"]["batchSize"] == 1

    # Redrive: the row is mended and put back; the same stream takes it on.
    crowd.put(poison, f"user-{poison}", queued=True)
    assert crowd.rest([poison])[poison]["status"]["S"] == "READY"
    # Read before, the letter is hidden for a moment.
    until(lambda: dead_letters(crowd), lambda found: len(found) == 1)
    figure(
        f"P23  {RECORDS} rows came into the queue, 1 of them poison: {len(sound)} onboarded once, "
        "1 record in the dead-letter queue; mended and put back, it was onboarded, too"
    )
