"""One training container: a relocated /opt/ml and a process on it.

SageMaker developer guide, "How Amazon SageMaker Runs Your Training Image" and "... Provides
Training Information": input/config/*.json, input/data/<channel>, model, output/failure,
checkpoints, and SIGTERM followed by SIGKILL after 120 s.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limner.local.layout import REPOSITORY

# "Amazon SageMaker ... stops the training job ... sends the container a SIGTERM signal ... which
# delays job termination for 120 seconds" (StopTrainingJob).
GRACE_S = 120
# "the first 1024 characters from this file as FailureReason" (DescribeTrainingJob).
FAILURE_CHARACTERS = 1024


class Container:
    """The folders and the process of one training container.

    Args:
        root: Stands for /opt/ml.
        log: File that stdout and stderr go to.
        host: Its name among the hosts of the job.
        hosts: The names of all of them.
    """

    def __init__(self, root: Path, log: Path, host: str, hosts: Sequence[str]) -> None:
        self.root = root
        self.log = log
        self.host = host
        self._hosts = list(hosts)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def checkpoints(self) -> Path:
        """Stands for /opt/ml/checkpoints."""
        return self.root / "checkpoints"

    def channel(self, name: str) -> Path:
        """Where the data of a channel lies."""
        return self.root / "input" / "data" / name

    def prepare(self, request: Mapping[str, Any]) -> None:
        """Makes the folders and input/config/*.json of a CreateTrainingJob request."""
        shutil.rmtree(self.root, ignore_errors=True)
        channels = request.get("InputDataConfig", [])
        folders = ["model", "output/data", "checkpoints", "input/config"]
        folders += [f"input/data/{channel['ChannelName']}" for channel in channels]
        for folder in folders:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        resources = request["ResourceConfig"]
        configs: dict[str, object] = {
            "hyperparameters": request.get("HyperParameters", {}),
            "inputdataconfig": {
                channel["ChannelName"]: {
                    "TrainingInputMode": "File",
                    "S3DistributionType": "FullyReplicated",
                    "RecordWrapperType": "None",
                }
                for channel in channels
            },
            "resourceconfig": {
                "current_host": self.host,
                "current_instance_type": resources.get("InstanceType", "local"),
                "current_group_name": "homogeneousCluster",
                "hosts": self._hosts,
                "instance_groups": [
                    {
                        "instance_group_name": "homogeneousCluster",
                        "instance_type": resources.get("InstanceType", "local"),
                        "hosts": self._hosts,
                    }
                ],
                "network_interface_name": "lo",
            },
        }
        for name, content in configs.items():
            (self.root / "input/config" / f"{name}.json").write_text(json.dumps(content))

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts the image's command in a process group of its own."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(command),
                cwd=REPOSITORY,
                env={**environment, "SAGEMAKER_BASE_DIR": str(self.root)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        """The program's exit code, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def terminate(self) -> None:
        """Sends SIGTERM to the program, as ``docker stop`` does to process 1."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills whatever is left of the container, children included."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):  # all of it has ended already
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def failure_reason(self, exit_code: int) -> str:
        """FailureReason of a program that ended with this exit code."""
        path = self.root / "output/failure"
        text = ""
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                text = file.read(FAILURE_CHARACTERS)
        return f"AlgorithmError: {text}, exit code: {exit_code}"[:FAILURE_CHARACTERS]

    def model_files(self) -> dict[str, Path]:
        """What the program left in /opt/ml/model, by its name in the archive."""
        folder = self.root / "model"
        return {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.is_file()
        }
