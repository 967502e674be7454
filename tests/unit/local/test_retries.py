"""The back-off of Retry."""

from __future__ import annotations

import pytest

from limner.local.semantics.retries import delay_s


def highest(_: float, high: float) -> float:
    return high


@pytest.mark.parametrize(
    ("retrier", "expected"),
    [
        ({}, [1, 2, 4]),
        ({"IntervalSeconds": 10, "BackoffRate": 2.0}, [10, 20, 40]),
        ({"IntervalSeconds": 10, "BackoffRate": 2.0, "MaxDelaySeconds": 25}, [10, 20, 25]),
        ({"IntervalSeconds": 60, "BackoffRate": 1.0}, [60, 60, 60]),
    ],
)
def test_delays(retrier: dict[str, float], expected: list[float]) -> None:
    assert [delay_s(retrier, retries, highest) for retries in range(3)] == expected


def test_full_jitter_draws_between_nothing_and_the_bounded_delay() -> None:
    drawn = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return (low + high) / 2

    retrier = {"IntervalSeconds": 10, "MaxDelaySeconds": 15, "JitterStrategy": "FULL"}
    assert [delay_s(retrier, retries, uniform) for retries in range(2)] == [5, 7.5]
    assert drawn == [(0, 10), (0, 15)]
    assert delay_s({**retrier, "JitterStrategy": "NONE"}, 0, uniform) == 10
