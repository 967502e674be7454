"""Rounds of the queue over real conditional writes: budgets, fencing, and every possible death."""

from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from lambdas.dispatch.gate import Limits
from lambdas.dispatch.gate_row import GateRow
from lambdas.dispatch.logic import Launch, read_candidate
from lambdas.dispatch.waiting import Waiting
from lambdas.shared import executions
from lambdas.shared.dynamo import Table
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from tests.support.dispatching import MACHINES, Cut, World, iso, new_world, quick_world, refusal


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        yield made


def waiting(world: World, me: str) -> Waiting:
    return Waiting(Table(world.dynamodb, "requests"), world.time.clock(), me, 120)


# -- The good way ---------------------------------------------------------------------------------


def test_what_waits_is_started_and_counted(world: World) -> None:
    for name in ("r1", "r2"):
        world.request(name)
    tally = world.dispatch()
    assert (tally.launched, tally.executions, tally.left) == (2, 2, [])
    assert sorted(world.states.starts) == ["r1-1", "r2-1"]
    assert set(world.holders) == {"r1-1", "r2-1"}
    figures = tally.figures(world.time.now_ms)
    assert (figures["Launched"], figures["LaunchesToday"], figures["HoldersInUse"]) == (2, 2, 2)


def test_a_second_round_does_not_start_what_is_being_started(world: World) -> None:
    world.request("r1")
    world.dispatch()
    calls = world.calls.count
    tally = world.dispatch()
    assert (tally.executions, tally.resumed, tally.left) == (0, 0, [])
    written = [name for name in world.calls.names[calls:] if name == "update_item"]
    assert written == [], "a round that may start nothing writes nothing, or the stream never rests"


def test_an_end_frees_the_place(world: World) -> None:
    world.with_limits(max_instances=1)
    world.request("r1")
    world.request("r2", queued_at=iso(world.time.now_ms + 1))
    assert world.dispatch().refusal == "INSTANCES"
    world.claim("r1", "r1-1")
    world.end_execution("r1-1", "SUCCEEDED")
    world.dispatch(ended="r1-1")
    world.dispatch(ended="r1-1")
    assert world.states.starts == ["r1-1", "r2-1"]
    assert set(world.holders) == {"r2-1"}


def test_many_waiting_users_share_an_execution(world: World) -> None:
    world.with_rules(batch_from=8, batch_size=10)
    for number in range(25):
        world.request(f"r{number:02}", queued_at=iso(world.time.now_ms + number))
    tally = world.dispatch()
    assert tally.launched == 25
    # 10 + 10, and the rest of 5 is too few for a batch.
    assert tally.executions == 7
    assert sorted(len(held["runs"]) for held in world.holders.values()) == [1] * 5 + [10, 10]
    batches = [name for name, held in world.holders.items() if held["batch"]]
    assert [world.holders[name]["instances"] for name in batches] == [2, 2]


def test_the_round_waits_for_the_rate_as_long_as_it_lives(world: World) -> None:
    world.with_limits(burst=1)
    for number in range(10):
        world.request(f"r{number:02}")
    world.time.lifetime_ms = 14_000
    first = world.dispatch()
    # 14 s of life, 8 s to spare, one launch a second.
    assert (first.executions, first.refusal, len(first.left)) == (6, "RATE", 4)
    assert sum(world.time.paused_s) <= 6
    world.time.pass_s(30)
    assert world.dispatch().executions == 4


def test_nothing_starts_above_the_day(world: World) -> None:
    world.with_limits(daily_launches=3)
    for number in range(5):
        world.request(f"r{number}")
    assert world.dispatch().refusal == "DAY"
    assert len(world.states.starts) == 3
    world.time.pass_s(86_400)
    world.dispatch()
    assert len(world.states.starts) == 5


def test_a_storm_of_one_user_is_one_execution_at_a_time() -> None:
    """P9: a bug that asks a thousand times."""
    world = quick_world()
    for number in range(1000):
        world.request(f"r{number:04}", "ada", queued_at=iso(world.time.now_ms + number))
    world.with_rules(batch_from=5)
    for _ in range(2):
        world.dispatch()
    print(f"\n1,000 requests of one user: {len(world.running())} execution at work")  # noqa: T201
    assert world.running() == ["r0000-1"]
    world.request("late", "bob", queued_at=iso(world.time.now_ms + 10**6))
    world.dispatch()
    assert world.running() == ["r0000-1", "late-1"], "the storm does not delay others"


def test_a_flood_before_a_user_of_the_same_shard_is_passed_over(world: World) -> None:
    shard = keys.shard_of("ada")
    bob = next(f"bob{i}" for i in range(99) if keys.shard_of(f"bob{i}") == shard)
    for number in range(400):
        world.request(f"r{number:04}", "ada", queued_at=iso(world.time.now_ms + number))
    world.request("late", bob, queued_at=iso(world.time.now_ms + 10**6))
    world.dispatch()
    assert world.running() == ["r0000-1", "late-1"]


