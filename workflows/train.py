"""A training job, and the four kinds of trouble that it can meet; of every machine that has one.

::

      ┌─ WaitForCapacity <─ (record waiting) <─┬─ CountWait    the quota is full: no job was made,
      │                                        │       ↑       the same name is tried again
      │                                        ├─ NextAttempt  no machine was free: the job is lost,
      │                                        │       ↑       a new one asks for the next type
      └───> (record attempt) ─> (fine-tune) ─ DidJobFail ─> IsCapacityFailure ─> (failed)
                                    │
            AwaitJob <── it exists ─┴─> (done)

1. Throttled: Retry of the call itself (``retries.SERVICE``).
2. Quota full: ``CreateTrainingJob`` is refused, for hours perhaps. Few retries, then waits that are
   counted, with a status that tells the user.
3. No capacity: the call succeeds and the job fails; its name is used up.
4. Training failed: the data's fault or ours. No other attempt mends it.

A job that exists already is our own, made by a call whose reply was lost: it is adopted, if its
environment says whose it is. The same loop waits for a job that was made through SageMaker's own
API, which does not wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_stepfunctions as sfn

from limner.contracts.errors import REGISTRY
from workflows import retries
from workflows.rows import fill
from workflows.tasks import StepFactory, TaskState
from workflows.uses import JobUses

_FIELDS = (
    *("attempt", "name", "instance_types", "instance_type", "index"),
    *("tries_left", "waits_left", "looks_left", "left_at_work"),
)


def first_job(
    uses: JobUses,
    template: str,
    name: str,
    *,
    quota_waits: int,
    looks: int = retries.JOB_LOOKS,
) -> dict[str, object]:
    """The first job of an execution and the budgets of all of them, as ASL parameters.

    Args:
        uses: The stage.
        template: Template of the job's name, of what it trains and the attempt.
        name: JSONPath to what it trains.
        quota_waits: How often to wait for room in the quota.
        looks: How often to look at a job that no task waits for.
    """
    types = f"States.StringSplit('{uses.training_instance_types}', ',')"
    return {
        "attempt.$": "$.attempt",
        "name.$": fill(template, name, "$.attempt"),
        "instance_types.$": types,
        "instance_type.$": f"States.ArrayGetItem({types}, 0)",
        "index": 0,
        "tries_left.$": f"States.MathAdd(States.ArrayLength({types}), -1)",
        "waits_left": quota_waits,
        "looks_left": looks,
        "left_at_work": False,
    }


def _job(**changes: str) -> dict[str, object]:
    """The job with some fields changed: a Pass state cannot write a number by itself."""
    return {f"{field}.$": changes.get(field, f"$.job.{field}") for field in _FIELDS}


def _count_down(field: str) -> dict[str, object]:
    return _job(**{field: f"States.MathAdd($.job.{field}, -1)"})


def _next_job(template: str, name: str) -> dict[str, object]:
    attempt, index = "States.MathAdd($.job.attempt, 1)", "States.MathAdd($.job.index, 1)"
    return _job(
        attempt=attempt,
        name=fill(template, name, attempt),
        index=index,
        instance_type=f"States.ArrayGetItem($.job.instance_types, {index})",
        tries_left="States.MathAdd($.job.tries_left, -1)",
    )


@dataclass(frozen=True)
class Training:
    """What differs between one request's job and a batch's.

    Attributes:
        template: Template of the job's name, of what it trains and the attempt.
        name: JSONPath to what it trains.
        mark: Variable of the job's environment that holds the same: whose job it is.
        record_attempt: Notes the job's name before it is made, if anybody's record is to have it.
        fine_tune: Makes the job.
        record_waiting: Notes that the work waits for a machine.
        try_again: Where to go on after a wait.
        done: Where a completed job leads.
        failed: Where a failure leads, with the failure at its usual path.
    """

    template: str
    name: str
    mark: str
    record_attempt: TaskState | sfn.Pass
    fine_tune: TaskState
    record_waiting: TaskState | sfn.Pass
    try_again: sfn.IChainable
    done: sfn.IChainable
    failed: sfn.IChainable


def train(step: StepFactory, uses: JobUses, training: Training) -> Mapping[str, sfn.State]:
    """Connects the job with its troubles.

    Returns:
        The states that a Catch leads to and that are no tasks.
    """
    scope, failed = step.scope, training.failed
    await_job = step.describe_job(
        "AwaitJob",
        "Look at a job that no task waits for: made by a call whose reply was lost, or by the SDK.",
        uses.jobs,
        job_name="$.job.name",
        result="$.report",
    )
    is_job_done = sfn.Choice(scope, "IsJobDone", comment="Has the job ended, and how?")
    status = "$.report.job.TrainingJobStatus"
    job_has_failed = sfn.Condition.or_(
        sfn.Condition.string_equals(status, "Failed"),
        sfn.Condition.string_equals(status, "Stopped"),
    )
    told_whose = f"$.report.job.Environment.{training.mark}"
    job_is_ours = sfn.Condition.and_(
        sfn.Condition.is_present(told_whose),
        sfn.Condition.string_equals_json_path(told_whose, training.name),
    )
    job_not_ours = sfn.Pass(
        scope,
        "JobNotOurs",
        comment="A job of this name works for somebody else: not to be adopted, nor stopped.",
        result=sfn.Result.from_object(
            {"Error": "JOB_NAME_TAKEN", "Cause": REGISTRY["JOB_NAME_TAKEN"].summary}
        ),
        result_path=retries.FAILURE_PATH,
    )
    may_look_again = sfn.Choice(
        scope, "MayLookAgain", comment="Not for ever: a history has 25,000 events."
    )
    count_look = sfn.Pass(
        scope,
        "CountLook",
        comment="One look less.",
        parameters=_count_down("looks_left"),
        result_path="$.job",
    )
    wait_for_job = sfn.Wait(
        scope,
        "WaitForJob",
        comment="The job is still at work.",
        time=sfn.WaitTime.duration(Duration.seconds(retries.JOB_POLL_S)),
    )
    stop_job = step.stop_job(
        "StopJob",
        "Nobody will look at this job again: it must not go on at the user's expense.",
        uses.jobs,
        job_name="$.job.name",
    )
    job_left_at_work = sfn.Pass(
        scope,
        "JobLeftAtWork",
        comment="It could not be stopped: the execution must not end well, so that reconcile does.",
        result=sfn.Result.from_boolean(True),
        result_path="$.job.left_at_work",
    )
    job_overdue = sfn.Pass(
        scope,
        "JobOverdue",
        comment="A failure like any other.",
        result=sfn.Result.from_object(
            {"Error": "DEADLINE_EXCEEDED", "Cause": "The training job ran out of time."}
        ),
        result_path=retries.FAILURE_PATH,
    )
    adopted_job_failed = sfn.Pass(
        scope,
        "AdoptedJobFailed",
        comment="Tell it in the words of a task that waits for its job.",
        parameters={
            "Error": "States.TaskFailed",
            "Cause.$": "States.JsonToString($.report.job)",
        },
        result_path=retries.FAILURE_PATH,
    )
    did_job_fail = sfn.Choice(
        scope,
        "DidJobFail",
        comment="Did the job fail, which leaves a report, or the call that starts it?",
    )
    job_left_a_report = sfn.Condition.and_(
        sfn.Condition.string_equals("$.failure.Error", "States.TaskFailed"),
        sfn.Condition.is_present("$.failure.Cause"),
        sfn.Condition.string_matches("$.failure.Cause", "{*"),
    )
    quota_is_full = sfn.Condition.and_(
        sfn.Condition.string_equals("$.failure.Error", retries.JOB_QUOTA),
        sfn.Condition.number_greater_than("$.job.waits_left", 0),
    )
    count_wait = sfn.Pass(
        scope,
        "CountWait",
        comment="The quota is full. No job was made, so the next try keeps the job's name.",
        parameters=_count_down("waits_left"),
        result_path="$.job",
    )
    read_job_failure = sfn.Pass(
        scope,
        "ReadJobFailure",
        comment="The report is JSON inside of a string.",
        parameters={"job.$": "States.StringToJson($.failure.Cause)"},
        result_path="$.report",
    )
    is_capacity_failure = sfn.Choice(
        scope,
        "IsCapacityFailure",
        comment="AWS had no free machine: that is a failed job, not a refused call.",
    )
    capacity_failure = sfn.Condition.and_(
        sfn.Condition.is_present("$.report.job.FailureReason"),
        sfn.Condition.string_matches("$.report.job.FailureReason", "CapacityError*"),
        sfn.Condition.number_greater_than("$.job.tries_left", 0),
    )
    next_attempt = sfn.Pass(
        scope,
        "NextAttempt",
        comment="A failed job keeps its name: the next one has a new one, and another machine.",
        parameters=_next_job(training.template, training.name),
        result_path="$.job",
    )
    wait_for_capacity = sfn.Wait(
        scope,
        "WaitForCapacity",
        comment="Quota and capacity come back in minutes, not seconds.",
        time=sfn.WaitTime.duration(Duration.seconds(retries.CAPACITY_WAIT_S)),
    )

    training.record_attempt.next(training.fine_tune)
    training.fine_tune.next(await_job if uses.job.call == "sdk" else training.done)
    job_left_at_work.next(job_overdue)
    await_job.next(
        is_job_done.when(sfn.Condition.not_(job_is_ours), job_not_ours.next(failed))
        .when(sfn.Condition.string_equals(status, "Completed"), training.done)
        .when(job_has_failed, adopted_job_failed.next(is_capacity_failure))
        .otherwise(
            may_look_again.when(
                sfn.Condition.number_greater_than("$.job.looks_left", 0),
                count_look.next(wait_for_job).next(await_job),
            ).otherwise(stop_job.next(job_overdue).next(failed))
        )
    )
    did_job_fail.when(job_left_a_report, read_job_failure.next(is_capacity_failure)).when(
        quota_is_full,
        count_wait.next(training.record_waiting).next(wait_for_capacity).next(training.try_again),
    ).otherwise(failed)
    is_capacity_failure.when(
        capacity_failure, next_attempt.next(training.record_waiting)
    ).otherwise(failed)
    states = (did_job_fail, may_look_again, job_left_at_work)
    return {state.state_id: state for state in states}


# What a batch says of a request whose part of the job was not done.
INCOMPLETE: Mapping[str, str] = {
    "Error": "JOB_INCOMPLETE",
    "Cause": REGISTRY["JOB_INCOMPLETE"].summary,
}
