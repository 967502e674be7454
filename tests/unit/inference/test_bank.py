"""Slots on the device: filled on demand, pinned while in use, least recently used leaving first."""

import itertools
from pathlib import Path

import pytest
import torch

from inference.engine import bank as bank_module
from inference.engine.bank import Residency, Seat, shares_of
from inference.engine.base import ResidentBase
from inference.engine.lora import LayerShape, derive_layout
from inference.engine.reader import Adapter, check_artifact, padded_rank
from limner.contracts.artifact import Manifest
from limner.contracts.errors import LimnerError
from tests.support.artifacts import write_artifact
from tests.unit.inference.stubs import take_all_memory

SHAPES = (LayerShape("to_q", (4, 6)), LayerShape("conv", (5, 3, 3, 3)))
KEYS = itertools.count(10_000)
MANIFEST = Manifest.model_construct(rank=2)


def adapter(rank: int = 2, *targets: str) -> Adapter:
    layout = derive_layout(SHAPES, targets or ("to_q",), rank)
    key = next(KEYS)
    return Adapter(key, MANIFEST, layout, layout.digest(), torch.full((layout.size,), float(key)))


def residency(adapters: int, *, of: Adapter, max_slots: int = 100) -> Residency:
    """Room for so many adapters; the first bank takes half of it."""
    return Residency(adapters * of.size_bytes, max_slots, torch.device("cpu"), torch.float32)


def pin(room: Residency, one: Adapter) -> Seat:
    seat = room.pin(one)
    assert seat is not None
    assert bool((seat.bank.rows[seat.slot] == one.key).all())
    return seat


def test_the_adapter_that_was_used_longest_ago_leaves() -> None:
    a, b, c = (adapter() for _ in range(3))
    room = residency(4, of=a)
    for one in (a, b):
        room.unpin(pin(room, one))
    again = pin(room, a)
    assert (again.hit, again.evictions) == (True, 0)
    room.unpin(again)
    new = pin(room, c)
    assert (new.hit, new.evictions) == (False, 1)
    assert pin(room, a).hit
    room.unpin(new)
    assert not pin(room, b).hit


def test_who_is_drawn_with_stays() -> None:
    a, b, c = (adapter() for _ in range(3))
    room = residency(4, of=a)
    first, twice, second = pin(room, a), pin(room, a), pin(room, b)
    assert room.pin(c) is None
    room.unpin(first)
    assert room.pin(c) is None
    room.unpin(twice)
    assert pin(room, c).slot == first.slot
    assert bool((second.bank.rows[second.slot] == b.key).all())


def test_a_bank_that_nobody_uses_makes_room_for_another_layout() -> None:
    narrow, wide = adapter(2), adapter(8, "to_q", "conv")
    room = residency(1, of=wide)
    seat = pin(room, narrow)
    assert room.size_bytes <= room.budget_bytes
    assert room.pin(wide) is None
    room.unpin(seat)
    new = pin(room, wide)
    assert new.evictions == 1
    assert room.size_bytes <= room.budget_bytes
    assert room.pin(narrow) is None


def test_a_late_layout_has_slots_for_a_batch() -> None:
    room = residency(16, of=adapter(8))
    for layers in (("to_q",), ("to_q", "conv")):
        room.unpin(pin(room, adapter(2, *layers)))
    seats = [pin(room, adapter(8)) for _ in range(5)]
    assert len({seat.slot for seat in seats}) == 5
    assert room.size_bytes <= room.budget_bytes


def test_a_dropped_adapter_leaves_its_slot_to_the_next() -> None:
    a, b = adapter(), adapter()
    room = residency(2, of=a)
    room.unpin(pin(room, a))
    room.drop(a)
    new = pin(room, b)
    assert (new.hit, new.evictions) == (False, 0)
    room.drop(adapter(4))  # of a layout without a bank


def test_there_are_no_more_slots_than_models() -> None:
    one = adapter()
    room = residency(1000, of=one, max_slots=3)
    pin(room, one)
    assert room.size_bytes == 3 * one.size_bytes


def test_a_device_without_the_promised_memory_is_507(monkeypatch: pytest.MonkeyPatch) -> None:
    one = adapter()
    room = residency(4, of=one)
    with monkeypatch.context() as patch:
        patch.setattr(bank_module, "Bank", take_all_memory)
        with pytest.raises(LimnerError) as raised:
            room.pin(one)
    assert raised.value.spec.http_status == 507
    pin(room, one)


def test_neighbours_are_read_where_they_are() -> None:
    adapters = [adapter() for _ in range(5)]
    room = residency(12, of=adapters[0])
    banks = [pin(room, one).bank for one in adapters]
    bank = banks[0]
    rows = bank.gather([1, 2, 3])
    assert rows.data_ptr() == bank.rows[1].data_ptr()
    assert torch.equal(bank.gather([3, 1]), bank.rows[[3, 1]])


@pytest.mark.parametrize(
    ("rows", "entries"),
    [([2, 2, 2], 3), ([2, 4], 3), ([3, 2], 5), ([8], 1), ([1, 1], 2)],
)
def test_a_pass_has_as_few_entries_as_equal_parts_allow(rows: list[int], entries: int) -> None:
    adapters = [adapter() for _ in rows]
    room = residency(20, of=adapters[0])
    seats = [(pin(room, one), count) for one, count in zip(adapters, rows, strict=True)]
    (share,) = shares_of(seats)
    assert share.rows == slice(0, sum(rows))
    a = share.factors["to_q"].a
    assert len(a) == entries
    keys = a[:, 0, 0].repeat_interleave(sum(rows) // entries).tolist()
    assert keys == [
        one.key for one, count in zip(adapters, rows, strict=True) for _ in range(count)
    ]


def test_requests_of_one_user_share_an_entry() -> None:
    one, other = adapter(), adapter(4)
    room = residency(20, of=other)
    seats = [(pin(room, one), 2), (pin(room, one), 2), (pin(room, other), 2)]
    narrow, wide = shares_of(seats)
    assert (narrow.rows, wide.rows) == (slice(0, 4), slice(4, 6))
    assert len(narrow.factors["to_q"].a) == len(wide.factors["to_q"].a) == 1


@pytest.mark.parametrize(("rank", "padded"), [(1, 1), (2, 2), (3, 4), (5, 8), (16, 16), (17, 32)])
def test_ranks_are_padded_to_powers_of_two(rank: int, padded: int) -> None:
    assert padded_rank(rank) == padded


def test_users_of_nearly_equal_ranks_share_a_bank(
    base: ResidentBase, base_folder: Path, tmp_path: Path
) -> None:
    for rank in (3, 4, 5):
        write_artifact(tmp_path / str(rank), base_folder, rank=rank)
    found = [check_artifact(tmp_path / str(rank), base, 8).slot_layout.sha256 for rank in (3, 4, 5)]
    assert found[0] == found[1] != found[2]
