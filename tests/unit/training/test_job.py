from __future__ import annotations

import json
from pathlib import Path

import pytest

from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from training.job import read_job
from training.settings import Settings, read_settings

GOOD: dict[str, object] = {
    "hyperparameters": {"steps": "7", "token": "zwx", "sagemaker_program": "x"},
    "inputdataconfig": {"photos": {"TrainingInputMode": "File"}, "base": {}},
    "resourceconfig": {
        "current_host": "host-b",
        "hosts": ["host-a", "host-b"],
        "network_interface_name": "eth0",
    },
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(base_dir=tmp_path, request_id="r1")
    settings.config_dir.mkdir(parents=True)
    for name, content in GOOD.items():
        (settings.config_dir / f"{name}.json").write_text(json.dumps(content))
    for channel in ("photos", "base"):
        (settings.data_dir / channel).mkdir(parents=True)
    return settings


def test_a_job_is_read(settings: Settings) -> None:
    job = read_job(settings)
    assert job.config == TrainingConfig(steps=7, token="zwx")
    assert job.resources.index == 1
    assert job.photos_dir == settings.base_dir / "input" / "data" / "photos"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("hyperparameters", {"steps": "0"}, "steps"),
        ("hyperparameters", {"stepps": "5"}, "stepps"),
        ("hyperparameters", {"steps": 5}, "hyperparameters.json: steps"),
        ("inputdataconfig", {"photos": {}}, "no channel 'base'"),
        ("resourceconfig", {"current_host": "x", "hosts": ["a"]}, "current_host is not one of"),
        ("resourceconfig", {"current_host": "x", "hosts": []}, "hosts"),
    ],
)
def test_a_wrong_entry_is_named(settings: Settings, name: str, content: object, words: str) -> None:
    (settings.config_dir / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(LimnerError, match=words) as caught:
        read_job(settings)
    assert caught.value.code == "INVALID_INPUT"


@pytest.mark.parametrize("name", GOOD)
def test_a_missing_or_broken_file_is_named(settings: Settings, name: str) -> None:
    path = settings.config_dir / f"{name}.json"
    path.write_text("{")
    with pytest.raises(LimnerError, match=rf"{name}\.json: "):
        read_job(settings)
    path.unlink()
    with pytest.raises(LimnerError, match=rf"{name}\.json cannot be read: No such file"):
        read_job(settings)


def test_a_missing_channel_folder_is_named(settings: Settings) -> None:
    (settings.data_dir / "photos").rmdir()
    with pytest.raises(LimnerError, match="folder of the channel 'photos' is missing"):
        read_job(settings)


def test_settings_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    monkeypatch.setenv("LIMNER_REQUEST_ID", "abc-1")
    monkeypatch.setenv("LIMNER_MODEL_ID", "portraits")
    settings = read_settings()
    assert (settings.base_dir, settings.request_id, settings.model_id) == (
        tmp_path,
        "abc-1",
        "portraits",
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("../../etc", r"request id '\.\./\.\./etc' must match"),
        (None, "LIMNER_REQUEST_ID: Field req"),
    ],
)
def test_a_wrong_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, value: str | None, words: str
) -> None:
    monkeypatch.delenv("LIMNER_REQUEST_ID", raising=False)
    if value is not None:
        monkeypatch.setenv("LIMNER_REQUEST_ID", value)
    with pytest.raises(LimnerError, match=words) as caught:
        read_settings()
    assert caught.value.code == "INVALID_INPUT"
