"""The table of retries: every policy and every loop ends, and the ends are known."""

import pytest

from lambdas.record_failure.logic import NotOursError
from lambdas.smoke_test.logic import ModelNotReadyError
from tests.unit.workflows.machines import MACHINES, NAMES, POLICIES, all_states
from workflows import retries
from workflows.retries import ONBOARD, ONBOARD_BATCH, Retrier, TaskPolicy

# Step Functions quota of a STANDARD execution.
MOST_EVENTS = 25_000
# Scheduled, started and failed; measured, see aws-facts F25.
EVENTS_PER_FAILED_ATTEMPT = 3
# Entered, scheduled, started, succeeded, exited.
EVENTS_PER_TASK = 5
# Entered and exited: Choice, Pass, Wait, and the ends.
EVENTS_PER_STEP = 2
# Started and succeeded, of one iteration of a Map; and what a Map itself writes.
EVENTS_PER_ITERATION = 2
EVENTS_PER_MAP = 4

EVERY_POLICY = [
    pytest.param(policy, id=f"{machine}.{name}")
    for machine in NAMES
    for name, policy in POLICIES[machine].items()
]
TROUBLE = ("CountWait", "NextAttempt", "DidJobFail", "ReadJobFailure", "IsCapacityFailure")
LOOKING = ("IsJobDone", "MayLookAgain", "CountLook", "WaitForJob", "AwaitJob")


@pytest.mark.parametrize(
    ("retrier", "seconds"),
    [
        (retries.SERVICE, 48 * 60),
        (retries.QUOTA, 13),
        (retries.SMALL_CALL, 49),
        (retries.PERSISTENT, 12 * 60 + 9),
        (retries.LAMBDA, 94),
        (retries.FUNCTION, 94),
        (retries.MODEL_LOADING, 8 * 60 + 11),
        (retries.COLLECT, 98 * 60),
        (retries.NOTE, 3),
        (retries.LOOK, 5),
    ],
)
def test_the_documented_totals_are_the_computed_ones(retrier: Retrier, seconds: int) -> None:
    assert retrier.longest_wait_s() == pytest.approx(seconds, abs=7)


def test_delays_grow_to_the_cap() -> None:
    assert Retrier(("E",), 5, first_delay_s=2, rate=2.5, longest_delay_s=20).delays_s() == [
        *(2, 5, 12.5),
        *(20, 20),
    ]


def test_a_model_has_longer_to_load_than_the_platform_allows_itself() -> None:
    # Loading goes on up to 360 s; each refusal itself takes up to 60 s on top of these delays.
    assert retries.MODEL_LOADING.longest_wait_s() > 360


def test_results_outlast_an_outage_of_an_hour() -> None:
    assert retries.COLLECT.longest_wait_s() > 3600
    assert not retries.COLLECT.jitter, "which could halve it"


def test_a_full_quota_is_waited_for_half_a_day() -> None:
    assert retries.QUOTA_WAITS * retries.CAPACITY_WAIT_S == 12 * 3600


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_every_policy_ends_within_a_day(policy: TaskPolicy) -> None:
    longest = retries.WORKER_TASK_S if policy is retries.WORKER["RunWorker"] else 23 * 3600
    assert policy.longest_wait_s() + policy.timeout_s < longest + 3600


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_whoever_competes_waits_a_random_part(policy: TaskPolicy) -> None:
    for retrier in policy.retriers:
        if retrier.attempts and retrier not in (retries.MODEL_LOADING, retries.COLLECT):
            assert retrier.jitter, retrier


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_rates_are_no_whole_numbers(policy: TaskPolicy) -> None:
    # JSON would turn 2.0 into 2, and linters want to see that a rate is a float.
    assert all(retrier.rate != int(retrier.rate) for retrier in policy.retriers)


