"""The machines, the functions that they call, and the topic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sns as sns
from constructs import Construct

from infra import rights
from infra.access import Objects
from infra.functions import Functions
from infra.machines import Machines
from infra.parts import EndpointRef, Store
from infra.settings import StageSettings
from infra.training import Training
from limner.contracts import keys
from workflows import onboard, onboard_batch, retries, worker
from workflows.jobs import JobSettings

# A function ends before its task gives up on it; else its repetition would run beside it.
_SOONER_S: Final = 30
# They hash or unpack what was trained, some GB. Lambda gives a whole processor from here on
# (developer guide, "Configure Lambda function memory").
_HASHING_MB: Final = 1_769


@dataclass(frozen=True)
class TrainingImage:
    """The training program.

    Attributes:
        image: Its container image.
        instance_types: The machines that it runs on, one a try, separated by commas.
    """

    image: str
    instance_types: str


class Workflow(Construct):
    """Everything that runs between "onboard this user" and "the user's model serves".

    Attributes:
        topic: Where the end of each onboarding is announced.
        onboard: The machine for one request.
        batch: The machine for many.
        worker: The machine of jobs that stay.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: StageSettings,
        *,
        store: Store,
        training: Training,
        endpoint: EndpointRef,
        functions: Functions,
        machines: Machines,
        training_image: TrainingImage,
        base_id: str,
        key: kms.IKey | None,
    ) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._store = store
        self._functions = functions
        self._jobs = training.jobs
        self.topic = sns.Topic(self, "Topic", enforce_ssl=True, master_key=key)

        self.inspect_artifact = self._inspect_artifact(base_id)
        self.smoke_test = self._smoke_test(endpoint, base_id)
        self.record_failure = self._record_failure()
        self.pack_tasks = self._pack_tasks()
        self.collect_results = self._collect_results()
        self.record_progress = self._record_progress()
        uses = onboard_batch.BatchUses(
            bucket=store.bucket,
            models=store.models,
            requests=store.requests,
            topic=self.topic,
            inspect_artifact=self.inspect_artifact,
            smoke_test=self.smoke_test,
            record_failure=self.record_failure,
            pack_tasks=self.pack_tasks,
            collect_results=self.collect_results,
            record_progress=self.record_progress,
            jobs=training.jobs,
            training_image=training_image.image,
            training_instance_types=training_image.instance_types,
            base_id=base_id,
            job=_job_settings(settings),
        )
        self.onboard = machines.make(
            self,
            "Onboard",
            "onboard",
            comment=onboard.COMMENT,
            start=onboard.Onboard(self, "OnboardSteps", uses).start,
            timeout_s=retries.MACHINE_TIMEOUT_S,
            statements=self._rights(self.inspect_artifact, self.smoke_test, self.record_failure),
            objects=Objects(reads=(keys.JOBS,), writes=(keys.MODELS,)),
        )
        self.batch = machines.make(
            self,
            "OnboardBatch",
            "onboard-batch",
            comment=onboard_batch.COMMENT,
            start=onboard_batch.OnboardBatch(self, "BatchSteps", uses).start,
            timeout_s=retries.MACHINE_TIMEOUT_S,
            statements=self._rights(*self.functions_by_arn.values()),
            objects=Objects(reads=(keys.BATCHES,), writes=(keys.MODELS,)),
        )
        worker_uses = worker.WorkerUses(
            bucket=store.bucket,
            requests=store.requests,
            jobs=training.workers,
            training_image=training_image.image,
            training_instance_types=training_image.instance_types,
            base_id=base_id,
            job=_job_settings(settings),
            idle_s=settings.worker_idle_s,
            lifetime_s=settings.worker_lifetime_s,
        )
        self.worker = machines.make(
            self,
            "Worker",
            "worker",
            comment=worker.COMMENT,
            start=worker.Worker(self, "WorkerSteps", worker_uses).start,
            timeout_s=retries.MACHINE_TIMEOUT_S,
            statements=[training.workers.pass_role()],
        )

    @property
    def functions_by_arn(self) -> Mapping[str, lambda_.Function]:
        """The placeholder of each function in the published machines, and the function."""
        return {
            "InspectArtifactArn": self.inspect_artifact,
            "SmokeTestArn": self.smoke_test,
            "RecordFailureArn": self.record_failure,
            "PackTasksArn": self.pack_tasks,
            "CollectResultsArn": self.collect_results,
            "RecordProgressArn": self.record_progress,
        }

    def _rights(self, *functions: lambda_.IFunction) -> list[iam.PolicyStatement]:
        """What onboardings do, but for jobs and objects; a transaction is made of updates."""
        return [
            self._jobs.pass_role(),
            rights.records(self._store.models, "GetItem", "UpdateItem"),
            rights.records(self._store.requests, "GetItem", "UpdateItem"),
            iam.PolicyStatement(
                actions=["lambda:InvokeFunction"],
                resources=[function.function_arn for function in functions],
            ),
            iam.PolicyStatement(actions=["sns:Publish"], resources=[self.topic.topic_arn]),
        ]

    def _inspect_artifact(self, base_id: str) -> lambda_.Function:
        return self._functions.make(
            self,
            "InspectArtifact",
            "inspect_artifact",
            "Judges what a training has made.",
            timeout_s=_timeout_s("InspectArtifact"),
            memory_mb=_HASHING_MB,
            environment={"BASE_ID": base_id, **_quality(self._settings)},
            objects=Objects(reads=(keys.JOBS, keys.BATCHES)),
        )

    def _smoke_test(self, endpoint: EndpointRef, base_id: str) -> lambda_.Function:
        return self._functions.make(
            self,
            "SmokeTest",
            "smoke_test",
            "Makes the first inference on a new model.",
            timeout_s=_timeout_s("SmokeTest"),
            environment={"ENDPOINT_NAME": endpoint.name, "BASE_ID": base_id},
            statements=[
                iam.PolicyStatement(actions=["sagemaker:InvokeEndpoint"], resources=[endpoint.arn])
            ],
        )

    def _record_failure(self) -> lambda_.Function:
        store = self._store
        return self._functions.make(
            self,
            "RecordFailure",
            "record_failure",
            "Ends a request whose execution has failed, and frees its model.",
            timeout_s=_timeout_s("RecordFailure"),
            environment={
                "STAGE": self._settings.stage,
                "MODELS_TABLE": store.models.table_name,
                "REQUESTS_TABLE": store.requests.table_name,
                "TOPIC_ARN": self.topic.topic_arn,
            },
            statements=[
                rights.records(store.requests, "GetItem", "UpdateItem"),
                rights.records(store.models, "UpdateItem"),
                iam.PolicyStatement(actions=["sns:Publish"], resources=[self.topic.topic_arn]),
            ],
            for_events=True,
        )

    def _pack_tasks(self) -> lambda_.Function:
        return self._functions.make(
            self,
            "PackTasks",
            "pack_tasks",
            "Writes what a batch job is to do, and shares it out among its machines.",
            timeout_s=_timeout_s("PackTasks"),
            environment={
                "BUCKET": self._store.bucket.bucket_name,
                "BATCH_INSTANCES": str(self._settings.batch_instances),
                "BATCH_TARGET_S": str(self._settings.batch_target_s),
                "REQUESTS_TABLE": self._store.requests.table_name,
                **_pace(self._settings),
            },
            statements=[rights.rows(self._store.requests, keys.PACE_ROWS, "GetItem")],
            objects=Objects(
                reads=(keys.UPLOADS, keys.CONFIGS, keys.BATCHES), writes=(keys.BATCHES,)
            ),
        )

    def _collect_results(self) -> lambda_.Function:
        return self._functions.make(
            self,
            "CollectResults",
            "collect_results",
            "Reads what came of each task of a batch job.",
            timeout_s=_timeout_s("CollectResults"),
            memory_mb=_HASHING_MB,
            environment={
                "BUCKET": self._store.bucket.bucket_name,
                "REQUESTS_TABLE": self._store.requests.table_name,
            },
            statements=[
                rights.records(self._store.requests, "GetItem"),
                rights.rows(self._store.requests, keys.PACE_ROWS, "UpdateItem"),
            ],
            objects=Objects(reads=(keys.BATCHES,)),
        )

    def _record_progress(self) -> lambda_.Function:
        return self._functions.make(
            self,
            "RecordProgress",
            "record_progress",
            "Writes the status of all requests of a batch.",
            timeout_s=_timeout_s("RecordBatchAttempt"),
            environment={"REQUESTS_TABLE": self._store.requests.table_name},
            statements=[rights.records(self._store.requests, "UpdateItem")],
        )


