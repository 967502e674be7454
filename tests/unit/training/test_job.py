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
        "current_host": "host-a",
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
    assert job.resources.index == 0
    assert not job.batch
    (work,) = job.share
    assert (work.request_id, work.model_id) == ("r1", "default")
    assert work.config == TrainingConfig(steps=7, token="zwx")
    assert work.photos_dir == settings.data_dir / "photos"


def test_a_second_host_has_no_share_in_one_request(settings: Settings) -> None:
    resources = {"current_host": "host-b", "hosts": ["host-a", "host-b"]}
    (settings.config_dir / "resourceconfig.json").write_text(json.dumps(resources))
    job = read_job(settings)
    assert (job.resources.index, job.share) == (1, ())


# -- The config as a channel ----------------------------------------------------------------------


@pytest.fixture
def config_file(settings: Settings) -> Path:
    """Where the config of a job with a channel ``config`` lies; hyperparameters.json is gone."""
    add_channel(settings, "config")
    (settings.config_dir / "hyperparameters.json").unlink()
    return settings.data_dir / "config" / "config.json"


def add_channel(settings: Settings, name: str) -> None:
    channels = {**GOOD["inputdataconfig"], name: {}}  # type: ignore[dict-item]
    (settings.config_dir / "inputdataconfig.json").write_text(json.dumps(channels))
    (settings.data_dir / name).mkdir()


def test_the_config_comes_from_its_channel(settings: Settings, config_file: Path) -> None:
    config = TrainingConfig(steps=9, preview_prompts=("a drawing of {token}",))
    config_file.write_text(config.model_dump_json())
    (work,) = read_job(settings).share
    assert work.config == config


@pytest.mark.parametrize("hyperparameters", ["{}", '{"steps": "5", "unknown": "entry"}'])
def test_the_channel_comes_before_hyperparameters(
    settings: Settings, config_file: Path, hyperparameters: str
) -> None:
    (settings.config_dir / "hyperparameters.json").write_text(hyperparameters)
    config_file.write_text('{"steps": 9}')
    (work,) = read_job(settings).share
    assert work.config == TrainingConfig(steps=9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"steps": "secret"}', r"config\.json: steps: "),
        ('{"target": "secret", "rank": -1}', r"config\.json: rank: .*; target: "),
        ('{"preview_prompts": ["", "secret"]}', r"config\.json: preview_prompts\.0: "),
        ('{"stepps": "secret"}', r"config\.json: stepps: "),
        ('{"subject": "secret word here"}', r"config\.json: subject: "),
        ('{"secret"', r"config\.json: value: Invalid JSON"),
        ("", r"config\.json: value: Invalid JSON"),
        (None, r"config\.json cannot be read: No such file"),
    ],
)
def test_a_broken_config_is_named_but_not_quoted(
    settings: Settings, config_file: Path, text: str | None, words: str
) -> None:
    if text is not None:
        config_file.write_text(text)
    with pytest.raises(LimnerError, match=words) as caught:
        read_job(settings)
    assert caught.value.code == "INVALID_INPUT"
    assert "secret" not in str(caught.value)


# -- A batch --------------------------------------------------------------------------------------


def line(request_id: str, instance: int = 0, **changes: object) -> str:
    task = {
        "schema_version": 1,
        "request_id": request_id,
        "user_id": "Alice",
        "model_id": "portraits",
        "photos": f"Alice/{request_id}/",
        "config": {"steps": 4},
        "instance": instance,
        "predicted_s": 1.5,
    }
    return json.dumps(task | changes)


@pytest.fixture
def tasks_file(settings: Settings) -> Path:
    """Where the tasks of a batch lie; it has neither hyperparameters nor a request."""
    add_channel(settings, "tasks")
    (settings.config_dir / "hyperparameters.json").unlink()
    return settings.data_dir / "tasks" / "tasks.jsonl"


@pytest.mark.parametrize(
    ("hosts", "shares"),
    [
        (1, ["r0 r1 r2 r3 r4"]),
        (2, ["r0 r2 r4", "r1 r3"]),
        (3, ["r0 r4", "r1", "r2 r3"]),
        (7, ["r0", "r1", "r2 r4", "", "", "r3", ""]),
    ],
)
def test_each_task_has_one_host(
    settings: Settings, tasks_file: Path, hosts: int, shares: list[str]
) -> None:
    instances = (0, 1, 2, 5, 2) if hosts == 7 else (0, 1, 2, 5, 6)
    tasks_file.write_text("\n".join(line(f"r{i}", n) for i, n in enumerate(instances)) + "\n\n")
    # Their names are in no order that means anything.
    names = [f"host-{9 - index}" for index in range(hosts)]
    found = []
    for name in names:
        resources = {"current_host": name, "hosts": names}
        (settings.config_dir / "resourceconfig.json").write_text(json.dumps(resources))
        job = read_job(settings)
        assert job.batch
        found.append(" ".join(work.request_id for work in job.share))
    assert found == shares


def test_a_task_is_read(settings: Settings, tasks_file: Path) -> None:
    tasks_file.write_text(line("r7"))
    (work,) = read_job(settings.model_copy(update={"request_id": None})).share
    assert (work.request_id, work.model_id) == ("r7", "portraits")
    assert work.config == TrainingConfig(steps=4)
    assert work.photos_dir == settings.data_dir / "photos" / "Alice" / "r7"


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("{", "value: Invalid JSON"),
        ("[]", "value: "),
        (line("r2", config={"steps": 0}), r"config\.steps: "),
        (line("r2", instance=-1), "instance: "),
        (line("r2", photos="../secret/"), "photos: "),
        (line("r2", photos="Alice/../"), "photos: "),
        (line("r2", photos="/etc/r2/"), "photos: "),
        (line("r2", photos="Bob/r2/"), "photos: Not the folder of this user"),
        (line("r2", photos="Alice/r1/"), "photos: Not the folder of this user"),
        (line("r2", user_id="se/cret"), "An id does not have its grammar"),
        (line("../secret"), "An id does not have its grammar"),
        (line("r1"), "request_id: It has a line already"),
    ],
)
def test_a_broken_line_is_named(
    settings: Settings, tasks_file: Path, second: str, words: str
) -> None:
    # The line of another host counts, too: all hosts agree on whether a batch is sound.
    tasks_file.write_text(f"{line('r1')}\n{second}\n")
    with pytest.raises(LimnerError, match=rf"tasks\.jsonl, line 2: {words}") as caught:
        read_job(settings)
    assert caught.value.code == "INVALID_INPUT"
    assert "secret" not in str(caught.value)


def test_a_batch_without_its_file_is_refused(settings: Settings, tasks_file: Path) -> None:
    with pytest.raises(LimnerError, match=r"tasks\.jsonl cannot be read: No such file"):
        read_job(settings)


# -- What is wrong is named -----------------------------------------------------------------------


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


def test_a_wrong_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_REQUEST_ID", "../../etc")
    with pytest.raises(LimnerError, match=r"request id '\.\./\.\./etc' must match") as caught:
        read_settings()
    assert caught.value.code == "INVALID_INPUT"


def test_a_job_of_one_request_needs_its_id(settings: Settings) -> None:
    with pytest.raises(LimnerError, match="LIMNER_REQUEST_ID: Field req") as caught:
        read_job(settings.model_copy(update={"request_id": None}))
    assert caught.value.code == "INVALID_INPUT"
