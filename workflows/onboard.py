"""The machine ``onboard``: one request of one user, from photos to a model that serves.

::

    CheckModelStatus ─ IsModelReady ─ yes ─> RecordAlreadyReady ─> AlreadyReady
                            │ no
    ClaimRequest ─> ReserveVersion ─> ReadReservation ─> IsReservationOurs ─ no ─> ModelBusy
                                                                │ yes
                                                          PlanTraining
                                                                │
         ┌─ WaitForCapacity <─ RecordWaiting <─ NextAttempt     │
         │                                         ↑            │
         └──────────> RecordAttempt <──────────────┼────────────┘
                            │                      │ no machine was free
                        FineTune ── job failed ────┘
                            │
    RecordModel ─> PublishArtifact ─> SmokeTest ─> ActivateModel ─> NotifyReady ─> Onboarded

    any failure ─> RecordFailure ─> NotifyFailure ─> Failed

Every task may run twice (a reply can be lost on its way back), so every write is conditional and
recognises its own earlier success, the training job has one name an attempt, and the artifact has
one key a version. ``owner`` on the request is the ARN of the execution that holds it: whoever
finds another owner touches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from limner.contracts import keys
from limner.contracts.errors import REGISTRY
from limner.contracts.onboarding import SCHEMA_VERSION, OnboardingFailed, OnboardingReady
from limner.contracts.statuses import RequestStatus, VersionStatus
from limner.contracts.training import METRIC_DEFINITIONS
from workflows import retries
from workflows.tasks import StepFactory, TrainingJobs, Value, Write, literal, number, text, truth

NAME = "onboard"
COMMENT = "Onboard a user: fine-tune the user's own model, publish it, test it, make it live."

TRAINING_VOLUME_GB = 50
ME = text("$$.Execution.Id")
NOW = text("$$.State.EnteredTime")
REQUEST_KEY = {"request_id": text("$.request_id")}
MODEL_KEY = {"user_id": text("$.user_id"), "model_row": text("$.model_id")}
VERSION_KEY = {"user_id": text("$.user_id"), "model_row": text("$.version.row")}


@dataclass(frozen=True)
class Uses:
    """What the machine works with.

    Attributes:
        bucket: Photos, base, jobs, previews and models.
        models: Table of models and their versions.
        requests: Table of requests.
        topic: Where onboardings are announced.
        smoke_test: Function that makes the first inference.
        record_failure: Function that ends a request that failed.
        jobs: The training jobs of this stage.
        training_image: The training program's container image.
        training_instance_type: The machine a job runs on.
        base_id: The frozen base under all adapters.
    """

    bucket: s3.IBucket
    models: dynamodb.ITable
    requests: dynamodb.ITable
    topic: sns.ITopic
    smoke_test: lambda_.IFunction
    record_failure: lambda_.IFunction
    jobs: TrainingJobs
    training_image: str
    training_instance_type: str
    base_id: str


def _format(template: str, *paths: str) -> str:
    return f"States.Format('{template}', {', '.join(paths)})"


def _plan() -> dict[str, object]:
    """What flows from here on: the request, the version and the job, and nothing else."""
    version = "$.reservation.Item.last_version.N"
    target = ("$.user_id", "$.model_id", version)
    return {
        "request_id.$": "$.request_id",
        "user_id.$": "$.user_id",
        "model_id.$": "$.model_id",
        "hyperparameters.$": "$.hyperparameters",
        "version": {
            "number.$": f"States.StringToJson({version})",
            "row.$": _format(keys.VERSION_ROW_TEMPLATE, "$.model_id", version),
            "target_model.$": _format(keys.TARGET_MODEL_TEMPLATE, *target),
            "artifact_key.$": _format(f"{keys.MODELS}/{keys.TARGET_MODEL_TEMPLATE}", *target),
        },
        "job": {
            "attempt.$": "$.attempt",
            "name.$": _format(keys.JOB_NAME_TEMPLATE, "$.request_id", "$.attempt"),
            "tries_left": retries.CAPACITY_TRIES - 1,
        },
    }


def _next_job() -> dict[str, object]:
    attempt = "States.MathAdd($.job.attempt, 1)"
    return {
        "attempt.$": attempt,
        "name.$": _format(keys.JOB_NAME_TEMPLATE, "$.request_id", attempt),
        "tries_left.$": "States.MathAdd($.job.tries_left, -1)",
    }


def _training_job(uses: Uses) -> dict[str, object]:
    """The CreateTrainingJob request, but for the role, which ``StepFactory.train`` adds."""
    bucket = f"s3://{uses.bucket.bucket_name}"

    def channel(name: str, source: dict[str, str]) -> dict[str, object]:
        location = {"S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated"}
        return {"ChannelName": name, "DataSource": {"S3DataSource": {**location, **source}}}

    photos = _format(f"{bucket}/{keys.UPLOADS_TEMPLATE}", "$.user_id", "$.request_id")
    previews = _format(f"{bucket}/{keys.PREVIEWS_TEMPLATE}", "$.request_id")
    return {
        "TrainingJobName.$": "$.job.name",
        "AlgorithmSpecification": {
            "TrainingImage": uses.training_image,
            "TrainingInputMode": "File",
            "MetricDefinitions": [
                {"Name": name, "Regex": regex} for name, regex in METRIC_DEFINITIONS
            ],
        },
        "InputDataConfig": [
            channel("photos", {"S3Uri.$": photos}),
            channel("base", {"S3Uri": f"{bucket}/{keys.BASES}/{uses.base_id}/"}),
        ],
        "OutputDataConfig": {"S3OutputPath": f"{bucket}/{keys.JOBS}"},
        "CheckpointConfig": {"S3Uri.$": previews, "LocalPath": "/opt/ml/checkpoints"},
        "ResourceConfig": {
            "InstanceCount": 1,
            "InstanceType": uses.training_instance_type,
            "VolumeSizeInGB": TRAINING_VOLUME_GB,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": retries.TRAINING_RUNTIME_S},
        "RetryStrategy": {"MaximumRetryAttempts": retries.TRAINING_RESTARTS},
        # The program needs its channels only; what it must not reach cannot leak a photo.
        "EnableNetworkIsolation": True,
        "HyperParameters.$": "$.hyperparameters",
        "Environment": {
            "LIMNER_REQUEST_ID.$": "$.request_id",
            "LIMNER_MODEL_ID.$": "$.model_id",
        },
    }


class Onboard(Construct):
    """The states of the machine, in the order in which a request passes them.

    Attributes:
        start: The first state; the definition hangs on it.
        statements: IAM statements for the machine's role beyond those of CDK's own tasks.
    """

    def __init__(self, scope: Construct, construct_id: str, uses: Uses) -> None:
        super().__init__(scope, construct_id)
        step = StepFactory(self, retries.ONBOARD)

        # -- Is there anything to do? -------------------------------------------------------------
        check_model_status = step.get_item(
            "CheckModelStatus",
            "Does the user have a model that serves already?",
            uses.models,
            MODEL_KEY,
            result="$.model",
        )
        is_model_ready = sfn.Choice(
            self,
            "IsModelReady",
            comment="A live version, and nobody asked for a new one: nothing to train.",
        )
        model_is_ready = sfn.Condition.and_(
            sfn.Condition.is_present("$.model.Item.live_version.N"),
            sfn.Condition.boolean_equals("$.retrain", False),
        )
        record_already_ready = step.update_item(
            "RecordAlreadyReady",
            "The request ends well without training.",
            Write(
                uses.requests,
                REQUEST_KEY,
                update=(
                    "SET #status = :ready, #owner = :me, #already_ready = :true,"
                    " #version = :version, #updated_at = :now"
                ),
                condition=(
                    "(#status = :queued AND attribute_not_exists(#owner))"
                    " OR (#status = :ready AND #owner = :me)"
                ),
                values={
                    ":queued": literal(RequestStatus.QUEUED),
                    ":ready": literal(RequestStatus.READY),
                    ":true": truth(True),
                    ":version": Value.number_from_string(
                        sfn.JsonPath.string_at("$.model.Item.live_version.N")
                    ),
                    ":me": ME,
                    ":now": NOW,
                },
            ),
        )
        already_ready = sfn.Succeed(self, "AlreadyReady", comment="The live version stays.")

        # -- Make the request and the next version ours -------------------------------------------
        claim_request = step.update_item(
            "ClaimRequest",
            "From here on this execution owns the request; a second one finds it taken.",
            Write(
                uses.requests,
                REQUEST_KEY,
                update=(
                    "SET #status = :training, #owner = :me, #attempt = :attempt, #updated_at = :now"
                ),
                # The second half recognises our own write when its reply was lost.
                condition=(
                    "(#status IN (:queued, :waiting) AND attribute_not_exists(#owner))"
                    " OR (#status = :training AND #owner = :me)"
                ),
                values={
                    ":queued": literal(RequestStatus.QUEUED),
                    ":waiting": literal(RequestStatus.WAITING_FOR_CAPACITY),
                    ":training": literal(RequestStatus.TRAINING),
                    ":attempt": number("$.attempt"),
                    ":me": ME,
                    ":now": NOW,
                },
            ),
        )
        request_not_claimed = sfn.Fail(
            self,
            "RequestNotClaimed",
            comment="Somebody else owns the request, or it has ended: its record stays untouched.",
            error="REQUEST_ALREADY_CLAIMED",
            cause=REGISTRY["REQUEST_ALREADY_CLAIMED"].summary,
        )
        reserve_version = step.update_item(
            "ReserveVersion",
            "Take the next version number; one request at a time trains a model.",
            Write(
                uses.models,
                MODEL_KEY,
                update=(
                    "SET #active_request = :request, #updated_at = :now ADD #last_version :one"
                ),
                condition="attribute_not_exists(#active_request)",
                values={
                    ":request": text("$.request_id"),
                    ":one": Value.from_number(1),
                    ":now": NOW,
                },
            ),
        )
        read_reservation = step.get_item(
            "ReadReservation",
            "Who holds the model, and with which version? Also right after a lost reply.",
            uses.models,
            MODEL_KEY,
            result="$.reservation",
        )
        is_reservation_ours = sfn.Choice(
            self, "IsReservationOurs", comment="Only the holder may train a new version."
        )
        reservation_is_ours = sfn.Condition.and_(
            sfn.Condition.is_present("$.reservation.Item.active_request.S"),
            sfn.Condition.string_equals_json_path(
                "$.reservation.Item.active_request.S", "$.request_id"
            ),
            # Another request may have gone live since CheckModelStatus looked; nobody wants to
            # pay for a second training. Who holds the model sees its last state.
            sfn.Condition.or_(
                sfn.Condition.is_not_present("$.reservation.Item.live_version.N"),
                sfn.Condition.boolean_equals("$.retrain", True),
            ),
        )
        model_busy = sfn.Pass(
            self,
            "ModelBusy",
            comment="Another request of the same model is in progress, or has just made it ready.",
            result=sfn.Result.from_object(
                {"Error": "MODEL_BUSY", "Cause": REGISTRY["MODEL_BUSY"].summary}
            ),
            result_path=retries.FAILURE_PATH,
        )

        # -- Train --------------------------------------------------------------------------------
        plan_training = sfn.Pass(
            self,
            "PlanTraining",
            comment="All names that the rest needs, put together once.",
            parameters=_plan(),
        )
        record_attempt = step.update_item(
            "RecordAttempt",
            "The request names its training job, so that its progress can be followed.",
            Write(
                uses.requests,
                REQUEST_KEY,
                update=(
                    "SET #status = :training, #attempt = :attempt, #job_name = :job,"
                    " #version = :version, #updated_at = :now"
                ),
                condition="#owner = :me AND #status IN (:training, :waiting)",
                values={
                    ":training": literal(RequestStatus.TRAINING),
                    ":waiting": literal(RequestStatus.WAITING_FOR_CAPACITY),
                    ":attempt": number("$.job.attempt"),
                    ":job": text("$.job.name"),
                    ":version": number("$.version.number"),
                    ":me": ME,
                    ":now": NOW,
                },
            ),
        )
        fine_tune = step.train(
            "FineTune",
            "Train the adapter. Retries keep the job's name, so no lost reply buys a second job.",
            uses.jobs,
            _training_job(uses),
        )
        await_job = step.describe_job(
            "AwaitJob",
            "The job exists: an earlier call made it, its reply was lost. Adopt it.",
            uses.jobs,
            job_name="$.job.name",
            result="$.report",
        )
        is_job_done = sfn.Choice(self, "IsJobDone", comment="Look until the adopted job has ended.")
        job_has_failed = sfn.Condition.or_(
            sfn.Condition.string_equals("$.report.job.TrainingJobStatus", "Failed"),
            sfn.Condition.string_equals("$.report.job.TrainingJobStatus", "Stopped"),
        )
        wait_for_job = sfn.Wait(
            self,
            "WaitForJob",
            comment="The adopted job is still at work.",
            time=sfn.WaitTime.duration(Duration.seconds(retries.JOB_POLL_S)),
        )
        adopted_job_failed = sfn.Pass(
            self,
            "AdoptedJobFailed",
            comment="Tell it in the words of FineTune.",
            parameters={
                "Error": "States.TaskFailed",
                "Cause.$": "States.JsonToString($.report.job)",
            },
            result_path=retries.FAILURE_PATH,
        )
        did_job_fail = sfn.Choice(
            self,
            "DidJobFail",
            comment="Did the job fail, which leaves a report, or the call that starts it?",
        )
        job_left_a_report = sfn.Condition.and_(
            sfn.Condition.string_equals("$.failure.Error", "States.TaskFailed"),
            sfn.Condition.is_present("$.failure.Cause"),
            sfn.Condition.string_matches("$.failure.Cause", "{*"),
        )
        read_job_failure = sfn.Pass(
            self,
            "ReadJobFailure",
            comment="The report is JSON inside of a string.",
            parameters={"job.$": "States.StringToJson($.failure.Cause)"},
            result_path="$.report",
        )
        is_capacity_failure = sfn.Choice(
            self,
            "IsCapacityFailure",
            comment="AWS had no free machine: that is a failed job, not a refused call.",
        )
        capacity_failure = sfn.Condition.and_(
            sfn.Condition.is_present("$.report.job.FailureReason"),
            sfn.Condition.string_matches("$.report.job.FailureReason", "CapacityError*"),
            sfn.Condition.number_greater_than("$.job.tries_left", 0),
        )
        next_attempt = sfn.Pass(
            self,
            "NextAttempt",
            comment="A failed job keeps its name: the next one needs a new one.",
            parameters=_next_job(),
            result_path="$.job",
        )
        record_waiting = step.update_item(
            "RecordWaiting",
            "The user may know that the request waits for a machine.",
            Write(
                uses.requests,
                REQUEST_KEY,
                update="SET #status = :waiting, #updated_at = :now",
                condition="#owner = :me AND #status IN (:training, :waiting)",
                values={
                    ":training": literal(RequestStatus.TRAINING),
                    ":waiting": literal(RequestStatus.WAITING_FOR_CAPACITY),
                    ":me": ME,
                    ":now": NOW,
                },
            ),
        )
        wait_for_capacity = sfn.Wait(
            self,
            "WaitForCapacity",
            comment="Capacity comes back in minutes, not seconds.",
            time=sfn.WaitTime.duration(Duration.seconds(retries.CAPACITY_WAIT_S)),
        )

        # -- Publish, test, make live -------------------------------------------------------------
        record_model = step.transaction(
            "RecordModel",
            "The version exists and the request says so: both or neither.",
            [
                Write(
                    uses.models,
                    VERSION_KEY,
                    update=(
                        "SET #status = :trained, #version = :version, #request_id = :request,"
                        " #job_name = :job, #artifact_key = :artifact, #target_model = :target,"
                        " #created_at = if_not_exists(#created_at, :now), #updated_at = :now"
                    ),
                    condition="attribute_not_exists(#model_row) OR #request_id = :request",
                    values={
                        ":trained": literal(VersionStatus.TRAINED),
                        ":version": number("$.version.number"),
                        ":request": text("$.request_id"),
                        ":job": text("$.job.name"),
                        ":artifact": text("$.version.artifact_key"),
                        ":target": text("$.version.target_model"),
                        ":now": NOW,
                    },
                ),
                Write(
                    uses.requests,
                    REQUEST_KEY,
                    update="SET #status = :trained, #updated_at = :now",
                    condition="#owner = :me AND #status IN (:training, :trained)",
                    values={
                        ":training": literal(RequestStatus.TRAINING),
                        ":trained": literal(RequestStatus.TRAINED),
                        ":me": ME,
                        ":now": NOW,
                    },
                ),
            ],
        )
        publish_artifact = step.copy_object(
            "PublishArtifact",
            "Copy the artifact under the endpoint's prefix, to a key that is never written again.",
            uses.bucket,
            source=_format(f"{uses.bucket.bucket_name}/{keys.JOB_ARTIFACT_TEMPLATE}", "$.job.name"),
            source_folder=keys.JOBS,
            target="$.version.artifact_key",
            target_folder=keys.MODELS,
        )
        smoke_test = step.invoke(
            "SmokeTest",
            "The first inference: proves that the model draws, and warms it up.",
            uses.smoke_test,
            {
                "request_id.$": "$.request_id",
                "target_model.$": "$.version.target_model",
            },
        )
        activate_model = step.transaction(
            "ActivateModel",
            "The version goes live, the model is free again, the request is done: all or nothing.",
            [
                Write(
                    uses.models,
                    MODEL_KEY,
                    update=(
                        "SET #live_version = :version, #target_model = :target,"
                        " #updated_at = :now REMOVE #active_request"
                    ),
                    condition=(
                        "#active_request = :request"
                        " OR (#live_version = :version AND attribute_not_exists(#active_request))"
                    ),
                    values={
                        ":request": text("$.request_id"),
                        ":version": number("$.version.number"),
                        ":target": text("$.version.target_model"),
                        ":now": NOW,
                    },
                ),
                Write(
                    uses.models,
                    VERSION_KEY,
                    update="SET #status = :ready, #updated_at = :now",
                    condition="#request_id = :request",
                    values={
                        ":request": text("$.request_id"),
                        ":ready": literal(VersionStatus.READY),
                        ":now": NOW,
                    },
                ),
                Write(
                    uses.requests,
                    REQUEST_KEY,
                    update="SET #status = :ready, #updated_at = :now",
                    condition="#owner = :me AND #status IN (:trained, :ready)",
                    values={
                        ":trained": literal(RequestStatus.TRAINED),
                        ":ready": literal(RequestStatus.READY),
                        ":me": ME,
                        ":now": NOW,
                    },
                ),
            ],
        )
        ready_event = OnboardingReady.model_fields["type"].default
        notify_ready = step.publish(
            "NotifyReady",
            "Tell the app that the user's model serves.",
            uses.topic,
            ready_event,
            sfn.TaskInput.from_object(
                {
                    "type": ready_event,
                    "schema_version": SCHEMA_VERSION,
                    "request_id.$": "$.request_id",
                    "user_id.$": "$.user_id",
                    "model_id.$": "$.model_id",
                    "version.$": "$.version.number",
                    "target_model.$": "$.version.target_model",
                }
            ),
        )
        onboarded = sfn.Succeed(self, "Onboarded", comment="The user's own model serves.")
        ready_unannounced = sfn.Fail(
            self,
            "ReadyUnannounced",
            comment="The model serves, but nobody was told.",
            error="AWS_ERROR",
            cause="The model is live; its notification could not be sent.",
        )

        # -- Any failure --------------------------------------------------------------------------
        record_failure = step.invoke(
            "RecordFailure",
            "Name the failure, end the request with it, and free the model.",
            uses.record_failure,
            {
                "request_id.$": "$.request_id",
                "owner.$": "$$.Execution.Id",
                "failure.$": retries.FAILURE_PATH,
            },
            result="$.failed",
        )
        failure_not_recorded = sfn.Fail(
            self,
            "FailureNotRecorded",
            comment="Not ours, or left to the rule on this execution's end, with the first reason.",
            error_path=f"{retries.FAILURE_PATH}.Error",
            cause_path=f"{retries.FAILURE_PATH}.Cause",
        )
        notify_failure = step.publish(
            "NotifyFailure",
            "Tell the app what failed, and what to do about it.",
            uses.topic,
            OnboardingFailed.model_fields["type"].default,
            sfn.TaskInput.from_json_path_at("$.failed.body"),
        )
        failed = sfn.Fail(
            self,
            "Failed",
            comment="The request's record says why.",
            error_path="$.failed.body.code",
            cause_path="$.failed.body.message",
        )

        # -- The picture --------------------------------------------------------------------------
        check_model_status.next(
            is_model_ready.when(model_is_ready, record_already_ready.next(already_ready)).otherwise(
                claim_request
            )
        )
        claim_request.next(reserve_version).next(read_reservation).next(
            is_reservation_ours.when(reservation_is_ours, plan_training).otherwise(model_busy)
        )
        model_busy.next(record_failure)
        plan_training.next(record_attempt).next(fine_tune).next(record_model).next(
            publish_artifact
        ).next(smoke_test).next(activate_model).next(notify_ready).next(onboarded)
        await_job.next(
            is_job_done.when(
                sfn.Condition.string_equals("$.report.job.TrainingJobStatus", "Completed"),
                record_model,
            )
            .when(job_has_failed, adopted_job_failed.next(is_capacity_failure))
            .otherwise(wait_for_job.next(await_job))
        )
        did_job_fail.when(job_left_a_report, read_job_failure.next(is_capacity_failure)).otherwise(
            record_failure
        )
        is_capacity_failure.when(
            capacity_failure,
            next_attempt.next(record_waiting).next(wait_for_capacity).next(record_attempt),
        ).otherwise(record_failure)
        record_failure.next(notify_failure).next(failed)
        step.connect_catchers(
            {
                state.state_id: state
                for state in (
                    request_not_claimed,
                    did_job_fail,
                    ready_unannounced,
                    failure_not_recorded,
                    failed,
                )
            }
        )

        self.start: sfn.IChainable = check_model_status
        self.statements: Sequence[iam.PolicyStatement] = tuple(step.statements)
