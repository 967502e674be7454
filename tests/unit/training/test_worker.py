"""A worker's queue: leases, fences, and cohorts that take in who comes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from moto import mock_aws
from PIL import Image

from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.contracts.tasks import TaskResult
from limner.contracts.training import TrainingConfig
from training.base import Base, load_base
from training.batch import train_all
from training.checkpoints import Checkpoints
from training.cohort import Cohort, Learner
from training.job import Work
from training.orders import Order, Orders, open_orders
from training.results import write_result
from training.settings import Settings
from training.stopping import Stop, StoppedError
from training.worker import Inbox
from training.works import Works

TABLE, BUCKET = "requests", "bucket"
JOB = "limner-batch-w1-1"
SHELF = "batches/w1/1/out/"
LEASE_S = 60.0


@dataclass
class Clock:
    """A clock that only waiting moves."""

    now_s: float = 1_790_000_000.0
    meanwhile: list[Callable[[], None]] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds
        if self.meanwhile:
            self.meanwhile.pop(0)()


class World:
    """A queue and a bucket, whose conditions and indexes are moto's."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.dynamodb = boto3.client("dynamodb", region_name="us-east-1")
        self.s3 = boto3.client("s3", region_name="us-east-1")
        self.s3.create_bucket(Bucket=BUCKET)
        texts = ("request_id", "queue", "queued_at")
        self.dynamodb.create_table(
            TableName=TABLE,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": n, "AttributeType": "S"} for n in texts],
            KeySchema=[{"AttributeName": "request_id", "KeyType": "HASH"}],
            GlobalSecondaryIndexes=[
                {
                    "IndexName": "queue",
                    "KeySchema": [
                        {"AttributeName": "queue", "KeyType": "HASH"},
                        {"AttributeName": "queued_at", "KeyType": "RANGE"},
                    ],
                    "Projection": {"ProjectionType": "ALL"},
                }
            ],
        )

    def orders(self, me: str = "first") -> Orders:
        return Orders(
            self.dynamodb,
            self.s3,
            table=TABLE,
            bucket=BUCKET,
            job=JOB,
            me=me,
            lease_s=LEASE_S,
            now_s=self.clock,
        )

    def inbox(self, root: Path, *, stop: Stop | None = None, **changes: float) -> Inbox:
        times = {"idle_s": 5.0, "lifetime_s": 1000.0, **changes}
        settings = settings_of(root)
        return Inbox(
            self.orders(),
            settings.worker_dir,
            keep=partial(write_result, settings),
            now_s=self.clock,
            pause=self.clock.pause,
            stop=stop or Stop(),
            idle_s=times["idle_s"],
            lifetime_s=times["lifetime_s"],
        )

    def queue(self, number: int, config: TrainingConfig, user: str = "", photos: int = 3) -> str:
        """Puts a request into the queue, with its photos and its config."""
        request_id, user_id = f"r{number}", user or f"User{number}"
        for photo in range(photos):
            buffer = io.BytesIO()
            Image.new("RGB", (48, 48), (40 * number % 256, 80 * photo, 90)).save(buffer, "PNG")
            key = f"{keys.uploads_prefix(user_id, request_id)}{photo:02d}.png"
            self.s3.put_object(Bucket=BUCKET, Key=key, Body=buffer.getvalue())
        key = f"{keys.config_prefix(request_id)}{keys.CONFIG_FILE}"
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=config.model_dump_json().encode())
        row = {
            "request_id": request_id,
            "user_id": user_id,
            "model_id": "default",
            "status": "QUEUED",
            "queue": keys.shard_of(user_id),
            "queued_at": f"2026-11-27T10:00:{number:02d}.000Z",
        }
        item = {name: {"S": value} for name, value in row.items()}
        self.dynamodb.put_item(TableName=TABLE, Item=item)
        return request_id

    def change(self, request_id: str, **values: Any) -> None:
        for name, value in values.items():
            self.dynamodb.update_item(
                TableName=TABLE,
                Key={"request_id": {"S": request_id}},
                UpdateExpression="SET #n = :v",
                ExpressionAttributeNames={"#n": name},
                ExpressionAttributeValues={":v": value},
            )

    def row(self, request_id: str) -> dict[str, Any]:
        item = self.dynamodb.get_item(TableName=TABLE, Key={"request_id": {"S": request_id}})
        return {name: next(iter(value.values())) for name, value in item["Item"].items()}

    def shelf(self, request_id: str) -> dict[str, bytes]:
        listed = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{SHELF}{request_id}/")
        return {
            entry["Key"].rpartition("/")[2]: self.s3.get_object(Bucket=BUCKET, Key=entry["Key"])[
                "Body"
            ].read()
            for entry in listed.get("Contents", [])
        }


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        yield World()


