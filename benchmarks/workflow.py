"""The figures of the workflows: what an onboarding costs, and how bursts are carried.

``python -m benchmarks.workflow`` starts a laptop of its own with light images (no torch) and prints

* state transitions and history events of an onboarding (single, ready, batch), and their price;
* bursts of 1, 10, 100 and 1,000 requests while CreateTrainingJob takes one call a second: all
  executions started at once, the queue one by one, and the queue in batches;
* the time of a synthesis.

Virtual seconds: the laptop's waits, its rate of CreateTrainingJob and the rate of ``dispatch`` all
run ``1 / SCALE`` times faster than on AWS, so a burst of 1,000 seconds takes some minutes. The work
itself is not faster, so on a slow machine the figures are upper bounds. Nothing else should run
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.laptop import machine
from limner import local
from limner.cli.target import connect_laptop
from limner.client import Limner, TrainingConfig
from limner.contracts import keys
from limner.contracts.onboarding import OnboardingInput
from limner.local.control import Control
from limner.local.deploy import deploy_stack
from limner.local.images import INFERENCE_IMAGE, TRAINING_IMAGE
from limner.registry import Request

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "tests" / "support"
PRICES = json.loads((ROOT / "limner" / "prices.json").read_text())
# Real seconds for each virtual one.
SCALE = 0.1
BURSTS = (1, 10, 100, 1_000)
WRITERS = 8
ENDED = {"READY", "FAILED", "CANCELLED"}
SYNTHESES = 3


@dataclass(frozen=True)
class Bench:
    """A deployed laptop with light images."""

    endpoint_url: str
    outputs: dict[str, str]
    limner: Limner
    control: Control

    def client(self, service: str) -> Any:  # noqa: ANN401 - its type depends on the name
        """A boto3 client of the laptop."""
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106 - the laptop takes any
        )

    def configure(self, output: str, **settings: object) -> None:
        """Changes settings of a function, by the output that names it."""
        functions = self.client("lambda")
        name = self.outputs[output]
        known = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
        changed = {key: str(value) for key, value in settings.items()}
        functions.update_function_configuration(
            FunctionName=name, Environment={"Variables": {**known, **changed}}
        )

    def submit(self, count: int, *, queued: bool) -> tuple[list[OnboardingInput], float]:
        """Puts that many requests of as many users; returns them and the seconds that took."""
        wishes = [
            OnboardingInput(request_id=keys.new_request_id(), user_id=f"u-{keys.new_request_id()}")
            for _ in range(count)
        ]
        s3, dynamodb = self.limner.clients.s3, self.limner.clients.dynamodb
        config = TrainingConfig(steps=160)
        bucket = self.limner.deployment.bucket

        def upload(wish: OnboardingInput) -> None:
            prefix = keys.uploads_prefix(wish.user_id, wish.request_id)
            s3.put_object(Bucket=bucket, Key=f"{prefix}1.png", Body=b"photo")
            s3.put_object(
                Bucket=bucket,
                Key=keys.config_prefix(wish.request_id) + keys.CONFIG_FILE,
                Body=config.model_dump_json().encode(),
            )

        def put(wish: OnboardingInput) -> None:
            request = Request.new(
                wish.request_id,
                wish.user_id,
                wish.model_id,
                retrain=False,
                steps=config.steps,
                photos=3,
                input_digest="0" * 64,
                queued=queued,
            )
            dynamodb.put_item(
                TableName=self.limner.deployment.requests_table, Item=request.to_item()
            )

        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(upload, wishes))
            start = time.monotonic()
            list(pool.map(put, wishes))
            return wishes, time.monotonic() - start

    def start(self, wishes: Sequence[OnboardingInput]) -> None:
        """Starts an execution for each request at once, as an app without a queue does."""
        states = self.client("stepfunctions")

        def one(wish: OnboardingInput) -> None:
            states.start_execution(
                stateMachineArn=self.outputs["OnboardMachineArn"],
                name=keys.execution_name(wish.request_id),
                input=wish.model_dump_json(),
            )

        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(one, wishes))

    def requests(self, wishes: Sequence[OnboardingInput]) -> list[Request]:
        """The records as they stand."""
        with ThreadPoolExecutor(WRITERS) as pool:
            return list(pool.map(lambda wish: self.limner.request(wish.request_id), wishes))

    def finish(self, wishes: Sequence[OnboardingInput], deadline_s: float) -> list[Request]:
        """Waits until all requests have ended."""
        deadline = time.monotonic() + deadline_s
        left, done = list(wishes), {}
        while left:
            for request in self.requests(left):
                if request.status in ENDED:
                    done[request.request_id] = request
            left = [wish for wish in left if wish.request_id not in done]
            if left and time.monotonic() > deadline:
                raise SystemExit(f"{len(left)} of {len(wishes)} requests have not ended in time")
            time.sleep(0.5)
        return [done[wish.request_id] for wish in wishes]


@contextmanager
def laptop() -> Iterator[Bench]:
    """A fresh laptop with the stack on it."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        started = local.start(project, port=0, clock_scale=SCALE, deploy=False)
        try:
            control = Control(started.endpoint_url)
            control.register_image(TRAINING_IMAGE, [sys.executable, str(IMAGES / "trainer.py")])
            control.register_image(INFERENCE_IMAGE, [sys.executable, str(IMAGES / "endpoint.py")])
            base = project / "base"
            base.mkdir()
            (base / "model_index.json").write_text("{}")
            outputs = deploy_stack(started.endpoint_url, time.monotonic() + 60, base=base)
            yield Bench(started.endpoint_url, outputs, connect_laptop(started), control)
        finally:
            local.stop(project)


# -- What an onboarding costs ---------------------------------------------------------------------


