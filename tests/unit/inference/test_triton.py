"""The Triton shell's parts that need no Triton; tests/contract has the real one."""

import json
import logging
import shutil
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inference.capture import Capture
from inference.engine.base import ResidentBase
from inference.engine.engine import Engine
from inference.engine.safety import Verdict
from inference.settings import TritonSettings
from inference.triton import serve
from inference.triton.desk import Call, Desk, DoorOrder
from inference.triton.door import Door
from inference.triton.lifeline import Held, Watched
from inference.triton.words import OUT_OF_MEMORY_WORDS, in_words
from limner.contracts.artifact import TRITON_SHELL
from limner.contracts.capture import CapturedFile, CapturedGeneration
from limner.contracts.errors import REGISTRY, LimnerError
from limner.contracts.generation import SMALLEST
from tests.support.artifacts import write_artifact

DEADLINE_S = 30


@pytest.mark.parametrize("code", REGISTRY)
def test_only_memory_has_the_words_of_memory(code: str) -> None:
    """Any of them, anywhere, makes SageMaker unload somebody's model."""
    for detail in ("", *OUT_OF_MEMORY_WORDS, "a member ROOM.txt"):
        text = in_words(LimnerError(code, detail))
        marked = any(word in text for word in OUT_OF_MEMORY_WORDS)
        assert marked == (code == "OUT_OF_MEMORY")
        assert json.loads(text[text.index("{") :])["error"]["code"] == code


