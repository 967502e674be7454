"""Random lives of the queue: whatever dies and whatever is lost, all requests end, once."""

import json
import random
from collections import Counter

import pytest

from limner.contracts import keys
from tests.support.dispatching import World, quick_world

ENDED = ("READY", "FAILED", "CANCELLED")


def told(world: World, name: str) -> list[tuple[str, int]]:
    """Requests and attempts of an execution."""
    for arn, execution in world.states.executions.items():
        if arn.endswith(f":{name}"):
            document = json.loads(execution["input"])
            requests = document.get("requests", [document])
            return [(request["request_id"], request["attempt"]) for request in requests]
    return []


def step_execution(world: World, draw: random.Random) -> None:
    """A running execution claims its requests, finishes some of them, or dies."""
    running = world.running()
    if not running:
        return
    name = draw.choice(running)
    batch = not name.rpartition("-")[0]
    for request_id, attempt in told(world, name):
        row = world.row(request_id)
        if row["status"] == "QUEUED" and "owner" not in row and row["attempt"] == attempt:
            world.claim(request_id, name, batch=batch)
    what = draw.random()
    if what < 0.4:
        return  # at work
    for request_id, _ in told(world, name):
        row = world.row(request_id)
        ours = row.get("owner", "").endswith(f":{name}")
        if ours and row["status"] == "TRAINING" and what < 0.8 and draw.random() < 0.9:
            row = {k: v for k, v in row.items() if k not in ("open", "queue")}
            world.put("requests", {**row, "status": "READY"})
    world.end_execution(name, "SUCCEEDED" if what < 0.8 else "ABORTED", batch=batch)
    if draw.random() < 0.7:  # the event may be lost
        world.survive(lambda: world.dispatch(ended=name))


def check(world: World) -> None:
    runs = [run for held in world.holders.values() for run in held["runs"]]
    requests = [run.rpartition("-")[0] for run in runs]
    assert len(set(requests)) == len(requests), "a request is inside once"
    users = Counter(user for held in world.holders.values() for user in held["users"])
    assert max(users.values(), default=0) <= world.rules.limits.user_active
    taken = sum(held["instances"] for held in world.holders.values())
    assert taken <= world.rules.limits.max_instances
    assert len(world.states.starts) == len(set(world.states.starts))
    # The same attempt of a request is never told to two executions of which both can claim it.
    attempts = Counter(run for name in map(str, world.running()) for run in told(world, name))
    assert max(attempts.values(), default=0) <= 1, attempts


@pytest.mark.parametrize("seed", range(25))
def test_all_requests_end(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "SHARDS", 2)
    draw = random.Random(seed)
    world = quick_world()
    world.with_rules(batch_from=draw.choice([2, 3, 99]), batch_size=4)
    world.with_limits(max_instances=draw.choice([2, 4, 9]), user_active=draw.choice([1, 2]))
    made = 0
    for step in range(400):
        # Each call of a function may be its last.
        world.calls.count = 0
        world.calls.die_at = draw.randint(1, 30) if draw.random() < 0.3 and step < 250 else None
        world.calls.after = draw.random() < 0.5
        what = draw.random()
        if what < 0.15 and made < 25:
            queue = {} if draw.random() < 0.9 else {"queue": None, "queued_at": None}
            world.request(f"r{made}", f"user{draw.randint(0, 8)}", model_id=f"m{made}", **queue)
            made += 1
        elif what < 0.45:
            world.survive(world.dispatch)
        elif what < 0.75:
            step_execution(world, draw)
        elif what < 0.85:
            world.survive(world.reconcile)
        world.time.pass_s(draw.choice([0, 1, 30, 130, 1000]))
        check(world)
    world.calls.die_at = None
    for _ in range(200):
        if all(world.row(f"r{number}")["status"] in ENDED for number in range(made)):
            break
        world.dispatch()
        step_execution(world, draw)
        world.reconcile()
        world.time.pass_s(1000)
        check(world)
    rows = [world.row(f"r{number}") for number in range(made)]
    assert {row["status"] for row in rows} <= set(ENDED), [r for r in rows if "open" in r]
    assert all({"open", "queue", "unannounced"}.isdisjoint(row) for row in rows)
    for name in world.running():
        world.end_execution(name, "SUCCEEDED", batch=not name.rpartition("-")[0])
    world.time.pass_s(1000)
    world.reconcile()
    assert world.holders == {}
