"""Where the laptop keeps its files: all below ``<project>/.limner/``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# The checkout that this package lies in: where ``training``, ``inference``, the committed
# template and the tiny base are.
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one project's laptop.

    Attributes:
        project: Directory of the project; everything lies in its folder ``.limner``.
    """

    project: Path

    @property
    def root(self) -> Path:
        """The folder that holds everything else; deleting it forgets all state."""
        return self.project / ".limner"

    @property
    def log(self) -> Path:
        """Log of the daemon: its own lines, ministack's and the Lambda functions'."""
        return self.root / "laptop.log"

    @property
    def run_file(self) -> Path:
        """JSON with pid and port of the daemon that runs now, or ran last."""
        return self.root / "run.json"

    @property
    def lock(self) -> Path:
        """Locked by the daemon for as long as it lives, so that there is only one."""
        return self.root / "lock"

    @property
    def state(self) -> Path:
        """Snapshots of ministack, one JSON file a service, written at a clean stop."""
        return self.root / "state"

    @property
    def objects(self) -> Path:
        """Bodies of the S3 objects, written at once."""
        return self.root / "s3"

    @property
    def sagemaker(self) -> Path:
        """Records of training jobs, models and endpoints, written at once."""
        return self.root / "sagemaker"

    @property
    def jobs(self) -> Path:
        """One folder a training job: its log, and its /opt/ml while it runs or after it failed."""
        return self.root / "jobs"

    @property
    def endpoints(self) -> Path:
        """One folder an endpoint: its log and the instance's disk cache of models."""
        return self.root / "endpoints"

    @property
    def scratch(self) -> Path:
        """Temporary files of the daemon and its Lambda functions; emptied at each start."""
        return self.root / "tmp"
