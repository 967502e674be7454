"""The back-off that an independent engine computes from the published machines, to the second.

``workflows.retries`` says how long each delay is, and a test compares the machines with that table;
this one asks whether an engine reads the same delays out of them. Each Retry block is put on a task
that always fails with the error that the block is for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from moto.stepfunctions.parser.asl.component.common.retry import jitter_strategy_decl

from tests.support.engines.cases import NEXT_WAIT
from tests.support.engines.moto_stack import MotoStack, definition, moto_stack
from workflows import retries
from workflows.retries import ONBOARD, ONBOARD_BATCH, Retrier, TaskPolicy


def all_states(name: str) -> dict[str, dict[str, Any]]:
    """The states of a published machine, those inside of a Map as well."""
    found: dict[str, dict[str, Any]] = {}
    below = [json.loads(definition(name))]
    while below:
        for state, body in below.pop()["States"].items():
            found[state] = body
            if "ItemProcessor" in body:
                below.append(body["ItemProcessor"])
    return found


def blocks() -> list[Any]:
    """Each different list of retriers, with one published state that has it."""
    different: dict[str, Any] = {}
    for machine, table in (("onboard", ONBOARD), ("onboard_batch", ONBOARD_BATCH)):
        states = all_states(machine)
        for name, policy in table.items():
            published = states[name]["Retry"]
            key = json.dumps(published)
            different.setdefault(key, pytest.param(policy, published, id=f"{machine}-{name}"))
    return list(different.values())


def always_failing(retry: list[dict[str, Any]]) -> str:
    state = {
        "Type": "Task",
        "Resource": "arn:aws:states:::lambda:invoke",
        "Parameters": {"FunctionName": "fails", "Payload": {}},
        "Retry": retry,
        "End": True,
    }
    return json.dumps({"StartAt": "Fails", "States": {"Fails": state}})


def provoke(retry: list[dict[str, Any]], error: str) -> list[float]:
    """The delays between the tries of a task that always fails with this error."""
    with moto_stack({"fails": always_failing(retry)}) as stack:
        failing = type(error, (Exception,), {})

        def fail(_event: object, _context: object) -> None:
            raise failing

        stack.world.functions.serve("fails", SimpleNamespace(handle=fail))
        run(stack, "fails")
        return [sleep.seconds for sleep in stack.world.retries]


def run(stack: MotoStack, machine: str) -> None:
    arn = stack.laptop.states.start_execution(
        stateMachineArn=stack.outputs[machine], name="once", input="{}"
    )["executionArn"]
    assert stack.laptop.finish(arn)["status"] == "FAILED"


def error_for(retrier: Retrier) -> str:
    """A name that the retrier is for; a function cannot raise those that begin with States."""
    (name, *_) = [name for name in retrier.errors if not name.startswith("States.")] or ["Trouble"]
    return name


@pytest.fixture
def draws() -> Iterator[list[tuple[float, float]]]:
    """Lets FULL jitter draw its longest delay, and tells between which bounds it drew."""
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    with patch.object(jitter_strategy_decl, "random", SimpleNamespace(uniform=uniform)):
        yield drawn


@pytest.mark.parametrize(("policy", "published"), blocks())
def test_each_retry_block_waits_as_the_table_says(
    policy: TaskPolicy, published: list[dict[str, Any]], draws: list[tuple[float, float]]
) -> None:
    assert len(published) == len(policy.retriers)
    for retrier in policy.retriers:
        draws.clear()
        delays = provoke(published, error_for(retrier))
        assert delays == pytest.approx(retrier.delays_s()), retrier.errors
        assert {low for low, _ in draws} <= {0}
        assert [high for _, high in draws] == (delays if retrier.jitter else [])


def test_full_jitter_waits_a_random_part_of_each_delay() -> None:
    delays = provoke(all_states("onboard")["FineTune"]["Retry"], error_for(retries.SERVICE))
    bounds = retries.SERVICE.delays_s()
    assert len(delays) == len(bounds)
    assert all(0 <= delay <= bound for delay, bound in zip(delays, bounds, strict=True))
    assert len(set(delays)) > len(delays) / 2, "a crowd would come back together"


def test_patience_with_a_full_quota_has_an_end() -> None:
    """The published machine, but for its number of waits."""
    published = definition("onboard")
    counted = f'"waits_left": {retries.QUOTA_WAITS}'
    assert counted in published
    with moto_stack({"onboard": published.replace(counted, '"waits_left": 2')}) as stack:
        wish = stack.wish()
        stack.put_request(wish)
        stack.laptop.control.trouble(quota_full=True)
        execution = stack.laptop.finish(stack.start(wish))
        assert execution["error"] == "QUOTA_EXCEEDED"
        states = stack.states(execution)
        assert states.count("CountWait") == 2
        assert tuple(states[9:]) == (*NEXT_WAIT, *NEXT_WAIT, "DidJobFail", *states[-4:])
        assert [sleep.seconds for sleep in stack.world.waits] == [retries.CAPACITY_WAIT_S] * 2
        assert stack.jobs(wish) == []
