"""The app's content check: asked before and after drawing, written down without the prompt."""

import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from inference import logs
from inference.engine import checks as checks_module
from inference.engine import safety as safety_module
from inference.engine.base import ResidentBase
from inference.engine.checks import Checks, Work
from inference.engine.engine import Engine, Generation
from inference.engine.safety import Guard, Verdict, load_check
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest
from tests.support.artifacts import write_artifact
from tests.support.laptop import until
from tests.unit.inference.stubs import code


class Prudish:
    """Refuses a word, or dark pictures, or breaks."""

    def check_prompt(self, prompt: str, negative_prompt: str) -> Verdict:
        if "zebrabug" in prompt + negative_prompt:
            raise RuntimeError("zebra")
        return Verdict("zebraword" not in prompt, "animals")

    def check_image(self, pixels: np.ndarray) -> Verdict:
        assert pixels.shape == (32, 32, 3)
        return Verdict(pixels.max() < 1000 and not self.blind, "dark")

    blind = False


PRUDISH = Prudish()
NO_CHECK = object()


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    logger = logging.getLogger("limner.inference")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield stream
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def engine(base: ResidentBase, base_folder: Path, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(base, max_models=1, max_rank=8, safety=PRUDISH)
    write_artifact(tmp_path / "a", base_folder)
    engine.load("a", tmp_path / "a")
    yield engine
    # Whatever was refused holds the model no longer.
    engine.unload("a")
    engine.close()


def lines(written: io.StringIO, event: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in written.getvalue().splitlines()]
    return [line for line in found if line["event"] == event]


def test_what_is_allowed_is_drawn_and_both_decisions_are_written_down(
    engine: Engine, written: io.StringIO
) -> None:
    request = GenerateRequest(prompt="a zebra on {token}", steps=1, images=2)
    assert len(engine.submit("a", request).result(timeout=60).pixels) == 2
    before, after = lines(written, "content")
    assert (before["checked"], before["allowed"]) == ("prompt", True)
    assert (after["checked"], after["allowed"]) == ("images", True)
    assert before["prompt"] == after["prompt"] == logs.fingerprint("a zebra on sks")
    assert before["model"] == logs.fingerprint("a")
    assert "zebra" not in written.getvalue()


def test_a_refused_prompt_is_never_queued(engine: Engine, written: io.StringIO) -> None:
    future = engine.submit("a", GenerateRequest(prompt="a zebraword", steps=1))
    with pytest.raises(LimnerError) as refused:
        future.result(timeout=60)
    assert (refused.value.code, refused.value.spec.http_status) == ("CONTENT_REFUSED", 422)
    assert "animals" in refused.value.message
    assert "zebra" not in str(refused.value)
    (line,) = lines(written, "content")
    assert (line["allowed"], line["category"]) == (False, "animals")
    assert "zebra" not in written.getvalue()


def test_a_refused_image_is_not_answered(
    engine: Engine, written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PRUDISH, "blind", True)
    future = engine.submit("a", GenerateRequest(prompt="x", steps=1))
    with pytest.raises(LimnerError) as refused:
        future.result(timeout=60)
    assert refused.value.code == "CONTENT_REFUSED"
    assert lines(written, "content")[-1]["checked"] == "images"


def test_a_check_that_breaks_refuses(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    future = engine.submit("a", GenerateRequest(prompt="zebrabug", steps=1))
    assert isinstance(future.exception(timeout=60), RuntimeError)

    def broken(_: object) -> Verdict:
        raise RuntimeError("zebra")

    monkeypatch.setattr(PRUDISH, "check_image", broken)
    future = engine.submit("a", GenerateRequest(prompt="x", steps=1))
    assert isinstance(future.exception(timeout=60), RuntimeError)


class Stuck:
    """An engine whose check does not return before ``go_on``; answers within 60 s."""

    def __init__(
        self, base: ResidentBase, base_folder: Path, folder: Path, what: str, max_queue: int = 64
    ) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        check = Prudish()
        setattr(check, what, self._hang)
        self.engine = Engine(base, max_models=1, max_rank=8, max_queue=max_queue, safety=check)
        guard = self.engine._guard
        assert guard is not None
        self.guard = guard
        write_artifact(folder / "a", base_folder)
        self.engine.load("a", folder / "a")

    def ask(self) -> Future[Generation]:
        return self.engine.submit("a", GenerateRequest(prompt="x", steps=1))

    def ask_behind(self, what: str) -> Future[Generation]:
        """Asks, and returns when the request is in the hands of that check."""
        future = self.ask()
        if what == "check_image":
            until(lambda: self.guard._images.waiting, lambda waiting: waiting == ["a"])
        return future

    def end(self) -> None:
        """Lets the calls return, and waits for their last words in the log."""
        self.go_on.set()
        idle(self.guard)

    def _hang(self, *_: object) -> Verdict:
        self.began.set()
        assert self.go_on.wait(60)
        return Verdict(True)


class Clock:
    """The time of checks, steered by a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead_s = 0.0
        steered = SimpleNamespace(perf_counter=lambda: time.perf_counter() + self._ahead_s)
        monkeypatch.setattr(checks_module, "time", steered)

    def advance(self, seconds: float, guard: Guard) -> None:
        """Moves it on; whoever sleeps until a time looks at it again."""
        self._ahead_s += seconds
        for checks in (guard._prompts, guard._images):
            with checks._changed:
                checks._changed.notify_all()


def idle(guard: Guard) -> None:
    """Returns when no call of a check runs."""
    for checks in (guard._prompts, guard._images):
        until(lambda checks=checks: checks.longest_s, lambda seconds: seconds == 0)


def in_a_minute() -> float:
    return time.perf_counter() + 60


@pytest.mark.parametrize("what", ["check_prompt", "check_image"])
def test_while_a_call_of_the_check_does_not_return_the_engine_is_unsound(
    base: ResidentBase,
    base_folder: Path,
    tmp_path: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    stuck = Stuck(base, base_folder, tmp_path, what)
    first = stuck.ask()
    assert stuck.began.wait(60)
    second = stuck.ask_behind(what)
    assert stuck.engine.is_sound
    clock.advance(61, stuck.guard)
    assert code(first) == "DEADLINE_EXCEEDED"  # at its time, though nobody can end the call
    assert code(second) == "DEADLINE_EXCEEDED"
    assert not stuck.engine.is_sound
    stuck.engine.unload("a")  # whoever was given up holds the model no longer
    stuck.end()
    assert stuck.engine.is_sound
    stuck.engine.close()


@pytest.mark.parametrize("what", ["check_prompt", "check_image"])
def test_an_engine_whose_check_does_not_return_is_closed_and_answers(
    base: ResidentBase,
    base_folder: Path,
    tmp_path: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(safety_module, "_CLOSE_S", 0.1)
    stuck = Stuck(base, base_folder, tmp_path, what)
    first = stuck.ask()
    assert stuck.began.wait(60)
    second = stuck.ask()
    stuck.engine.close()
    assert code(first) == code(second) == "GENERATION_FAILED"
    with pytest.raises(LimnerError):
        stuck.ask().result(timeout=60)
    stuck.end()


class Held(Prudish):
    """Each call waits for ``go_on``."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Semaphore(0), threading.Event()

    def check_prompt(self, *_: str) -> Verdict:
        return self._held()

    def check_image(self, _: np.ndarray) -> Verdict:
        return self._held()

    def _held(self) -> Verdict:
        self.began.release()
        assert self.go_on.wait(60)
        return Verdict(True)


class Asked:
    """What became of requests that a guard was asked about."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.ended: list[Exception | None] = []

    def prompt(self, model: str) -> None:
        self.guard.see_prompt(model, "x", "", in_a_minute(), self.ended.append)

    def images(self, model: str) -> None:
        pixels = np.zeros((1, 1, 1, 3), np.uint8)
        self.guard.see_images(model, "x", pixels, in_a_minute(), self.ended.append)

    def was_refused(self) -> bool:
        """Whether the last one was turned away at once."""
        if not self.ended:
            return False
        error = self.ended.pop()
        return isinstance(error, LimnerError) and error.code == "ENDPOINT_BUSY"


def test_no_more_prompts_wait_than_requests_may_nor_than_one_models_part() -> None:
    check = Held()
    guard = Guard(check, 60, max_queue=8)
    asked = Asked(guard)
    running = 8
    for _ in range(running):
        asked.prompt("a")
        assert check.began.acquire(timeout=60)
    for model in "aabbccd":
        asked.prompt(model)
    asked.prompt("a")  # two of its own wait
    assert asked.was_refused()
    asked.prompt("d")
    asked.prompt("e")  # eight wait
    assert asked.was_refused()
    check.go_on.set()
    until(lambda: list(asked.ended), lambda ended: ended == [None] * (running + 8))
    guard.close()


def test_while_many_images_wait_for_the_check_nobody_new_is_let_in() -> None:
    check = Held()
    guard = Guard(check, 60, max_queue=8)
    asked = Asked(guard)
    asked.images("a")
    assert check.began.acquire(timeout=60)
    for model in "abc":
        asked.images(model)
    asked.prompt("a")  # one of four is its own
    assert asked.was_refused()
    asked.prompt("d")
    assert check.began.acquire(timeout=60)  # looked at
    asked.images("d")
    asked.prompt("e")  # four wait
    assert asked.was_refused()
    asked.images("e")  # but what was drawn has a place
    assert not asked.was_refused()
    check.go_on.set()
    until(lambda: list(asked.ended), lambda ended: ended == [None] * 7)
    asked.prompt("e")
    until(lambda: list(asked.ended), lambda ended: ended == [None] * 8)
    guard.close()


def test_where_drawing_is_faster_than_the_check_who_comes_is_503(
    base: ResidentBase, base_folder: Path, tmp_path: Path
) -> None:
    stuck = Stuck(base, base_folder, tmp_path, "check_image", max_queue=1)
    first = stuck.ask()
    assert stuck.began.wait(60)
    second = stuck.ask_behind("check_image")
    assert code(stuck.ask()) == "ENDPOINT_BUSY"
    stuck.end()
    for future in (first, second, stuck.ask()):
        future.result(timeout=60)
    stuck.engine.unload("a")
    stuck.engine.close()


def test_each_image_has_the_time_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stuck: list[bool] = []

    class Slow(Prudish):
        def check_image(self, _: np.ndarray) -> Verdict:
            clock.advance(40, guard)
            stuck.append(guard.is_stuck)
            return Verdict(True)

    guard = Guard(Slow(), 60, max_queue=8)
    pixels = np.zeros((3, 1, 1, 3), np.uint8)
    ended: list[Exception | None] = []
    guard.see_images("a", "x", pixels, time.perf_counter() + 1000, ended.append)
    until(lambda: list(ended), lambda ended: ended == [None])
    assert stuck == [False] * 3
    guard.close()


def test_who_was_given_up_has_no_further_image_looked_at(
    monkeypatch: pytest.MonkeyPatch, written: io.StringIO
) -> None:
    clock = Clock(monkeypatch)
    check = Held()
    guard = Guard(check, 60, max_queue=8)
    ended: list[Exception | None] = []
    guard.see_images("a", "x", np.zeros((3, 1, 1, 3), np.uint8), in_a_minute(), ended.append)
    assert check.began.acquire(timeout=60)
    clock.advance(61, guard)
    until(lambda: list(ended), lambda ended: len(ended) == 1)
    assert isinstance(ended[0], LimnerError)
    assert ended[0].code == "DEADLINE_EXCEEDED"
    check.go_on.set()
    idle(guard)
    assert not check.began.acquire(blocking=False)
    assert not lines(written, "content")
    guard.close()


def test_who_goes_away_leaves_the_line_before_the_check(
    base: ResidentBase, base_folder: Path, tmp_path: Path
) -> None:
    stuck = Stuck(base, base_folder, tmp_path, "check_image")
    first = stuck.ask()
    assert stuck.began.wait(60)
    second = stuck.ask_behind("check_image")
    assert second.cancel()
    assert stuck.guard._images.waiting == []
    stuck.began.clear()
    stuck.end()
    assert len(first.result(timeout=60).pixels) == 1
    stuck.engine.close()
    assert not stuck.began.is_set(), "its image was looked at"


def test_both_kinds_of_calls_have_one_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    close = Checks.close

    def spy(checks: Checks, until: float) -> None:
        given.append(until)
        close(checks, until)

    monkeypatch.setattr(Checks, "close", spy)
    Guard(Prudish(), 60, max_queue=8).close()
    assert len(given) == 2
    assert given[0] == given[1]


@pytest.mark.parametrize(("left_s", "codes"), [(60, [None]), (-1, ["GENERATION_FAILED"])])
def test_what_runs_at_the_end_has_until_then(left_s: float, codes: list[str | None]) -> None:
    began, go_on = threading.Event(), threading.Event()
    ended: list[Exception | None] = []

    def work() -> Work:
        yield
        began.set()
        assert go_on.wait(60)

    checks = Checks("test", threads=1, late="late")
    checks.run("a", work(), in_a_minute(), ended.append)
    assert began.wait(60)
    closing = threading.Thread(target=checks.close, args=[time.perf_counter() + left_s])
    closing.start()
    if left_s > 0:
        until(lambda: checks._closing, bool)
        go_on.set()
    closing.join(60)
    go_on.set()
    assert [error and getattr(error, "code", "") for error in ended] == codes


def test_prompts_are_checked_side_by_side(
    base: ResidentBase, base_folder: Path, tmp_path: Path
) -> None:
    """One slow check of a prompt holds nobody up: all of them meet here."""
    together = threading.Barrier(4, timeout=30)

    class Meeting(Prudish):
        def check_prompt(self, *_: str) -> Verdict:
            together.wait()
            return Verdict(True)

    engine = Engine(base, max_models=1, max_rank=8, safety=Meeting())
    write_artifact(tmp_path / "a", base_folder)
    engine.load("a", tmp_path / "a")
    wish = GenerateRequest(prompt="x", steps=1)
    for future in [engine.submit("a", wish) for _ in range(4)]:
        future.result(timeout=60)
    engine.close()


def test_a_check_is_named_by_its_path() -> None:
    assert isinstance(load_check(f"{__name__}:PRUDISH"), Prudish)


@pytest.mark.parametrize("path", ["no.such.module:x", "{here}:ABSENT", "{here}:NO_CHECK"])
def test_a_path_to_no_check_is_told(path: str) -> None:
    with pytest.raises(LimnerError) as refused:
        load_check(path.format(here=__name__))
    assert refused.value.code == "INVALID_INPUT"


def test_metrics_are_in_the_embedded_format_and_name_no_user(
    engine: Engine, base: ResidentBase, written: io.StringIO
) -> None:
    request = GenerateRequest(prompt="zebra", steps=1)
    engine.submit("a", request).result(timeout=60)
    engine.submit("a", request).result(timeout=60)
    first, second = lines(written, "metrics")
    for line in (first, second):
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == "Limner"
        assert directive["Dimensions"] == [["Base"]]
        assert isinstance(line["_aws"]["Timestamp"], int)
        for metric in directive["Metrics"]:
            assert isinstance(line[metric["Name"]], int | float)
        assert line["Base"] == base.base_id
        assert line["Model"] == logs.fingerprint("a")
        assert line["DenoiseMs"] > 0
        assert line["ResidentBytes"] == engine.resident_bytes
    assert (first["SlotHits"], first["SlotMisses"]) == (0, 1)
    assert (second["SlotHits"], second["SlotMisses"]) == (1, 0)
    units = {m["Name"]: m["Unit"] for m in first["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    assert units["QueueMs"] == "Milliseconds"
    assert units["ResidentBytes"] == "Bytes"
    assert units["Evictions"] == "Count"
