"""The tasks of a batch share the base and nothing else."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load

from limner.contracts import artifact as form
from limner.contracts.tasks import TaskResult
from limner.contracts.training import TrainingConfig
from training import batch, production, runner
from training.base import Base, load_base
from training.batch import train_all
from training.cohort import Cohort, Learner
from training.job import Work
from training.settings import Settings

CPU = torch.device("cpu")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(base_dir=tmp_path / "ml")


@pytest.fixture
def base(base_dir: Path) -> Base:
    return load_base(base_dir, CPU)


def work(root: Path, request_id: str, config: TrainingConfig, color: str = "red") -> Work:
    folder = root / "photos" / request_id
    if not folder.exists():
        folder.mkdir(parents=True)
        for index in range(3):
            image = Image.new("RGB", (48, 40), "white")
            ImageDraw.Draw(image).ellipse((5 + index, 5, 30, 30), fill=color)
            image.save(folder / f"{index}.png")
    return Work(request_id=request_id, model_id="default", config=config, photos_dir=folder)


def manifest_of(settings: Settings, request_id: str) -> form.Manifest:
    with tarfile.open(settings.task_dir(request_id) / "model.tar.gz") as tar:
        file = tar.extractfile(form.MANIFEST)
        assert file is not None
        return form.Manifest.model_validate_json(file.read())


def result_of(settings: Settings, request_id: str) -> TaskResult:
    text = (settings.task_dir(request_id) / "result.json").read_text()
    return TaskResult.model_validate_json(text)


def adapter_of(settings: Settings, request_id: str) -> dict[str, torch.Tensor]:
    with tarfile.open(settings.task_dir(request_id) / "model.tar.gz") as tar:
        file = tar.extractfile(form.ADAPTER)
        assert file is not None
        return load(file.read())


def test_a_batch_trains_what_would_have_been_trained_alone(
    settings: Settings,
    base: Base,
    base_dir: Path,
    tmp_path: Path,
    config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other ranks and layers come before it, and failures before and after their training."""
    wild = config.model_copy(update={"learning_rate": 1.0, "target": "all"})
    sound = production.preview

    def preview(config: TrainingConfig, base: Base, prompt: str, seed: int) -> Image.Image:
        if config == wild:
            raise MemoryError
        return sound(config, base, prompt, seed)

    monkeypatch.setattr(production, "preview", preview)
    (tmp_path / "photos" / "bad").mkdir(parents=True)
    works = [
        work(tmp_path, "wide", config.model_copy(update={"rank": 5, "target": "attention"})),
        work(tmp_path, "bad", config),
        work(tmp_path, "first", config, "blue"),
        work(tmp_path, "wild", wild),
        work(tmp_path, "more", config.model_copy(update={"rank": 3, "seed": 5}), "green"),
        work(tmp_path, "again", config.model_copy(update={"target": "transformer"}), "green"),
    ]
    train_all(settings, base, works)

    for request_id in ("wide", "first", "more", "again"):
        alone = Settings(base_dir=tmp_path / "alone" / request_id)
        (chosen,) = [item for item in works if item.request_id == request_id]
        train_all(alone, load_base(base_dir, CPU), [chosen])
        ours, theirs = (adapter_of(s, request_id) for s in (settings, alone))
        assert ours.keys() == theirs.keys()
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5
        metrics = [manifest_of(s, request_id).metrics for s in (settings, alone)]
        assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    assert [result_of(settings, item).status for item in ("bad", "wild")] == ["failed", "failed"]
    names = ("wide", "first", "more", "again")
    assert len({manifest_of(settings, item).adapter_sha256 for item in names}) == 4