@pytest.fixture(scope="module")
def base(base_dir: Path) -> Base:
    return load_base(base_dir, torch.device("cpu"))


def settings_of(root: Path) -> Settings:
    return Settings(base_dir=root, rows=4, quality=False, worker_table=TABLE, worker_bucket=BUCKET)


def serve(world: World, base: Base, root: Path, **changes: Any) -> None:
    """As ``training.program`` runs a worker."""
    settings = settings_of(root)
    with world.inbox(root, **changes) as inbox:
        train_all(settings, base, inbox, kept=inbox.deliver)


def files_of(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def job(base: Base, root: Path, request_id: str, photos: Path, config: TrainingConfig) -> bytes:
    """What a job of its own makes of a request."""
    settings = Settings(base_dir=root, rows=4, quality=False)
    work = Work(request_id, "default", config, photos)
    train_all(settings, base, Works([work]), checkpoints=Checkpoints.of(settings))
    return (settings.task_dir(request_id) / "model.tar.gz").read_bytes()


# -- Leases --------------------------------------------------------------------------------------


def test_the_oldest_first_and_one_of_each_user(world: World, config: TrainingConfig) -> None:
    for number, user in enumerate(("Bo", "Bo", "Ann", "Cy", "Cy")):
        world.queue(number, config, user)
    orders = world.orders()
    assert [order.request_id for order in orders.find()] == ["r0", "r2", "r3"]
    assert orders.take(orders.find()[0])
    assert [order.request_id for order in orders.find()] == ["r2", "r3"], "Bo has one at work"


def test_only_one_of_two_workers_has_a_request(world: World, config: TrainingConfig) -> None:
    world.queue(1, config)
    first, second = world.orders("first"), world.orders("second")
    (order,) = first.find()
    lease = first.take(order)
    assert lease is not None
    assert second.take(order) is None
    world.clock.pause(LEASE_S + 1)
    later = second.take(order)
    assert later is not None
    assert later.fence == lease.fence + 1
    assert first.renew(lease) is None, "too slow"
    assert second.renew(later) is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("owner", {"S": "an execution"}),
        ("cancel_requested", {"BOOL": True}),
        ("status", {"S": "CANCELLED"}),
        ("lease_fence", {"N": "9"}),
    ],
)
def test_whatever_happens_to_the_request_ends_the_lease(
    world: World, config: TrainingConfig, tmp_path: Path, name: str, value: dict[str, Any]
) -> None:
    request_id = world.queue(1, config)
    orders = world.orders()
    lease = orders.take(orders.find()[0])
    assert lease is not None
    world.change(request_id, **{name: value})
    assert orders.renew(lease) is None
    (tmp_path / "result.json").write_text("{}")
    assert not orders.deliver(lease, tmp_path)
    assert "trained_by" not in world.row(request_id)


def test_a_delivery_whose_reply_was_lost_is_recognised(
    world: World, config: TrainingConfig, tmp_path: Path
) -> None:
    world.queue(1, config)
    orders = world.orders()
    lease = orders.take(orders.find()[0])
    assert lease is not None
    (tmp_path / "result.json").write_text("{}")
    assert orders.deliver(lease, tmp_path)
    assert orders.deliver(lease, tmp_path)


def test_who_has_taken_two_workers_with_him_is_left_to_a_job(
    world: World, config: TrainingConfig
) -> None:
    world.queue(1, config)
    for me in ("first", "second"):
        orders = world.orders(me)
        assert orders.take(orders.find()[0])
        world.clock.pause(LEASE_S + 1)
    orders = world.orders("third")
    assert orders.find() == []
    assert orders.take(Order("r1", "User1", "default", "")) is None


