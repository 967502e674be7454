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
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from limner.contracts import artifact as form
from limner.contracts.base import base_digest
from limner.contracts.tasks import Task, TaskError, TaskResult
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

WISH = {"LIMNER_REQUEST_ID": "r1", "LIMNER_MODEL_ID": "default"}
BATCH: Mapping[str, str] = {}  # a batch is not one request


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

    def start(self, *, wish: Mapping[str, str] = WISH) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "OMP_NUM_THREADS": "1",
            "SAGEMAKER_BASE_DIR": str(self.root),
            "TRAINING_JOB_NAME": "limner-r1-1",
            "TRAINING_JOB_ARN": "arn:aws:sagemaker:us-east-1:000000000000:training-job/limner-r1-1",
            **wish,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "training"],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *, wish: Mapping[str, str] = WISH) -> tuple[int, str, str]:
        with self.start(wish=wish) as process:
            out, err = process.communicate(timeout=300)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_pipeline(tmp_path_factory.mktemp("base"))


def prepare(root: Path, base_dir: Path, config: TrainingConfig = CONFIG) -> Container:
    """A job of one request, which is told its config by the channel ``config``."""
    container = prepare_folders(root, base_dir, ("photos", "config"))
    (root / "input/data/config/config.json").write_text(config.model_dump_json())
    draw_photos(root / "input/data/photos")
    return container


def prepare_folders(root: Path, base_dir: Path, channels: tuple[str, ...]) -> Container:
    configs = root / "input" / "config"
    for folder in (configs, root / "model", root / "output", root / "checkpoints"):
        folder.mkdir(parents=True)
    shutil.copytree(base_dir, root / "input" / "data" / "base")
    for name in channels:
        (root / "input" / "data" / name).mkdir()
    channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}
    contents: dict[str, object] = {
        "hyperparameters": {},
        "inputdataconfig": dict.fromkeys((*channels, "base"), channel),
        "resourceconfig": {"current_host": "algo-1", "hosts": ["algo-1"]},
    }
    for name, content in contents.items():
        (configs / f"{name}.json").write_text(json.dumps(content))
    return Container(root)


def draw_photos(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(3):
        image = Image.new("RGB", (60, 50), "white")
        ImageDraw.Draw(image).ellipse((10 + index, 10, 40, 40), fill="red")
        image.save(folder / f"portrait-{index}.png")


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
    (first_s,) = re.findall(r"event=trained seconds=\S+ .*first_image_seconds=(\S+)", finished[1])
    assert float(first_s) > 0


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


def end_at(
    process: subprocess.Popen[str], sign: str, number: int = signal.SIGTERM
) -> tuple[str, float]:
    """Sends a signal as soon as the log has the sign; returns the log and the seconds it took."""
    lines = []
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 300)
        assert ready, "no progress within the deadline"
        while not lines or sign not in lines[-1]:
            assert process.poll() is None
            lines.append(process.stdout.readline())
        process.send_signal(number)
        asked = time.monotonic()
        rest, _ = process.communicate(timeout=120)  # then SageMaker would kill
        seconds = time.monotonic() - asked
    finally:
        process.kill()
    return "".join(lines) + rest, seconds


def test_sigterm_ends_the_job_promptly_and_cleanly(tmp_path: Path, base_dir: Path) -> None:
    long = CONFIG.model_copy(update={"steps": 20_000})
    container = prepare(tmp_path / "ml", base_dir, long)
    with container.start() as process:
        log, _ = end_at(process, "step=")
    assert process.returncode == 1
    assert "event=saved learners=1" in log
    assert container.failure.startswith("TRAINING_STOPPED: ")
    assert container.members() == set()


# -- A batch --------------------------------------------------------------------------------------


def task_line(request_id: str, instance: int, config: TrainingConfig = CONFIG) -> str:
    task = Task(
        request_id=request_id,
        user_id="Berenice",
        model_id="default",
        photos=f"Berenice/{request_id}/",
        config=config,
        instance=instance,
        predicted_s=1.0,
    )
    return task.model_dump_json() + "\n"


def hosts(container: Container, current: str, *names: str) -> None:
    content = json.dumps({"current_host": current, "hosts": names})
    (container.root / "input/config/resourceconfig.json").write_text(content)


