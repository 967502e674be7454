"""The laptop for tests: one daemon a session, in a project of its own, with light images.

Use the fixture ``laptop`` (its conftest.py imports it). Nothing is deployed; the test images
``limner/training:test`` and ``limner/inference:test`` are registered, and stand for Limner's own
``:local`` images too, so that the published template and machines run without torch. Waits run at
one hundredth of their time; real work keeps its time.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import boto3
import pytest
from botocore.config import Config

from limner import local
from limner.local.control import Control
from limner.local.images import INFERENCE_IMAGE, TRAINING_IMAGE

T = TypeVar("T")
HERE = Path(__file__).parent
TEST_TRAINING = "limner/training:test"
TEST_INFERENCE = "limner/inference:test"
CLOCK_SCALE = 0.01
# Only a test that fails waits for so long; a machine with two busy cores takes its time.
DEADLINE_S = 180
_LAST_EVENTS = {f"Execution{end}" for end in ("Succeeded", "Failed", "TimedOut", "Aborted")}
ROLE = "arn:aws:iam::000000000000:role/test"


@dataclass(frozen=True)
class TestLaptop:
    """A running laptop and clients of it."""

    __test__ = False

    laptop: local.Laptop

    def client(self, service: str, **options: Any) -> Any:
        """A boto3 client; the same as any user would make."""
        return boto3.client(
            service,
            endpoint_url=self.laptop.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            **options,
        )

    @cached_property
    def control(self) -> Control:
        return Control(self.laptop.endpoint_url)

    @cached_property
    def sagemaker(self) -> Any:
        return self.client("sagemaker")

    @cached_property
    def runtime(self) -> Any:
        return self.client("sagemaker-runtime", config=no_retries())

    @cached_property
    def s3(self) -> Any:
        return self.client("s3")

    @cached_property
    def states(self) -> Any:
        return self.client("stepfunctions")

    def run(
        self,
        definition: dict[str, Any],
        data: dict[str, Any] | None = None,
        *,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Creates a machine, runs it to its end and returns DescribeExecution's answer."""
        return self.finish(self.begin(definition, data, name=name))

    def begin(
        self,
        definition: dict[str, Any],
        data: dict[str, Any] | None = None,
        *,
        name: str | None = None,
    ) -> str:
        """Creates a machine and starts it; returns the ARN of the execution."""
        machine = self.states.create_state_machine(
            name=f"test-{uuid.uuid4().hex[:12]}", definition=json.dumps(definition), roleArn=ROLE
        )
        options = {"name": name} if name else {}
        execution: str = self.states.start_execution(
            stateMachineArn=machine["stateMachineArn"], input=json.dumps(data or {}), **options
        )["executionArn"]
        return execution

    def finish(self, execution: str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        """Waits for the end of an execution, and of its history: the status comes first."""
        answer = until(
            lambda: self.states.describe_execution(executionArn=execution),
            lambda answer: answer["status"] != "RUNNING",
            deadline_s,
        )
        until(lambda: self._last_event(execution), lambda kind: kind in _LAST_EVENTS, deadline_s)
        return answer

    def _last_event(self, execution: str) -> str:
        history = self.states.get_execution_history(
            executionArn=execution, reverseOrder=True, maxResults=1
        )
        kind: str = history["events"][0]["type"]
        return kind


def no_retries() -> Any:
    return Config(retries={"total_max_attempts": 1})


def until(look: Callable[[], T], good: Callable[[T], bool], deadline_s: float = DEADLINE_S) -> T:
    """Polls until an answer is good; fails with the last answer."""
    deadline = time.monotonic() + deadline_s
    while True:
        answer = look()
        if good(answer):
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {deadline_s} s; last: {answer}")
        time.sleep(0.03)


def register_test_images(control: Control) -> None:
    for image in (TEST_TRAINING, TRAINING_IMAGE):
        control.register_image(image, [sys.executable, str(HERE / "trainer.py")])
    for image in (TEST_INFERENCE, INFERENCE_IMAGE):
        control.register_image(image, [sys.executable, str(HERE / "endpoint.py")])


def calm(control: Control) -> None:
    """A good day with the tests' clock."""
    control.trouble()
    control.clock(CLOCK_SCALE, timeouts=1.0)


@pytest.fixture(scope="session")
def session_laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestLaptop]:
    project = tmp_path_factory.mktemp("laptop")
    started = local.start(project, port=0, clock_scale=CLOCK_SCALE, deploy=False)
    laptop = TestLaptop(started)
    register_test_images(laptop.control)
    yield laptop
    local.stop(project)


@pytest.fixture
def laptop(session_laptop: TestLaptop) -> Iterator[TestLaptop]:
    """The session's laptop on a good day, whatever the test before did to it."""
    calm(session_laptop.control)
    yield session_laptop
    calm(session_laptop.control)