def test_later_attempts_are_left_to_jobs(world: World, config: TrainingConfig) -> None:
    world.change(world.queue(1, config), attempt={"N": "2"})
    assert world.orders().find() == []


def test_bad_rows_hinder_nobody(world: World, config: TrainingConfig) -> None:
    world.change(world.queue(1, config), user_id={"S": "../other"})
    world.queue(2, config)
    assert [order.request_id for order in world.orders().find()] == ["r2"]


# -- What is brought -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photos", "code"), [(0, "TOO_FEW_PHOTOS"), (51, "TOO_MANY_PHOTOS"), (3, "")]
)
def test_photos_are_counted_before_they_are_read(
    world: World, config: TrainingConfig, tmp_path: Path, photos: int, code: str
) -> None:
    world.queue(1, config, photos=photos)
    (order,) = world.orders().find()
    if not code:
        assert world.orders().fetch(order, tmp_path / "photos") == config
        assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == [
            *("00.png", "01.png", "02.png")
        ]
        return
    with pytest.raises(LimnerError) as refused:
        world.orders().fetch(order, tmp_path / "photos")
    assert refused.value.code == code


@pytest.mark.parametrize("name", ["../up.png", ".hidden", "a/b.png", "x" * 101])
def test_no_key_becomes_a_path_elsewhere(
    world: World, config: TrainingConfig, tmp_path: Path, name: str
) -> None:
    world.queue(1, config, photos=0)
    world.s3.put_object(Bucket=BUCKET, Key=f"uploads/User1/r1/{name}", Body=b"x")
    (order,) = world.orders().find()
    with pytest.raises(LimnerError) as refused:
        world.orders().fetch(order, tmp_path / "photos")
    assert refused.value.code == "INVALID_INPUT"
    assert list((tmp_path / "photos").iterdir()) == []


@pytest.mark.parametrize("lacks", ["config", "photos"])
def test_a_request_that_lacks_something_is_told_at_once(
    world: World, config: TrainingConfig, base: Base, tmp_path: Path, lacks: str
) -> None:
    request_id = world.queue(1, config, photos=0 if lacks == "photos" else 3)
    if lacks == "config":
        world.s3.delete_object(Bucket=BUCKET, Key=f"configs/{request_id}/config.json")
    serve(world, base, tmp_path)
    result = json.loads(world.shelf(request_id)["result.json"])
    code = {"config": "INVALID_INPUT", "photos": "TOO_FEW_PHOTOS"}[lacks]
    assert (result["status"], result["error"]["code"]) == ("failed", code)
    assert world.row(request_id)["trained_by"] == JOB
    assert files_of(tmp_path) == []


