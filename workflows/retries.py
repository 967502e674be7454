"""The one table of retry, catch and timeout of every task, and of every wait.

Timeouts and retries are decided here and nowhere else; ``tasks.StepFactory`` applies a policy to
the state of the same name, and a test compares the published machine with this table.

Rules behind the numbers:

* Every policy has an end, and the end is known: ``Retrier.longest_wait_s`` (a test keeps the sums
  below a day, and the history below its 25,000 events).
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
QUOTA          60 s x 1.5, at most 600 s                    36        5 h 21 min
SMALL_CALL     1 s x 1.5, at most 20 s                      8         49 s
PERSISTENT     1 s x 1.5, at most 60 s                      20        11 min 51 s
LAMBDA         2 s x 1.5, at most 30 s                      8         94 s
MODEL_LOADING  10 s x 1.5, at most 30 s, without jitter     20        9 min 18 s
=============  ===========================================  ========  =========
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
# Throttling, validation and access errors share these names (the code is in the Cause), which is
# why SERVICE has an end: it also repeats an access error.
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

FAILURE_PATH: Final = "$.failure"
"""Where a Catch puts ``{"Error": …, "Cause": …}``, but for the one that ends ``RecordFailure``."""


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
QUOTA: Final = Retrier((JOB_QUOTA,), 36, first_delay_s=60, longest_delay_s=600)
SMALL_CALL: Final = Retrier(ALL_ERRORS, 8, first_delay_s=1, longest_delay_s=20)
# After a training that was paid for, patience is cheaper than giving up.
PERSISTENT: Final = Retrier(ALL_ERRORS, 20, first_delay_s=1, longest_delay_s=60)
LAMBDA: Final = Retrier((*LAMBDA_SERVICE, TIMEOUT), 8, first_delay_s=2, longest_delay_s=30)
# An endpoint answers within 60 s that a model is still loading, and may load for 360 s (SageMaker
# developer guide, "Troubleshooting multi-model endpoints"); nobody competes, so no jitter.
MODEL_LOADING: Final = Retrier(
    (MODEL_NOT_READY,), 20, first_delay_s=10, longest_delay_s=30, jitter=False
)


def _never(*errors: str) -> Retrier:
    """Forbids repetition of definite refusals ahead of a retrier for all errors."""
    return Retrier(errors, 0)


# The whole execution; longer than any healthy path, and an end to all loops.
MACHINE_TIMEOUT_S: Final = 24 * 3600
# SageMaker stops the training program after this time (StoppingCondition).
TRAINING_RUNTIME_S: Final = 2 * 3600
# Provisioning, download, training and upload together.
TRAINING_TASK_S: Final = 3 * 3600
# SageMaker starts the job anew by itself after an InternalServerError (RetryStrategy).
TRAINING_RESTARTS: Final = 2
# Jobs that a request may lose to missing capacity before it fails, and the pause between them.
CAPACITY_TRIES: Final = 3
CAPACITY_WAIT_S: Final = 300
# Between two looks at an adopted job: a look costs 9 events of the history.
JOB_POLL_S: Final = 60

_TO_RECORD_FAILURE: Final = Catcher(ALL_ERRORS, "RecordFailure")
_READ: Final = TaskPolicy(30, (SMALL_CALL,), (_TO_RECORD_FAILURE,))
_WRITE: Final = TaskPolicy(30, (_never(CONDITION_FAILED), SMALL_CALL), (_TO_RECORD_FAILURE,))
_CLAIM: Final = TaskPolicy(
    30,
    (_never(CONDITION_FAILED), SMALL_CALL),
    (Catcher((CONDITION_FAILED,), "RequestNotClaimed"), _TO_RECORD_FAILURE),
)
# A cancelled transaction may have met another one on the same item, which passes; or a condition
# has failed, and will fail again: some cheap attempts are the price of the difference.
_TRANSACTION: Final = TaskPolicy(
    30, (Retrier((TRANSACTION_CANCELLED,), 5), PERSISTENT), (_TO_RECORD_FAILURE,)
)

ONBOARD: Final[Mapping[str, TaskPolicy]] = MappingProxyType(
    {
        "CheckModelStatus": _READ,
        "RecordAlreadyReady": _CLAIM,
        "ClaimRequest": _CLAIM,
        "ReserveVersion": TaskPolicy(
            30,
            (_never(CONDITION_FAILED), SMALL_CALL),
            (Catcher((CONDITION_FAILED,), "ReadReservation"), _TO_RECORD_FAILURE),
        ),
        "ReadReservation": _READ,
        "RecordAttempt": _WRITE,
        "FineTune": TaskPolicy(
            TRAINING_TASK_S,
            (SERVICE, QUOTA),
            (Catcher((JOB_EXISTS,), "AwaitJob"), Catcher(ALL_ERRORS, "DidJobFail")),
        ),
        "AwaitJob": TaskPolicy(30, (PERSISTENT,), (_TO_RECORD_FAILURE,)),
        "RecordWaiting": _WRITE,
        "RecordModel": _TRANSACTION,
        # CopyObject of up to 5 GB in one call.
        "PublishArtifact": TaskPolicy(300, (PERSISTENT,), (_TO_RECORD_FAILURE,)),
        # The function itself gives up after 90 s.
        "SmokeTest": TaskPolicy(120, (MODEL_LOADING, LAMBDA), (_TO_RECORD_FAILURE,)),
        "ActivateModel": _TRANSACTION,
        "NotifyReady": TaskPolicy(30, (PERSISTENT,), (Catcher(ALL_ERRORS, "ReadyUnannounced"),)),
        # Whatever this function cannot record, the rule on the execution's end tries again.
        "RecordFailure": TaskPolicy(
            60,
            (_never(NOT_OURS), Retrier(ALL_ERRORS, 8, first_delay_s=2, longest_delay_s=30)),
            # The failure that was to be recorded stays where it is: the rule reads it next.
            (Catcher(ALL_ERRORS, "FailureNotRecorded", result_path="$.unrecorded"),),
        ),
        "NotifyFailure": TaskPolicy(30, (PERSISTENT,), (Catcher(ALL_ERRORS, "Failed"),)),
    }
)
"""The policies of the machine ``onboard``, by the name of the task state."""
