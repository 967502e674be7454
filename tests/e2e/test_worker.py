"""Worker mode on the real laptop: one job that stays makes everybody's model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from limner import local
from limner.cli.target import connect_laptop
from limner.client import Limner, TrainingConfig

PHOTOS = sorted((Path(__file__).resolve().parents[2] / "examples" / "photos" / "mug").glob("*.png"))
CONFIG = TrainingConfig(steps=2)
DEADLINE_S = 400
USERS = ("alice", "bob")


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.Laptop]:
    folder = tmp_path_factory.mktemp("project")
    yield local.start(folder, port=0)
    local.stop(folder)


def client(laptop: local.Laptop, service: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=laptop.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def with_workers(laptop: local.Laptop) -> None:
    """As ``LIMNER_WORKERS=1`` at deployment."""
    (stack,) = client(laptop, "cloudformation").describe_stacks(StackName="limner-local")["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    functions, name = client(laptop, "lambda"), outputs["DispatchFunctionName"]
    variables = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    changed = {**variables, "WORKERS": "1", "WORKER_BACKLOG": "1"}
    functions.update_function_configuration(FunctionName=name, Environment={"Variables": changed})


@pytest.mark.timeout(900)
def test_one_worker_makes_everybodys_model(laptop: local.Laptop) -> None:
    limner: Limner = connect_laptop(laptop)
    with_workers(laptop)
    requests = []
    for user in USERS:
        registration = limner.register(user, PHOTOS, config=CONFIG)
        registration.upload(PHOTOS)
        requests.append(limner.submit(registration.request_id))
    rows = [limner.wait(r.request_id, timeout_s=DEADLINE_S, poll_s=0.5) for r in requests]
    assert [(row.status, row.version, row.attempt) for row in rows] == [("READY", 1, 1)] * len(
        USERS
    )

    (worker,) = client(laptop, "sagemaker").list_training_jobs()["TrainingJobSummaries"]
    assert worker["TrainingJobName"].startswith("limner-batch-w0-")
    assert worker["TrainingJobStatus"] == "InProgress", "it waits for more"
    owners = {row.owner for row in rows}
    assert all(":execution:limner-local-onboard-batch:" in owner for owner in owners)
    for user in USERS:
        assert limner.generate(user, "a photo of {token}", steps=2).images
