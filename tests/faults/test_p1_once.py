"""P1: one onboarding is at most one paid job and exactly one READY version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from limner.contracts.statuses import VersionStatus
from tests.support.faults.schedules import Schedule, jobs_of
from tests.support.faults.stories import Summary, unsound

SCHEDULES = 10_000


def test_random_schedules_make_no_job_and_no_version_twice(figure: Callable[[str], None]) -> None:
    """Two executions, lost replies, refusals, stops, lost events: whatever the order."""
    done: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    duplicates = 0
    for seed in range(SCHEDULES):
        schedule = Schedule(seed)
        world = schedule.run().world
        assert unsound(world) == [], f"seed {seed}"
        summary = Summary.of(world)
        for request, (status, _) in summary.requests.items():
            jobs = jobs_of(world.jobs, request)
            duplicates += len(jobs) > 1
            endings[status] += 1
        ready = [v for v in summary.versions.values() if v == VersionStatus.READY]
        trained = [r for r, (s, _) in summary.requests.items() if s == "READY"]
        duplicates += len(ready) > len(trained)
        done += schedule.done
    assert duplicates == 0
    assert set(endings) == {"READY", "FAILED", "CANCELLED"}
    assert min(done.values()) > 50, "every kind of trouble has happened"
    figure(
        f"P1   {SCHEDULES:,} random schedules ({done['turns']:,} turns, "
        f"{done['starts made twice']:,} starts made twice, {done['second executions']:,} second "
        f"executions, {done['replies lost']:,} replies lost, {done['calls refused']:,} calls "
        f"refused, {done['executions stopped']:,} stopped): 0 duplicate jobs, 0 double versions; "
        + ", ".join(f"{n:,} {status}" for status, n in sorted(endings.items()))
    )
