"""One dispatcher at a time, and no event that nobody looks after."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lambdas.dispatch.turn import KEY, Turn
from lambdas.shared.dynamo import Table
from tests.support.dispatching import World, new_world


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        yield made


def turn(world: World, name: str) -> Turn:
    return Turn(Table(world.dynamodb, "requests"), world.time.clock(), name)


def test_a_second_dispatcher_leaves_a_note_and_the_first_looks_again(world: World) -> None:
    first, second = turn(world, "a"), turn(world, "b")
    assert first.take()
    assert not second.take()
    assert not first.leave(), "somebody has asked for another look"
    assert first.take()
    assert first.leave()
    assert second.take()


def test_the_turn_of_a_dispatcher_that_died_ends_with_its_time(world: World) -> None:
    assert turn(world, "a").take()
    world.time.pass_s(59)
    assert not turn(world, "b").take()
    world.time.pass_s(1)
    assert turn(world, "c").take()


def test_a_lost_reply_is_recognised(world: World) -> None:
    first = turn(world, "a")
    assert first.take()
    assert first.take(), "our own write, met again"
    assert first.leave()
    assert first.leave(), "the same"


def test_who_lost_the_turn_takes_nobody_s(world: World) -> None:
    slow = turn(world, "slow")
    assert slow.take()
    world.time.pass_s(60)
    assert turn(world, "quick").take()
    assert slow.leave()
    slow.drop()
    assert world.row(KEY["request_id"])["by"] == "quick"


def test_an_error_gives_the_turn_back(world: World) -> None:
    first = turn(world, "a")
    assert first.take()
    assert not turn(world, "b").take()
    first.drop()
    assert world.row(KEY["request_id"]) == {**KEY, "again": True}, "it is the next one's"
    assert turn(world, "b").take()
    assert "again" not in world.row(KEY["request_id"])
