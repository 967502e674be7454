"""The gate: nothing passes above its budgets, whatever the order of things."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambdas.dispatch.gate import (
    MAX_BYTES,
    SERVED_KEPT,
    Gate,
    Holder,
    Limits,
    Reason,
    Refusal,
    Run,
    admit,
    day_of,
    release,
    withdraw,
)
from lambdas.dispatch.gate_row import to_gate, to_item
from lambdas.dispatch.logic import HOLD_S
from lambdas.shared.dynamo import to_attribute, to_plain
from workflows import retries

NOW = 1_790_000_000_000
LIMITS = Limits(max_instances=3, launches_per_second=1, burst=2, daily_launches=100, user_active=1)


def one(request: str, user: str = "", model: str = "default", instances: int = 1) -> Holder:
    return Holder((Run(request, 1, user or f"u-{request}", model),), instances, NOW // 1000 + 60)


def into(gate: Gate, name: str, holder: Holder, limits: Limits = LIMITS, now: int = NOW) -> Gate:
    answer = admit(gate, name, holder, limits, now)
    assert isinstance(answer, Gate), answer
    return answer


def why(gate: Gate, name: str, holder: Holder, limits: Limits = LIMITS, now: int = NOW) -> Refusal:
    answer = admit(gate, name, holder, limits, now)
    assert isinstance(answer, Refusal)
    return answer


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    gate = into(into(Gate(), "a-1", one("a")), "b-1", one("b"))
    assert why(gate, "c-1", one("c")) == Refusal(Reason.RATE, 1_000)
    assert why(gate, "c-1", one("c"), now=NOW + 999) == Refusal(Reason.RATE, 1)
    assert into(gate, "c-1", one("c"), now=NOW + 1_000).launched == 3


def test_instances_are_counted_and_come_back() -> None:
    gate = into(into(Gate(), "a-1", one("a", instances=2)), "b-1", one("b"))
    later = NOW + 60_000
    assert why(gate, "c-1", one("c"), now=later).reason is Reason.INSTANCES
    assert release(gate, "x-1") is gate
    into(release(gate, "a-1"), "c-1", one("c", instances=2), now=later)


@pytest.mark.parametrize(
    "holder",
    [
        one("other", "ada", "another-model"),
        one("a", "bob"),  # the same request under another attempt's name
        Holder((Run("x", 1, "bob", "default"), Run("y", 1, "bob", "two")), 1, 0),
    ],
)
def test_a_user_and_a_request_are_inside_once(holder: Holder) -> None:
    gate = into(Gate(), "a-1", one("a", "ada"))
    assert why(gate, "new", holder).reason is Reason.USER


def test_two_requests_of_one_model_never_run_together() -> None:
    limits = replace(LIMITS, user_active=5)
    gate = into(Gate(), "a-1", one("a", "ada"), limits)
    assert why(gate, "b-1", one("b", "ada"), limits).reason is Reason.USER
    into(gate, "b-1", one("b", "ada", "pets"), limits)


def test_a_day_has_an_end_and_another_follows() -> None:
    limits = replace(LIMITS, daily_launches=1)
    gate = into(Gate(), "a-1", one("a"), limits)
    assert why(gate, "b-1", one("b"), limits, NOW + 5_000).reason is Reason.DAY
    gate = into(gate, "b-1", one("b"), limits, NOW + 86_400_000)
    assert (gate.launched, gate.day) == (1, day_of(NOW + 86_400_000))


def test_entering_twice_is_entering_once() -> None:
    gate = into(Gate(), "a-1", one("a"))
    assert admit(gate, "a-1", one("a"), LIMITS, NOW) is gate


def test_what_did_not_start_is_no_launch() -> None:
    gate = into(Gate(), "a-1", one("a"))
    assert withdraw(gate, "a-1").launched == 0
    assert release(gate, "a-1").launched == 1
    assert withdraw(gate, "b-1") is gate


def test_the_record_fits_into_an_item() -> None:
    """The largest ids and full batches: the gate refuses before DynamoDB does."""
    limits = Limits(10**6, 10**6, 10**6, 10**6, 1)
    gate, batches = Gate(), 0
    while True:
        runs = tuple(
            Run(f"{batches:020}{i:020}", 1, f"{batches:032}{i:032}", "m" * 32) for i in range(100)
        )
        answer = admit(gate, f"b{batches:019}", Holder(runs, 4, NOW, batch=True), limits, NOW)
        if isinstance(answer, Refusal):
            assert answer.reason is Reason.SPACE
            break
        gate, batches = answer, batches + 1
    print(f"\n{batches} batches of 100 fit into the gate; {gate.size_bytes():,} bytes estimated")  # noqa: T201
    assert _size(to_attribute(to_item(gate))) <= gate.size_bytes() <= MAX_BYTES < 400 * 1024
    assert batches >= 15
    assert len(gate.served) <= SERVED_KEPT


def _size(attribute: object) -> int:
    """Bytes as DynamoDB counts them (developer guide, "DynamoDB item sizes and formats")."""
    assert isinstance(attribute, dict)
    ((kind, value),) = attribute.items()
    match kind:
        case "S":
            return len(value.encode())
        case "N":
            return len(value) // 2 + 2
        case "BOOL":
            return 1
        case "L":
            return 3 + sum(1 + _size(part) for part in value)
        case _:
            return 3 + sum(1 + len(name) + _size(part) for name, part in value.items())


def test_a_gate_is_read_as_it_was_written() -> None:
    gate = into(Gate(), "a-1", one("a", "ada"))
    batch = Holder(
        (Run("b", 2, "bob", "default"), Run("c-d", 1, "eve", "pets")), 2, NOW // 1000, batch=True
    )
    gate = into(gate, "b123", batch)
    item = to_plain(to_attribute(to_item(gate)))
    assert to_gate({**item, "fence": 7}) == replace(gate, fence=7)


def test_a_holder_outlives_every_execution() -> None:
    assert HOLD_S > retries.MACHINE_TIMEOUT_S


steps = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave", "wait", "withdraw"]),
        st.integers(0, 11),  # which request
        st.integers(1, 3),  # instances
        st.integers(0, 2_500),  # milliseconds
    ),
    max_size=120,
)


@settings(max_examples=400, deadline=None)
@given(
    steps,
    st.integers(1, 6),
    st.sampled_from([0.3, 1, 2.5, 7]),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(1, 2),
)
def test_nothing_passes_above_the_budgets(
    todo: list[tuple[str, int, int, int]],
    most: int,
    rate: float,
    burst: int,
    daily: int,
    user_active: int,
) -> None:
    limits = Limits(most, rate, burst, daily, user_active)
    gate, now, launches = Gate(), NOW, []
    for what, number, instances, ms in todo:
        name = f"r{number}-1"
        holder = one(f"r{number}", f"u{number % 5}", f"m{number % 3}", instances)
        if what == "wait":
            now += ms
        elif what == "enter":
            inside = name in gate.holders
            answer = admit(gate, name, holder, limits, now)
            if isinstance(answer, Gate):
                gate = answer
                if not inside:
                    launches.append(now)
        elif what == "leave":
            gate = release(gate, name)
        else:
            before = gate
            gate = withdraw(gate, name)
            assert gate is before or gate.launched == max(before.launched - 1, 0)
        assert gate.instances <= most
        assert max(gate.active().values(), default=0) <= user_active
        runs = [run for held in gate.holders.values() for run in held.runs]
        assert len({run.request_id for run in runs}) == len(runs)
        assert len({(run.user_id, run.model_id) for run in runs}) == len(runs)
        assert gate.launched <= daily
    for i, first in enumerate(launches):
        for j, last in enumerate(launches[i:], start=i):
            assert j - i + 1 <= burst + (last - first) * rate / 1000 + 1e-9