def events_of(policies: retries.Policies, name: str) -> int:
    """Events of one visit that uses up all its retries, whether it succeeds at last or not."""
    failed = EVENTS_PER_FAILED_ATTEMPT * (policies[name].most_attempts() - 1)
    return EVENTS_PER_TASK + failed


def longest_job(policies: retries.Policies, names: retries.TrainNames, waits: int) -> int:
    """Events of a job with all its troubles: every budget is used up, every retry too."""
    visits = 1 + waits + retries.MOST_INSTANCE_TYPES - 1
    one_visit = sum(
        events_of(policies, name)
        for name in (names.record_attempt, names.fine_tune, names.record_waiting)
    )
    # Trouble's own steps, and the wait; a batch also asks whether its files are there.
    one_visit += EVENTS_PER_STEP * (len(TROUBLE) + 2)
    one_look = events_of(policies, "AwaitJob") + EVENTS_PER_STEP * (len(LOOKING) - 1)
    return (
        visits * one_visit
        + (retries.JOB_LOOKS + retries.MOST_INSTANCE_TYPES) * one_look
        + events_of(policies, "StopJob")
    )


def all_of(policies: retries.Policies, names: retries.Policies) -> int:
    return sum(events_of(policies, name) for name in names)


def longest_single() -> int:
    """Every task of the machine, the failure's chain after a whole success included."""
    rest = {
        **retries.claim(""),
        **retries.publish(""),
        **retries.failure(retries.SINGLE_FAILURE),
    }
    steps = EVENTS_PER_STEP * len(all_states(MACHINES["onboard"]))
    return (
        longest_job(ONBOARD, retries.SINGLE_TRAIN, retries.QUOTA_WAITS)
        + all_of(ONBOARD, rest)
        + steps
    )


def longest_item() -> int:
    """Events of one request of a batch, in both Maps."""
    states = all_states(MACHINES["onboard_batch"])
    claim, finish = (states[name]["ItemProcessor"]["States"] for name in ("ClaimAll", "FinishAll"))
    # What fails to be claimed is not trained: the dearer of the two ways counts.
    claimed = all_of(ONBOARD_BATCH, retries.claim(""))
    refused = claimed + all_of(ONBOARD_BATCH, retries.failure(retries.CLAIM_FAILURE))
    published = all_of(ONBOARD_BATCH, retries.publish(""))
    # A request that fails at its activation has not been announced as ready.
    broken = (
        published
        - events_of(ONBOARD_BATCH, "NotifyReady")
        - events_of(ONBOARD_BATCH, "RecordReadyAnnouncement")
        + all_of(ONBOARD_BATCH, retries.failure(retries.ITEM_FAILURE))
    )
    steps = EVENTS_PER_STEP * sum(
        1
        for state in (*claim.values(), *finish.values())
        if state["Type"] == "Choice" or (state["Type"] == "Pass" and not state.get("End"))
    )
    return (
        max(refused, claimed + max(published, broken))
        + steps
        + 2 * (EVENTS_PER_ITERATION + EVENTS_PER_STEP)
    )


def longest_batch(requests: int) -> int:
    job = longest_job(ONBOARD_BATCH, retries.BATCH_TRAIN, retries.BATCH_QUOTA_WAITS)
    packing = retries.MOST_INSTANCE_TYPES * (
        events_of(ONBOARD_BATCH, "PackTasks") + 3 * EVENTS_PER_STEP
    )
    around = events_of(ONBOARD_BATCH, "CollectResults") + 8 * EVENTS_PER_STEP + 2 * EVENTS_PER_MAP
    return job + packing + around + requests * longest_item()


def test_the_longest_history_fits(capsys: pytest.CaptureFixture[str]) -> None:
    single, batch = longest_single(), longest_batch(retries.MOST_REQUESTS)
    with capsys.disabled():
        print(  # noqa: T201 - the figure that this test is for
            f"\nevents at worst: onboard {single}, onboard_batch of {retries.MOST_REQUESTS} {batch}"
            f" (each request {longest_item()}), of {MOST_EVENTS}"
        )
    assert single < MOST_EVENTS
    assert batch < MOST_EVENTS


