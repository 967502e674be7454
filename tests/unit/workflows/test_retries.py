"""The table of retries: every policy ends, and the ends are known."""

import pytest

from lambdas.record_failure.logic import NotOursError
from lambdas.smoke_test.logic import ModelNotReadyError
from workflows import retries
from workflows.retries import ONBOARD, Retrier, TaskPolicy

DAY_S = 24 * 3600
# Step Functions quota of a STANDARD execution.
MOST_EVENTS = 25_000
# Scheduled, started and failed; measured, see aws-facts F25.
EVENTS_PER_FAILED_ATTEMPT = 3
# Entered, scheduled, started, succeeded, exited.
EVENTS_PER_TASK = 5


@pytest.mark.parametrize(
    ("retrier", "seconds"),
    [
        (retries.SERVICE, 48 * 60),
        (retries.QUOTA, 5 * 3600 + 21 * 60),
        (retries.SMALL_CALL, 49),
        (retries.PERSISTENT, 11 * 60 + 51),
        (retries.LAMBDA, 94),
        (retries.MODEL_LOADING, 9 * 60 + 18),
    ],
)
def test_the_documented_totals_are_the_computed_ones(retrier: Retrier, seconds: int) -> None:
    assert retrier.longest_wait_s() == pytest.approx(seconds, abs=60 if seconds > 3600 else 7)


def test_delays_grow_to_the_cap() -> None:
    assert Retrier(("E",), 5, first_delay_s=2, rate=2.5, longest_delay_s=20).delays_s() == [
        *(2, 5, 12.5),
        *(20, 20),
    ]


def test_a_model_has_longer_to_load_than_the_platform_allows_itself() -> None:
    # Loading goes on up to 360 s; each refusal itself takes up to 60 s on top of these delays.
    assert retries.MODEL_LOADING.longest_wait_s() > 360


@pytest.mark.parametrize("policy", ONBOARD.values(), ids=ONBOARD.keys())
def test_every_policy_ends_within_a_day(policy: TaskPolicy) -> None:
    assert policy.longest_wait_s() + policy.timeout_s < DAY_S


@pytest.mark.parametrize("policy", ONBOARD.values(), ids=ONBOARD.keys())
def test_whoever_competes_waits_a_random_part(policy: TaskPolicy) -> None:
    for retrier in policy.retriers:
        if retrier.attempts and retrier is not retries.MODEL_LOADING:
            assert retrier.jitter, retrier


@pytest.mark.parametrize("policy", ONBOARD.values(), ids=ONBOARD.keys())
def test_rates_are_no_whole_numbers(policy: TaskPolicy) -> None:
    # JSON would turn 2.0 into 2, and linters want to see that a rate is a float.
    assert all(retrier.rate != int(retrier.rate) for retrier in policy.retriers)


def test_the_longest_history_fits() -> None:
    loop = {"RecordAttempt", "FineTune", "RecordWaiting", "AwaitJob"}
    events = 0
    for name, policy in ONBOARD.items():
        visits = retries.CAPACITY_TRIES if name in loop else 1
        failed = EVENTS_PER_FAILED_ATTEMPT * (policy.most_attempts() - 1)
        events += visits * (EVENTS_PER_TASK + failed)
    # Choice, Pass and Wait cost two each, and no state but those of the loops is visited twice.
    events += 2 * retries.CAPACITY_TRIES * 20
    # An adopted job is looked at until the machine's own deadline.
    polls = retries.MACHINE_TIMEOUT_S // retries.JOB_POLL_S
    events += polls * (EVENTS_PER_TASK + 2 + 2)
    assert events < MOST_EVENTS


def test_a_job_may_use_its_runtime_before_the_task_gives_up() -> None:
    assert retries.TRAINING_RUNTIME_S < retries.TRAINING_TASK_S < retries.MACHINE_TIMEOUT_S


def test_retried_exception_names_are_class_names_in_lambdas() -> None:
    # Lambda reports a Python exception by the name of its class.
    assert ModelNotReadyError.__name__ == retries.MODEL_NOT_READY
    assert NotOursError.__name__ == retries.NOT_OURS
