"""The machine ``onboard_batch``: many requests that share one training job.

::

    ClaimAll ── for each: the chain of claim.py ─> planned | ended (ready, busy, not ours, failed)
        │
    PlanBatch ─> PackTasks ─> TakePlan ─ IsAnythingToTrain ─ no ──────────────┐
                     ↑                        │ yes                           │
                     │ another attempt        │                               │
                  IsPacked ───────> RecordBatchAttempt ─> FineTuneBatch       │       train.py
                     ↑                                     │      │           │
       WaitForCapacity <─ RecordBatchWaiting <─ (trouble) ─┘      │           │
                                                    │             │           │
                                 nothing helps: CollectResults <──┘           │
                                                    │                         │
                                               TakeResults ─> FinishAll <─────┘
                                                                 │
    for each:  trained ─> RecordModel … NotifyReady ─> Onboarded           publish.py
               failed ──> RecordFailure … ─> Failed                        failure.py
               missing ─ CanTryAgain ─ yes ─> Requeue ─> Requeued
                              └ no ──> RecordFailure …
               ended ───> NothingLeft
                                                                 │
                                                 IsAllSettled ───┴─> BatchDone | BatchUnsettled

    CollectResults fails for ever ─> ResultsNotCollected

What happens to one request happens to it alone: an item of a Map ends in a Pass state, never in a
Fail state, which would end all others. Results are collected after a failed job, too: what a job
has finished before its end is finished, and whoever trains a request again looks first for what
earlier jobs have left of it (``PackTasks``). Whatever could not be settled makes the execution
fail; ``reconcile`` hears of that and settles it.

Between the Maps an item is ``{request_id, user_id, model_id, attempt, outcome, version, source,
error}``: the same fields whatever came of it, because a JSONPath that selects nothing ends an
execution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aws_cdk import aws_iam as iam
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from limner.contracts import keys
from limner.contracts.outcomes import ENDED, FAILED, PLANNED, TRAINED
from limner.contracts.statuses import RequestStatus
from limner.contracts.writes import NOT_CANCELLED
from workflows import jobs, retries
from workflows.claim import claim, plan_version
from workflows.failure import failure
from workflows.publish import publish
from workflows.rows import ME, MODEL_KEY, NOW, REQUEST_KEY, fill
from workflows.tasks import StepFactory, TaskState, Value, Write, literal, text, truth
from workflows.train import INCOMPLETE, Training, first_job, train
from workflows.uses import BatchUses

__all__ = ["COMMENT", "NAME", "BatchUses", "OnboardBatch"]

NAME = "onboard_batch"
COMMENT = "Onboard many users with one training job: each is claimed, published and told by itself."

UNSETTLED = "unsettled"
NO_FAILURE = {"Error": "", "Cause": ""}


def _item(outcome: str, **fields: object) -> dict[str, object]:
    """An item on its way from one Map to the next."""
    return {
        "request_id.$": "$.request_id",
        "user_id.$": "$.user_id",
        "model_id.$": "$.model_id",
        "attempt.$": "$.attempt",
        "outcome": outcome,
        "source": "",
        **({} if "version" in fields else {"version": {}}),
        **({} if "error" in fields or "error.$" in fields else {"error": NO_FAILURE}),
        **fields,
    }


def _job(uses: BatchUses) -> jobs.Job:
    bucket = f"s3://{uses.bucket.bucket_name}"

    def batch(template: str) -> dict[str, str]:
        return {"S3Uri.$": fill(f"{bucket}/{template}", "$.batch_id", "$.job.attempt")}

    return jobs.Job(
        channels=(
            jobs.channel("tasks", batch(keys.BATCH_TASKS_TEMPLATE)),
            jobs.channel("photos", batch(keys.BATCH_PHOTOS_TEMPLATE), data_type="ManifestFile"),
            jobs.channel("base", {"S3Uri": f"{bucket}/{keys.BASES}/{uses.base_id}/"}),
        ),
        output=f"{bucket}/{keys.JOBS}",
        checkpoints=batch(keys.BATCH_OUT_TEMPLATE),
        instances={"InstanceCount.$": "$.plan.instances"},
        runtime={"MaxRuntimeInSeconds.$": "$.plan.max_runtime_s"},
        environment={f"{jobs.BATCH_MARK}.$": "$.batch_id"},
        claims={f"{jobs.CLAIMS}.$": batch(keys.BATCH_CLAIMS_TEMPLATE)["S3Uri.$"]},
    )


class OnboardBatch(Construct):
    """The states of the machine, in the order in which a batch passes them.

    Attributes:
        start: The first state; the definition hangs on it.
        statements: IAM statements for the machine's role beyond those of CDK's own tasks.
    """

    def __init__(self, scope: Construct, construct_id: str, uses: BatchUses) -> None:
        super().__init__(scope, construct_id)
        self._uses = uses
        self._step = StepFactory(self, retries.ONBOARD_BATCH)
        claim_all, claim_ends = self._claim_all()
        finish_all, finish_ends = self._finish_all()
        pack_tasks, caught = self._train_all(finish_all)

        plan_batch = sfn.Pass(
            self,
            "PlanBatch",
            comment="The job of the batch, and no failure so far.",
            parameters={
                "batch_id.$": "$.batch_id",
                "items.$": "$.items",
                "failure": NO_FAILURE,
                "job": first_job(
                    uses,
                    keys.BATCH_JOB_NAME_TEMPLATE,
                    "$.batch_id",
                    quota_waits=retries.BATCH_QUOTA_WAITS,
                ),
            },
        )
        is_all_settled = sfn.Choice(
            self, "IsAllSettled", comment="Is every request recorded, and its app told?"
        )
        something_is_left = sfn.Condition.or_(
            sfn.Condition.boolean_equals("$.finished.unsettled", True),
            sfn.Condition.boolean_equals("$.job.left_at_work", True),
        )
        batch_done = sfn.Succeed(self, "BatchDone", comment="Each request says what came of it.")
        batch_unsettled = sfn.Fail(
            self,
            "BatchUnsettled",
            comment="Left to reconcile, which hears of this execution's end.",
            error="AWS_ERROR",
            cause="The end of some requests could not be recorded or told, or a job not stopped.",
        )
        results_not_collected = sfn.Fail(
            self,
            "ResultsNotCollected",
            comment="What the job has finished lies in the bucket: the next execution takes it.",
            error="AWS_ERROR",
            cause="Nobody could read what came of the job's tasks.",
        )
        claim_all.next(plan_batch).next(pack_tasks)
        finish_all.next(
            is_all_settled.when(something_is_left, batch_unsettled).otherwise(batch_done)
        )
        self._step.connect_catchers(
            {**claim_ends, **finish_ends, **caught, "ResultsNotCollected": results_not_collected}
        )

        self.start: sfn.IChainable = claim_all
        self.statements: Sequence[iam.PolicyStatement] = tuple(self._step.statements)

    def _claim_all(self) -> tuple[sfn.Map, Mapping[str, sfn.State]]:
        """Each request is claimed by itself; what cannot be claimed ends here."""
        step = self._step

        def ended(name: str, comment: str) -> sfn.Pass:
            return sfn.Pass(self, name, comment=comment, parameters=_item(ENDED))

        already_ready = ended("AlreadyReady", "The live version stays.")
        not_claimed = ended(
            "RequestNotClaimed", "Somebody else owns the request: its record stays untouched."
        )
        not_ours = ended("ClaimNotOurs", "Somebody else has ended the request.")
        failed = ended("ClaimFailed", "The request's record says why.")
        left = sfn.Pass(
            self,
            "ClaimFailureLeft",
            comment="It could not be recorded now: tried again at the end of the batch.",
            parameters=_item(FAILED, **{"error.$": retries.FAILURE_PATH}),
        )
        claimed = claim(
            step,
            self._uses,
            plan=_item(PLANNED, version=plan_version(), error=dict(INCOMPLETE)),
            already_ready=already_ready,
            failed=failure(step, self._uses, retries.CLAIM_FAILURE, failed=failed),
        )
        claim_all = sfn.Map(
            self,
            "ClaimAll",
            comment="Make each request and its next version ours.",
            items_path="$.requests",
            max_concurrency=retries.SIDE_BY_SIDE,
            result_path="$.items",
        )
        claim_all.item_processor(claimed.start)
        return claim_all, {s.state_id: s for s in (not_claimed, not_ours, failed, left)}

    def _train_all(self, finish_all: sfn.Map) -> tuple[TaskState, Mapping[str, sfn.State]]:
        """One job for all; from PackTasks to the items with their outcomes."""
        step, uses = self._step, self._uses
        pack_tasks = step.invoke(
            "PackTasks",
            "Write what is to be done, and share it out: longest first.",
            uses.pack_tasks,
            {
                "batch_id.$": "$.batch_id",
                "attempt.$": "$.job.attempt",
                "job_name.$": "$.job.name",
                "items.$": "$.items",
                "longest_s": retries.BATCH_RUNTIME_S,
                "pace_row.$": self._pace_row(),
                # Not from the state: what an input may leave out must not be a JSONPath.
                "asked.$": "$$.Execution.Input",
            },
            result="$.packed",
        )
        take_plan = sfn.Pass(
            self,
            "TakePlan",
            comment="Requests that cannot be packed have failed by themselves.",
            parameters={
                "batch_id.$": "$.batch_id",
                "items.$": "$.packed.body.items",
                "plan.$": "$.packed.body.plan",
                "failure.$": "$.failure",
                "job.$": "$.job",
            },
        )
        is_anything_to_train = sfn.Choice(
            self, "IsAnythingToTrain", comment="Perhaps all requests have ended already."
        )
        something_to_train = sfn.Condition.number_greater_than("$.plan.tasks", 0)
        record_attempt = self._record_progress(
            "RecordBatchAttempt", "The requests name their training job.", RequestStatus.TRAINING
        )
        fine_tune = step.train(
            "FineTuneBatch",
            "Train all adapters. Retries keep the job's name, so no lost reply buys a second job.",
            uses.jobs,
            jobs.request(uses.training_image, uses.job, _job(uses)),
            call=uses.job.call,
        )
        record_waiting = self._record_progress(
            "RecordBatchWaiting",
            "The users may know that their requests wait for a machine.",
            RequestStatus.WAITING_FOR_CAPACITY,
        )
        is_packed = sfn.Choice(
            self, "IsPacked", comment="Each attempt has files of its own; a refused call made none."
        )
        same_attempt = sfn.Condition.number_equals_json_path("$.plan.attempt", "$.job.attempt")
        job_done = sfn.Pass(
            self,
            "JobDone",
            comment="Earlier trouble is overcome.",
            result=sfn.Result.from_object(NO_FAILURE),
            result_path=retries.FAILURE_PATH,
        )
        collect_results = step.invoke(
            "CollectResults",
            "Read what came of each task, also after a failed job.",
            uses.collect_results,
            {
                "batch_id.$": "$.batch_id",
                "attempt.$": "$.job.attempt",
                "job_name.$": "$.job.name",
                "items.$": "$.items",
                "failure.$": retries.FAILURE_PATH,
                "pace_row.$": self._pace_row(),
                "asked.$": "$$.Execution.Input",
            },
            result="$.collected",
        )
        take_results = sfn.Pass(
            self,
            "TakeResults",
            comment="Each request with its outcome.",
            parameters={
                "batch_id.$": "$.batch_id",
                "items.$": "$.collected.body.items",
                "job.$": "$.job",
            },
        )
        caught = train(
            step,
            uses,
            Training(
                template=keys.BATCH_JOB_NAME_TEMPLATE,
                name="$.batch_id",
                mark=jobs.BATCH_MARK,
                record_attempt=record_attempt,
                fine_tune=fine_tune,
                record_waiting=record_waiting,
                try_again=is_packed.when(same_attempt, record_attempt).otherwise(pack_tasks),
                done=job_done,
                failed=collect_results,
            ),
        )
        pack_tasks.next(take_plan).next(
            is_anything_to_train.when(something_to_train, record_attempt).otherwise(finish_all)
        )
        job_done.next(collect_results).next(take_results).next(finish_all)
        return pack_tasks, caught

    def _pace_row(self) -> str:
        """Where it is counted how long fine-tunes take on this base and this type of machine."""
        template = keys.PACE_ROW_TEMPLATE.format(self._uses.base_id, "{}")
        return fill(template, "$.job.instance_type")

    def _finish_all(self) -> tuple[sfn.Map, Mapping[str, sfn.State]]:
        """Each request ends by itself: with a model, with a failure, or back in the queue."""
        step, uses = self._step, self._uses

        def end(name: str, comment: str, outcome: str) -> sfn.Pass:
            result = sfn.Result.from_string(outcome)
            return sfn.Pass(self, name, comment=comment, result=result)

        onboarded = end("Onboarded", "The user's own model serves.", "ready")
        unannounced = end("ReadyUnannounced", "The model serves; nobody was told.", UNSETTLED)
        failed = end("Failed", "The request's record says why.", FAILED)
        not_recorded = end("FailureNotRecorded", "Left to reconcile.", UNSETTLED)
        not_ours = end("NotOurs", "Somebody else owns the request, or has ended it.", ENDED)
        requeued = end("Requeued", "Another batch will train it.", "requeued")
        left = end("LeftAsItWas", "Left to reconcile, or not ours any more.", UNSETTLED)
        nothing_left = end("NothingLeft", "The request had ended before the job began.", ENDED)

        record_failure = failure(step, uses, retries.ITEM_FAILURE, failed=failed)
        record_model = publish(
            step,
            uses,
            source=fill(f"{uses.bucket.bucket_name}/{{}}", "$.source"),
            source_folder=keys.BATCHES,
            onboarded=onboarded,
        )
        what_came_of_it = sfn.Choice(
            self, "WhatCameOfIt", comment="Each request by its own outcome."
        )
        can_try_again = sfn.Choice(
            self, "CanTryAgain", comment="A job that left a request undone is not its fault, but…"
        )
        outcome_is = {
            outcome: sfn.Condition.string_equals("$.outcome", outcome)
            for outcome in (TRAINED, FAILED, ENDED)
        }
        may_try_again = sfn.Condition.number_less_than("$.attempt", retries.MAX_ATTEMPTS)
        what_came_of_it.when(outcome_is[TRAINED], record_model).when(
            outcome_is[FAILED], record_failure
        ).when(outcome_is[ENDED], nothing_left).otherwise(
            can_try_again.when(may_try_again, self._requeue().next(requeued)).otherwise(
                record_failure
            )
        )

        fields = ("request_id", "user_id", "model_id", "attempt", "version", "outcome", "source")
        finish_all = sfn.Map(
            self,
            "FinishAll",
            comment="Publish, test and tell what is trained; end or queue again what is not.",
            items_path="$.items",
            item_selector={
                **{f"{field}.$": f"$$.Map.Item.Value.{field}" for field in fields},
                "failure.$": "$$.Map.Item.Value.error",
                "job": {"name.$": "$.job.name"},
            },
            max_concurrency=retries.SIDE_BY_SIDE,
            result_selector={
                "outcomes.$": "$",
                "unsettled.$": f"States.ArrayContains($, '{UNSETTLED}')",
            },
            result_path="$.finished",
        )
        finish_all.item_processor(what_came_of_it)
        ends = (unannounced, failed, not_recorded, not_ours, left, onboarded)
        return finish_all, {state.state_id: state for state in ends}

    def _record_progress(self, name: str, comment: str, status: RequestStatus) -> TaskState:
        return self._step.invoke(
            name,
            comment,
            self._uses.record_progress,
            {
                "owner.$": "$$.Execution.Id",
                "status": status,
                "job_name.$": "$.job.name",
                "items.$": "$.items",
            },
        )

    def _requeue(self) -> TaskState:
        """Back to the queue: the model is free, the request waits for dispatch. Both or neither."""
        return self._step.transaction(
            "Requeue",
            "The job ended without this request's part: it goes back to the queue.",
            [
                Write(
                    self._uses.models,
                    MODEL_KEY,
                    update="SET #updated_at = :now REMOVE #active_request",
                    condition=(
                        "#active_request = :request OR attribute_not_exists(#active_request)"
                    ),
                    values={":request": text("$.request_id"), ":now": NOW},
                ),
                Write(
                    self._uses.requests,
                    REQUEST_KEY,
                    update=(
                        "SET #status = :queued, #attempt = #attempt + :one,"
                        " #queue = if_not_exists(#shard, :first), #queued_at = :now,"
                        " #updated_at = :now REMOVE #owner, #lease_until"
                    ),
                    condition=(
                        f"#owner = :me AND #status IN (:training, :waiting) AND {NOT_CANCELLED}"
                    ),
                    values={
                        ":false": truth(False),
                        ":queued": literal(RequestStatus.QUEUED),
                        ":training": literal(RequestStatus.TRAINING),
                        ":waiting": literal(RequestStatus.WAITING_FOR_CAPACITY),
                        ":one": Value.from_number(1),
                        # Rows of older versions of Limner have no shard.
                        ":first": literal("0"),
                        ":me": ME,
                        ":now": NOW,
                    },
                ),
            ],
        )
