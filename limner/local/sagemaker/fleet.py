"""The instances of one training job: one container each, ended together.

SageMaker developer guide, "Distributed Training Configuration": resourceconfig.json names the
``current_host`` and all ``hosts``; "hostnames might not be unique ... do not rely on algo-1": what
counts is the position in ``hosts``. "Distributed training output": the files that the instances
leave in /opt/ml/model go into one model.tar.gz, so their names must not clash.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from limner.local.sagemaker.container import Container

# Enough to show what K instances do; each is a process, and a laptop has a few cores.
MAX_INSTANCES: Final = 8


class Fleet:
    """The containers of one job.

    Args:
        folder: The job's folder: ``log`` of the first instance, ``log.<host>`` of the others, and
            the relocated /opt/ml of each.
        count: Number of instances.
    """

    def __init__(self, folder: Path, count: int) -> None:
        hosts = [f"algo-{number}" for number in range(1, count + 1)]
        self.root = folder / "opt-ml"
        self.containers = [
            Container(
                self.root / host,
                folder / ("log" if host == hosts[0] else f"log.{host}"),
                host,
                hosts,
            )
            for host in hosts
        ]

    def touch_logs(self) -> None:
        """Makes the logs, which outlive all else."""
        for container in self.containers:
            container.log.touch()

    def prepare(self, request: Mapping[str, Any]) -> None:
        """Makes the folders and input/config/*.json of each instance."""
        for container in self.containers:
            container.prepare(request)

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts the program on each instance."""
        for container in self.containers:
            container.start(command, environment)

    def is_running(self) -> bool:
        """Whether any program still runs."""
        return any(container.exit_code() is None for container in self.containers)

    def failed(self) -> Container | None:
        """The first instance, by position, whose program ended with another code than 0."""
        return next((it for it in self.containers if it.exit_code()), None)

    def terminate(self) -> None:
        """Sends SIGTERM to all programs that run."""
        for container in self.containers:
            container.terminate()

    def kill(self) -> None:
        """Kills whatever is left of the containers."""
        for container in self.containers:
            container.kill()

    def pack_model(self, archive: Path) -> bool:
        """Packs what all instances left in /opt/ml/model as one model.tar.gz.

        Returns:
            False, without an archive, if no program left a file there.
        """
        files: dict[str, Path] = {}
        for container in self.containers:
            files.update(container.model_files())
        if not files:
            return False
        # Weights do not compress; level 1 costs little on what does.
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            for name in sorted(files):
                tar.add(files[name], arcname=name, recursive=False)
        return True
