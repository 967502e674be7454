"""The shell's edges that need no process: settings, logs, and what happens on a bug of ours."""

import io
import json
import logging
from pathlib import Path

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from inference import answers, logs
from inference.engine.base import ResidentBase
from inference.engine.engine import Engine
from inference.opening import open_engine
from inference.server import app
from inference.settings import Settings
from limner.contracts.errors import LimnerError
from tests.support.artifacts import write_artifact


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "9001")
    monkeypatch.setenv("LIMNER_BASE_DIR", "/bases/x")
    settings = Settings()
    assert (settings.port, settings.base_dir) == (9001, Path("/bases/x"))
    assert settings.models_root == Path("/opt/ml/models")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIMNER_MAX_MODELS", "0"),
        ("LIMNER_ADAPTER_BYTES", "0"),
        ("LIMNER_MAX_QUEUE", "none"),
        ("LIMNER_MAX_ROWS", "5000"),
        ("LIMNER_SAFETY", "os.system"),
    ],
)
def test_wrong_settings_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


def test_the_engine_is_started_as_the_settings_say(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMNER_BASE_DIR", str(base_folder))
    monkeypatch.setenv("LIMNER_DEVICE", "cpu")
    open_engine(Settings()).engine.close()
    monkeypatch.setenv("LIMNER_SAFETY", "inference.settings:Settings")
    with pytest.raises(LimnerError, match="LIMNER_SAFETY"):
        open_engine(Settings())


def test_an_answer_that_the_platform_would_refuse_is_an_error_with_a_fix(
    base: ResidentBase, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_artifact(tmp_path / "a", base_folder)
    engine = Engine(base, max_models=1, max_rank=8)
    engine.load("a", tmp_path / "a")
    monkeypatch.setattr(answers, "MAX_BODY_BYTES", 1_000)
    with TestClient(app.build_app(engine, tmp_path)) as client:
        answer = client.post("/models/a/invoke", json={"prompt": "x", "steps": 1})
    assert answer.status_code == 400
    assert "fewer images" in answer.json()["error"]["message"]


def test_a_bug_is_answered_without_its_text_and_logged_without_it(
    base: ResidentBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.JsonLines())
    logger = logging.getLogger("limner.inference")
    logger.addHandler(handler)
    engine = Engine(base, max_models=1, max_rank=8)

    def bug(*_: object) -> None:
        raise KeyError("zebra prompt")

    monkeypatch.setattr(engine, "submit", bug)
    with TestClient(app.build_app(engine, tmp_path)) as client:
        answer = client.post("/models/a/invoke", json={"prompt": "zebra prompt"})
    logger.removeHandler(handler)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "INTERNAL"
    assert "zebra" not in answer.text
    assert "zebra" not in written.getvalue()
    line = json.loads(written.getvalue().splitlines()[0])
    assert line["exception"] == "KeyError"
    assert line["where"][-1].endswith(" bug")
