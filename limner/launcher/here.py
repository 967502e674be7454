"""A fine-tune on this machine: the training program as a process over folders of its own.

The folders are those that SageMaker gives a container (developer guide, "How Amazon SageMaker AI
Provides Training Information"), so the program cannot tell the difference.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Final

from limner.contracts import keys
from limner.contracts.artifact import MANIFEST, MEMBERS, Manifest
from limner.contracts.errors import LimnerError
from limner.contracts.training import METRIC_DEFINITIONS
from limner.launcher.plan import (
    ARTIFACT_FILE,
    BASE_CHANNEL,
    CONFIG_CHANNEL,
    PHOTOS_CHANNEL,
    HerePlan,
    environment,
)
from limner.launcher.reasons import error_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limner.photos import Photo

# The checkout that this package lies in: where ``training`` is.
PROGRAM_HOME: Final = Path(__file__).resolve().parents[2]
_GRACE_S: Final = 30
_LOG_TAIL_CHARS: Final = 500
_HOST: Final = "localhost"
PREVIEWS: Final = "preview-*.png"


@dataclass(frozen=True, slots=True)
class Step:
    """How far the program is, from one line of its log.

    Attributes:
        step: Optimizer steps done.
        loss: The loss at present.
        images_per_second: The speed at present.
    """

    step: int
    loss: float
    images_per_second: float


@dataclass(frozen=True, slots=True)
class Made:
    """What a fine-tune left.

    Attributes:
        artifact: The archive, as the endpoint loads it.
        previews: The first images.
        metrics: Figures of the artifact's manifest.
    """

    artifact: Path
    previews: tuple[Path, ...]
    metrics: Mapping[str, float]


def execute(plan: HerePlan, *, progress: Callable[[Step], None]) -> Made:
    """Runs the training program, and puts what it made into ``plan.out``.

    Args:
        plan: What to do.
        progress: Told of each step that the program prints.

    Raises:
        LimnerError: ``TOOL_MISSING``, if the program or its libraries are not here; else the
            program's own error.
    """
    _check_program()
    with tempfile.TemporaryDirectory(prefix="limner-train-") as folder:
        root = Path(folder)
        prepare(root, plan)
        _run(root, plan, progress)
        return _collect(root, plan.out)


def prepare(root: Path, plan: HerePlan) -> None:
    """Makes the folders of a container, and fills them as SageMaker would."""
    data, configs = root / "input" / "data", root / "input" / "config"
    for path in (data / PHOTOS_CHANNEL, data / CONFIG_CHANNEL, configs):
        path.mkdir(parents=True)
    for name in ("model", "output", "checkpoints"):
        (root / name).mkdir()
    for photo in plan.photos:
        _copy(photo, data / PHOTOS_CHANNEL / photo.key_name)
    # A base may have gigabytes, and is only read.
    (data / BASE_CHANNEL).symlink_to(plan.base, target_is_directory=True)
    (data / CONFIG_CHANNEL / keys.CONFIG_FILE).write_text(
        plan.config.model_dump_json(), encoding="utf-8"
    )
    channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}
    channels = (PHOTOS_CHANNEL, CONFIG_CHANNEL, BASE_CHANNEL)
    contents: dict[str, object] = {
        "hyperparameters": {},
        "inputdataconfig": dict.fromkeys(channels, channel),
        "resourceconfig": {"current_host": _HOST, "hosts": [_HOST]},
    }
    for name, content in contents.items():
        (configs / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def parse_step(line: str) -> Step | None:
    """The step that a line of the log tells of, by SageMaker's own expressions for it."""
    found = {
        name: match[1]
        for name, pattern in METRIC_DEFINITIONS
        if (match := re.search(pattern, line))
    }
    if len(found) < len(METRIC_DEFINITIONS):
        return None
    return Step(
        step=int(found["train:step"]),
        loss=float(found["train:loss"]),
        images_per_second=float(found["train:images_per_second"]),
    )


def _check_program() -> None:
    if not (PROGRAM_HOME / "training" / "__main__.py").is_file():
        detail = "The training program lies in Limner's repository: run this from a checkout."
        raise LimnerError("TOOL_MISSING", detail)
    if find_spec("torch") is None or find_spec("diffusers") is None:
        raise LimnerError("TOOL_MISSING", "PyTorch is not installed: pip install 'limner[local]'.")


def _copy(photo: Photo, target: Path) -> None:
    # Under its name in S3: the order of the photos is a part of the recipe.
    with photo.open() as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _run(root: Path, plan: HerePlan, progress: Callable[[Step], None]) -> None:
    failure = root / "output" / "failure"
    with (
        (root / "stderr").open("w+b") as log,
        _started(root, plan, log) as process,
        _interruptions() as asked,
    ):
        for line in process.stdout or ():
            if asked:
                raise KeyboardInterrupt
            if (step := parse_step(line)) is not None:
                progress(step)
        code = process.wait()
        if asked:
            raise KeyboardInterrupt
        if code == 0:
            return
        if failure.is_file():
            raise error_of(failure.read_text(encoding="utf-8", errors="replace"))
        log.seek(0)
        words = log.read().decode(errors="replace").strip()[-_LOG_TAIL_CHARS:]
        raise LimnerError("TRAINING_FAILED", f"The program ended with exit code {code}. {words}")


@contextmanager
def _started(root: Path, plan: HerePlan, log: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """The program while it runs; whatever ends this, it ends too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "training"],
        cwd=PROGRAM_HOME,
        env={
            **os.environ,
            **dict(environment(plan.request_id)),
            "SAGEMAKER_BASE_DIR": str(root),
            "TRAINING_JOB_NAME": f"here-{plan.request_id}",
            "HF_HUB_OFFLINE": "1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        # Ctrl-C is ours to pass on: the program is told by SIGTERM, as in a container.
        start_new_session=True,
    )
    try:
        with process:
            try:
                yield process
            finally:
                _end(process)
    finally:
        if process.poll() is None:
            process.kill()


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Yields the signals of Ctrl-C, beside KeyboardInterrupt for each.

    That is raised wherever the main thread is, and lost in a finalizer or a callback of a weak
    reference, of which printing a line has some.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield asked  # only that one is told
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _collect(root: Path, out: Path) -> Made:
    model = root / "model"
    manifest = Manifest.model_validate_json((model / MANIFEST).read_bytes())
    out.mkdir(parents=True, exist_ok=True)
    previews = []
    for path in sorted((root / "checkpoints").glob(PREVIEWS)):
        previews.append(out / path.name)
        shutil.copyfile(path, previews[-1])
    part = out / f"{ARTIFACT_FILE}.part"
    with tarfile.open(part, "w:gz") as tar:
        for name in MEMBERS:
            tar.add(model / name, arcname=name)
    part.replace(out / ARTIFACT_FILE)
    return Made(out / ARTIFACT_FILE, tuple(previews), manifest.metrics)
