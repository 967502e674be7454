"""Joining and leaving between steps: order, room, cancellation, deadlines, and whose fault."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from inference.engine import bank as bank_module
from inference.engine import batcher as batcher_module
from inference.engine import engine as engine_module
from inference.engine.base import ResidentBase
from inference.engine.engine import Engine, Generation
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest
from tests.support.artifacts import write_artifact
from tests.unit.inference.stubs import LAYER, Gate, StubArtist, StubDrawing, code, take_all_memory

USERS = ("a", "b", "c", "d")


class Studio:
    """An engine whose drawing is a stub, held before each step."""

    def __init__(self, base: ResidentBase, folder: Path, **limits: float) -> None:
        self.gate = Gate()
        self.engine = Engine(base, max_models=8, max_rank=8, **limits)
        self.artist: StubArtist = self.engine._batcher._artist  # type: ignore[assignment]
        self.artist.turn = self.gate
        for name in USERS:
            self.engine.load(name, folder / name)

    def ask(self, name: str, seed: int, steps: int = 3, **values: object) -> Future[Generation]:
        body = {"prompt": "x", "seed": seed, "steps": steps, **values}
        return self.engine.submit(name, GenerateRequest.model_validate(body))

    def close(self) -> None:
        self.gate.open()
        self.engine.close()


@pytest.fixture(scope="module")
def artifacts(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("artifacts")
    for seed, name in enumerate(USERS):
        write_artifact(root / name, base_folder, seed=seed)
    return root


@pytest.fixture
def limits() -> dict[str, float]:
    return {}


@pytest.fixture
def studio(
    base: ResidentBase,
    artifacts: Path,
    limits: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Studio]:
    monkeypatch.setattr(engine_module, "Artist", lambda _: StubArtist(LAYER))
    found = Studio(base, artifacts, **limits)
    yield found
    found.close()


def test_a_lone_request_is_drawn_at_once_and_others_join_at_the_next_step(studio: Studio) -> None:
    first = studio.ask("a", 1)
    studio.gate.reached()
    second, third = studio.ask("b", 2), studio.ask("c", 3, steps=1)
    for _ in range(4):
        studio.gate.step()
    for future in (first, second, third):
        future.result(timeout=30)
    assert studio.artist.passes == [[1], [1, 2, 3], [1, 2], [2]]


def test_each_is_drawn_with_its_own_adapter(studio: Studio) -> None:
    first = studio.ask("a", 1)
    studio.gate.reached()
    others = [studio.ask(name, seed) for seed, name in enumerate(USERS)]
    studio.gate.open()
    drawn = [float(f.result(timeout=30).pixels.flat[0]) for f in (first, *others)]
    adapters = [studio.engine.get(name).adapter for name in ("a", *USERS)]
    first_of = [
        next(item for item in adapter.layout if item.name.endswith("attn1.to_q.lora_A.weight"))
        for adapter in adapters
    ]
    names = {item.name for item in first_of}
    assert names == {f"unet.{studio.artist.layer}.lora_A.weight"}
    expected = [float(a.row[item.start]) for a, item in zip(adapters, first_of, strict=True)]
    assert drawn == expected
    assert len(set(expected)) == len(USERS)


def test_other_sizes_take_turns(studio: Studio) -> None:
    first = studio.ask("a", 1)
    studio.gate.reached()
    second = studio.ask("b", 2, width=64)
    studio.gate.open()
    first.result(timeout=30)
    second.result(timeout=30)
    assert studio.artist.passes == [[1], [1], [2], [1], [2], [2]]


@pytest.mark.parametrize("limits", [{"max_rows": 4}])
def test_nobody_is_overtaken_and_rows_are_bounded(studio: Studio) -> None:
    first = studio.ask("a", 1)  # 2 rows
    studio.gate.reached()
    waiting = [studio.ask("b", 2, images=2), studio.ask("c", 3, guidance=0)]  # 4 rows, then 1
    wide = studio.ask("d", 4, steps=1, images=8)  # 16 rows: alone
    studio.gate.open()
    for future in (first, *waiting, wide):
        future.result(timeout=30)
    assert studio.artist.passes == [[1]] * 3 + [[2]] * 3 + [[3]] * 3 + [[4]]


@pytest.mark.parametrize("limits", [{"max_rows": 2, "max_queue": 2}])
def test_a_full_queue_is_503_and_drains(studio: Studio) -> None:
    running = studio.ask("a", 1)
    studio.gate.reached()
    waiting = [studio.ask("b", 2), studio.ask("c", 3)]
    with pytest.raises(LimnerError) as busy:
        studio.ask("d", 4)
    assert busy.value.spec.http_status == 503
    assert busy.value.spec.retryable
    studio.gate.open()
    for future in (running, *waiting):
        future.result(timeout=30)
    studio.engine.unload("d")  # the refused request holds nothing
    studio.ask("a", 5).result(timeout=30)


def test_a_cancelled_request_leaves_at_the_next_step(studio: Studio) -> None:
    first, second = studio.ask("a", 1), None
    studio.gate.reached()
    second = studio.ask("b", 2)
    studio.gate.step()
    studio.gate.reached()
    assert first.cancel()
    studio.gate.open()
    second.result(timeout=30)
    with pytest.raises(CancelledError):
        first.result(timeout=30)
    assert [1, 2] in studio.artist.passes
    assert studio.artist.passes[-1] == [2]
    assert sum(1 in seeds for seeds in studio.artist.passes) == 2
    studio.engine.unload("a")


@pytest.mark.parametrize("limits", [{"max_rows": 2}])
def test_a_request_that_is_cancelled_while_it_waits_is_never_drawn(studio: Studio) -> None:
    first = studio.ask("a", 1)
    studio.gate.reached()
    second, third = studio.ask("b", 2), studio.ask("c", 3)
    assert second.cancel()
    studio.gate.open()
    first.result(timeout=30)
    third.result(timeout=30)
    assert [2] not in studio.artist.passes
    studio.engine.unload("b")


@pytest.mark.parametrize("limits", [{"max_rows": 2}])
def test_who_is_too_late_leaves_the_batch_or_the_queue(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = studio.ask("a", 1)
    studio.gate.reached()
    waiting = studio.ask("b", 2)
    # The clock of the drawing thread jumps; both were asked for with a deadline of 60 s.
    later = time.perf_counter() + 61
    monkeypatch.setattr(batcher_module, "time", SimpleNamespace(perf_counter=lambda: later))
    studio.gate.open()
    assert code(running) == code(waiting) == "DEADLINE_EXCEEDED"
    assert studio.artist.passes == [[1]]
    studio.engine.unload("a")
    studio.engine.unload("b")


def test_a_bug_ends_its_pass_and_nothing_else(studio: Studio) -> None:
    studio.artist.fails[1] = KeyError("bug")
    first = studio.ask("a", 1)
    studio.gate.reached()
    other = studio.ask("b", 2, width=64)
    studio.gate.open()
    assert isinstance(first.exception(timeout=30), KeyError)
    other.result(timeout=30)
    for name in USERS:
        studio.engine.unload(name)


def test_where_memory_is_short_who_joined_last_waits_and_fewer_are_drawn_from_then_on(
    studio: Studio,
) -> None:
    studio.artist.fits = 1
    first = studio.ask("b", 1)
    studio.gate.reached()
    second, third = studio.ask("a", 2, steps=1), studio.ask("c", 3, steps=1)
    studio.gate.open()
    for future in (first, second, third):
        future.result(timeout=30)
    sizes = [len(seeds) for seeds in studio.artist.passes]
    assert sizes == [1, 3, 2, 1, 1, 1, 1]
    assert studio.artist.passes[-2:] == [[2], [3]]


@pytest.mark.parametrize("limits", [{"max_rows": 4}])
def test_after_steps_of_all_rows_that_are_allowed_more_are_but_no_more_than_ever(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "_CALM_STEPS", 6)

    def three_at_once() -> list[int]:
        studio.gate.shut()
        first = studio.ask("a", 1, steps=1)
        studio.gate.reached()
        studio.artist.passes.clear()
        others = [studio.ask(name, seed, steps=1) for seed, name in enumerate("bcd", start=2)]
        studio.gate.open()
        for future in (first, *others):
            future.result(timeout=30)
        return [len(seeds) for seeds in studio.artist.passes]

    studio.artist.fits = 1
    assert three_at_once() == [1, 2, 1, 1, 1]  # one step is lost, then each is drawn alone
    studio.ask("a", 9, steps=20).result(timeout=30)
    assert three_at_once() == [1, 1, 1, 1]  # who is alone has shown nothing

    studio.artist.fits = None
    studio.gate.shut()
    long = studio.ask("a", 1, steps=11)
    studio.gate.reached()
    studio.artist.passes.clear()
    waiting = studio.ask("b", 2, steps=1)
    studio.gate.open()
    long.result(timeout=30)
    waiting.result(timeout=30)
    assert [len(seeds) for seeds in studio.artist.passes] == [1] * 9 + [2, 1]
    assert three_at_once() == [1, 2, 1]


def test_a_shortage_among_some_leaves_the_room_of_others(studio: Studio) -> None:
    studio.artist.fits = 1
    first = studio.ask("a", 1)
    studio.gate.reached()
    second, wide = studio.ask("b", 2), studio.ask("c", 3, width=64)
    studio.gate.open()
    for future in (first, second, wide):
        future.result(timeout=30)
    assert studio.engine._batcher._room.rows == 2 + 4  # of who stayed, and of the other size


@pytest.mark.parametrize("where", ["begin", "fill"])
def test_who_finds_no_memory_to_join_is_tried_again_only_after_somebody_has_left(
    studio: Studio,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    caplog.set_level("INFO", "limner.inference")
    first = studio.ask("a", 1, steps=4)
    studio.gate.reached()
    second = studio.ask("d", 2, steps=5)
    studio.gate.step()
    studio.gate.reached()
    owner = studio.artist if where == "begin" else bank_module.Bank
    sound, tries = getattr(owner, where), 0

    def short(*arguments: object) -> object:
        nonlocal tries
        if not second.done():
            tries += 1
            take_all_memory()
        return sound(*arguments)

    monkeypatch.setattr(owner, where, short)
    costs: list[dict[str, float]] = []
    monkeypatch.setattr(studio.engine, "_record", lambda _, values: costs.append(values))
    others = [studio.ask(name, seed) for seed, name in enumerate("bc", start=3)]
    studio.gate.open()
    for future in (first, second, *others):
        future.result(timeout=30)
    assert studio.artist.passes == [[1]] + [[1, 2]] * 3 + [[2]] * 2 + [[3, 4]] * 3
    assert tries == 2  # when they came, and when the first had left
    assert [r.message for r in caplog.records if "memory" in r.message] == [
        "memory is short to join"
    ]
    # Whoever began twice paid for his slot once.
    assert [cost["SlotMisses"] for cost in costs] == [1] * 4


def test_who_begins_alone_after_a_failure_overtakes_nobody(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = studio.ask("a", 1, steps=2)
    studio.gate.reached()
    begin = studio.artist.begin

    def troubled(wishes: Sequence[tuple[str, GenerateRequest]]) -> list[StubDrawing]:
        if not first.done():
            if len(wishes) > 1:
                raise ValueError("somebody's fault")
            if wishes[0][1].seed == 2:
                take_all_memory()
        return begin(wishes)

    monkeypatch.setattr(studio.artist, "begin", troubled)
    others = [studio.ask("b", 2), studio.ask("c", 3)]
    studio.gate.open()
    for future in (first, *others):
        future.result(timeout=30)
    assert studio.artist.passes == [[1]] * 2 + [[2, 3]] * 3


def test_who_runs_out_of_memory_alone_is_507_and_the_next_one_is_drawn(studio: Studio) -> None:
    studio.gate.open()
    studio.artist.fits = 0
    assert code(studio.ask("a", 1)) == "OUT_OF_MEMORY"
    studio.artist.fits = None
    studio.ask("a", 2).result(timeout=30)


def test_a_slot_that_there_is_no_memory_for_is_507_and_the_next_one_is_drawn(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.gate.open()
    with monkeypatch.context() as patch:
        patch.setattr(bank_module, "Bank", take_all_memory)
        assert code(studio.ask("a", 1)) == "OUT_OF_MEMORY"
    with monkeypatch.context() as patch:
        patch.setattr(bank_module.Bank, "fill", lambda *_: (_ for _ in ()).throw(KeyError("bug")))
        assert isinstance(studio.ask("a", 2).exception(timeout=30), KeyError)
    studio.ask("a", 3).result(timeout=30)
    for name in USERS:
        studio.engine.unload(name)


def test_when_the_device_is_lost_all_are_answered_and_the_engine_says_so(studio: Studio) -> None:
    studio.artist.fails[1] = torch.AcceleratorError("an illegal memory access was encountered")
    assert studio.engine.is_sound
    first = studio.ask("a", 1)
    studio.gate.reached()
    waiting = studio.ask("b", 2)
    studio.gate.open()
    assert isinstance(first.exception(timeout=30), torch.AcceleratorError)
    assert code(waiting) == "GENERATION_FAILED"
    assert not studio.engine.is_sound


def test_when_the_drawing_thread_ends_by_a_bug_all_are_answered(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = studio.ask("a", 1)
    studio.gate.reached()
    waiting = studio.ask("b", 2)
    monkeypatch.setattr(studio.engine._batcher, "_admit", lambda: [][0])
    studio.gate.open()
    assert code(first) == code(waiting) == "GENERATION_FAILED"
    with pytest.raises(LimnerError) as refused:
        studio.ask("c", 3)
    assert refused.value.code == "GENERATION_FAILED"
    assert not studio.engine.is_sound


@pytest.mark.parametrize("limits", [{"max_rows": 2, "max_queue": 8}])
def test_one_model_may_fill_a_quarter_of_the_queue(studio: Studio) -> None:
    running = studio.ask("a", 1)
    studio.gate.reached()
    waiting = [studio.ask("a", seed) for seed in (2, 3)]
    with pytest.raises(LimnerError) as busy:
        studio.ask("a", 4)
    assert busy.value.code == "ENDPOINT_BUSY"
    others = [studio.ask(name, 5) for name in "bcd"]
    studio.gate.open()
    for future in (running, *waiting, *others):
        future.result(timeout=30)


@pytest.mark.parametrize("limits", [{"max_request_rows": 8}])
def test_a_request_that_would_hold_everybody_up_is_refused(studio: Studio) -> None:
    studio.gate.open()
    studio.ask("a", 1, images=4).result(timeout=30)
    studio.ask("a", 2, images=8, guidance=1).result(timeout=30)
    with pytest.raises(LimnerError) as refused:
        studio.ask("a", 3, width=1024, height=1024)
    assert refused.value.code == "INVALID_INPUT"
    assert "fewer or smaller images" in refused.value.message
    studio.engine.unload("a")


def test_progress_is_told_after_each_step(studio: Studio) -> None:
    seen: list[tuple[int, int]] = []
    studio.gate.open()
    request = GenerateRequest(prompt="x", steps=3)
    studio.engine.submit("a", request, lambda *told: seen.append(told)).result(timeout=30)
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("limits", [{"max_rows": 8}])
def test_large_images_count_by_their_area(studio: Studio) -> None:
    first = studio.ask("a", 1, width=64, height=64)  # 2 rows of 4 times the base's size
    studio.gate.reached()
    second = studio.ask("b", 2)
    studio.gate.open()
    first.result(timeout=30)
    second.result(timeout=30)
    assert studio.artist.passes == [[1]] * 3 + [[2]] * 3


def test_unload_waits_for_what_waits_and_what_is_drawn(studio: Studio) -> None:
    first = studio.ask("a", 1)
    studio.gate.reached()
    waiting = studio.ask("b", 2)
    with ThreadPoolExecutor(2) as pool:
        unloads = [pool.submit(studio.engine.unload, name) for name in ("a", "b")]
        while len(studio.engine.models()) > 2:  # until both unloads have begun
            pass
        with pytest.raises(LimnerError) as refused:
            studio.ask("b", 3)
        assert refused.value.code == "MODEL_NOT_LOADED"
        assert not any(unload.done() for unload in unloads)
        studio.gate.open()
        for done in (first, waiting, *unloads):
            done.result(timeout=30)


def test_a_closing_engine_ends_what_waits_too(studio: Studio) -> None:
    first = studio.ask("a", 1)
    studio.gate.reached()
    second = studio.ask("b", 2)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(studio.engine.close)
        while not studio.engine._batcher._stopping:
            pass
        studio.gate.open()
        closing.result(timeout=30)
    assert code(first) == code(second) == "GENERATION_FAILED"
    assert studio.engine.is_sound


def test_an_adapter_that_no_slot_can_hold_is_507(base: ResidentBase, artifacts: Path) -> None:
    engine = Engine(base, max_models=8, max_rank=8, slot_bytes=1)
    with pytest.raises(LimnerError) as refused:
        engine.load("a", artifacts / "a")
    assert refused.value.spec.http_status == 507
    assert engine.resident_bytes == 0
    engine.close()


def test_host_memory_is_bounded_by_bytes(base: ResidentBase, artifacts: Path) -> None:
    engine = Engine(base, max_models=8, max_rank=8)
    size = engine.load("a", artifacts / "a").adapter.size_bytes
    engine.close()
    engine = Engine(base, max_models=8, max_rank=8, adapter_bytes=2 * size + 1)
    engine.load("a", artifacts / "a")
    engine.load("b", artifacts / "b")
    with pytest.raises(LimnerError) as refused:
        engine.load("c", artifacts / "c")
    assert refused.value.code == "OUT_OF_MEMORY"
    engine.unload("a")
    engine.load("c", artifacts / "c")
    assert engine.resident_bytes == 2 * size
    engine.close()


def test_one_slot_serves_everybody_in_turn(
    base: ResidentBase, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "Artist", lambda _: StubArtist(LAYER))
    probe = Engine(base, max_models=8, max_rank=8)
    size = probe.load("a", artifacts / "a").adapter.size_bytes
    probe.close()
    engine = Engine(base, max_models=8, max_rank=8, slot_bytes=size)
    for name in USERS:
        engine.load(name, artifacts / name)
    request = GenerateRequest(prompt="x", steps=2)
    futures = [engine.submit(name, request) for name in USERS * 4]
    colours = {float(future.result(timeout=30).pixels.flat[0]) for future in futures}
    assert len(colours) == len(USERS)
    assert engine.resident_bytes == (len(USERS) + 1) * size
    engine.close()


def test_an_answer_that_cannot_be_made_is_an_error_and_the_next_one_is_drawn(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.gate.open()
    with monkeypatch.context() as patch:
        patch.setattr(studio.engine, "_record", lambda *_: [][0])
        assert isinstance(studio.ask("a", 1).exception(timeout=30), IndexError)
    studio.ask("a", 2).result(timeout=30)
    studio.engine.unload("a")
