"""The load generator: its arrivals, its clock, and its part of the platform."""

import asyncio
import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.traffic import Platform, Schedule, Tally, drive, in_ms, weights

ROOM = 2
DRAWN = {"adapter_sha256": "a"}


class Endpoint:
    """A container with room for two models, which draws so many requests at a time."""

    def __init__(self, together: int = 1) -> None:
        self.drawing = asyncio.Barrier(together)
        self.loaded: list[str] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            self.loaded.remove(request.url.path.rpartition("/")[2])
        elif request.url.path == "/models":
            await asyncio.sleep(0)
            if len(self.loaded) == ROOM:
                return httpx.Response(507)
            self.loaded.append(json.loads(request.content)["model_name"])
        else:
            await self.drawing.wait()
        return httpx.Response(200, json=DRAWN)

    def platform(self) -> Platform:
        transport = httpx.MockTransport(self)
        http = httpx.AsyncClient(transport=transport, base_url="http://endpoint")
        return Platform(http, Path)


def digest(user: int) -> str:
    return DRAWN["adapter_sha256"]


def due_at(*due_s: float) -> Schedule:
    return Schedule(iter(()), np.array(due_s), np.zeros(len(due_s), dtype=int))


def test_equal_seeds_are_equal_arrivals_and_others_are_not() -> None:
    one, two = (Schedule.of("zipf", 50, 5, 10, seed=3) for _ in range(2))
    other = Schedule.of("zipf", 50, 5, 10, seed=4)
    assert np.array_equal(one.due_s, two.due_s)
    assert np.array_equal(one.users, two.users)
    assert [next(one.before) for _ in range(9)] == [next(two.before) for _ in range(9)]
    assert one.due_s.tolist() != other.due_s.tolist()


def test_arrivals_are_those_of_a_poisson_process() -> None:
    gaps = np.diff(Schedule.of("uniform", 10, 100, 100, seed=0).due_s)
    # Exponential: the mean, and a deviation as large as it.
    assert np.mean(gaps) == pytest.approx(1 / 100, rel=0.05)
    assert np.std(gaps) == pytest.approx(1 / 100, rel=0.05)
    assert gaps.min() >= 0


def test_zipf_knows_popular_users_and_not_by_their_number() -> None:
    found = weights("zipf", 1000, np.random.default_rng(0))
    ranked = np.sort(found)[::-1]
    assert found.sum() == pytest.approx(1)
    assert ranked[0] / ranked[9] == pytest.approx(10**1.1)
    assert np.argmax(found) != 0
    assert np.ptp(weights("uniform", 1000, np.random.default_rng(0))) == 0


def test_percentiles_in_milliseconds() -> None:
    assert in_ms([0.001 * i for i in range(101)]) == {"p50": 50, "p95": 95, "p99": 99}
    assert in_ms([]) is None


def test_a_latency_begins_when_the_request_was_due() -> None:
    async def whole() -> Tally:
        # The second was due long ago, as after a client that waited for its first answer.
        tally, _ = await drive(Endpoint().platform(), due_at(0, -0.5), digest)
        return tally

    tally = asyncio.run(whole())
    assert max(tally.cold_s + tally.warm_s) >= 0.5


def test_nobody_waits_for_anybody() -> None:
    async def whole() -> Tally:
        # Answered when all of them have come.
        tally, _ = await drive(Endpoint(20).platform(), due_at(*[0.0] * 20), digest)
        return tally

    tally = asyncio.run(whole())
    assert len(tally.cold_s + tally.warm_s) == 20


def test_who_has_no_answer_gives_up_and_counts() -> None:
    async def whole() -> Tally:
        tally, _ = await drive(Endpoint(2).platform(), due_at(0), digest, give_up_s=0.1)
        return tally

    tally = asyncio.run(whole())
    assert len(tally.given_up_s) == 1
    assert tally.given_up_s[0] >= 0.1
    assert not tally.cold_s + tally.warm_s


def test_an_answer_by_another_users_adapter_is_none() -> None:
    with pytest.raises(ExceptionGroup) as found:
        asyncio.run(drive(Endpoint().platform(), due_at(0), lambda _: "b"))
    assert found.group_contains(AssertionError)


def test_a_model_is_loaded_once_for_all_who_ask_at_once() -> None:
    async def whole() -> tuple[list[bool], int]:
        platform = Endpoint().platform()
        answers = await asyncio.gather(*(platform.invoke(0, seed) for seed in range(4)))
        cold = [found[0] for found in (*answers, await platform.invoke(0, 9))]
        return cold, platform.loads

    assert asyncio.run(whole()) == ([True] * 4 + [False], 1)


def test_at_507_the_one_used_longest_ago_leaves_and_nobody_who_is_drawn() -> None:
    endpoint = Endpoint(2)

    async def whole() -> tuple[list[str], list[str], int]:
        platform = endpoint.platform()
        for user in (0, 1, 0):
            await platform.load(user)
        await platform.load(2)
        idle_left = list(endpoint.loaded)
        drawing = asyncio.create_task(platform.invoke(0, 0))
        while not endpoint.drawing.n_waiting:
            await asyncio.sleep(0)
        await platform.load(3)
        used_stayed = list(endpoint.loaded)
        await endpoint.drawing.wait()
        await drawing
        return idle_left, used_stayed, platform.unloads

    assert asyncio.run(whole()) == (["u0", "u2"], ["u0", "u3"], 2)


def test_refusals_outside_of_the_contract_are_wrong() -> None:
    tally = Tally()
    tally.refusals.update(["404", "507 OUT_OF_MEMORY", "503 ENDPOINT_BUSY", "400 ENDPOINT_BUSY"])
    assert not tally.wrong()
    tally.refusals["400 INVALID_INPUT"] += 1
    assert tally.wrong() == {"400 INVALID_INPUT": 1}
