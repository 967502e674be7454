"""The table of models: bounded by number and bytes; nothing is freed while it is in use."""

import threading

import pytest

from inference.engine.table import Table
from limner.contracts.errors import LimnerError


def code(raised: pytest.ExceptionInfo[LimnerError]) -> str:
    return raised.value.code


def filled(*names: str, capacity: int = 3) -> Table[str]:
    table: Table[str] = Table(capacity)
    for name in names:
        table.reserve(name)
        table.fill(name, f"content of {name}")
    return table


def test_a_reserved_entry_counts_but_cannot_be_used() -> None:
    table: Table[str] = Table(1)
    table.reserve("a")
    for use in (table.get, table.hold, lambda name: table.unload(name, 0)):
        with pytest.raises(LimnerError) as raised:
            use("a")
        assert code(raised) == "MODEL_NOT_LOADED"
    assert table.items() == []
    with pytest.raises(LimnerError) as raised:
        table.reserve("a")
    assert code(raised) == "MODEL_ALREADY_LOADED"
    with pytest.raises(LimnerError) as raised:
        table.reserve("b")
    assert code(raised) == "OUT_OF_MEMORY"
    table.cancel("a")
    table.reserve("b")


def test_items_are_sorted() -> None:
    assert [name for name, _ in filled("c", "a", "b").items()] == ["a", "b", "c"]


def test_unload_waits_for_every_holder_and_refuses_new_ones() -> None:
    table = filled("a")
    table.hold("a")
    table.hold("a")
    done = threading.Event()

    def unload() -> None:
        table.unload("a", 30)
        done.set()

    thread = threading.Thread(target=unload)
    thread.start()
    while table.items():  # until the unload has begun
        pass
    with pytest.raises(LimnerError) as raised:
        table.hold("a")
    assert code(raised) == "MODEL_NOT_LOADED"
    with pytest.raises(LimnerError) as raised:
        table.reserve("a")
    assert code(raised) == "MODEL_ALREADY_LOADED"
    table.release("a")
    assert not done.is_set()
    table.release("a")
    thread.join(timeout=30)
    assert done.is_set()
    table.reserve("a")


def test_an_unload_that_waits_too_long_leaves_the_entry_as_it_was() -> None:
    table = filled("a")
    table.hold("a")
    with pytest.raises(LimnerError) as raised:
        table.unload("a", 0.01)
    assert code(raised) == "DEADLINE_EXCEEDED"
    assert table.get("a") == "content of a"


def test_many_threads_never_share_a_name_nor_exceed_the_capacity() -> None:
    table: Table[int] = Table(4)
    won: list[str] = []
    begin = threading.Barrier(16)

    def reserve(name: str) -> None:
        begin.wait()
        try:
            table.reserve(name)
        except LimnerError:
            return
        won.append(name)

    threads = [threading.Thread(target=reserve, args=(f"m{i % 8}",)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(won) == len(set(won)) == 4


def test_bytes_are_bounded_and_come_back() -> None:
    table: Table[str] = Table(10, 100)
    for name, size_bytes in (("a", 60), ("b", 40)):
        table.reserve(name)
        table.charge(name, size_bytes)
        table.fill(name, name)
    table.reserve("c")
    with pytest.raises(LimnerError) as raised:
        table.charge("c", 1)
    assert code(raised) == "OUT_OF_MEMORY"
    table.cancel("c")
    assert table.size_bytes == 100
    assert table.unload("a", 0) == "a"
    assert table.size_bytes == 40
    table.reserve("c")
    table.charge("c", 60)
    table.cancel("c")
    assert table.size_bytes == 40
