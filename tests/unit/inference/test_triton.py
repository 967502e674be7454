"""The Triton shell's parts that need no Triton; tests/contract has the real one."""

import json
import socket
import threading
from pathlib import Path

import pytest

from inference.engine.base import ResidentBase
from inference.engine.engine import Engine
from inference.settings import TritonSettings
from inference.triton import serve
from inference.triton.desk import Call, Desk, Order
from inference.triton.door import Door
from inference.triton.lifeline import Held, Watched
from inference.triton.words import OUT_OF_MEMORY_WORDS, in_words
from limner.contracts.artifact import TRITON_SHELL
from limner.contracts.errors import REGISTRY, LimnerError
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
        load = Order(operation="load", folder=str(folder), target="ada/default/v1.tar.gz")
        assert desk.carry_out(load) is None
        assert _code(desk.carry_out(load)) == "MODEL_ALREADY_LOADED"
        body = b'{"prompt": "x", "steps": 1}'
        assert json.loads(_drawn(desk, Call(str(folder), body)))["images"]
        assert _drawn(desk, Call(str(folder), body, accept="image/png")).startswith(b"\x89PNG")
        assert _code(_asked(desk, Call(str(folder), b"{"))) == "INVALID_INPUT"
        assert _code(_asked(desk, Call("/elsewhere", body))) == "MODEL_NOT_LOADED"
        outside = Order(operation="load", folder=str(tmp_path.parent))
        assert _code(desk.carry_out(outside)) == "INVALID_INPUT"
        unload = Order(operation="unload", folder=str(folder))
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
        order = Order(operation="load", folder=str(folder))
        assert _code(desk.carry_out(order)) == "INTERNAL"
        monkeypatch.setattr(engine, "submit", lambda *_: 1 / 0)
        assert _code(_asked(desk, Call(str(folder), b'{"prompt": "x"}'))) == "INTERNAL"
    finally:
        desk.close()


def test_the_door_obeys_and_notices_who_dies(tmp_path: Path) -> None:
    path, bereaved = tmp_path / "base.sock", threading.Event()
    refusal = LimnerError("OUT_OF_MEMORY")

    def carry_out(order: Order) -> LimnerError | None:
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


def test_without_serve_there_is_no_lifeline(tmp_path: Path) -> None:
    held = Held(tmp_path / "base.sock")
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
