"""Random schedules: who takes the next turn, what is lost, what is made twice, who dies.

A schedule is a seed. It puts one or two requests of one model, starts their executions (some under
a second name, some twice), and lets chance take every turn. Then the weather clears: events that
were not lost arrive, the schedules of dispatch and reconcile strike, and everything comes to rest.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from limner.contracts import keys
from limner.registry import Request
from tests.support.faults.machine import Call, Execution, Fault
from tests.support.faults.stories import System
from tests.support.faults.world import Job

USER: Final = "alice"
MODEL: Final = "default"
# Error names that a state sees when the service is in trouble, by integration.
TROUBLE: Final = {
    "dynamodb": ("DynamoDB.ProvisionedThroughputExceededException", "DynamoDB.InternalServerError"),
    "aws-sdk:dynamodb": ("DynamoDb.ThrottlingException", "DynamoDb.InternalServerErrorException"),
    "aws-sdk:s3": ("S3.SlowDownException", "S3.InternalErrorException"),
    "aws-sdk:sagemaker": ("SageMaker.SageMakerException", "SageMaker.SdkClientException"),
    "sagemaker": ("SageMaker.AmazonSageMakerException", "SageMaker.SdkClientException"),
    "lambda": ("Lambda.TooManyRequestsException", "Lambda.ServiceException"),
    "sns": ("SNS.ThrottledException", "SNS.InternalErrorException"),
}


def trouble_of(call: Call, number: int) -> str:
    """An error name for a call: 0 for a throttle, 1 for a 5xx."""
    service = call.resource.partition(":::")[2].rpartition(":")[0]
    return TROUBLE[service][number]


@dataclass
class Schedule:
    """One seed.

    Attributes:
        seed: All chance.
        system: What it happens to.
        done: What has happened, for the figure.
    """

    seed: int
    fault_rate: float = 0.06
    stop_rate: float = 0.004
    system: System = field(default_factory=System)
    done: Counter[str] = field(default_factory=Counter)

    def run(self) -> System:
        """Plays the schedule to its end."""
        rng = random.Random(self.seed)
        world = self.system.world
        world.outcome = lambda _: _outcome(rng)
        wishes = [_put(self.system, f"r{n}", rng) for n in range(1 + (rng.random() < 0.3))]
        for data in wishes:
            name = keys.execution_name(data["request_id"], 1)
            world.start(name, data)
            if rng.random() < 0.4:
                world.start(name, data)  # the client's retry: the same execution
                self.done["starts made twice"] += 1
            if rng.random() < 0.15:
                world.start(f"{data['request_id']}-other", data)
                self.done["second executions"] += 1
        standing: dict[str, Call | None] = {}
        while going := list(self.system.running()):
            self._turn(rng, rng.choice(going), standing)
        world.tell_endings()
        self._rest()
        return self.system

    def _turn(
        self, rng: random.Random, execution: Execution, standing: dict[str, Call | None]
    ) -> None:
        world, call = self.system.world, standing.get(execution.arn)
        draw = rng.random()
        if draw < self.stop_rate:
            world.stop(execution)
            if rng.random() < 0.3:
                world.lose_endings()
                self.done["ends that nobody heard of"] += 1
            self.done["executions stopped"] += 1
            return
        fault = None
        if call is not None and call.resource and draw < self.fault_rate:
            after = rng.random() < 0.5
            fault = Fault(trouble_of(call, rng.randrange(2)), after=after)
            self.done["replies lost" if after else "calls refused"] += 1
        standing[execution.arn] = world.advance(execution, fault)
        self.done["turns"] += 1
        if rng.random() < 0.2:
            world.tell_endings()

    def _rest(self) -> None:
        """Only where something is left to do: most schedules have ended by themselves."""
        rows = self.system.world.memory.tables["requests"]
        if any("open" in row for row in rows.values()) or _is_left(self.system):
            self.system.settle(rounds=3)


def _is_left(system: System) -> bool:
    models = system.world.memory.tables["models"].values()
    at_work = any(job.status == "InProgress" for job in system.world.jobs.values())
    return at_work or any("active_request" in row for row in models)


def _put(system: System, request_id: str, rng: random.Random) -> dict[str, Any]:
    request = Request.new(
        request_id,
        USER,
        MODEL,
        retrain=rng.random() < 0.5,
        steps=10,
        photos=3,
        input_digest="0",
        queued=False,
    )
    moment = system.world.now_iso()
    request = request.model_copy(update={"created_at": moment, "updated_at": moment})
    system.world.memory.put_item(TableName="requests", Item=request.to_item())
    return {
        "schema_version": 1,
        "request_id": request_id,
        "user_id": USER,
        "model_id": MODEL,
        "attempt": 1,
        "retrain": request.retrain,
    }


def _outcome(rng: random.Random) -> tuple[str, str]:
    draw = rng.random()
    if draw < 0.08:
        return "Failed", "CapacityError: no machine"
    if draw < 0.12:
        return "Failed", "AlgorithmError: TRAINING_FAILED: x, exit code: 1"
    return "Completed", ""


def jobs_of(jobs: dict[str, Job], request_id: str) -> list[str]:
    """Names of the jobs of a request that took a machine."""
    return [
        name
        for name, job in jobs.items()
        if name.startswith(f"limner-{request_id}-") and not job.reason.startswith("CapacityError")
    ]
