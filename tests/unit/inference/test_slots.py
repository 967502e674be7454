"""Slots: a bounded table in which nothing is freed while it is in use."""

import threading

import pytest

from inference.engine.slots import Slots
from limner.contracts.errors import LimnerError


def code(raised: pytest.ExceptionInfo[LimnerError]) -> str:
    return raised.value.code


def filled(*names: str, capacity: int = 3) -> Slots[str]:
    slots: Slots[str] = Slots(capacity)
    for name in names:
        slots.reserve(name)
        slots.fill(name, f"content of {name}")
    return slots


def test_a_reserved_slot_counts_but_cannot_be_used() -> None:
    slots: Slots[str] = Slots(1)
    slots.reserve("a")
    for use in (slots.get, slots.hold, lambda name: slots.unload(name, 0)):
        with pytest.raises(LimnerError) as raised:
            use("a")
        assert code(raised) == "MODEL_NOT_LOADED"
    assert slots.items() == []
    with pytest.raises(LimnerError) as raised:
        slots.reserve("a")
    assert code(raised) == "MODEL_ALREADY_LOADED"
    with pytest.raises(LimnerError) as raised:
        slots.reserve("b")
    assert code(raised) == "OUT_OF_MEMORY"
    slots.cancel("a")
    slots.reserve("b")


def test_items_are_sorted() -> None:
    assert [name for name, _ in filled("c", "a", "b").items()] == ["a", "b", "c"]


def test_unload_waits_for_every_holder_and_refuses_new_ones() -> None:
    slots = filled("a")
    slots.hold("a")
    slots.hold("a")
    done = threading.Event()

    def unload() -> None:
        slots.unload("a", 30)
        done.set()

    thread = threading.Thread(target=unload)
    thread.start()
    while slots.items():  # until the unload has begun
        pass
    with pytest.raises(LimnerError) as raised:
        slots.hold("a")
    assert code(raised) == "MODEL_NOT_LOADED"
    with pytest.raises(LimnerError) as raised:
        slots.reserve("a")
    assert code(raised) == "MODEL_ALREADY_LOADED"
    slots.release("a")
    assert not done.is_set()
    slots.release("a")
    thread.join(timeout=30)
    assert done.is_set()
    slots.reserve("a")


def test_an_unload_that_waits_too_long_leaves_the_slot_as_it_was() -> None:
    slots = filled("a")
    slots.hold("a")
    with pytest.raises(LimnerError) as raised:
        slots.unload("a", 0.01)
    assert code(raised) == "DEADLINE_EXCEEDED"
    assert slots.get("a") == "content of a"


def test_many_threads_never_share_a_name_nor_exceed_the_capacity() -> None:
    slots: Slots[int] = Slots(4)
    won: list[str] = []
    begin = threading.Barrier(16)

    def reserve(name: str) -> None:
        begin.wait()
        try:
            slots.reserve(name)
        except LimnerError:
            return
        won.append(name)

    threads = [threading.Thread(target=reserve, args=(f"m{i % 8}",)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(won) == len(set(won)) == 4
