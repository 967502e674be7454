"""Prefetching: one tiny drawing, by nobody's leave, and never in the app's way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from limner.client import Prefetched
from limner.client.prefetching import MOST_AT_ONCE, Background
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest
from tests.unit.client.test_generate import Endpoint, endpoint
from tests.unit.client.world import World

__all__ = ["endpoint"]
DONE = Prefetched("alice", "default", 1, "alice/default/v1.tar.gz", 0.1)
PATIENCE_S = 30


def test_prefetch_draws_the_least_there_is(aws: World, endpoint: Endpoint) -> None:
    aws.put_model("alice", live=2)
    endpoint.will_draw("alice/default/v2.tar.gz", [0])
    done = aws.limner.prefetch("alice")
    assert (done.version, done.target_model) == (2, "alice/default/v2.tar.gz")
    asked = GenerateRequest.model_validate_json(endpoint.asked[0]["Body"])
    assert (asked.steps, asked.images, asked.height, asked.width) == (1, 1, 64, 64)
    assert asked.guidance <= 1, "two rows instead of one"


def test_prefetch_waits_for_a_cold_model(aws: World, endpoint: Endpoint) -> None:
    aws.put_model("alice", live=1)
    endpoint.will_fail("ModelNotReadyException")
    endpoint.will_draw("alice/default/v1.tar.gz", [0])
    assert aws.limner.prefetch("alice").seconds == pytest.approx(sum(aws.clock.sleeps))
    assert len(aws.clock.sleeps) == 1


def test_prefetch_of_a_version_before_it_is_activated(aws: World, endpoint: Endpoint) -> None:
    aws.put_model("alice", live=2)
    endpoint.will_draw("alice/default/v1.tar.gz", [0])
    assert aws.limner.prefetch("alice", version=1).version == 1


@pytest.mark.parametrize(
    ("user_id", "code"),
    [("nobody", "MODEL_NOT_FOUND"), ("al/ice", "INVALID_INPUT"), ("alice", "GENERATION_FAILED")],
)
def test_errors_are_raised_or_reported(
    aws: World,
    endpoint: Endpoint,
    caplog: pytest.LogCaptureFixture,
    user_id: str,
    code: str,
) -> None:
    aws.put_model("alice", live=1)
    for _ in range(2 * (user_id == "alice")):
        endpoint.will_fail("ModelError", OriginalMessage="broken", OriginalStatusCode=500)
    with pytest.raises(LimnerError) as caught:
        aws.limner.prefetch(user_id)
    assert caught.value.code == code

    with caplog.at_level(logging.WARNING, "limner.client.prefetching"):
        future = aws.limner.prefetch_in_background(user_id)
        error = future.exception(PATIENCE_S)
    assert isinstance(error, LimnerError)
    assert error.code == code
    assert caplog.messages == [f"a prefetch failed: {code}"]
    assert user_id not in caplog.text


def test_in_the_background_the_answer_comes_by_a_future(aws: World, endpoint: Endpoint) -> None:
    aws.put_model("alice", live=1)
    endpoint.will_draw("alice/default/v1.tar.gz", [0])
    assert aws.limner.prefetch_in_background("alice").result(PATIENCE_S).version == 1


class Gate:
    """Work that goes on when the test says so."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.begun = 0

    def work(self) -> Prefetched:
        self.begun += 1
        assert self.opened.wait(PATIENCE_S)
        return DONE


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


def test_the_same_model_is_prefetched_once_at_a_time(gate: Gate) -> None:
    background = Background()
    first = background.begin(("alice",), gate.work)
    assert background.begin(("alice",), gate.work) is first
    assert not first.cancel(), "others may wait for it, too"
    gate.opened.set()
    assert first.result(PATIENCE_S) is DONE
    again = background.begin(("alice",), gate.work)
    assert again is not first
    assert again.result(PATIENCE_S) is DONE
    assert gate.begun == 2


def test_too_many_are_dropped_and_not_queued(gate: Gate) -> None:
    background = Background()
    going = [background.begin((n,), gate.work) for n in range(MOST_AT_ONCE)]
    error = background.begin(("late",), gate.work).exception(0)
    assert isinstance(error, LimnerError)
    assert error.code == "THROTTLED"
    gate.opened.set()
    assert [future.result(PATIENCE_S) for future in going] == [DONE] * MOST_AT_ONCE
    assert background.begin(("late",), gate.work).result(PATIENCE_S) is DONE


def test_a_bug_and_a_machine_without_threads_end_in_the_future(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    background = Background()

    def bug() -> Prefetched:
        raise ZeroDivisionError

    assert isinstance(background.begin((1,), bug).exception(PATIENCE_S), ZeroDivisionError)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert isinstance(background.begin((1,), gate.work).exception(0), RuntimeError)
    gate.opened.set()
    future: Future[Prefetched] = background.begin((1,), gate.work)
    assert future.result(PATIENCE_S) is DONE