# -- Bad rows -------------------------------------------------------------------------------------


def test_a_bad_row_ends_and_does_not_stop_the_round(world: World) -> None:
    world.request("bad", retrain="perhaps")
    world.request("good")
    tally = world.dispatch()
    assert (tally.bad_rows, world.states.starts) == (1, ["good-1"])
    row = world.row("bad")
    assert (row["status"], row["error"]["code"]) == ("FAILED", "INVALID_INPUT")
    assert not {"queue", "open"} & set(row)


@pytest.mark.parametrize(
    "change",
    [{"status": "CANCELLED"}, {"owner": "somebody"}, {"attempt": 2}, {"queue": None}],
)
def test_what_changed_since_the_look_is_not_taken(world: World, change: dict[str, object]) -> None:
    world.request("r1")
    candidate = read_candidate(world.row("r1"))
    world.request("r1", **change)
    assert waiting(world, "me").lease(candidate) is None


# -- Fencing --------------------------------------------------------------------------------------


def test_one_lease_at_a_time_and_the_later_one_wins(world: World) -> None:
    """P4: a stale dispatcher never wins."""
    world.request("r1")
    candidate = read_candidate(world.row("r1"))
    stale, fresh = waiting(world, "stale"), waiting(world, "fresh")
    first = stale.lease(candidate)
    assert first is not None
    assert fresh.lease(candidate) is None
    again = stale.lease(candidate)
    assert again is not None, "our own lease is recognised when its reply was lost"
    world.time.pass_s(121)
    second = fresh.lease(candidate)
    assert second is not None
    assert second.fence > again.fence > first.fence
    stale.give_back(first)
    assert world.row("r1")["lease_by"] == "fresh"


def test_a_dispatcher_that_slept_over_its_lease_does_not_start(world: World) -> None:
    world.request("r1")
    slow = world.new_round("slow")
    enter = GateRow.enter

    def sleep_then_enter(self: GateRow, *arguments: object) -> object:
        world.time.pass_s(119)
        return enter(self, *arguments)  # type: ignore[arg-type]

    world.time.lifetime_ms = 10**9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GateRow, "enter", sleep_then_enter)
        slow.run()
    assert world.states.starts == []
    world.time.pass_s(10)
    assert world.dispatch().resumed == 1
    assert world.states.starts == ["r1-1"]


def test_two_dispatchers_at_the_same_time(world: World) -> None:
    """B makes a whole round between each two calls of A: each request starts once."""
    for number in range(6):
        world.request(f"r{number}")
    world.with_limits(max_instances=4)
    inner = False
    one = world.calls.one

    def with_b(name: str) -> object:
        nonlocal inner
        if not inner:
            inner = True
            born = world.time.born_ms
            world.dispatch()
            world.time.born_ms = born
            inner = False
        return one(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.calls, "one", with_b)
        world.dispatch()
    assert len(world.states.starts) == len(set(world.states.starts)) == 4
    assert set(world.holders) == set(world.states.starts)


def test_the_gate_gives_up_when_it_is_written_all_the_time(world: World) -> None:
    row = GateRow(Table(world.dynamodb, "requests"), world.time.clock())
    holder = Launch.of([], batch=True).holder(world.time.now_ms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GateRow, "_write", lambda *_: False)
        with pytest.raises(LimnerError, match="THROTTLED"):
            row.enter("x", holder, Limits(9, 9, 9, 9, 9))


def test_a_gate_write_whose_reply_was_lost_is_ours(world: World) -> None:
    """P5."""
    world.request("r1")
    write = GateRow._write

    def lose_reply(self: GateRow, gate: object) -> bool:
        write(self, gate)  # type: ignore[arg-type]
        return write(self, gate)  # type: ignore[arg-type] # as the SDK repeats it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GateRow, "_write", lose_reply)
        tally = world.dispatch()
    assert (tally.launched, world.states.starts) == (1, ["r1-1"])
    assert tally.gate.launched == 1


# -- Trouble with StartExecution ------------------------------------------------------------------


def test_throttled_starts_are_repeated(world: World) -> None:
    world.request("r1")
    world.states.refuse = [refusal("ThrottlingException", "StartExecution")] * 3
    assert world.dispatch().launched == 1
    assert len(world.time.paused_s) == 3


def test_a_start_that_stays_throttled_leaves_nothing_behind(world: World) -> None:
    world.request("r1")
    world.request("r2")
    world.states.refuse = [refusal("ThrottlingException", "StartExecution")] * executions._TRIES
    tally = world.dispatch()
    assert (tally.throttled, tally.launched, len(tally.left)) == (1, 0, 2)
    assert world.holders == {}
    assert tally.gate.launched == 0
    assert "lease_until" not in world.row("r1")
    world.time.pass_s(1)
    assert world.dispatch().launched == 2


