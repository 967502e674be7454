"""``python -m training`` as SageMaker starts it: a process, folders, signals, an exit code."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from limner.contracts import artifact as form
from limner.contracts.base import base_digest
from limner.contracts.training import METRIC_DEFINITIONS, TrainingConfig
from tests.support.pipelines import RANDOM_BASE_ID, RANDOM_RESOLUTION_PX, save_random_pipeline

REPOSITORY = Path(__file__).parents[2]
# Longer than the text length of the base, so that libraries have a reason to complain about it.
CANARY = "a photo of {token} on a canary yellow background"
CONFIG = TrainingConfig(
    steps=25,
    batch_size=2,
    rank=2,
    augmentations=2,
    preview_prompts=("a photo of {token}", CANARY),
    preview_steps=2,
)


@dataclass(frozen=True)
class Container:
    """The folders of one container."""

    root: Path

    @property
    def failure(self) -> str:
        path = self.root / "output" / "failure"
        return path.read_text() if path.exists() else ""

    def members(self) -> set[str]:
        model = self.root / "model"
        return {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()}

    def start(self) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "OMP_NUM_THREADS": "1",
            "SAGEMAKER_BASE_DIR": str(self.root),
            "TRAINING_JOB_NAME": "limner-r1-1",
            "TRAINING_JOB_ARN": "arn:aws:sagemaker:us-east-1:000000000000:training-job/limner-r1-1",
            "LIMNER_REQUEST_ID": "r1",
            "LIMNER_MODEL_ID": "default",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "training"],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self) -> tuple[int, str, str]:
        with self.start() as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_pipeline(tmp_path_factory.mktemp("base"))


def prepare(root: Path, base_dir: Path, config: TrainingConfig = CONFIG) -> Container:
    configs = root / "input" / "config"
    photos = root / "input" / "data" / "photos"
    for folder in (configs, photos, root / "model", root / "output", root / "checkpoints"):
        folder.mkdir(parents=True)
    shutil.copytree(base_dir, root / "input" / "data" / "base")
    channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}
    contents: dict[str, object] = {
        "hyperparameters": config.to_hyperparameters(),
        "inputdataconfig": {"photos": channel, "base": channel},
        "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"]},
    }
    for name, content in contents.items():
        (configs / f"{name}.json").write_text(json.dumps(content))
    for index in range(3):
        image = Image.new("RGB", (60, 50), "white")
        ImageDraw.Draw(image).ellipse((10 + index, 10, 40, 40), fill="red")
        image.save(photos / f"portrait-{index}.png")
    return Container(root)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, base_dir: Path
) -> Iterator[tuple[Container, str, str]]:
    """A job that ended well, run once for all tests that look at what it left."""
    container = prepare(tmp_path_factory.mktemp("job") / "ml", base_dir)
    code, out, err = container.run()
    assert code == 0, err + container.failure
    yield container, out, err


def test_a_good_job_leaves_exactly_the_artifact(
    finished: tuple[Container, str, str], base_dir: Path
) -> None:
    container, _, _ = finished
    assert container.members() == set(form.MEMBERS)
    assert container.failure == ""
    model = container.root / "model"
    manifest = form.Manifest.model_validate_json((model / form.MANIFEST).read_bytes())
    assert (manifest.request_id, manifest.base_id) == ("r1", RANDOM_BASE_ID)
    assert manifest.base_sha256 == base_digest(base_dir)
    assert manifest.config_sha256 == CONFIG.digest()
    for name, digest in (
        (form.ADAPTER, manifest.adapter_sha256),
        (form.PACKED, manifest.packed_sha256),
    ):
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == digest
    for name, content in form.shell_files().items():
        assert (model / name).read_bytes() == content
    assert manifest.metrics["steps"] == CONFIG.steps
    assert manifest.metrics["photos"] == 3
    assert manifest.metrics["loss"] > 0


def test_the_first_images_lie_among_the_checkpoints(
    finished: tuple[Container, str, str],
) -> None:
    checkpoints = finished[0].root / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["preview-00.png", "preview-01.png"]
    for path in checkpoints.iterdir():
        with Image.open(path) as image:
            assert (image.format, image.size) == ("PNG", (RANDOM_RESOLUTION_PX,) * 2)


def test_sagemaker_reads_metrics_from_the_log(finished: tuple[Container, str, str]) -> None:
    _, out, _ = finished
    read = {name: re.findall(pattern, out) for name, pattern in METRIC_DEFINITIONS}
    assert read["train:step"] == ["10", "20", "25"]
    assert all(float(value) > 0 for value in read["train:loss"])
    assert len(read["train:loss"]) == len(read["train:images_per_second"]) == 3


def test_the_log_holds_nothing_personal(finished: tuple[Container, str, str]) -> None:
    _, out, err = finished
    assert "canary" not in out + err
    assert "portrait" not in out + err
    assert err == ""


def test_a_bad_photo_is_named_with_reason_and_fix(tmp_path: Path, base_dir: Path) -> None:
    container = prepare(tmp_path / "ml", base_dir)
    (container.root / "input/data/photos/portrait-1.png").write_bytes(b"Dear Sir or Madam")
    code, out, err = container.run()
    assert code == 1
    assert container.failure == (
        "PHOTO_NOT_AN_IMAGE: 'portrait-1.png' is not a PNG, JPEG or WebP image. "
        "Fix: Replace the file by a PNG, JPEG or WebP image."
    )
    assert container.members() == set()
    assert err == "event=failed code=PHOTO_NOT_AN_IMAGE\n"
    assert "portrait" not in out


def test_a_second_host_ends_well_and_leaves_nothing(tmp_path: Path, base_dir: Path) -> None:
    container = prepare(tmp_path / "ml", base_dir)
    (container.root / "input/config/resourceconfig.json").write_text(
        json.dumps({"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]})
    )
    code, out, err = container.run()
    assert (code, out, err) == (0, "event=idle host=1 hosts=2\n", "")
    assert container.members() == set()


def test_sigterm_ends_the_job_promptly_and_cleanly(tmp_path: Path, base_dir: Path) -> None:
    long = CONFIG.model_copy(update={"steps": 20_000})
    container = prepare(tmp_path / "ml", base_dir, long)
    with container.start() as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], 120)
            assert ready, "no progress within the deadline"
            while "step=" not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            asked = time.monotonic()
            process.communicate(timeout=30)
            assert time.monotonic() - asked < 15
        finally:
            process.kill()
    assert process.returncode == 1
    assert container.failure.startswith("TRAINING_STOPPED: ")
    assert container.members() == set()
