"""What a stream mapping does after a failure: pure decisions, and 100 records with one poison."""

from __future__ import annotations

from typing import Any

import pytest

from limner.local.triggers.streams import Batch, after_failure, first_failure, split_by_age


def record(number: int, created: float = 0.0) -> dict[str, Any]:
    return {"dynamodb": {"SequenceNumber": str(number), "ApproximateCreationDateTime": created}}


def batch(count: int, attempts: int = 0) -> Batch:
    return Batch([record(number) for number in range(count)], attempts)


def report(*identifiers: object) -> dict[str, Any]:
    return {"body": {"batchItemFailures": [{"itemIdentifier": item} for item in identifiers]}}


@pytest.mark.parametrize(
    ("result", "position"),
    [
        ({"body": None}, None),
        (report(), None),
        ({"body": {"batchItemFailures": None}}, None),
        (report("3", "2", "4"), 2),
        (report("0"), 0),
        (report(""), 0),
        (report(None), 0),
        (report("3", "no-such"), 0),
        ({"body": {"batchItemFailures": [{"wrong": "3"}]}}, 0),
        ({"error": True, **report("3")}, 0),
    ],
)
def test_where_a_function_has_failed(result: dict[str, Any], position: int | None) -> None:
    assert first_failure(result, batch(5), reports=True) == position


def test_reports_are_not_read_without_the_setting() -> None:
    assert first_failure(report("1"), batch(5), reports=False) is None


def test_the_rest_of_a_batch_is_another_batch() -> None:
    (rest,) = after_failure(batch(5, attempts=2), 3, bisects=False, retries=2)
    assert (len(rest.records), rest.attempts) == (2, 0)


def test_splitting_does_not_count() -> None:
    halves = after_failure(batch(5), 0, bisects=True, retries=0)
    assert [(len(half.records), half.attempts) for half in halves] == [(2, 0), (3, 0)]


@pytest.mark.parametrize(
    ("attempts", "retries", "again"), [(0, 0, 0), (0, 1, 1), (1, 1, 0), (99, -1, 1)]
)
def test_the_same_batch_is_sent_as_often_as_allowed(
    attempts: int, retries: int, again: int
) -> None:
    following = after_failure(batch(1, attempts), 0, bisects=True, retries=retries)
    assert [item.attempts for item in following] == [attempts + 1] * again


@pytest.mark.parametrize("poison", [0, 37, 99])
@pytest.mark.parametrize("reports", [True, False])
def test_one_poison_in_a_hundred_is_given_up_alone(poison: int, *, reports: bool) -> None:
    todo, seen, given_up = [batch(100)], set(), []
    while todo:
        current = todo.pop(0)
        numbers = [int(item["dynamodb"]["SequenceNumber"]) for item in current.records]
        result: dict[str, Any] = {}
        if poison in numbers:
            result = report(str(poison)) if reports else {"error": True}
        position = first_failure(result, current, reports=reports)
        seen |= set(numbers[:position])
        if position is None:
            continue
        following = after_failure(current, position, bisects=True, retries=2)
        if not following:
            given_up.append(numbers)
        todo[:0] = following
    assert given_up == [[poison]]
    assert seen == set(range(100)) - {poison}


def test_records_that_are_too_old_are_not_sent() -> None:
    records = [record(1, 10.0), record(2, 90.0)]
    old, rest = split_by_age(Batch(records), 60, now=100.0)
    assert (old, rest) == ([records[0]], Batch([records[1]]))
    assert split_by_age(Batch(records), 5, now=100.0) == (records, None)
    assert split_by_age(Batch(records, 3), -1, now=100.0) == ([], Batch(records, 3))
    assert split_by_age(Batch(records, 3), 900, now=100.0) == ([], Batch(records, 3))
