"""P5: a write whose reply was lost is recognised as ours, at every place that writes.

The places are found by reading the published machines and the code (``sites``); the stories play
all of them; and each is played again with the reply of one write lost. What is left must be the
same as without the loss. A new place that no story reaches fails the test.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.support.faults.machine import Call, Fault
from tests.support.faults.sites import CodeSite, calling_site, code_sites, machine_sites
from tests.support.faults.stories import STORIES, Story, Summary, System, no_worse, unsound
from tests.support.faults.world import Loss

# More stories than this add nothing to what a place has been through.
STORIES_A_SITE = 3
ERRORS = {
    "dynamodb:updateItem": "DynamoDB.InternalServerErrorException",
    "dynamodb:transactWriteItems": "DynamoDb.InternalServerErrorException",
    "lambda:invoke": "Lambda.ServiceException",
    "s3:copyObject": "S3.InternalErrorException",
    "sagemaker:createTrainingJob.sync": "SageMaker.AmazonSageMakerException",
    "sagemaker:stopTrainingJob": "SageMaker.SageMakerException",
    "sns:publish": "SNS.InternalErrorException",
}


class Told:
    """A story without losses: what is left, and which places it has been to."""

    def __init__(self, story: Story) -> None:
        self.code: set[CodeSite] = set()
        self.states: set[str] = set()
        system = System()
        system.world.watch = self._note
        story(system)
        assert not unsound(system.world), story.__name__
        self.summary = Summary.of(system.world)
        for execution in system.world.executions.values():
            machine = execution.arn.split(":")[6]
            self.states |= {f"{machine}:{state}" for state in execution.visits}

    def _note(self, _: str) -> Loss:
        site = calling_site()
        if site is not None:
            self.code.add(site)
        return Loss.NOTHING


@cache
def told(story: Story) -> Told:
    return Told(story)


@pytest.mark.parametrize("site", machine_sites(), ids=lambda site: site.name)
def test_a_state_recognises_its_own_write(site: Any) -> None:
    stories = [story for story in STORIES if site.name in told(story).states]
    assert stories, f"no story reaches the state {site.name}: add one to stories.py"
    for story in stories[:STORIES_A_SITE]:
        struck: list[str] = []

        def lose(call: Call, struck: list[str] = struck) -> Fault | None:
            here = f"{call.execution.arn.split(':')[6]}:{call.state}" == site.name
            if not here or struck or not call.resource:
                return None
            struck.append(call.state)
            return Fault(ERRORS[site.integration], after=True)

        system = System(decide=lose)
        story(system)
        assert struck, f"the reply of {site.name} was not lost in {story.__name__}"
        assert unsound(system.world) == []
        assert Summary.of(system.world) == told(story).summary, story.__name__


@pytest.mark.parametrize("loss", [Loss.REPEATED, Loss.RAISED], ids=lambda loss: loss.name.lower())
@pytest.mark.parametrize("site", code_sites(), ids=lambda site: site.name)
def test_code_recognises_its_own_write(site: CodeSite, loss: Loss) -> None:
    """Once the SDK repeats the call, once it gives up and the whole function is called again."""
    stories = [story for story in STORIES if site in told(story).code]
    assert stories, f"no story reaches {site.name}: add one to stories.py"
    for story in stories[:STORIES_A_SITE]:
        struck: list[str] = []

        def lose(method: str, struck: list[str] = struck) -> Loss:
            if struck or calling_site() != site:
                return Loss.NOTHING
            struck.append(method)
            return loss

        system = System()
        system.world.watch = lose
        story(system)
        assert struck, f"the reply of {site.name} was not lost in {story.__name__}"
        assert unsound(system.world) == []
        summary, before = Summary.of(system.world), told(story).summary
        if loss is Loss.REPEATED or not site.module.startswith("lambdas/dispatch/"):
            assert summary == before, story.__name__
        else:
            assert no_worse(summary, before), story.__name__


def test_every_place_has_its_case(figure: Callable[[str], None]) -> None:
    states = {name for story in STORIES for name in told(story).states}
    reached = {site for story in STORIES for site in told(story).code}
    wanted = {site.name for site in machine_sites()}
    assert wanted <= states
    assert set(code_sites()) <= reached
    figure(
        f"P5   {len(wanted)} states and {len(code_sites())} calls of the code write; each with its "
        f"reply lost ({len(code_sites())} twice: repeated by the SDK, and given up), in "
        f"{len(STORIES)} stories: all recognised"
    )
