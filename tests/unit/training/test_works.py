"""Whose task is whose: claims that are written once, and hosts that share what is left."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from training.claims import S3Claims
from training.job import Work
from training.works import Works

PREFIX = "batches/b1/1/claims/"


class Shared:
    """Claims in memory."""

    def __init__(self) -> None:
        self.owners: dict[str, int] = {}

    def of(self, host: int) -> Mine:
        return Mine(self, host)


class Mine:
    def __init__(self, shared: Shared, host: int) -> None:
        self._shared, self._host = shared, host

    def take(self, request_id: str) -> bool:
        return self._shared.owners.setdefault(request_id, self._host) == self._host

    def taken(self) -> frozenset[str]:
        return frozenset(self._shared.owners)


def work(number: int, seconds: float, rank: int = 2) -> Work:
    config = TrainingConfig(rank=rank)
    return Work(f"r{number}", "default", config, Path("photos"), predicted_s=seconds)


def names(works: list[Work]) -> list[str]:
    return [item.request_id for item in works]


def kind(work: Work) -> int:
    return work.config.rank


def test_without_claims_everything_is_as_planned() -> None:
    works = Works([work(0, 1), work(1, 9)], others=[work(2, 5)])
    assert names(list(works.share)) == ["r0", "r1"]
    assert works.begins(work(1, 9))
    assert works.more(kind, lambda _: 8) == []


def test_half_of_what_is_free_the_longest_first_and_of_one_kind() -> None:
    shared = Shared()
    others = [*(work(number, seconds=number) for number in range(6)), work(9, 50, rank=4)]
    shared.of(0).take("r5")
    works = Works([], others=others, claims=shared.of(1))
    assert names(works.more(kind, lambda _: 8)) == ["r9"], "nothing else is like it"
    assert names(works.more(kind, lambda _: 8)) == ["r4", "r3", "r2"]
    assert names(works.more(kind, lambda _: 8)) == ["r1"]
    assert names(works.more(kind, lambda _: 8)) == ["r0"]
    assert works.more(kind, lambda _: 8) == []
    assert shared.owners.pop("r5") == 0
    assert set(shared.owners.values()) == {1}


def test_no_more_than_can_be_trained_together() -> None:
    works = Works([], others=[work(n, n) for n in range(10)], claims=Shared().of(1))
    assert len(works.more(kind, lambda _: 2)) == 2


def test_who_was_planned_for_it_finds_it_gone() -> None:
    shared = Shared()
    planned = [work(number, seconds=number) for number in range(4)]
    owner = Works(planned, claims=shared.of(0))
    idle = Works([], others=planned, claims=shared.of(1))
    assert names(list(owner.share)) == ["r3", "r2", "r1", "r0"], "the longest first"
    assert owner.begins(owner.share[0])
    assert names(idle.more(kind, lambda _: 8)) == ["r2", "r1"]
    assert [owner.begins(item) for item in owner.share] == [True, False, False, True]
    assert idle.more(kind, lambda _: 8) == []


def test_a_host_that_starts_again_keeps_what_it_has_claimed() -> None:
    shared = Shared()
    others = [work(number, seconds=number) for number in range(4)]
    first = Works([], others=others, claims=shared.of(1))
    claimed = names(first.more(kind, lambda _: 8))
    shared.of(0).take("r0")
    again = Works([], others=others, claims=shared.of(1))
    found: list[str] = []
    while more := names(again.more(kind, lambda _: 8)):
        found += more
    assert set(claimed) <= set(found)
    assert sorted(found) == ["r1", "r2", "r3"]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_hosts_does_each_task_once(seed: int) -> None:
    rng = random.Random(seed)
    shared = Shared()
    planned = {
        host: [work(10 * host + n, rng.random() * 9) for n in range(rng.randrange(6))]
        for host in range(4)
    }
    done: list[str] = []

    def host(me: int) -> Iterator[None]:
        others = [item for them, items in planned.items() if them != me for item in items]
        works = Works(planned[me], others=others, claims=shared.of(me))
        for item in works.share:
            if works.begins(item):
                done.append(item.request_id)
            yield
        while more := works.more(kind, lambda _: 3):
            yield
            done.extend(names(more))

    hosts = [host(me) for me in planned]
    while hosts:
        turn = rng.choice(hosts)
        if next(turn, True):
            hosts.remove(turn)
    assert sorted(done) == sorted(item.request_id for items in planned.values() for item in items)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client


def test_a_claim_is_written_once(s3: Any) -> None:
    hosts = [S3Claims(s3, "bucket", PREFIX, host) for host in range(12)]
    assert [host.take("r1") for host in hosts] == [True] + [False] * 11
    assert hosts[0].take("r1"), "its own, also after a restart or a lost reply"
    assert hosts[11].take("r2")
    assert not hosts[1].take("r2"), "1 is not 11"
    assert hosts[3].taken() == {"r1", "r2"}


def troubled(s3: Any, trouble: Callable[[Callable[[], Any]], Any]) -> Any:
    return Troubled(s3, trouble)


class Troubled:
    """A client of S3 whose writes meet trouble."""

    def __init__(self, s3: Any, trouble: Callable[[Callable[[], Any]], Any]) -> None:
        self._s3, self._trouble = s3, trouble

    def put_object(self, **call: Any) -> Any:
        return self._trouble(lambda: self._s3.put_object(**call))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._s3, name)


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": ""}}, "PutObject")


def test_a_write_whose_reply_was_lost_is_recognised(s3: Any) -> None:
    def twice(call: Callable[[], Any]) -> Any:  # the SDK sends it again
        call()
        return call()

    assert S3Claims(troubled(s3, twice), "bucket", PREFIX, 1).take("r1")
    assert not S3Claims(s3, "bucket", PREFIX, 0).take("r1")


def test_two_writes_at_the_same_moment(s3: Any) -> None:
    conflicts = [1, 1]

    def conflict(call: Callable[[], Any]) -> Any:
        if conflicts:
            conflicts.pop()
            raise refusal("ConditionalRequestConflict")
        return call()

    assert S3Claims(troubled(s3, conflict), "bucket", PREFIX, 1).take("r1")


def test_who_gets_no_answer_begins_nothing_of_its_own_and_takes_nothing_of_others(s3: Any) -> None:
    def denied(_: Callable[[], Any]) -> Any:
        raise refusal("AccessDenied")

    claims = S3Claims(troubled(s3, denied), "bucket", PREFIX, 1)
    works = Works([work(0, 1)], others=[work(1, 1)], claims=claims)
    with pytest.raises(LimnerError, match="AWS_ERROR"):
        works.begins(work(0, 1))
    assert works.more(kind, lambda _: 8) == []


def test_what_was_claimed_before_the_trouble_is_not_forgotten() -> None:
    class Flaky(Mine):
        def take(self, request_id: str) -> bool:
            if request_id == "r1":
                raise LimnerError("AWS_ERROR")
            return super().take(request_id)

    works = Works([], others=[work(n, -n) for n in range(4)], claims=Flaky(Shared(), 1))
    assert names(works.more(kind, lambda _: 8)) == ["r0"]


def test_many_hosts_at_once(s3: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        hosts = [S3Claims(s3, "bucket", PREFIX, host) for host in range(8)]
        for number in range(10):
            won = list(pool.map(lambda host: host.take(f"r{number}"), hosts))  # noqa: B023
            assert sum(won) >= 1
            owners = [host.take(f"r{number}") for host in hosts]
            assert sum(owners) == 1
