"""The background writer: it never makes anybody wait, and everything is counted once."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NoReturn

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError

from limner.capture import Counts, Writer
from limner.contracts.capture import CapturedFile, CapturedGeneration
from limner.contracts.generation import GenerateRequest

# For what must happen; nothing here waits for something not to happen.
LIMIT_S = 30


class Store:
    """Keeps what is put; may hold the writer at the gate."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.keys: list[str] = []
        self.gate, self.reached = threading.Event(), threading.Event()
        if is_open:
            self.gate.set()
        self.fails: dict[str, Exception] = {}

    def put(self, file: CapturedFile) -> None:
        self.reached.set()
        assert self.gate.wait(LIMIT_S)
        if file.key in self.fails:
            raise self.fails[file.key]
        self.keys.append(file.key)


@contextmanager
def held() -> Iterator[Store]:
    """A store whose put hangs; let go at the end, so that no thread is left behind."""
    store = Store(is_open=False)
    yield store
    store.gate.set()


def record(name: str, *sizes: int) -> list[CapturedFile]:
    return [CapturedFile(f"{name}/{i}", b"x" * size, "t") for i, size in enumerate(sizes or (1,))]


def refused() -> ClientError:
    answer = {"Error": {"Code": "AccessDenied", "Message": "zebra is not authorized"}}
    return ClientError(answer, "PutObject")


def test_records_are_written_in_order_and_flushed() -> None:
    store = Store()
    writer = Writer(store.put)
    assert all(writer.offer(record(name, 1, 2)) for name in "abc")
    assert writer.close(LIMIT_S) == Counts(written=3)
    assert store.keys == ["a/0", "a/1", "b/0", "b/1", "c/0", "c/1"]


def test_an_offer_returns_while_a_put_hangs() -> None:
    with held() as store:
        writer = Writer(store.put)
        assert writer.offer(record("a"))
        assert store.reached.wait(LIMIT_S)
        # Would never come back if it waited: the gate opens after it.
        assert writer.offer(record("b"))
        assert writer.counts == Counts()
        store.gate.set()
        assert writer.close(LIMIT_S) == Counts(written=2)


def test_what_exceeds_the_number_is_dropped_and_counted() -> None:
    with held() as store:
        writer = Writer(store.put, max_records=2)
        taken = [writer.offer(record(name)) for name in "abcde"]
        assert taken == [True, True, False, False, False]
        assert writer.counts == Counts(dropped=3)
        store.gate.set()
        assert writer.close(LIMIT_S) == Counts(written=2, dropped=3)
        assert store.keys == ["a/0", "b/0"]


def test_what_exceeds_the_bytes_is_dropped_and_room_comes_back() -> None:
    with held() as store:
        writer = Writer(store.put, max_bytes=100)
        assert not writer.offer(record("large", 60, 41))
        assert writer.offer(record("a", 30, 30))
        assert not writer.offer(record("b", 41))
        assert writer.offer(record("c", 40))
        store.gate.set()
        until(lambda: writer.counts.written == 2)
        assert writer.offer(record("d", 100))
        assert writer.close(LIMIT_S) == Counts(written=3, dropped=2)


def until(condition: Callable[[], bool]) -> None:
    """Returns when the writer's thread has come that far; pytest's timeout is the bound."""
    while not condition():
        threading.Event().wait(0.001)


def test_close_gives_up_at_its_deadline_and_counts_what_is_left() -> None:
    with held() as store:
        writer = Writer(store.put)
        for name in "abc":
            writer.offer(record(name))
        assert store.reached.wait(LIMIT_S)
        assert writer.close(0) == Counts(dropped=3)
        assert not writer.offer(record("late"))
        store.gate.set()
        thread = writer._thread
        assert thread is not None
        thread.join(LIMIT_S)
        assert not thread.is_alive()
        # The one under way arrived after all; it is not counted twice.
        assert store.keys == ["a/0"]
        assert writer.close(LIMIT_S) == Counts(dropped=4)