def test_a_refused_start_leaves_nothing_behind(world: World) -> None:
    world.request("r1")
    world.states.refuse = [refusal("AccessDeniedException", "StartExecution")]
    with pytest.raises(ClientError):
        world.dispatch()
    assert world.holders == {}


@pytest.mark.parametrize("lost", ["5xx", "reply"])
def test_a_start_of_which_nobody_knows_is_made_again(world: World, lost: str) -> None:
    world.request("r1")
    if lost == "5xx":
        world.states.refuse = [refusal("InternalFailure", "StartExecution", 500)]
    else:
        world.states.lose_reply = True
    with pytest.raises((ClientError, EndpointConnectionError)):
        world.dispatch()
    assert set(world.holders) == {"r1-1"}
    world.dispatch()
    world.time.pass_s(121)
    world.dispatch()
    assert world.states.starts == ["r1-1"]


def test_a_batch_is_started_again_with_the_very_same_input(world: World) -> None:
    world.with_rules(batch_from=2)
    for number in range(3):
        world.request(f"r{number}", retrain=number == 1)
    world.states.lose_reply = True
    with pytest.raises(EndpointConnectionError):
        world.dispatch()
    world.request("r3")  # more come meanwhile, and do not change the batch
    world.request("r4")
    world.time.pass_s(121)
    tally = world.dispatch()
    assert tally.resumed == 1
    assert len(world.states.starts) == 2
    assert [len(held["runs"]) for held in world.holders.values()] == [3, 2]


def test_a_batch_of_which_a_request_was_erased_is_given_up(world: World) -> None:
    world.with_rules(batch_from=2)
    for number in range(3):
        world.request(f"r{number}")
    world.states.refuse = [refusal("InternalFailure", "StartExecution", 500)]
    with pytest.raises(ClientError):
        world.dispatch()
    world.dynamodb.delete_item(TableName="requests", Key={"request_id": {"S": "r0"}})
    world.time.pass_s(121)
    world.dispatch()
    world.dispatch()
    # What an attempt has left undone goes on alone.
    assert [held["runs"] for held in world.holders.values()] == [("r1-2",), ("r2-2",)]


def test_the_execution_that_the_app_has_started_itself_is_met(world: World) -> None:
    world.request("r1")
    arn = MACHINES.execution("r1-1", batch=False)
    world.states.executions[arn] = {"executionArn": arn, "status": "RUNNING", "input": "{}"}
    world.dispatch()
    assert world.states.starts == []
    assert set(world.holders) == {"r1-1"}, "it is counted until it ends"


def test_an_execution_that_is_over_and_left_its_request_gets_a_next_attempt(world: World) -> None:
    world.request("r1")
    for attempt in (1, 2, 3):
        world.end_execution(f"r1-{attempt}", "FAILED")
    world.dispatch()
    assert world.row("r1")["attempt"] == 2
    world.dispatch()
    world.dispatch()
    row = world.row("r1")
    assert (row["attempt"], row["spent"]) == (3, True)
    assert "queue" not in row
    assert world.holders == {}
    world.reconcile()
    world.time.pass_s(1000)
    world.reconcile()
    row = world.row("r1")
    assert (row["status"], row["error"]["code"]) == ("FAILED", "JOB_INCOMPLETE")
    assert [body["code"] for body in world.published] == ["JOB_INCOMPLETE"]


# -- Every death ----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("batch", [False, True], ids=["singles", "batch"])
def test_a_dispatcher_may_die_at_every_call(
    after: bool, batch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever call it dies at: each request starts once, and no place stays taken."""
    monkeypatch.setattr(keys, "SHARDS", 1)  # seven empty ones would only take time
    cut = 0
    while True:
        cut += 1
        world = quick_world()
        world.with_rules(batch_from=3 if batch else 10**6)
        for number in range(3):
            world.request(f"r{number}")
        world.calls.die_at, world.calls.after = cut, after
        world.survive(world.dispatch)
        over, world.calls.die_at = world.calls.count < cut, None
        for _ in range(2):
            world.time.pass_s(121)
            world.dispatch()
        started = [
            told
            for execution in world.states.executions.values()
            for told in _requests(execution["input"])
        ]
        assert sorted(started) == ["r0", "r1", "r2"], f"cut {cut}: {started}"
        for name in list(world.holders):
            world.end_execution(name, "SUCCEEDED", batch=batch)
        world.reconcile()
        assert world.holders == {}, f"cut {cut}"
        if over:
            break
    print(f"\n{cut - 1} deaths {'after' if after else 'before'} a call's effect: nothing lost")  # noqa: T201
    assert cut > 5


def _requests(document: str) -> list[str]:
    import json

    told = json.loads(document)
    return [entry["request_id"] for entry in told.get("requests", [told])]


def test_a_death_is_not_an_error_of_the_program() -> None:
    assert not issubclass(Cut, LimnerError)