def history(bench: Bench, execution: str) -> list[dict[str, Any]]:
    """All events of an execution, as the laptop tells them."""
    pages = (
        bench.client("stepfunctions")
        .get_paginator("get_execution_history")
        .paginate(executionArn=execution, includeExecutionData=False)
    )
    return [event for page in pages for event in page["events"]]


def cost(events: Sequence[dict[str, Any]], requests: int) -> dict[str, object]:
    """Transitions (states entered) of one execution, by request, and their price."""
    entered = sum(event["type"].endswith("StateEntered") for event in events)
    price = PRICES["step_functions_standard_transition"]
    return {
        "transitions": entered,
        "events_on_the_laptop": len(events),
        "transitions_per_request": round(entered / requests, 1),
        "usd_per_1000_requests": round(1000 * price * entered / requests, 4),
    }


def costs(bench: Bench) -> dict[str, object]:
    """A single onboarding, a user who is ready already, and a batch of eight."""
    figures: dict[str, object] = {}
    first, _ = bench.submit(1, queued=False)
    bench.start(first)
    (single,) = bench.finish(first, 120)
    figures["single"] = cost(history(bench, str(single.owner)), 1)

    again = first[0].model_copy(update={"request_id": keys.new_request_id()})
    bench.limner.clients.dynamodb.put_item(
        TableName=bench.limner.deployment.requests_table,
        Item=Request.new(
            again.request_id,
            again.user_id,
            again.model_id,
            retrain=False,
            steps=160,
            photos=3,
            input_digest="0" * 64,
            queued=False,
        ).to_item(),
    )
    bench.start([again])
    (ready,) = bench.finish([again], 60)
    figures["already ready"] = cost(history(bench, str(ready.owner)), 1)

    bench.configure("DispatchFunctionName", BATCH_FROM=2, BATCH_SIZE=8)
    wishes, _ = bench.submit(8, queued=True)
    batches = Counter(str(request.owner) for request in bench.finish(wishes, 120))
    owner, size = batches.most_common(1)[0]
    figures[f"batch of {size}"] = cost(history(bench, owner), size)
    return figures


# -- Bursts ---------------------------------------------------------------------------------------

# How a burst is carried, and what dispatch is told for it.
ALONE = {"BATCH_FROM": 100_000, "BATCH_SIZE": 32}
TOGETHER = {"BATCH_FROM": 4, "BATCH_SIZE": 32}
MODES: dict[str, dict[str, int] | None] = {
    "executions at once": None,
    "queue, one by one": ALONE,
    "queue, in batches": TOGETHER,
}


def burst(bench: Bench, count: int, settings: dict[str, int] | None) -> dict[str, object]:
    """Carries a burst while CreateTrainingJob takes one call a virtual second.

    Returns:
        Figures in virtual seconds, but for what says "real".
    """
    bench.control.trouble(rate_per_s=1 / SCALE, burst=1, instance_quota=100_000)
    if settings is not None:
        bench.configure(
            "DispatchFunctionName",
            **settings,
            LAUNCHES_PER_SECOND=1 / SCALE,
            BURST=1,
            MAX_INSTANCES=10_000,
            DAILY_LAUNCHES=1_000_000,
        )
    begun = time.time()
    wishes, accepted_s = bench.submit(count, queued=settings is not None)
    if settings is None:
        bench.start(wishes)
    ended = bench.finish(wishes, deadline_s=60 + 2 * count)
    total_s = time.time() - begun
    sagemaker = bench.client("sagemaker")
    names = sorted({request.job_name for request in ended if request.job_name})
    created = {
        name: sagemaker.describe_training_job(TrainingJobName=name)["CreationTime"].timestamp()
        for name in names
    }
    waits = sorted(
        (created[request.job_name] - begun) / SCALE
        for request in ended
        if request.job_name in created
    )
    return {
        "requests": count,
        "statuses": dict(Counter(str(request.status) for request in ended)),
        "jobs": len(names),
        "accepted_per_real_s": round(count / accepted_s, 1),
        "launched_per_s": round(count / (waits[-1] or 1), 2),
        "to_launch_p50_s": round(statistics.median(waits), 1),
        "to_launch_last_s": round(waits[-1], 1),
        "all_ended_s": round(total_s / SCALE, 1),
        "all_ended_real_s": round(total_s, 1),
    }


def synthesis_s() -> float:
    """Median seconds of ``python -m infra.app`` for a stage in the cloud, cold run dropped."""
    times = []
    for _ in range(SYNTHESES + 1):
        with tempfile.TemporaryDirectory() as outdir:
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "infra.app"],
                check=True,
                cwd=ROOT,
                env={"PATH": "/usr/bin:/bin", "LIMNER_STAGE": "prod", "CDK_OUTDIR": outdir},
                stdout=subprocess.DEVNULL,
            )
            times.append(time.perf_counter() - start)
    return round(statistics.median(times[1:]), 2)


def main() -> None:
    """Prints everything as JSON, a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bursts", type=int, nargs="*", default=BURSTS)
    parser.add_argument("--only", choices=("costs", "bursts", "synth"))
    wanted = parser.parse_args()

    def say(**figures: object) -> None:
        print(json.dumps(figures), flush=True)

    say(machine=machine(), scale=SCALE, prices_as_of=PRICES["as_of"])
    if wanted.only in (None, "costs"):
        with laptop() as bench:
            for kind, figures in costs(bench).items():
                say(onboarding=kind, figures=figures)
    if wanted.only in (None, "bursts"):
        for count in wanted.bursts:
            for mode, settings in MODES.items():
                with laptop() as bench:
                    say(burst=mode, figures=burst(bench, count, settings))
    if wanted.only in (None, "synth"):
        say(synthesis_s=synthesis_s())


if __name__ == "__main__":
    main()
