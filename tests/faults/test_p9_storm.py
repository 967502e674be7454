"""P9: a bug cannot spend without bound. P24: throttles slow, and never break.

Both in memory, through the real queue, gate, machines and functions.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from infra.settings import StageSettings
from limner.contracts import keys
from limner.registry import Request
from tests.support.faults.machine import Call, Fault
from tests.support.faults.schedules import trouble_of
from tests.support.faults.stories import System, paid_jobs, unsound
from tests.support.faults.world import ENVIRONMENT, ROOT, UNFINISHED, Loss, World
from workflows import retries

STORM = 1_000
TURNS_OF_THE_STORM = 30
USERS = 20
SHARE = 0.3
# boto3's standard mode, as the client sets it.
SDK_ATTEMPTS = 5


def put(world: World, request_id: str, user_id: str) -> None:
    request = Request.new(
        request_id,
        user_id,
        "default",
        retrain=True,
        steps=10,
        photos=3,
        input_digest="0",
        queued=True,
    )
    moment = world.now_iso()
    told = {"created_at": moment, "updated_at": moment, "queued_at": moment}
    world.memory.put_item(TableName="requests", Item=request.model_copy(update=told).to_item())


def at_work(world: World) -> list[str]:
    return [name for name, job in world.jobs.items() if job.status in UNFINISHED]


def test_a_storm_of_one_tenant_has_one_active_job(figure: Callable[[str], None]) -> None:
    system = System()
    world = system.world
    for number in range(STORM):
        put(world, f"storm{number}", "stormy")
    most_jobs, most_runs, calm_waited = 0, 0, -1
    for turn in range(TURNS_OF_THE_STORM):
        if turn == 5:
            put(world, "calm1", "calm")
        for _ in range(3):  # stream, schedule and ended executions call at the same time
            world.deliver("dispatch", {})
        going = list(system.running())
        stormy = [e for e in going if e.input.get("user_id") == "stormy"]
        most_runs = max(most_runs, len(stormy))
        if calm_waited < 0 and len(going) > len(stormy):
            calm_waited = turn - 5
        for execution in going:
            call = world.advance(execution)
            while call is not None:
                mine = [name for name in at_work(world) if "storm" in name]
                most_jobs = max(most_jobs, len(mine))
                call = world.advance(execution)
        world.passes(60)
        world.tell_endings()
    assert (most_runs, most_jobs) == (1, 1)
    assert calm_waited == 0, "who floods does not keep others waiting"
    done = Counter(
        row["status"]["S"] for row in world.memory.tables["requests"].values() if "status" in row
    )
    assert done["READY"] >= TURNS_OF_THE_STORM - 1
    figure(
        f"P9   storm of {STORM:,} requests of one tenant: {most_jobs} active job at any moment, "
        f"{done['READY'] - 1} done one after the other meanwhile; another tenant waited "
        f"{calm_waited} turns"
    )


def test_a_storm_of_a_thousand_tenants_stays_below_the_budget(
    figure: Callable[[str], None],
) -> None:
    system = System()
    world = system.world
    for number in range(STORM):
        put(world, f"r{number}", f"user{number}")
    most = 0
    for _ in range(TURNS_OF_THE_STORM):
        world.deliver("dispatch", {})
        gate = world.memory.item("requests", keys.GATE_ROW) or {}
        held = gate.get("holders", {}).get("M", {}).values()
        most = max(most, sum(int(h["M"]["instances"]["N"]) for h in held))
        world.passes(60)
    assert 0 < most <= int(ENVIRONMENT["MAX_INSTANCES"])

    fields = StageSettings.model_fields
    instances = fields["max_instances"].default
    launches, of_a_batch = fields["daily_launches"].default, fields["batch_instances"].default
    prices: dict[str, Any] = json.loads((ROOT / "limner" / "prices.json").read_text())
    types = fields["training_instance_types"].default
    dearest = max(prices["instance_hour"][name] for name in types)
    by_day = instances * 24 * dearest
    by_launches = launches * of_a_batch * retries.BATCH_RUNTIME_S / 3600 * dearest
    worst = min(by_day, by_launches)
    figure(
        f"P9   storm of {STORM:,} tenants: at most {most} of {ENVIRONMENT['MAX_INSTANCES']} "
        f"instances at once; worst case of a stage's defaults: {worst:,.2f} {prices['currency']} a "
        f"day for training ({instances} instances x 24 h x {dearest}, prices of "
        f"{prices['as_of']}; {launches} launches alone would allow {by_launches:,.2f})"
    )


@pytest.mark.parametrize("batches", [False, True], ids=["single", "batch"])
def test_throttles_on_every_call_slow_and_never_break(
    figure: Callable[[str], None], batches: bool
) -> None:
    """30 % of every call of machines, functions and client; the SDK repeats, then all others do."""
    rng, struck = random.Random(24), Counter[str]()

    def watch(_: str) -> Loss:
        struck["calls"] += 1
        refused = next((n for n in range(SDK_ATTEMPTS) if rng.random() >= SHARE), SDK_ATTEMPTS)
        struck["throttles"] += refused
        return Loss.REFUSED if refused == SDK_ATTEMPTS else Loss.NOTHING

    def decide(call: Call) -> Fault | None:
        if not call.resource:
            return None
        struck["calls"] += 1
        if rng.random() >= SHARE:
            return None
        struck["throttles"] += 1
        return Fault(trouble_of(call, 0))

    system = System(decide=decide)
    system.world.watch = watch
    wanted = [
        system.onboard(user=f"user{number}", queue=batches).request_id for number in range(USERS)
    ]
    if batches:
        system.stream()
    system.settle(rounds=6)
    assert unsound(system.world) == []
    rows = system.world.memory.tables["requests"]
    endings = Counter(rows[request_id,]["status"]["S"] for request_id in wanted)
    assert endings == {"READY": USERS}
    assert len(paid_jobs(system.world)) <= USERS
    figure(
        f"P24  30 % throttles on every call in memory, {'by the queue' if batches else 'direct'}: "
        f"{struck['throttles']:,} throttles, {endings['READY']} of {USERS} onboardings READY"
    )