def test_a_trained_task_leaves_its_files_and_figures(
    settings: Settings, base: Base, tmp_path: Path, config: TrainingConfig
) -> None:
    train_all(settings, base, [work(tmp_path, "r1", config)])
    folder = settings.task_dir("r1")
    names = ["model.tar.gz", "preview-00.png", "result.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    result, manifest = result_of(settings, "r1"), manifest_of(settings, "r1")
    assert (result.request_id, result.status, result.error) == ("r1", "trained", None)
    assert (manifest.request_id, manifest.config_sha256) == ("r1", config.digest())
    assert result.metrics["photos"] == 3
    assert manifest.metrics.items() <= result.metrics.items()
    timings = {"train_seconds", "images_per_second", "first_image_seconds", "share_seconds"}
    assert result.metrics.keys() - manifest.metrics.keys() == timings
    assert 0 < result.metrics["first_image_seconds"] < result.seconds
    assert 0 < result.metrics["share_seconds"] <= result.seconds
    assert not any(settings.parts_dir.iterdir())


def test_a_diverged_task_is_a_result_and_the_next_one_is_sound(
    settings: Settings, base: Base, tmp_path: Path, config: TrainingConfig
) -> None:
    unharmed = base.pipeline.unet.conv_in.weight.clone()
    works = [work(tmp_path, "r1", config), work(tmp_path, "r2", config)]
    base.pipeline.unet.conv_in.weight.data.fill_(float("nan"))
    train_all(settings, base, works[:1])
    assert (error := result_of(settings, "r1").error) is not None
    assert error.code == "TRAINING_DIVERGED"
    base.pipeline.unet.conv_in.weight.data.copy_(unharmed)
    train_all(settings, base, works[1:])
    assert result_of(settings, "r2").status == "trained"


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (MemoryError(), "memory is too small"),
        (torch.OutOfMemoryError("CUDA out of memory."), "memory is too small"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory is too small"),
        (RuntimeError("a prompt about secrets"), "RuntimeError in fail, line "),
    ],
)
def test_trouble_of_a_task_is_its_result(
    settings: Settings,
    base: Base,
    tmp_path: Path,
    config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: Exception,
    words: str,
) -> None:
    sound = runner.produce

    def fail(
        base: Base, cohort: Cohort, learner: Learner, work: Work, **kwargs: object
    ) -> production.Made:
        if work.request_id == "r1":
            raise trouble
        return sound(base, cohort, learner, work, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "produce", fail)
    train_all(settings, base, [work(tmp_path, "r1", config), work(tmp_path, "r2", config)])
    result = result_of(settings, "r1")
    assert (result.status, result.artifact_sha256) == ("failed", "")
    assert result.error is not None
    assert result.error.code == "TRAINING_FAILED"
    assert words in result.error.message
    assert not (settings.task_dir("r1") / "model.tar.gz").exists()
    assert result_of(settings, "r2").status == "trained"
    heard = capsys.readouterr()
    assert "event=task request=r1 status=failed seconds=" in heard.out
    assert "secrets" not in heard.out + heard.err + json.dumps(result.model_dump())


def test_a_pass_that_is_too_large_is_cut_down(
    settings: Settings,
    base: Base,
    tmp_path: Path,
    config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two at once are too many for this machine; one by one they are not."""
    sound = Cohort.step

    def step(cohort: Cohort) -> list[Learner]:
        if len(cohort.learners) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sound(cohort)

    monkeypatch.setattr(Cohort, "step", step)
    train_all(settings, base, [work(tmp_path, name, config) for name in ("r1", "r2", "r3")])
    assert [result_of(settings, name).status for name in ("r1", "r2", "r3")] == ["trained"] * 3


def test_a_pass_that_is_too_large_for_one_is_his_failure(
    settings: Settings,
    base: Base,
    tmp_path: Path,
    config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = Cohort.step

    def step(cohort: Cohort) -> list[Learner]:
        if any(learner.config.seed == 9 for learner in cohort.learners):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sound(cohort)

    monkeypatch.setattr(Cohort, "step", step)
    large = config.model_copy(update={"seed": 9})
    train_all(settings, base, [work(tmp_path, "large", large), work(tmp_path, "r2", config)])
    assert [result_of(settings, name).status for name in ("large", "r2")] == ["failed", "trained"]


def test_torchs_own_memory_error_is_known() -> None:
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        torch.empty(2**46)


def test_a_full_disk_ends_the_job(
    settings: Settings,
    base: Base,
    tmp_path: Path,
    config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The task is without a result, so that another machine does it."""

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(batch, "write_archive", full)
    with pytest.raises(OSError, match="No space left"):
        train_all(settings, base, [work(tmp_path, "r1", config)])
    assert not (settings.task_dir("r1") / "result.json").exists()
