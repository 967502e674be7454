"""What the machines work with: the resources of a stage, as infra hands them in."""

from __future__ import annotations

from dataclasses import dataclass, field

from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns

from workflows.jobs import JobSettings
from workflows.tasks import TrainingJobs


@dataclass(frozen=True, kw_only=True)
class JobUses:
    """What each machine with a training job works with.

    Attributes:
        bucket: Photos, configs, base, jobs, previews and models.
        requests: Table of requests.
        jobs: The training jobs that the machine may run, and their role.
        training_image: The training program's container image.
        training_instance_types: The machines that a job runs on, one for each try, separated by
            commas: where AWS has none of the first type free, the second try asks for the second.
        base_id: The frozen base under all adapters.
        job: How the jobs are run.
    """

    bucket: s3.IBucket
    requests: dynamodb.ITable
    jobs: TrainingJobs
    training_image: str
    training_instance_types: str
    base_id: str
    job: JobSettings = field(default_factory=JobSettings)


@dataclass(frozen=True, kw_only=True)
class WorkerUses(JobUses):
    """What ``worker`` works with.

    Attributes:
        idle_s: Seconds without work after which a worker ends.
        lifetime_s: Seconds after which it takes nothing on any more.
    """

    idle_s: int
    lifetime_s: int


@dataclass(frozen=True, kw_only=True)
class Uses(JobUses):
    """What the machines of onboardings work with, and all that ``onboard`` does.

    Attributes:
        models: Table of models and their versions.
        topic: Where onboardings are announced.
        inspect_artifact: Function that judges what a training has made.
        smoke_test: Function that makes the first inference.
        record_failure: Function that ends a request that failed.
    """

    models: dynamodb.ITable
    topic: sns.ITopic
    inspect_artifact: lambda_.IFunction
    smoke_test: lambda_.IFunction
    record_failure: lambda_.IFunction


@dataclass(frozen=True, kw_only=True)
class BatchUses(Uses):
    """What ``onboard_batch`` works with.

    Attributes:
        pack_tasks: Function that writes what a job is to do, and for whom on which machine.
        collect_results: Function that reads what came of it.
        record_progress: Function that writes the status of all requests of a batch at once.
    """

    pack_tasks: lambda_.IFunction
    collect_results: lambda_.IFunction
    record_progress: lambda_.IFunction
