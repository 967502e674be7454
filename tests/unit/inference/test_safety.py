"""The app's content check: asked before and after drawing, written down without the prompt."""

import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from inference import logs
from inference.engine import checks as checks_module
from inference.engine.base import ResidentBase
from inference.engine.checks import Checks
from inference.engine.engine import Engine, Generation
from inference.engine.safety import Verdict, load_check
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
    """An engine whose check of images does not return before ``go_on``."""

    def __init__(
        self, base: ResidentBase, base_folder: Path, folder: Path, answer_s: float, what: str
    ) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        check = Prudish()
        setattr(check, what, self._hang)
        self.engine = Engine(base, max_models=1, max_rank=8, answer_s=answer_s, safety=check)
        write_artifact(folder / "a", base_folder)
        self.engine.load("a", folder / "a")

    def ask(self) -> Future[Generation]:
        return self.engine.submit("a", GenerateRequest(prompt="x", steps=1))

    def end(self) -> None:
        """Lets the calls return, and waits for their last words in the log."""
        self.go_on.set()
        guard = self.engine._guard
        assert guard is not None
        for checks in (guard._prompts, guard._images):
            until(lambda checks=checks: checks.longest_s, lambda seconds: seconds == 0)

    def _hang(self, *_: object) -> Verdict:
        self.began.set()
        assert self.go_on.wait(60)
        return Verdict(True)


@pytest.mark.parametrize("what", ["check_prompt", "check_image"])
def test_while_a_call_of_the_check_does_not_return_the_engine_is_unsound(
    base: ResidentBase, base_folder: Path, tmp_path: Path, what: str
) -> None:
    stuck = Stuck(base, base_folder, tmp_path, 0.5, what)
    first = stuck.ask()
    assert stuck.began.wait(60)
    assert code(first) == "DEADLINE_EXCEEDED"  # at its time, though nobody can end the call
    if what == "check_image":
        assert code(stuck.ask()) == "DEADLINE_EXCEEDED"  # who waits behind it, too
    until(lambda: stuck.engine.is_sound, lambda sound: not sound)
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
    monkeypatch.setattr(checks_module, "_CLOSE_S", 0.1)
    stuck = Stuck(base, base_folder, tmp_path, 60, what)
    first = stuck.ask()
    assert stuck.began.wait(60)
    second = stuck.ask()
    stuck.engine.close()
    assert code(first) == code(second) == "GENERATION_FAILED"
    with pytest.raises(LimnerError):
        stuck.ask().result(timeout=60)
    stuck.end()


def test_no_more_prompts_wait_than_requests_may() -> None:
    began, go_on = threading.Semaphore(0), threading.Event()
    checks = Checks("test", threads=1, late="late", most=1)
    outcomes: list[Exception | None] = []

    def work() -> None:
        began.release()
        assert go_on.wait(60)

    deadline = time.perf_counter() + 60
    checks.run(work, deadline, outcomes.append)
    assert began.acquire(timeout=60)
    for _ in range(2):
        checks.run(work, deadline, outcomes.append)
    (refused,) = outcomes
    assert isinstance(refused, LimnerError)
    assert refused.code == "ENDPOINT_BUSY"
    go_on.set()
    until(lambda: outcomes[1:], lambda ended: ended == [None, None])
    checks.close()


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