def test_what_aws_does_not_give_now_is_somebody_elses_to_take(
    world: World, config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = world.queue(1, config)
    inbox, sound = world.inbox(tmp_path), Orders.fetch

    def fail(*_: object) -> None:
        raise LimnerError("AWS_ERROR")

    monkeypatch.setattr(Orders, "fetch", fail)
    assert inbox.arrivals(lambda _: True) == ()
    assert "lease_until" not in world.row(request_id)
    monkeypatch.setattr(Orders, "fetch", sound)
    world.clock.pause(2)
    assert len(inbox.arrivals(lambda _: True)) == 1, "by the same worker, too"


def test_troubles_far_apart_end_nothing_and_an_outage_does(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, sound = world.inbox(tmp_path), Orders.find

    def fail(*_: object) -> list[Order]:
        raise LimnerError("AWS_ERROR")

    for _ in range(12):
        for find in (fail, fail, sound):
            monkeypatch.setattr(Orders, "find", find)
            world.clock.pause(2)
            assert inbox.arrivals(lambda _: True) == ()
    monkeypatch.setattr(Orders, "find", fail)
    with pytest.raises(LimnerError):
        for _ in range(6):
            world.clock.pause(2)
            inbox.arrivals(lambda _: True)


def test_floods_of_a_few_users_hide_nobody(world: World, config: TrainingConfig) -> None:
    users = [f"u{number}" for number in range(300)]
    shard = keys.shard_of("u0")
    few = [user for user in users if keys.shard_of(user) == shard][:4]
    number = 0
    for user in few[:3]:
        for _ in range(90):
            number += 1
            row = {"request_id": f"f{number}", "user_id": user, "model_id": "default"}
            row |= {"status": "QUEUED", "queue": shard, "queued_at": "2026-11-27T09:00:00.000Z"}
            item = {name: {"S": value} for name, value in row.items()}
            world.dynamodb.put_item(TableName=TABLE, Item=item)
    world.queue(1, config, few[3], photos=0)
    assert {order.user_id for order in world.orders().find()} == set(few)


# -- Whole lives ---------------------------------------------------------------------------------


def test_a_worker_makes_what_a_job_makes(
    world: World, config: TrainingConfig, base: Base, tmp_path: Path
) -> None:
    request_id = world.queue(1, config)
    photos = tmp_path / "photos"
    world.orders().fetch(world.orders().find()[0], photos)
    serve(world, base, tmp_path / "worker")
    shelf = world.shelf(request_id)
    assert set(shelf) == {"model.tar.gz", "result.json"}
    shown = world.s3.list_objects_v2(Bucket=BUCKET, Prefix=f"previews/{request_id}/")["Contents"]
    assert [entry["Key"].rpartition("/")[2] for entry in shown] == ["preview-00.png"]
    result = TaskResult.model_validate_json(shelf["result.json"])
    assert (result.status, result.request_id) == ("trained", request_id)
    row = world.row(request_id)
    assert row["trained_by"] == JOB
    assert "lease_until" not in row
    assert row["status"] == "QUEUED", "the machine claims, publishes and tells"
    assert shelf["model.tar.gz"] == job(base, tmp_path / "job", request_id, photos, config)
    assert files_of(tmp_path / "worker") == []


def test_who_comes_later_enters_a_free_slot(
    world: World, base: Base, tmp_path: Path, config: TrainingConfig, capsys: Any
) -> None:
    long = config.model_copy(update={"steps": 30, "batch_size": 1, "preview_prompts": ()})
    world.queue(1, long)
    settings = settings_of(tmp_path)
    with world.inbox(tmp_path) as inbox:
        steps = 0

        def arrivals(fits: Callable[[Work], bool]) -> Any:
            nonlocal steps
            steps += 1
            if steps == 8:
                world.queue(2, long)
                world.clock.now_s += 2
            return Inbox.arrivals(inbox, fits)

        inbox.arrivals = arrivals  # type: ignore[method-assign]
        train_all(settings, base, inbox, kept=inbox.deliver)
    told = capsys.readouterr().out
    assert told.index("event=taken request=r2") < told.index("event=delivered request=r1")
    assert all(world.row(name)["trained_by"] == JOB for name in ("r1", "r2"))


def test_a_misfit_closes_the_cohort_and_comes_next(
    world: World, base: Base, tmp_path: Path, config: TrainingConfig, capsys: Any
) -> None:
    """Four slots, a long training: the third one would fit, and waits behind the second."""
    long = config.model_copy(update={"steps": 12, "batch_size": 1, "preview_prompts": ()})
    world.queue(1, long)
    world.queue(2, long.model_copy(update={"rank": 4, "steps": 2}))
    world.queue(3, long.model_copy(update={"steps": 2}))
    serve(world, base, tmp_path)
    told = capsys.readouterr().out
    assert told.index("event=taken request=r2") < told.index("event=delivered request=r1")
    order = [told.index(f"event=delivered request=r{number}") for number in (1, 2, 3)]
    assert order == sorted(order)


def test_a_memory_that_is_too_small_for_a_crowd_fails_nobody(
    world: World,
    base: Base,
    tmp_path: Path,
    config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither at the making of the bank, nor when somebody comes, nor in a step."""
    small = config.model_copy(update={"batch_size": 1, "preview_prompts": ()})
    for number in range(3):
        world.queue(number, small)
    init, enter, tight = Cohort.__init__, Cohort.enter, set[str]()

    def make(self: Cohort, *args: Any, slots: int, **options: Any) -> None:
        if slots == 4:
            tight.add("made")
            raise MemoryError
        init(self, *args, slots=slots, **options)

    def come(self: Cohort, learner: Learner) -> None:
        if self.bank.slots == 2 and len(self.learners) == 1:
            tight.add("entered")
            raise MemoryError
        enter(self, learner)

    monkeypatch.setattr(Cohort, "__init__", make)
    monkeypatch.setattr(Cohort, "enter", come)
    serve(world, base, tmp_path)
    assert tight == {"made", "entered"}
    for number in range(3):
        assert json.loads(world.shelf(f"r{number}")["result.json"])["status"] == "trained"


def test_a_failed_request_is_delivered_too(
    world: World, base: Base, tmp_path: Path, config: TrainingConfig
) -> None:
    bad, good = world.queue(1, config, photos=1), world.queue(2, config)
    serve(world, base, tmp_path)
    result = json.loads(world.shelf(bad)["result.json"])
    assert (result["status"], result["error"]["code"]) == ("failed", "TOO_FEW_PHOTOS")
    assert world.row(bad)["trained_by"] == world.row(good)["trained_by"] == JOB


def test_a_cancelled_request_is_dropped_at_the_next_step(
    world: World, base: Base, tmp_path: Path, config: TrainingConfig, capsys: Any
) -> None:
    long = config.model_copy(update={"steps": 40, "batch_size": 2})
    world.queue(1, long)
    world.queue(2, long.model_copy(update={"steps": 10}))
    settings = settings_of(tmp_path)
    with world.inbox(tmp_path) as inbox:
        asked = 0

        def holds(work: Work) -> bool:
            nonlocal asked
            asked += 1
            if asked == 6:
                world.change("r1", cancel_requested={"BOOL": True})
                inbox.renew()
            return Inbox.holds(inbox, work)

        inbox.holds = holds  # type: ignore[method-assign]
        train_all(settings, base, inbox, kept=inbox.deliver)
    told = capsys.readouterr().out
    assert "event=lease_lost request=r1" in told
    assert world.shelf("r1") == {}
    assert files_of(tmp_path) == [], "nothing of a user stays who is not ours any more"
    assert world.row("r2")["trained_by"] == JOB
    assert "steps=40" not in told.partition("event=lease_lost")[2]


def test_sigterm_gives_everything_back_at_once(
    world: World, base: Base, tmp_path: Path, config: TrainingConfig
) -> None:
    world.queue(1, config.model_copy(update={"steps": 1000}))
    settings, stop = settings_of(tmp_path), Stop()
    asked = 0

    with (
        pytest.raises(StoppedError),
        world.inbox(tmp_path, stop=stop) as inbox,
    ):

        def holds(work: Work) -> bool:
            nonlocal asked
            asked += 1
            if asked == 5:
                stop.is_asked = True
            return Inbox.holds(inbox, work)

        inbox.holds = holds  # type: ignore[method-assign]
        train_all(settings, base, inbox, kept=inbox.deliver, stop=stop)
    row = world.row("r1")
    assert "lease_until" not in row
    assert world.orders("other").take(Order("r1", "User1", "default", ""))


def test_it_ends_when_idle_and_takes_nothing_on_at_the_end_of_its_life(
    world: World, base: Base, tmp_path: Path, config: TrainingConfig
) -> None:
    began = world.clock.now_s
    serve(world, base, tmp_path / "idle", idle_s=7.0)
    assert 7 <= world.clock.now_s - began < 9
    world.queue(1, config)
    began = world.clock.now_s
    serve(world, base, tmp_path / "old", lifetime_s=0.0)
    assert "lease_until" not in world.row("r1")
    assert world.clock.now_s == began


def test_a_lease_that_cannot_be_renewed_lasts_until_its_end(
    world: World, config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no longer, whatever the thread that renews it does."""
    world.queue(1, config)
    inbox = world.inbox(tmp_path)
    (work,) = inbox.more(lambda _: 0, lambda _: 1)

    def fail(*_: object) -> None:
        raise LimnerError("AWS_ERROR")

    monkeypatch.setattr(Orders, "renew", fail)
    world.clock.now_s += LEASE_S / 2
    inbox.renew()
    assert inbox.holds(work)
    world.clock.now_s += LEASE_S
    assert not inbox.holds(work)
    inbox.renew()
    assert not inbox.holds(work)


def test_a_worker_finds_its_region_in_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """SageMaker tells a program none that boto3 would read."""
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    open_orders(table=TABLE, bucket=BUCKET, job=JOB, me="x", region="eu-west-1")
