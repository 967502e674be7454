"""The torch-free training image of the workflow tests keeps the agreement of the real one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from limner.contracts import artifact as form
from limner.contracts.tasks import Task, TaskError, TaskResult
from limner.contracts.training import TrainingConfig

TRAINER = Path(__file__).parents[2] / "support" / "trainer.py"


class StandIn:
    """The folders of a container in which the stand-in runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("input/config", "model", "output", "checkpoints"):
            (root / folder).mkdir(parents=True)
        self.channels: list[str] = []
        self.host("algo-1", "algo-1")
        self.add("photos", "ready", "x")

    def add(self, channel: str, name: str, content: str) -> None:
        path = self.root / "input/data" / channel / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        self.channels.append(channel)
        channels = json.dumps({name: {} for name in self.channels})
        (self.root / "input/config/inputdataconfig.json").write_text(channels)

    def host(self, current: str, *names: str) -> None:
        resources = json.dumps({"current_host": current, "hosts": names})
        (self.root / "input/config/resourceconfig.json").write_text(resources)

    def batch(self, *behaviours: str) -> None:
        """Tasks r0, r1, …, on two instances in turn; each finds its behaviour among its photos."""
        lines = []
        for index, behaviour in enumerate(behaviours):
            task = Task(
                request_id=f"r{index}",
                user_id="u",
                model_id="default",
                photos=f"u/r{index}/",
                config=TrainingConfig(),
                instance=index % 2,
                predicted_s=1,
            )
            lines.append(task.model_dump_json())
            self.add("photos", f"u/r{index}/a.png", "a")
            if behaviour != "ok":
                self.add("photos", f"u/r{index}/behave", behaviour)
        self.add("tasks", "tasks.jsonl", "\n".join(lines) + "\n")

    def start(self) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "SAGEMAKER_BASE_DIR": str(self.root),
            "TRAINING_JOB_NAME": "limner-batch-b1-1",
            "TRAINING_JOB_ARN": "arn",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            [sys.executable, str(TRAINER)], env=environment, stdout=subprocess.PIPE, text=True
        )

    def run(self) -> tuple[int, str]:
        with self.start() as process:
            out, _ = process.communicate(timeout=60)
        return process.returncode, out

    def files(self, request_id: str) -> list[str]:
        folder = self.root / "checkpoints" / request_id
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def result(self, request_id: str) -> TaskResult:
        path = self.root / "checkpoints" / request_id / "result.json"
        return TaskResult.model_validate_json(path.read_bytes())


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / "ml")


def test_each_host_leaves_the_results_of_its_tasks(stand_in: StandIn) -> None:
    reason = '{"behave": "fail", "reason": "TOO_FEW_PHOTOS: There is 1 photo. Fix: Add photos."}'
    stand_in.batch("ok", reason, "vanish", "ok")
    for host in ("algo-2", "algo-1"):
        stand_in.host(host, "algo-1", "algo-2")
        assert stand_in.run()[0] == 0
        assert bool(stand_in.files("r0")) == (host == "algo-1")

    assert stand_in.files("r0") == ["model.tar.gz", "preview-00.png", "result.json"]
    archive = stand_in.root / "checkpoints" / "r0" / "model.tar.gz"
    with tarfile.open(archive) as tar:
        assert tar.getnames() == list(form.MEMBERS)
    trained = stand_in.result("r0")
    assert (trained.request_id, trained.status) == ("r0", "trained")
    assert trained.artifact_sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    failed = stand_in.result("r1")
    assert failed.error == TaskError(code="TOO_FEW_PHOTOS", message="There is 1 photo.")
    assert stand_in.files("r2") == []
    assert stand_in.result("r3").status == "trained"


def test_who_dies_leaves_later_tasks_undone_and_a_restart_does_them(stand_in: StandIn) -> None:
    stand_in.batch("ok", "die", "ok")
    assert stand_in.run()[0] == 3
    assert [bool(stand_in.files(f"r{index}")) for index in range(3)] == [True, False, False]
    stand_in.add("photos", "u/r1/behave", "ok")
    code, out = stand_in.run()
    assert (code, "event=kept request=r0" in out) == (0, True)
    assert stand_in.result("r1").status == stand_in.result("r2").status == "trained"


def test_who_hangs_ends_at_sigterm_without_a_result(stand_in: StandIn) -> None:
    stand_in.batch("ok", "hang", "ok")
    with stand_in.start() as process:
        try:
            assert process.stdout is not None
            while "event=begun request=r1" not in (line := process.stdout.readline()):
                assert line, "it has ended"
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 1
    assert (stand_in.root / "output/failure").read_text().startswith("TRAINING_STOPPED: ")
    assert stand_in.result("r0").status == "trained"
    assert "result.json" not in stand_in.files("r1")
    assert stand_in.files("r2") == []


@pytest.mark.parametrize("place", ["config", "hyperparameters", "photos"])
def test_one_request_is_told_how_to_behave(stand_in: StandIn, place: str) -> None:
    wish = json.dumps({"behave": "fail", "reason": "TOO_FEW_PHOTOS: None."})
    if place == "hyperparameters":
        (stand_in.root / "input/config/hyperparameters.json").write_text(wish)
    elif place == "config":
        stand_in.add("config", "config.json", wish)
    else:
        stand_in.add("photos", "behave", wish)
    assert stand_in.run()[0] == 1
    assert (stand_in.root / "output/failure").read_text() == "TOO_FEW_PHOTOS: None."
