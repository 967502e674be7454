"""The pace of past fine-tunes, and the packing that is planned with it."""

import random

import numpy as np
import pytest

from limner.contracts.packing import Pace, PastRun, PastRuns, fit, pack

PRIOR = Pace(fixed_s=10, step_s=0.25, photo_s=0.5)


def runs_of(pace: Pace, count: int, seed: int, noise_s: float = 0.0) -> list[PastRun]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        steps, photos = rng.randrange(50, 2000), rng.randrange(3, 40)
        seconds = pace.predict_s(steps, photos) + rng.gauss(0, noise_s)
        made.append(PastRun(steps, photos, max(0.1, seconds)))
    return made


def reference(runs: list[PastRun], prior: Pace) -> np.ndarray:
    """The same ridge as four made-up fine-tunes of each coefficient alone, by numpy's SVD."""
    features = np.diag([1.0, 500.0, 10.0])
    ridge = 2.0 * features
    told = ridge @ np.array([prior.fixed_s, prior.step_s, prior.photo_s])
    rows = np.array([[1, run.steps, run.photos] for run in runs]).reshape(-1, 3)
    seconds = [run.seconds for run in runs]
    solved = np.linalg.lstsq(np.vstack([rows, ridge]), np.concatenate([seconds, told]), rcond=None)
    return np.asarray(solved[0])


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_the_fit_is_the_ridge_of_a_reference(count: int) -> None:
    for seed in range(25):
        runs = runs_of(Pace(31, 0.08, 1.5), count, seed, noise_s=3)
        found, wanted = fit(PastRuns.of(runs), PRIOR), reference(runs, PRIOR)
        if (wanted >= 0).all():
            assert [found.fixed_s, found.step_s, found.photo_s] == pytest.approx(wanted, rel=1e-7)


def test_nothing_is_known_before_the_first_run() -> None:
    found = fit(PastRuns.of([]), PRIOR)
    wanted = [PRIOR.fixed_s, PRIOR.step_s, PRIOR.photo_s]
    assert [found.fixed_s, found.step_s, found.photo_s] == pytest.approx(wanted)


def test_many_runs_are_believed() -> None:
    true = Pace(fixed_s=31, step_s=0.08, photo_s=1.5)
    found = fit(PastRuns.of(runs_of(true, 3_000, seed=1, noise_s=2)), PRIOR)
    for steps, photos in ((100, 5), (500, 12), (2_000, 30)):
        wanted = pytest.approx(true.predict_s(steps, photos), rel=0.02)
        assert found.predict_s(steps, photos) == wanted


def test_users_who_all_wish_the_same_are_predicted_well() -> None:
    found = fit(PastRuns.of([PastRun(500, 12, 60.0)] * 500), PRIOR)
    assert found.predict_s(500, 12) == pytest.approx(60, rel=0.01)
    assert found.step_s > 0


def test_no_coefficient_is_below_zero() -> None:
    """The minimum is compared with a fine grid around it: the cost grows in every direction."""
    rng = random.Random(3)
    for _ in range(200):
        runs = [
            PastRun(rng.randrange(1, 2000), rng.randrange(1, 40), rng.uniform(0.1, 400))
            for _ in range(30)
        ]
        found = fit(PastRuns.of(runs), PRIOR)
        best = np.array([found.fixed_s, found.step_s, found.photo_s])
        assert best.min() >= 0

        def cost(pace: np.ndarray, runs: list[PastRun] = runs) -> float:
            prior = np.array([PRIOR.fixed_s, PRIOR.step_s, PRIOR.photo_s])
            drawn = 4 * (((pace - prior) * [1, 500, 10]) ** 2).sum()
            rows = np.array([[1, run.steps, run.photos] for run in runs])
            return float(((rows @ pace - [run.seconds for run in runs]) ** 2).sum() + drawn)

        for index in range(3):
            for change in (-1e-3, 1e-3):
                other = best.copy()
                other[index] = max(0.0, other[index] * (1 + change) + change / 1e3)
                assert cost(best) <= cost(other) * (1 + 1e-12)


def test_sums_are_added_in_any_order() -> None:
    runs = runs_of(PRIOR, 40, seed=5)
    whole, one, two = PastRuns.of(runs), PastRuns.of(runs[:13]), PastRuns.of(runs[13:])
    for name in PastRuns.__slots__:
        assert getattr(one, name) + getattr(two, name) == pytest.approx(getattr(whole, name))


def test_a_better_pace_makes_a_shorter_job() -> None:
    """Photos are what takes the time on this machine; the configured pace does not know it."""
    true = Pace(fixed_s=1, step_s=0.001, photo_s=10)
    past = PastRuns.of(runs_of(true, 100, seed=7))
    wishes = [(run.steps, run.photos) for run in runs_of(true, 24, seed=8)]

    def makespan_s(pace: Pace) -> float:
        places = pack([pace.predict_s(*wish) for wish in wishes], 4).instances
        busy = [0.0] * 4
        for place, wish in zip(places, wishes, strict=True):
            busy[place] += true.predict_s(*wish)
        return max(busy)

    assert makespan_s(fit(past, PRIOR)) < 0.9 * makespan_s(PRIOR)