def test_close_without_any_record_starts_no_thread() -> None:
    writer = Writer(Store().put)
    assert writer.close(LIMIT_S) == Counts()
    assert writer._thread is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [(refused(), "AccessDenied"), (ConnectTimeoutError(endpoint_url="x"), "ConnectTimeoutError")],
)
def test_a_refused_record_is_counted_and_the_next_one_is_written(
    error: Exception, reason: str
) -> None:
    store = Store()
    store.fails = {"a/1": error}
    writer = Writer(store.put)
    writer.offer(record("a", 1, 1, 1))
    writer.offer(record("b"))
    assert writer.close(LIMIT_S) == Counts(written=1, failed=1, reason=reason)
    assert store.keys == ["a/0", "b/0"]


def test_a_bug_in_a_put_costs_its_record_and_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    with held() as store:
        store.fails = {"zebra/0": KeyError("generations/zebra")}
        writer = Writer(store.put)
        writer.offer(record("zebra"))
        writer.offer(record("b"))  # would wait for a thread that has ended
        store.gate.set()
        assert writer.close(LIMIT_S) == Counts(written=1, failed=1, reason="KeyError")
        assert store.keys == ["b/0"]
    assert "zebra" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_begins_anew(locked: bool) -> None:
    """The records are its parent's; the lock that a thread of its parent held is nobody's."""
    with held() as store:
        writer = Writer(store.put)
        writer.offer(record("parent"))
        assert store.reached.wait(LIMIT_S)
        if locked:
            writer._changed.acquire()
        try:
            child = os.fork()
            if child == 0:
                _end_as_child(writer, store)
        finally:
            if locked:
                writer._changed.release()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        store.gate.set()
        assert writer.close(LIMIT_S) == Counts(written=1)
        assert store.keys == ["parent/0"]


def _end_as_child(writer: Writer, store: Store) -> NoReturn:
    """Writes a record and ends, with 0 if it was the only one."""
    signal.alarm(LIMIT_S)  # without it, a lock held for ever would outlast the test
    code = 1
    try:
        # The parent's gate may have been locked by the thread that waits at it.
        store.gate = threading.Event()
        store.gate.set()
        writer.offer(record("child"))
        told = writer.close(LIMIT_S)
        code = int((told, store.keys) != (Counts(written=1), ["child/0"]))
    finally:
        os._exit(code)


def test_a_writer_that_nobody_needs_is_not_kept_for_forks() -> None:
    writer = Writer(Store().put)
    gone = weakref.ref(writer)
    del writer
    gc.collect()
    assert gone() is None


def test_without_a_thread_to_be_had_the_answer_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    writer = Writer(Store().put)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert not writer.offer(record("a"))
    assert writer.counts == Counts(dropped=1)


def test_every_record_of_many_threads_is_counted_once() -> None:
    store = Store()
    writer = Writer(store.put, max_records=8, max_bytes=1_000)

    def offer_all(thread: int) -> int:
        return sum(writer.offer(record(f"{thread}-{number}", 100)) for number in range(200))

    with ThreadPoolExecutor(8) as pool:
        taken = sum(pool.map(offer_all, range(8)))
    counts = writer.close(LIMIT_S)
    assert counts == Counts(written=taken, dropped=8 * 200 - taken)
    assert len(set(store.keys)) == taken


def test_a_record_has_its_images_first() -> None:
    made = CapturedGeneration(
        generation_id="g1",
        captured_by="client",
        user_id="alice",
        model_id="default",
        version=2,
        captured_at="2026-03-04T05:06:07.008Z",
        request=GenerateRequest(prompt="{token} runs", images=2),
        prompt="sks dog runs",
        base_id="tiny-1",
        adapter_sha256="a" * 64,
        denoise_ms=1.5,
    )
    *images, last = made.files([b"1", b"2"], "jpeg")
    prefix = "generations/alice/2026-03-04/g1/"
    assert [(file.key, file.content, file.content_type) for file in images] == [
        (f"{prefix}image-00.jpeg", b"1", "image/jpeg"),
        (f"{prefix}image-01.jpeg", b"2", "image/jpeg"),
    ]
    assert (last.key, last.content_type) == (f"{prefix}request.json", "application/json")
    assert CapturedGeneration.model_validate_json(last.content) == made