def result_of(container: Container, request_id: str) -> TaskResult:
    path = container.root / "checkpoints" / request_id / "result.json"
    return TaskResult.model_validate_json(path.read_bytes())


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_batch_on_two_hosts(
    tmp_path: Path, base_dir: Path, finished: tuple[Container, str, str]
) -> None:
    """A good task, a bad one, an interruption, and a restart that finds what was done."""
    container = prepare_folders(tmp_path / "ml", base_dir, ("photos", "tasks"))
    checkpoints = container.root / "checkpoints"
    for request_id in ("r1", "bad", "r3", "long"):
        draw_photos(container.root / "input/data/photos/Berenice" / request_id)
    bad = container.root / "input/data/photos/Berenice/bad/portrait-1.png"
    bad.write_bytes(b"Dear Sir or Madam")
    short = CONFIG.model_copy(update={"steps": 2, "preview_prompts": ()})
    long = CONFIG.model_copy(update={"steps": 20_000})
    (container.root / "input/data/tasks/tasks.jsonl").write_text(
        task_line("bad", 0)
        + task_line("r3", 1, short)
        + task_line("r1", 2)  # two hosts: the first one's, too
        + task_line("long", 1, long)
    )

    # The first host: a task fails, the next one is trained as if it were alone.
    hosts(container, "algo-1", "algo-1", "algo-2")
    code, out, err = container.run(wish=BATCH)
    assert (code, err, container.failure) == (0, "", "")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["_state", "bad", "r1"]
    failed = result_of(container, "bad")
    assert failed.error == TaskError(
        code="PHOTO_NOT_AN_IMAGE", message="'portrait-1.png' is not a PNG, JPEG or WebP image."
    )
    assert state_of(checkpoints / "bad").keys() == {"result.json"}
    assert re.findall(r"event=task request=(\S+) status=(\S+) seconds=\S+", out) == [
        ("bad", "failed"),
        ("r1", "trained"),
    ]
    assert not any(word in out for word in ("Berenice", "canary", "portrait"))

    folder = checkpoints / "r1"
    names = {"preview-00.png", "preview-01.png", "model.tar.gz", "result.json"}
    assert state_of(folder).keys() == names
    archive = folder / "model.tar.gz"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert result_of(container, "r1").artifact_sha256 == digest
    alone = finished[0].root
    with tarfile.open(archive) as tar:
        assert tar.getnames() == list(form.MEMBERS)
        for name in form.MEMBERS:
            member = tar.extractfile(name)
            assert member is not None
            assert member.read() == (alone / "model" / name).read_bytes(), name
    for path in (alone / "checkpoints").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert container.members() == set(), "SageMaker has nothing to pack"

    # The second host is stopped in the middle of its second task.
    hosts(container, "algo-2", "algo-1", "algo-2")
    with container.start(wish=BATCH) as process:
        out, _ = end_at(process, "step=10 ")
    assert process.returncode == 1
    assert container.failure.startswith("TRAINING_STOPPED: ")
    assert "event=task request=r3 status=trained" in out
    assert result_of(container, "r3").status == "trained"
    assert not (checkpoints / "long").exists()
    assert not list((container.root / "parts").iterdir())

    # A restart of the first host does nothing again.
    before = state_of(checkpoints)
    hosts(container, "host-x", "host-x", "host-y")
    code, out, err = container.run(wish=BATCH)
    assert (code, err) == (0, "")
    assert re.findall(r"event=kept request=(\S+)", out) == ["bad", "r1"]
    assert "event=loaded" not in out
    assert state_of(checkpoints) == before


# -- Interruptions --------------------------------------------------------------------------------


def adapters_of(container: Container) -> dict[str, bytes]:
    """The adapter of each artifact, by its place."""
    found = {
        path.as_posix(): path.read_bytes() for path in container.root.glob(f"model/{form.ADAPTER}")
    }
    for path in container.root.glob("checkpoints/*/model.tar.gz"):
        with tarfile.open(path) as tar:
            member = tar.extractfile(form.ADAPTER)
            assert member is not None
            found[path.as_posix()] = member.read()
    return {name.removeprefix(container.root.as_posix()): data for name, data in found.items()}


def job_of(users: int, root: Path, base_dir: Path) -> tuple[Container, Mapping[str, str]]:
    """A job of one request, or a batch of more users than slots."""
    configs = [
        CONFIG.model_copy(update={"steps": steps, "seed": steps, "preview_prompts": ()})
        for steps in (200, 40, 140)[:users]
    ]
    if users == 1:
        return prepare(root, base_dir, configs[0]), WISH
    container = prepare_folders(root, base_dir, ("photos", "tasks"))
    lines = []
    for number, config in enumerate(configs):
        draw_photos(root / "input/data/photos/Berenice" / f"r{number}")
        lines.append(task_line(f"r{number}", 0, config))
    (root / "input/data/tasks/tasks.jsonl").write_text("".join(lines))
    return container, {**BATCH, "LIMNER_ROWS": "4"}


@pytest.mark.parametrize("users", [1, 3], ids=["alone", "three-in-two-slots"])
def test_a_job_that_is_killed_and_stopped_ends_with_the_same_bytes(
    tmp_path: Path,
    base_dir: Path,
    record_property: Callable[[str, object], None],
    users: int,
) -> None:
    unharmed, wish = job_of(users, tmp_path / "unharmed", base_dir)
    wish = {**wish, "LIMNER_QUALITY": "false"}  # another test, and most of the time here
    code, _, err = unharmed.run(wish=wish)
    assert code == 0, err + unharmed.failure

    container, _ = job_of(users, tmp_path / "ml", base_dir)
    wish = {**wish, "LIMNER_CHECKPOINT_S": "0.01"}
    with container.start(wish=wish) as process:
        end_at(process, "step=30 ", signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    left = state_of(container.root / "checkpoints").keys()

    with container.start(wish=wish) as process:
        log, seconds = end_at(process, "step=50 ")
    assert (process.returncode, container.failure[:18]) == (1, "TRAINING_STOPPED: ")
    assert "event=resumed learners=" in log
    (container.root / "output" / "failure").unlink()

    code, out, err = container.run(wish=wish)
    assert (code, err) == (0, "")
    assert f"event=resumed learners={min(users, 2)}" in out
    assert int(re.findall(r"step=([0-9]+) steps=200 ", out)[0]) > 50
    assert adapters_of(container) == adapters_of(unharmed)
    assert len(adapters_of(container)) == users
    assert left <= state_of(container.root / "checkpoints").keys()
    saved = re.findall(r"event=saved learners=\d seconds=(\S+)", log)
    record_property(
        "figure",
        f"P8 {users} user(s), SIGKILL, then SIGTERM, in a process of their own: bit-identical; from"
        f" SIGTERM to saved and ended {seconds:.2f} s (the file itself {float(saved[-1]):.3f} s)",
    )
