"""``limner train --on here``: the real program as a process, over a random pipeline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from limner.contracts import artifact as form
from limner.contracts.training import TrainingConfig
from tests.contract.test_training_container import draw_photos
from tests.support.pipelines import save_random_pipeline

REPOSITORY = Path(__file__).parents[2]
RECIPE = {"steps": 12, "batch_size": 2, "rank": 2, "augmentations": 2, "preview_steps": 2}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and photos."""
    folder = tmp_path_factory.mktemp("given")
    save_random_pipeline(folder / "base")
    draw_photos(folder / "photos")
    return folder


def start(given: Path, out: Path, *words: str, **recipe: object) -> subprocess.Popen[str]:
    options = [f"--config={name}={value}" for name, value in {**RECIPE, **recipe}.items()]
    photos, base = str(given / "photos"), str(given / "base")
    command = ["train", photos, "--base", base, "--out", str(out), *options, *words]
    scratch = out.with_name("scratch")
    scratch.mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", "from limner.cli.main import main; main()", *command],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "out"
    left = list((tmp_path / "scratch").glob("limner-*"))
    assert left == [], "photos stay in no temporary folder"


def test_artifact_and_first_images_lie_in_out(given: Path, out: Path) -> None:
    process = start(given, out, "--json")
    stdout, stderr = process.communicate(timeout=150)
    assert process.returncode == 0, stderr
    assert "3 photos, 12 steps, on this machine.\n" in stderr
    assert "step 10/12  loss " in stderr
    assert "step 12/12  loss " in stderr
    document = json.loads(stdout)
    assert document["metrics"]["steps"] == 12
    assert document["artifact"] == str(out / "model.tar.gz")
    names = {"model.tar.gz", "preview-00.png", "preview-01.png"}
    assert {path.name for path in out.iterdir()} == names
    with tarfile.open(out / "model.tar.gz") as tar:
        assert tar.getnames() == list(form.MEMBERS)
        manifest = tar.extractfile(form.MANIFEST)
        assert manifest is not None
        read = form.Manifest.model_validate_json(manifest.read())
    assert read.config_sha256 == TrainingConfig.model_validate(RECIPE).digest()
    assert read.request_id == document["request_id"]


def test_the_programs_own_error_is_told(given: Path, out: Path) -> None:
    (given / "base" / "unet" / "config.json").rename(given / "hidden.json")
    try:
        process = start(given, out)
        stdout, stderr = process.communicate(timeout=150)
    finally:
        (given / "hidden.json").rename(given / "base" / "unet" / "config.json")
    assert process.returncode == 1
    assert "BASE_INVALID " in stderr
    assert "Fix: Check that the base is a diffusers" in stderr
    assert stdout == ""
    assert not out.exists()


def test_ctrl_c_ends_the_program_too(given: Path, out: Path) -> None:
    process = start(given, out, steps=20_000)
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("step 10/20000" in line for line in lines)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=40)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert not out.exists()
