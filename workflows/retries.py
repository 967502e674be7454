"""The one table of retry, catch and timeout of every task, and of every wait.

Timeouts and retries are decided here and nowhere else; ``tasks.StepFactory`` applies a policy to
the state of the same name, and a test compares the published machine with this table.

Rules behind the numbers:

* Every policy has an end, and the end is known: ``Retrier.longest_wait_s``. Every loop has a budget
  that is counted down in the execution. A test adds both up: each machine stays below the 25,000
  events of a history and below its own timeout even when all of them are used up together.
* Every back-off has a cap (MaxDelaySeconds). Without one, published recipes end in waits of days:
  5 s x 1.25 x 60 attempts waits 30 days before its last attempt.
* Whoever competes with others for the same rate or quota waits a random part of the delay
  (JitterStrategy FULL), so that a crowd that was refused together does not come back together.
* All tasks are safe to repeat: conditions in the writes, one job name an attempt, one key a
  version. So calls that cost nothing are repeated on any error but a definite refusal
  (``States.ALL``): error names differ between AWS's SDK generations and are not all documented.
  Training is dear and its failures are final, so its errors are named one by one.

Wall time that retries add at most, in seconds of back-off (FULL jitter halves it on average):

=============  ===========================================  ========  =========
policy         shape                                        attempts  at most
=============  ===========================================  ========  =========
SERVICE        5 s x 1.5, at most 120 s                     30        48 min
QUOTA          5 s x 1.5                                    2         13 s
SMALL_CALL     1 s x 1.5, at most 20 s                      8         49 s
PERSISTENT     2 s x 2.5, at most 150 s                     9         12 min 9 s
LAMBDA         2 s x 1.5, at most 30 s                      8         94 s
FUNCTION       2 s x 1.5, at most 30 s                      8         94 s
COLLECT        2 s x 1.5, at most 300 s, without jitter     30        98 min
NOTE           1 s x 1.5                                    2         3 s
MODEL_LOADING  10 s x 1.5, at most 60 s, without jitter     11        8 min 11 s
LOOK           5 s                                          1         5 s
=============  ===========================================  ========  =========

A full quota outlasts any Retry that a history has room for: after QUOTA's few tries the execution
says that it waits, waits CAPACITY_WAIT_S, and tries again, up to QUOTA_WAITS times: 12 hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

ALL_ERRORS: Final = ("States.ALL",)
TIMEOUT: Final = "States.Timeout"

# Names that Step Functions gives to errors. The optimized DynamoDB integration and the aws-sdk one
# use different prefixes ("DynamoDB" and "DynamoDb").
CONDITION_FAILED: Final = "DynamoDB.ConditionalCheckFailedException"
TRANSACTION_CANCELLED: Final = "DynamoDb.TransactionCanceledException"
JOB_EXISTS: Final = "SageMaker.ResourceInUseException"
JOB_QUOTA: Final = "SageMaker.ResourceLimitExceededException"
# Throttling, validation and access errors share these names, and Retry cannot look into the Cause,
# where the code is: SERVICE also repeats an access error, for its 48 minutes, before
# ``record_failure`` tells it by its own name.
JOB_SERVICE: Final = (
    "SageMaker.AmazonSageMakerException",
    "SageMaker.SageMakerException",
    "SageMaker.SdkClientException",
)
LAMBDA_SERVICE: Final = (
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
    "Lambda.TooManyRequestsException",
    "Lambda.Unknown",  # the function ran out of time or memory
)
# The names of exception classes in lambdas/; a test compares them with the classes.
MODEL_NOT_READY: Final = "ModelNotReadyError"
NOT_OURS: Final = "NotOursError"
REFUSED: Final = "LimnerError"

FAILURE_PATH: Final = "$.failure"
"""Where a Catch puts ``{"Error": …, "Cause": …}``, but for those behind a recorded ending."""
UNRECORDED_PATH: Final = "$.unrecorded"
"""Where those put theirs: the failure that was to be recorded stays; the rule reads it next."""


@dataclass(frozen=True, slots=True)
class Retrier:
    """One entry of Retry.

    Attributes:
        errors: Error names that it is for.
        attempts: Repetitions after the first attempt; 0 forbids them.
        first_delay_s: Seconds before the first repetition.
        rate: Factor from one delay to the next. Never a whole number: JSON would lose the ".0"
            that ASL linters ask for.
        longest_delay_s: Cap of a delay in seconds (MaxDelaySeconds).
        jitter: Whether to wait a random part of the delay (JitterStrategy FULL).
    """

    errors: tuple[str, ...]
    attempts: int
    first_delay_s: int = 1
    rate: float = 1.5
    longest_delay_s: int = 20
    jitter: bool = True

    def delays_s(self) -> list[float]:
        """The delay before each repetition in seconds, without jitter."""
        return [
            min(float(self.longest_delay_s), self.first_delay_s * self.rate**attempt)
            for attempt in range(self.attempts)
        ]

    def longest_wait_s(self) -> float:
        """Sum of all delays in seconds; jitter can only shorten it."""
        return sum(self.delays_s())


@dataclass(frozen=True, slots=True)
class Catcher:
    """One entry of Catch.

    Attributes:
        errors: Error names that it is for.
        next_state: Where to go on.
        result_path: Where the error lands.
    """

    errors: tuple[str, ...]
    next_state: str
    result_path: str = FAILURE_PATH


@dataclass(frozen=True, slots=True)
class TaskPolicy:
    """Everything a task state is told about trouble.

    Attributes:
        timeout_s: Seconds of one attempt (TimeoutSeconds).
        retriers: In this order; the first that names the error decides.
        catchers: In this order.
    """

    timeout_s: int
    retriers: tuple[Retrier, ...]
    catchers: tuple[Catcher, ...]

    def longest_wait_s(self) -> float:
        """Seconds of back-off of all retriers together: more than one state visit can use up."""
        return sum(retrier.longest_wait_s() for retrier in self.retriers)

    def most_attempts(self) -> int:
        """Attempts of one state visit at most."""
        return 1 + sum(retrier.attempts for retrier in self.retriers)


SERVICE: Final = Retrier(JOB_SERVICE, 30, first_delay_s=5, longest_delay_s=120)
# A quota that frees itself at once, as when a stopped job lets go; the loop is for all others.
QUOTA: Final = Retrier((JOB_QUOTA,), 2, first_delay_s=5, longest_delay_s=30)
SMALL_CALL: Final = Retrier(ALL_ERRORS, 8, first_delay_s=1, longest_delay_s=20)
# After a training that was paid for, patience is cheaper than giving up. Few and long waits: each
# repetition costs events, of which all requests of a batch share 25,000.
PERSISTENT: Final = Retrier(ALL_ERRORS, 9, first_delay_s=2, rate=2.5, longest_delay_s=150)
LAMBDA: Final = Retrier((*LAMBDA_SERVICE, TIMEOUT), 8, first_delay_s=2, longest_delay_s=30)
# An endpoint answers within 60 s that a model is still loading, and may load for 360 s (SageMaker
# developer guide, "Troubleshooting multi-model endpoints"); nobody competes, so no jitter.
MODEL_LOADING: Final = Retrier(
    (MODEL_NOT_READY,), 11, first_delay_s=10, longest_delay_s=60, jitter=False
)
# A function of ours that only reads, or whose every write is conditional.
FUNCTION: Final = Retrier(ALL_ERRORS, 8, first_delay_s=2, longest_delay_s=30)
# Of one state a batch, behind a job that was paid for: it outlasts an outage of more than an hour.
# Nobody competes, so no jitter, which could halve that.
COLLECT: Final = Retrier(ALL_ERRORS, 30, first_delay_s=2, longest_delay_s=300, jitter=False)
# "The app was told": unnoted, it is told twice. No reason to wait, nor to spend events on.
NOTE: Final = Retrier(ALL_ERRORS, 2, first_delay_s=1)
# The loop around a look at a job is its patience.
LOOK: Final = Retrier(ALL_ERRORS, 1, first_delay_s=5)


def _never(*errors: str) -> Retrier:
    """Forbids repetition of definite refusals ahead of a retrier for all errors."""
    return Retrier(errors, 0)


# SageMaker stops the training program after this time (StoppingCondition): of one request, and of
# a batch, whose own figure PackTasks computes below that.
TRAINING_RUNTIME_S: Final = 2 * 3600
BATCH_RUNTIME_S: Final = 4 * 3600
# The longest that a job on spot machines may take, its waits for machines included.
SPOT_WAIT_S: Final = 7 * 3600
# Provisioning, download, training and upload of any of these: when a task whose job never tells
# gives up and, with ``.sync``, stops it.
TRAINING_TASK_S: Final = 8 * 3600
# SageMaker starts the job anew by itself after an InternalServerError (RetryStrategy).
TRAINING_RESTARTS: Final = 2
# Jobs that an execution may lose to missing capacity: one for each entry of the list of instance
# types, which has at most this many.
MOST_INSTANCE_TYPES: Final = 5
# A worker takes nothing on any more after its lifetime, which a stage sets; then it ends what it
# has, and its task gives up.
WORKER_LIFETIME_S: Final = 24 * 3600
WORKER_TASK_S: Final = WORKER_LIFETIME_S + 2 * TRAINING_RUNTIME_S
# A worker that gets no machine leaves the queue to jobs that wait longer.
WORKER_QUOTA_WAITS: Final = 4
# Waits of an execution for room in the quota of training instances: 12 hours for one request. A
# batch shares its history among many; it gives them back to the queue after 2 hours.
QUOTA_WAITS: Final = 96
BATCH_QUOTA_WAITS: Final = 16
# The pause before the next try, whether the quota or the capacity was missing.
CAPACITY_WAIT_S: Final = 450
# Between two looks at a job that no task waits for, and the number of looks of one execution.
JOB_POLL_S: Final = 120
JOB_LOOKS: Final = 300
# Looks at a worker that no task waits for: as long as it may live.
WORKER_LOOKS: Final = WORKER_TASK_S // JOB_POLL_S + 1
# The whole execution. An end to errors in this very file, not a budget: it is longer than all
# waits and retries together, throttled for 48 minutes at every one of 12 hours of quota waits.
MACHINE_TIMEOUT_S: Final = 8 * 24 * 3600
# Attempts of a request, each in another batch, before a job that left it undone fails it.
MAX_ATTEMPTS: Final = 3
# When the functions of a batch give up; their tasks have half a minute more.
PACK_TASKS_S: Final = 150
COLLECT_RESULTS_S: Final = 150
RECORD_PROGRESS_S: Final = 60
# It reads an artifact from end to end, some GB at most.
INSPECT_ARTIFACT_S: Final = 150
# Requests of a batch whose retries and loops, all used up, still fit one history.
MOST_REQUESTS: Final = 35
# Items of a batch that are claimed, or published and tested, side by side.
SIDE_BY_SIDE: Final = 10

Policies = Mapping[str, TaskPolicy]


@dataclass(frozen=True, slots=True)
class FailureNames:
    """The states that end a failed request; a machine may have two sets of them.

    Attributes:
        record: Names the failure and ends the request.
        not_recorded: Where a failure to do that leads.
        not_ours: Where a request leads that somebody else owns, or that has ended.
        notify: Tells the app.
        announced: Notes that the app was told.
        failed: The end.
    """

    record: str = "RecordFailure"
    not_recorded: str = "FailureNotRecorded"
    not_ours: str = "FailureNotRecorded"
    notify: str = "NotifyFailure"
    announced: str = "RecordAnnouncement"
    failed: str = "Failed"


@dataclass(frozen=True, slots=True)
class TrainNames:
    """The states around a training job, as far as machines differ.

    Attributes:
        record_attempt: Notes the job's name before it is made.
        fine_tune: The job.
        record_waiting: Notes that the request waits for a machine.
        failed: Where a failure leads that no other attempt can mend.
    """

    record_attempt: str = "RecordAttempt"
    fine_tune: str = "FineTune"
    record_waiting: str = "RecordWaiting"
    failed: str = "RecordFailure"


SINGLE_FAILURE: Final = FailureNames()
CLAIM_FAILURE: Final = FailureNames(
    record="RecordClaimFailure",
    not_recorded="ClaimFailureLeft",
    not_ours="ClaimNotOurs",
    notify="NotifyClaimFailure",
    announced="RecordClaimAnnouncement",
    failed="ClaimFailed",
)
ITEM_FAILURE: Final = FailureNames(not_ours="NotOurs")
SINGLE_TRAIN: Final = TrainNames()
BATCH_TRAIN: Final = TrainNames(
    record_attempt="RecordBatchAttempt",
    fine_tune="FineTuneBatch",
    record_waiting="RecordBatchWaiting",
    failed="CollectResults",
)


def _write(failed: str) -> TaskPolicy:
    return TaskPolicy(30, (_never(CONDITION_FAILED), SMALL_CALL), (Catcher(ALL_ERRORS, failed),))


def _note(following: str) -> TaskPolicy:
    catcher = Catcher(ALL_ERRORS, following, result_path=UNRECORDED_PATH)
    return TaskPolicy(30, (_never(CONDITION_FAILED), NOTE), (catcher,))


def _transaction(*catchers: Catcher) -> TaskPolicy:
    # A cancelled transaction may have met another one on the same item, which passes; or a
    # condition has failed, and will fail again: cheap attempts are the price of the difference.
    return TaskPolicy(30, (Retrier((TRANSACTION_CANCELLED,), 5), PERSISTENT), catchers)


def _function(failed: str, timeout_s: int) -> TaskPolicy:
    return TaskPolicy(timeout_s, (FUNCTION,), (Catcher(ALL_ERRORS, failed),))


def claim(failed: str) -> Policies:
    """The chain from CheckModelStatus to PlanTraining; ``failed`` is where its failures lead."""
    to_failure = Catcher(ALL_ERRORS, failed)
    read = TaskPolicy(30, (SMALL_CALL,), (to_failure,))

    def claiming(lost: str) -> TaskPolicy:
        catchers = (Catcher((CONDITION_FAILED,), lost), to_failure)
        return TaskPolicy(30, (_never(CONDITION_FAILED), SMALL_CALL), catchers)

    return {
        "CheckModelStatus": read,
        "RecordAlreadyReady": claiming("RequestNotClaimed"),
        "ClaimRequest": claiming("RequestNotClaimed"),
        "ReserveVersion": claiming("ReadReservation"),
        "ReadReservation": read,
    }


def train(names: TrainNames, record: TaskPolicy) -> Policies:
    """The states around a training job; ``record`` is the policy of its two status writes."""
    writes = {names.record_attempt: record, names.record_waiting: record}
    return {**writes, **job(names.fine_tune, TRAINING_TASK_S)}


def job(name: str, longest_s: int) -> Policies:
    """The states of the job itself, which takes no longer than that, all waits included."""
    return {
        name: TaskPolicy(
            longest_s,
            (SERVICE, QUOTA),
            (Catcher((JOB_EXISTS,), "AwaitJob"), Catcher(ALL_ERRORS, "DidJobFail")),
        ),
        "AwaitJob": TaskPolicy(30, (LOOK,), (Catcher(ALL_ERRORS, "MayLookAgain"),)),
        "StopJob": TaskPolicy(30, (SMALL_CALL,), (Catcher(ALL_ERRORS, "JobLeftAtWork"),)),
    }


def publish(failed: str) -> Policies:
    """The chain from RecordModel to NotifyReady."""
    to_failure = Catcher(ALL_ERRORS, failed)
    return {
        "RecordModel": _transaction(to_failure),
        # Refused is refused; the function itself gives up half a minute earlier.
        "InspectArtifact": TaskPolicy(
            INSPECT_ARTIFACT_S + 30, (_never(REFUSED), PERSISTENT), (to_failure,)
        ),
        # CopyObject of up to 5 GB in one call.
        "PublishArtifact": TaskPolicy(300, (PERSISTENT,), (to_failure,)),
        # The function itself gives up after 90 s.
        "SmokeTest": TaskPolicy(120, (MODEL_LOADING, LAMBDA), (to_failure,)),
        "ActivateModel": _transaction(to_failure),
        "NotifyReady": TaskPolicy(30, (PERSISTENT,), (Catcher(ALL_ERRORS, "ReadyUnannounced"),)),
        # Left in the index of open requests, it is taken out by reconcile, which tells it again.
        "RecordReadyAnnouncement": _note("Onboarded"),
    }


def failure(names: FailureNames) -> Policies:
    """The chain that ends a failed request. Whatever it cannot do, the rules do afterwards."""
    unrecorded = UNRECORDED_PATH
    return {
        names.record: TaskPolicy(
            60,
            (_never(NOT_OURS), FUNCTION),
            (
                *(
                    ()
                    if names.not_ours == names.not_recorded
                    else (Catcher((NOT_OURS,), names.not_ours, result_path=unrecorded),)
                ),
                Catcher(ALL_ERRORS, names.not_recorded, result_path=unrecorded),
            ),
        ),
        names.notify: TaskPolicy(
            30, (PERSISTENT,), (Catcher(ALL_ERRORS, names.failed, result_path=unrecorded),)
        ),
        names.announced: _note(names.failed),
    }


ONBOARD: Final[Policies] = MappingProxyType(
    {
        **claim(SINGLE_FAILURE.record),
        **train(SINGLE_TRAIN, _write(SINGLE_FAILURE.record)),
        **publish(SINGLE_FAILURE.record),
        **failure(SINGLE_FAILURE),
    }
)
"""The policies of the machine ``onboard``, by the name of the task state."""

ONBOARD_BATCH: Final[Policies] = MappingProxyType(
    {
        **claim(CLAIM_FAILURE.record),
        **failure(CLAIM_FAILURE),
        "PackTasks": _function(BATCH_TRAIN.failed, PACK_TASKS_S + 30),
        **train(BATCH_TRAIN, _function(BATCH_TRAIN.failed, RECORD_PROGRESS_S + 30)),
        # Used up, the execution ends with its requests as they are: what a job has finished must
        # not count as missing. The next execution of each looks for it (``pack_tasks``).
        "CollectResults": TaskPolicy(
            COLLECT_RESULTS_S + 30, (COLLECT,), (Catcher(ALL_ERRORS, "ResultsNotCollected"),)
        ),
        **publish(ITEM_FAILURE.record),
        "Requeue": _transaction(Catcher(ALL_ERRORS, "LeftAsItWas")),
        **failure(ITEM_FAILURE),
    }
)
"""The policies of the machine ``onboard_batch``, likewise."""

WORKER: Final[Policies] = MappingProxyType(job("RunWorker", WORKER_TASK_S))
"""The policies of the machine ``worker``, likewise."""
