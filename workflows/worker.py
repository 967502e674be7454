"""The machine ``worker``: a training job that stays, and takes requests from the queue itself.

::

    PlanWorker ─> WorkerPlanned ─> RunWorker ─> WorkerDone
                        ↑              │
                 WaitForCapacity <─ WorkerWaits     the troubles of train.py
                                       │
                                       └─ nothing helps: WorkerFailed

``dispatch`` starts an execution when requests wait and too few workers run. The execution owns no
request and settles none: a worker trains ahead (``training.worker``), and ``onboard_batch`` takes
what it finds. So whatever ends a worker costs the requests time, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from aws_cdk import Aws
from aws_cdk import aws_iam as iam
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from limner.contracts import keys
from workflows import jobs, retries
from workflows.tasks import StepFactory
from workflows.train import Training, first_job, train
from workflows.uses import WorkerUses

__all__ = ["COMMENT", "NAME", "Worker", "WorkerUses"]

NAME = "worker"
COMMENT = "A training job that stays, and trains queued requests ahead of their executions."
TABLE: Final = "LIMNER_WORKER_TABLE"
BUCKET: Final = "LIMNER_WORKER_BUCKET"
REGION: Final = "LIMNER_WORKER_REGION"
IDLE: Final = "LIMNER_WORKER_IDLE_S"
LIFETIME: Final = "LIMNER_WORKER_LIFETIME_S"


def _job(uses: WorkerUses) -> jobs.Job:
    bucket = f"s3://{uses.bucket.bucket_name}"
    return jobs.Job(
        channels=(jobs.channel("base", {"S3Uri": f"{bucket}/{keys.BASES}/{uses.base_id}/"}),),
        output=f"{bucket}/{keys.JOBS}",
        checkpoints={},
        instances={"InstanceCount": 1},
        runtime={"MaxRuntimeInSeconds": uses.lifetime_s + retries.TRAINING_RUNTIME_S},
        environment={
            f"{jobs.BATCH_MARK}.$": "$.batch_id",
            TABLE: uses.requests.table_name,
            BUCKET: uses.bucket.bucket_name,
            REGION: Aws.REGION,
            IDLE: str(uses.idle_s),
            LIFETIME: str(uses.lifetime_s),
        },
        calls_aws=True,
    )


class Worker(Construct):
    """The states of the machine.

    Attributes:
        start: The first state; the definition hangs on it.
        statements: IAM statements for the machine's role beyond those of CDK's own tasks.
    """

    def __init__(self, scope: Construct, construct_id: str, uses: WorkerUses) -> None:
        super().__init__(scope, construct_id)
        step = StepFactory(self, retries.WORKER)
        # On demand, and without a warm pool: a worker is a warm machine itself, and one that is
        # taken away every hour would train everything twice.
        uses = replace(uses, job=replace(uses.job, spot=False, keep_alive_s=0))
        plan = sfn.Pass(
            self,
            "PlanWorker",
            comment="The job of the worker, under the name of a batch: its results lie like those.",
            parameters={
                "batch_id.$": "$.batch_id",
                "job": first_job(
                    uses,
                    keys.BATCH_JOB_NAME_TEMPLATE,
                    "$.batch_id",
                    quota_waits=retries.WORKER_QUOTA_WAITS,
                    looks=retries.WORKER_LOOKS,
                ),
            },
        )
        planned = sfn.Pass(self, "WorkerPlanned", comment="No request is told: none is its own.")
        done = sfn.Succeed(self, "WorkerDone", comment="It was idle, or its time was over.")
        failed = sfn.Fail(
            self,
            "WorkerFailed",
            comment="Its requests are in the queue; their leases end by themselves.",
            error_path="$.failure.Error",
            cause_path="$.failure.Cause",
        )
        caught = train(
            step,
            uses,
            Training(
                template=keys.BATCH_JOB_NAME_TEMPLATE,
                name="$.batch_id",
                mark=jobs.BATCH_MARK,
                record_attempt=planned,
                fine_tune=step.train(
                    "RunWorker",
                    "Train what waits, until nothing does.",
                    uses.jobs,
                    jobs.request(uses.training_image, uses.job, _job(uses)),
                    call=uses.job.call,
                ),
                record_waiting=sfn.Pass(
                    self, "WorkerWaits", comment="For a machine, or for room in the quota."
                ),
                try_again=planned,
                done=done,
                failed=failed,
            ),
        )
        plan.next(planned)
        step.connect_catchers(caught)

        self.start: sfn.IChainable = plan
        self.statements: Sequence[iam.PolicyStatement] = tuple(step.statements)
