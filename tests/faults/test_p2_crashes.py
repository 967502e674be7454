"""P2: every accepted onboarding ends, whenever its execution dies and whoever hears of it.

Each story is told again and again; each time its executions die one turn later: before a call,
between its effect and its transition, while a job trains. The event of the end arrives or is lost,
the training job is stopped or goes on. Then only the schedules of dispatch and reconcile are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.support.faults import stories
from tests.support.faults.sites import task_states
from tests.support.faults.stories import Crash, Story, Summary, System, unsound
from tests.support.faults.world import machine_names

TOLD: tuple[Story, ...] = (
    stories.direct,
    stories.already_ready,
    stories.again,
    stories.no_capacity,
    stories.quota,
    stories.training_fails,
    stories.adopted_for_ever,
    stories.queued,
    stories.batch,
    stories.batch_with_a_ready_user,
    stories.batch_incomplete,
    stories.batch_with_bad_photos,
    stories.batch_no_capacity,
    stories.batch_adopted,
    stories.batch_quota,
    stories.unannounced,
)
RUNS_OF_RECONCILE = 2
# All deaths of an execution at its turns; of a batch, whose six requests take the same turns,
# the first visit of each state, and two kinds of death by turns.
VISITS_OF_BATCHES = 1
# Loops that look at a job take hundreds of turns.
VISITS = 4

crashes: Counter[str] = Counter()
places: set[str] = set()
slowest: list[int] = [0]


@pytest.mark.parametrize("story", TOLD, ids=lambda story: story.__name__)
def test_a_request_ends_whenever_its_execution_dies(story: Story) -> None:
    for crash in _deaths(story):
        system = System(crash=crash)
        story(system)
        assert crash.where, crash
        system.settle(rounds=3)
        assert unsound(system.world) == [], crash
        assert crash.ticks <= RUNS_OF_RECONCILE, crash
        endings = {status for status, _ in Summary.of(system.world).requests.values()}
        assert endings <= {"READY", "FAILED", "CANCELLED"}, crash
        crashes["unheard" if crash.unheard else "heard of"] += 1
        places.add(f"{crash.owner.split(':')[6]}:{crash.where}")
        slowest[0] = max(slowest[0], crash.ticks)


def _deaths(story: Story) -> Iterator[Crash]:
    nobody = Crash(turn=10**9, unheard=False, orphaned=False)
    story(System(crash=nobody))
    visits: Counter[str] = Counter()
    kinds = [(unheard, orphaned) for unheard in (True, False) for orphaned in (True, False)]
    for turn, state in enumerate(nobody.passed):
        visits[state] += 1
        if not story.__name__.startswith("batch") and visits[state] <= VISITS:
            yield from (Crash(turn, *kind) for kind in kinds)
        elif story.__name__.startswith("batch") and visits[state] <= VISITS_OF_BATCHES:
            yield from (Crash(turn, *kind) for kind in kinds[len(visits) % 2 :: 2])


def test_every_task_was_a_place_to_die(figure: Callable[[str], None]) -> None:
    if not crashes:
        pytest.skip("needs the stories above")
    tasks = {f"{name}:{state}" for name in machine_names() for state in task_states(name)}
    assert not tasks - places
    figure(
        f"P2   {crashes.total():,} deaths at {len(places)} places in {len(TOLD)} stories "
        f"({crashes['unheard']:,} that nobody heard of): 100 % of the requests ended, "
        f"at most {slowest[0]} run(s) of reconcile after the death"
    )