def seconds_of(policy: TaskPolicy) -> float:
    """Wall time of one visit that uses up all its retries, each attempt its whole timeout."""
    return policy.longest_wait_s() + policy.most_attempts() * policy.timeout_s


def longest_wall_s(name: str, names: retries.TrainNames, waits: int, rounds: float) -> float:
    """Wall time with every budget used up.

    Args:
        name: The machine.
        names: Its states around the job.
        waits: Its waits for the quota.
        rounds: How often the chains for each request follow one another.
    """
    policies = POLICIES[name]
    fine_tune = policies[names.fine_tune]
    writes = seconds_of(policies[names.record_attempt]) + seconds_of(policies[names.record_waiting])
    # A refused call comes back at once; a job may take its whole task, once for each type.
    loop = (waits + retries.MOST_INSTANCE_TYPES) * (
        fine_tune.longest_wait_s() + writes + retries.CAPACITY_WAIT_S
    )
    jobs = retries.MOST_INSTANCE_TYPES * retries.TRAINING_TASK_S
    looks = retries.JOB_LOOKS * (retries.JOB_POLL_S + seconds_of(policies["AwaitJob"]))
    own = {names.fine_tune, names.record_attempt, names.record_waiting, "AwaitJob"}
    rest = sum(seconds_of(policy) for task, policy in policies.items() if task not in own)
    return loop + jobs + looks + rounds * rest


def test_the_machine_ends_after_all_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = retries.MOST_REQUESTS / retries.SIDE_BY_SIDE
    single = longest_wall_s("onboard", retries.SINGLE_TRAIN, retries.QUOTA_WAITS, 1)
    batch = longest_wall_s("onboard_batch", retries.BATCH_TRAIN, retries.BATCH_QUOTA_WAITS, rounds)
    with capsys.disabled():
        print(  # noqa: T201 - the figure that this test is for
            f"\nhours at worst: onboard {single / 3600:.0f}, onboard_batch {batch / 3600:.0f},"
            f" of {retries.MACHINE_TIMEOUT_S / 3600:.0f}"
        )
    assert single < retries.MACHINE_TIMEOUT_S
    assert batch < retries.MACHINE_TIMEOUT_S


def test_a_job_may_use_its_runtime_before_the_task_gives_up() -> None:
    longest = max(retries.TRAINING_RUNTIME_S, retries.BATCH_RUNTIME_S, retries.SPOT_WAIT_S)
    assert longest < retries.TRAINING_TASK_S < retries.MACHINE_TIMEOUT_S
    # A job that nobody waits for is looked at until it must have ended.
    assert retries.JOB_LOOKS * retries.JOB_POLL_S > retries.TRAINING_TASK_S


def test_the_functions_of_a_batch_give_up_before_their_tasks() -> None:
    for name, seconds in {
        "PackTasks": retries.PACK_TASKS_S,
        "CollectResults": retries.COLLECT_RESULTS_S,
        "RecordBatchAttempt": retries.RECORD_PROGRESS_S,
    }.items():
        assert seconds < ONBOARD_BATCH[name].timeout_s


def test_retried_exception_names_are_class_names_in_lambdas() -> None:
    # Lambda reports a Python exception by the name of its class.
    assert ModelNotReadyError.__name__ == retries.MODEL_NOT_READY
    assert NotOursError.__name__ == retries.NOT_OURS


def test_a_worker_is_looked_at_for_as_long_as_it_may_live() -> None:
    """AwaitJob, IsJobDone, MayLookAgain, CountLook and WaitForJob: a look, and its wait."""
    assert retries.WORKER_LOOKS * retries.JOB_POLL_S >= retries.WORKER_TASK_S
    events = retries.WORKER_LOOKS * (events_of(retries.WORKER, "AwaitJob") + 4 * EVENTS_PER_STEP)
    assert events < 25_000
