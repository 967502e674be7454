"""The machine ``onboard``: one request of one user, from photos to a model that serves.

::

    CheckModelStatus ─ IsModelReady ─ yes ─> RecordAlreadyReady ─> AlreadyReady      claim.py
                            │ no
    ClaimRequest ─> ReserveVersion ─> ReadReservation ─> IsReservationOurs ─ no ─> ModelBusy
                                                                │ yes
                                                          PlanTraining
                                                                │
         ┌─ WaitForCapacity <─ RecordWaiting <─ (trouble)       │                    train.py
         │                                         ↑            │
         └──────────> RecordAttempt <──────────────┼────────────┘
                            │                      │ full quota, no free machine
                        FineTune ──────────────────┘
                            │
    RecordModel ─> InspectArtifact ─> PublishArtifact ─> SmokeTest ─┐                publish.py
                                                                    │
           Onboarded <─ RecordReadyAnnouncement <─ NotifyReady <─ ActivateModel

    any failure ─> RecordFailure ─> NotifyFailure ─> RecordAnnouncement ─> Failed    failure.py

Every task may run twice (a reply can be lost on its way back), so every write is conditional and
recognises its own earlier success, the training job has one name an attempt, and the artifact has
one key a version. ``owner`` on the request is the ARN of the execution that holds it: whoever
finds another owner touches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from aws_cdk import aws_iam as iam
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from limner.contracts import keys
from limner.contracts.errors import NOT_RECORDED, REGISTRY
from limner.contracts.statuses import RequestStatus
from workflows import jobs, retries
from workflows.claim import claim, plan_version
from workflows.failure import failure
from workflows.publish import publish
from workflows.rows import ME, NOW, REQUEST_KEY, fill
from workflows.tasks import StepFactory, Write, literal, number, text
from workflows.train import Training, first_job, train
from workflows.uses import Uses

__all__ = ["COMMENT", "NAME", "Onboard", "Uses"]

NAME = "onboard"
COMMENT = "Onboard a user: fine-tune the user's own model, publish it, test it, make it live."


def _plan(uses: Uses) -> dict[str, object]:
    """What flows from PlanTraining on: the request, the version and the job, and nothing else."""
    return {
        "request_id.$": "$.request_id",
        "user_id.$": "$.user_id",
        "model_id.$": "$.model_id",
        "version": plan_version(),
        "job": first_job(
            uses, keys.JOB_NAME_TEMPLATE, "$.request_id", quota_waits=retries.QUOTA_WAITS
        ),
    }


def _job(uses: Uses) -> jobs.Job:
    bucket = f"s3://{uses.bucket.bucket_name}"
    photos = fill(f"{bucket}/{keys.UPLOADS_TEMPLATE}", "$.user_id", "$.request_id")
    return jobs.Job(
        channels=(
            jobs.channel("photos", {"S3Uri.$": photos}),
            jobs.channel(
                "config", {"S3Uri.$": fill(f"{bucket}/{keys.CONFIG_TEMPLATE}", "$.request_id")}
            ),
            jobs.channel("base", {"S3Uri": f"{bucket}/{keys.BASES}/{uses.base_id}/"}),
        ),
        output=f"{bucket}/{keys.JOBS}",
        checkpoints={"S3Uri.$": fill(f"{bucket}/{keys.PREVIEWS_TEMPLATE}", "$.request_id")},
        instances={"InstanceCount": 1},
        runtime={"MaxRuntimeInSeconds": retries.TRAINING_RUNTIME_S},
        environment={
            f"{jobs.REQUEST_MARK}.$": "$.request_id",
            "LIMNER_MODEL_ID.$": "$.model_id",
        },
    )


class Onboard(Construct):
    """The states of the machine, in the order in which a request passes them.

    Attributes:
        start: The first state; the definition hangs on it.
        statements: IAM statements for the machine's role beyond those of CDK's own tasks.
    """

    def __init__(self, scope: Construct, construct_id: str, uses: Uses) -> None:
        super().__init__(scope, construct_id)
        step = StepFactory(self, retries.ONBOARD)

        # -- The ends -----------------------------------------------------------------------------
        already_ready = sfn.Succeed(self, "AlreadyReady", comment="The live version stays.")
        onboarded = sfn.Succeed(self, "Onboarded", comment="The user's own model serves.")
        request_not_claimed = sfn.Fail(
            self,
            "RequestNotClaimed",
            comment="Somebody else owns the request, or it has ended: its record stays untouched.",
            error="REQUEST_ALREADY_CLAIMED",
            cause=REGISTRY["REQUEST_ALREADY_CLAIMED"].summary,
        )
        ready_unannounced = sfn.Fail(
            self,
            "ReadyUnannounced",
            comment="The model serves, and nobody was told: left to reconcile.",
            error="AWS_ERROR",
            cause="The model is live; its notification could not be sent.",
        )
        failure_not_recorded = sfn.Fail(
            self,
            "FailureNotRecorded",
            comment="Not ours, or left to the rule on this execution's end, with the first reason.",
            # The reason's own name may begin with "States.", which a Fail state must not invent.
            error=NOT_RECORDED,
            cause_path=f"States.JsonToString({retries.FAILURE_PATH})",
        )
        failed = sfn.Fail(
            self,
            "Failed",
            comment="The request's record says why.",
            error_path="$.failed.body.code",
            cause_path="$.failed.body.message",
        )

        # -- The chains, last one first -----------------------------------------------------------
        record_failure = failure(step, uses, retries.SINGLE_FAILURE, failed=failed)
        artifact = f"{uses.bucket.bucket_name}/{keys.JOB_ARTIFACT_TEMPLATE}"
        record_model = publish(
            step,
            uses,
            source=fill(artifact, "$.job.name"),
            source_folder=keys.JOBS,
            onboarded=onboarded,
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
            jobs.request(uses.training_image, uses.job, _job(uses)),
            call=uses.job.call,
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
        caught = train(
            step,
            uses,
            Training(
                template=keys.JOB_NAME_TEMPLATE,
                name="$.request_id",
                mark=jobs.REQUEST_MARK,
                record_attempt=record_attempt,
                fine_tune=fine_tune,
                record_waiting=record_waiting,
                try_again=record_attempt,
                done=record_model,
                failed=record_failure,
            ),
        )
        claimed = claim(
            step, uses, plan=_plan(uses), already_ready=already_ready, failed=record_failure
        )
        claimed.plan_training.next(record_attempt)
        ends = (request_not_claimed, ready_unannounced, failure_not_recorded, failed, onboarded)
        step.connect_catchers({**caught, **{state.state_id: state for state in ends}})

        self.start: sfn.IChainable = claimed.start
        self.statements: Sequence[iam.PolicyStatement] = tuple(step.statements)