def test_a_model_comes_draws_and_goes(
    base: ResidentBase, base_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "hash" / "model"
    write_artifact(folder, base_folder)
    (folder / TRITON_SHELL).parent.joinpath("__pycache__").mkdir()
    desk = Desk(Engine(base, max_models=1, max_rank=8), tmp_path)
    try:
        load = DoorOrder(operation="load", folder=str(folder), target="ada/default/v1.tar.gz")
        assert desk.carry_out(load) is None
        assert _code(desk.carry_out(load)) == "MODEL_ALREADY_LOADED"
        body = b'{"prompt": "x", "steps": 1}'
        assert json.loads(_drawn(desk, Call(str(folder), body)))["images"]
        assert _drawn(desk, Call(str(folder), body, accept="image/png")).startswith(b"\x89PNG")
        assert _code(_asked(desk, Call(str(folder), b"{"))) == "INVALID_INPUT"
        assert _code(_asked(desk, Call("/elsewhere", body))) == "MODEL_NOT_LOADED"
        outside = DoorOrder(operation="load", folder=str(tmp_path.parent))
        assert _code(desk.carry_out(outside)) == "INVALID_INPUT"
        unload = DoorOrder(operation="unload", folder=str(folder))
        assert desk.carry_out(unload) is None
        assert _code(desk.carry_out(unload)) == "MODEL_NOT_LOADED"
    finally:
        desk.close()


def test_a_bug_of_ours_is_an_answer(
    base: ResidentBase, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hash" / "model"
    write_artifact(folder, base_folder)
    engine = Engine(base, max_models=1, max_rank=8)
    desk = Desk(engine, tmp_path)
    try:
        monkeypatch.setattr(engine, "load", lambda *_: 1 / 0)
        order = DoorOrder(operation="load", folder=str(folder))
        assert _code(desk.carry_out(order)) == "INTERNAL"
        monkeypatch.setattr(engine, "submit", lambda *_: 1 / 0)
        assert _code(_asked(desk, Call(str(folder), b'{"prompt": "x"}'))) == "INTERNAL"
    finally:
        desk.close()


def test_what_is_drawn_is_captured(base: ResidentBase, base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hash" / "model"
    write_artifact(folder, base_folder)
    files: list[CapturedFile] = []
    capture = Capture(files.append, base.base_id)
    desk = Desk(Engine(base, max_models=1, max_rank=8), tmp_path, capture)
    target = "ada/default/v1.tar.gz"
    try:
        assert desk.carry_out(DoorOrder(operation="load", folder=str(folder))) is None
        body = b'{"prompt": "x", "steps": 1}'
        drawn = _drawn(desk, Call(str(folder), body, accept="image/png", target=target))
        _drawn(desk, Call(str(folder), body))  # nobody says whose it is
        _drawn(desk, Call(str(folder), SMALLEST.model_dump_json().encode(), target=target))
        assert _code(_asked(desk, Call("/elsewhere", body, target=target))) == "MODEL_NOT_LOADED"
    finally:
        desk.close()
    image, request = files
    assert image.key.startswith("generations/ada/")
    assert image.content == drawn
    assert CapturedGeneration.model_validate_json(request.content).request.prompt == "x"


def test_the_content_check_is_asked_and_what_it_refuses_is_neither_answered_nor_captured(
    base: ResidentBase, base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Check:
        def check_prompt(self, prompt: str, negative_prompt: str) -> Verdict:
            return Verdict("zebra" not in prompt + negative_prompt, "animals")

        def check_image(self, pixels: np.ndarray) -> Verdict:
            return Verdict(allowed=pixels.ndim != 3, category="dark")

    caplog.set_level("INFO", "limner.inference")
    folder = tmp_path / "hash" / "model"
    write_artifact(folder, base_folder)
    files: list[CapturedFile] = []
    capture = Capture(files.append, base.base_id)
    desk = Desk(Engine(base, max_models=1, max_rank=8, safety=Check()), tmp_path, capture)
    try:
        assert desk.carry_out(DoorOrder(operation="load", folder=str(folder))) is None
        for prompt in ("a zebra", "x"):
            body = json.dumps({"prompt": prompt, "steps": 1}).encode()
            asked = _asked(desk, Call(str(folder), body, target="ada/default/v1.tar.gz"))
            assert _code(asked) == "CONTENT_REFUSED"
    finally:
        desk.close()
    assert files == []
    audit = [r.fields for r in caplog.records if r.message == "content"]  # type: ignore[attr-defined]
    assert [(line["checked"], line["allowed"], line["category"]) for line in audit] == [
        ("prompt", False, "animals"),
        ("prompt", True, ""),
        ("images", False, "dark"),
    ]


@pytest.mark.parametrize("failures", [1, 2])
def test_an_answer_that_cannot_be_sent_is_an_error(
    base: ResidentBase,
    base_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    failures: int,
) -> None:
    """Without any answer a request would never end, and an unload would wait for it."""
    folder = tmp_path / "hash" / "model"
    write_artifact(folder, base_folder)
    sent: list[bytes | LimnerError] = []
    there = threading.Event()

    def reply(answer: bytes | LimnerError) -> None:
        sent.append(answer)
        if len(sent) >= 2:
            there.set()
        if len(sent) <= failures:
            raise RuntimeError("zebra: no shared memory")

    desk = Desk(Engine(base, max_models=1, max_rank=8), tmp_path)
    try:
        assert desk.carry_out(DoorOrder(operation="load", folder=str(folder))) is None
        with caplog.at_level(logging.INFO, "limner.inference"):
            desk.invoke(Call(str(folder), b'{"prompt": "x", "steps": 1}'), reply)
            assert there.wait(DEADLINE_S)
            desk.close()
        assert [type(answer) for answer in sent] == [bytes, LimnerError]
        assert _code(sent[1]) == "INTERNAL"
        events = [record.getMessage() for record in caplog.records]
        assert events.count("answer not sent") == failures
        assert (events[-1], caplog.records[-1].fields["code"]) == ("invoke", "INTERNAL")
    finally:
        desk.close()


def test_an_unload_needs_no_folder(base: ResidentBase, base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hash" / "model"
    write_artifact(folder, base_folder)
    desk = Desk(Engine(base, max_models=1, max_rank=8), tmp_path)
    try:
        assert desk.carry_out(DoorOrder(operation="load", folder=str(folder))) is None
        shutil.rmtree(folder.parent)
        assert desk.carry_out(DoorOrder(operation="unload", folder=str(folder))) is None
    finally:
        desk.close()


def test_a_refused_unload_is_a_goodbye(tmp_path: Path) -> None:
    path, bereaved = tmp_path / "base.sock", threading.Event()
    left: list[threading.Thread] = []

    def carry_out(order: DoorOrder) -> LimnerError | None:
        left.append(threading.current_thread())
        return LimnerError("MODEL_NOT_LOADED") if order.operation == "unload" else None

    door = Door(path, carry_out, bereaved.set)
    try:
        told = _say(path, _order("load", "/m"), _order("unload", "/m"))
        assert told == ["", "MODEL_NOT_LOADED"]
        left[0].join(DEADLINE_S)
        assert not left[0].is_alive()
        assert not bereaved.is_set()
        assert _say(path, _order("load", "/m"), _order("load", "/m"), "nonsense")[:2] == ["", ""]
        assert bereaved.wait(DEADLINE_S), "nonsense is no goodbye"
    finally:
        door.close()


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("kill -TERM $$", 0),
        ("kill -INT $$", 0),
        ("exit 3", 3),
        ("kill -SEGV $$", 1),
        ("kill -ABRT $$", 1),
        ("kill -KILL $$", 1),
    ],
)
def test_a_crash_of_triton_is_no_orderly_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: str,
    code: int,
) -> None:
    program = tmp_path / "tritonserver"
    program.write_text(f"#!/bin/sh\nulimit -c 0\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setenv("LIMNER_TRITON_PROGRAM", str(program))
    monkeypatch.setenv("LIMNER_TRITON_SOCKET", str(tmp_path / "base.sock"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    with caplog.at_level(logging.INFO, "limner.inference"):
        assert serve.run(TritonSettings(), grace_s=0.0) == code
    failed = [record for record in caplog.records if record.getMessage() == "triton has failed"]
    assert len(failed) == (code != 0)


def test_the_door_obeys_and_notices_who_dies(tmp_path: Path) -> None:
    path, bereaved = tmp_path / "base.sock", threading.Event()
    refusal = LimnerError("OUT_OF_MEMORY")

    def carry_out(order: DoorOrder) -> LimnerError | None:
        return refusal if order.folder == "/large" else None

    door = Door(path, carry_out, bereaved.set)
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        assert _say(path, "nonsense") == ["INVALID_INPUT"]
        assert _say(path, _order("load", "/large")) == ["OUT_OF_MEMORY"]
        assert _say(path, _order("load", "/m"), _order("unload", "/m")) == ["", ""]
        assert not bereaved.is_set()
        assert _say(path, _order("load", "/m")) == [""]
        assert bereaved.wait(DEADLINE_S)
    finally:
        door.close()
    assert not path.exists()


@pytest.mark.parametrize("meant", [True, False])
def test_the_lifeline_tells_an_end_from_a_death(tmp_path: Path, meant: bool) -> None:
    door = tmp_path / "base.sock"
    watched = Watched(door)
    try:
        held = Held(door)
        held.say_goodbye() if meant else held.cut()
        assert watched.wait() == meant
    finally:
        watched.close()


def test_the_lifeline_calls_time(tmp_path: Path) -> None:
    door, called = tmp_path / "base.sock", threading.Event()
    watched = Watched(door)
    try:
        watched.call_time()  # before there is anybody
        held = Held(door)
        held.when_time_is_called(called.set)
        with ThreadPoolExecutor(1) as pool:
            meant = pool.submit(watched.wait)
            while not called.wait(0.01):
                watched.call_time()
            held.say_goodbye()
            assert meant.result(DEADLINE_S)
        watched.call_time()  # when it has gone
    finally:
        watched.close()


@pytest.mark.parametrize("meant", [True, False])
def test_the_lifeline_ends_though_somebody_waits_for_a_call(tmp_path: Path, meant: bool) -> None:
    door, called = tmp_path / "base.sock", threading.Event()
    watched = Watched(door)
    try:
        held = Held(door)
        held.when_time_is_called(called.set)
        held.say_goodbye() if meant else held.cut()
        assert watched.wait() == meant
        assert not called.is_set()
    finally:
        watched.close()


def test_without_serve_there_is_no_lifeline(tmp_path: Path) -> None:
    held = Held(tmp_path / "base.sock")
    held.when_time_is_called(lambda: pytest.fail("nobody calls"))
    held.cut()
    held.say_goodbye()


def test_the_command_line_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "9001")
    monkeypatch.setenv("SAGEMAKER_SAFE_PORT_RANGE", "9000-9999")
    monkeypatch.setenv("SAGEMAKER_TRITON_SHM_DEFAULT_BYTE_SIZE", "2097152")
    settings = TritonSettings()
    command = serve.command(settings)
    assert command[0] == "/opt/tritonserver/bin/tritonserver"
    assert {
        "--allow-sagemaker=true",
        "--sagemaker-port=9001",
        "--sagemaker-safe-port-range=9000-9999",
        "--load-model=base",
        "--model-namespacing=false",
        "--log-info=false",
        "--backend-config=python,shm-default-byte-size=2097152",
    } <= set(command)
    assert settings.environment()["SAGEMAKER_TRITON_PING_MODE"] == "live"
    assert (settings.repository / "base" / "1" / "model.py").is_file()


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("LIMNER_TRITON_PROGRAM", "/absent/tritonserver", "TOOL_MISSING"),
        ("LIMNER_TRITON_BACKENDS", "/absent", "TOOL_MISSING"),
        ("LIMNER_TRITON_REPOSITORY", "/absent", "INVALID_INPUT"),
        ("LIMNER_TRITON_SOCKET", "/" + "x" * 120, "INVALID_INPUT"),
        ("SAGEMAKER_SAFE_PORT_RANGE", "9000", "INVALID_INPUT"),
        ("SAGEMAKER_BIND_TO_PORT", "0", "INVALID_INPUT"),
    ],
)
def test_what_cannot_start_is_told_in_a_line(
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    code: str,
) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    (tmp_path / "backends" / "python").mkdir(parents=True)
    monkeypatch.setenv("LIMNER_BASE_DIR", str(base_folder))
    monkeypatch.setenv("LIMNER_TRITON_PROGRAM", str(program))
    monkeypatch.setenv("LIMNER_TRITON_BACKENDS", str(tmp_path / "backends"))
    monkeypatch.setenv("LIMNER_TRITON_SOCKET", str(tmp_path / "run" / "base.sock"))
    monkeypatch.setenv(name, value)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers)  # what it sets up is this test's alone
    assert serve.main() == 1
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["event"], line["code"]) == ("not started", code)


def _code(answer: object) -> str:
    assert isinstance(answer, LimnerError), answer
    return answer.code


def _asked(desk: Desk, call: Call) -> bytes | LimnerError:
    answers: list[bytes | LimnerError] = []
    there = threading.Event()
    desk.invoke(call, lambda answer: (answers.append(answer), there.set()))
    assert there.wait(DEADLINE_S)
    return answers[0]


def _drawn(desk: Desk, call: Call) -> bytes:
    answer = _asked(desk, call)
    assert isinstance(answer, bytes), answer
    return answer


def _order(operation: str, folder: str) -> str:
    return json.dumps({"operation": operation, "folder": folder})


def _say(path: Path, *lines: str) -> list[str]:
    """The codes of the answers to these lines, over one connection."""
    with socket.socket(socket.AF_UNIX) as visitor, visitor.makefile() as answers:
        visitor.settimeout(DEADLINE_S)
        visitor.connect(str(path))
        told = []
        for line in lines:
            visitor.sendall(line.encode() + b"\n")
            answer = answers.readline().strip()
            told.append(json.loads(answer[answer.index("{") :])["error"]["code"] if answer else "")
    return told