def _timeout_s(state: str) -> int:
    """Seconds of the function that a state calls, from the one table."""
    return retries.ONBOARD_BATCH[state].timeout_s - _SOONER_S


def _job_settings(settings: StageSettings) -> JobSettings:
    """How jobs are run; without a key for volumes, which machines with local NVMe refuse."""
    return JobSettings(
        keep_alive_s=settings.warm_pool_s,
        spot=settings.spot,
        max_wait_s=settings.max_wait_s,
        claims=settings.batch_claims,
        rows=settings.training_rows,
        quality=settings.quality,
        volume_gb=settings.training_volume_gb,
        call=settings.training_call,
    )


def _pace(settings: StageSettings) -> dict[str, str]:
    """How long a fine-tune takes on this stage's base and machines, as far as that was measured."""
    measured = {
        "PACE_FIXED_S": settings.pace_fixed_s,
        "PACE_STEP_S": settings.pace_step_s,
        "PACE_PHOTO_S": settings.pace_photo_s,
    }
    return {name: str(value) for name, value in measured.items() if value}


def _quality(settings: StageSettings) -> dict[str, str]:
    """What is asked of a model before it is published, as far as anything is."""
    if not settings.quality:
        return {}
    asked = {
        "QUALITY_SIMILARITY_GAIN": settings.quality_similarity_gain,
        "QUALITY_PROMPT_RESPONSE": settings.quality_prompt_response,
        "QUALITY_DIVERSITY": settings.quality_diversity,
        "QUALITY_NOVELTY": settings.quality_novelty,
    }
    return {name: str(value) for name, value in asked.items() if value is not None}
