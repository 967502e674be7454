"""One training job from Starting to its end, as a thread of its own.

::

    Starting ─> Downloading ─> Training ─> Uploading ─> Completed
        │            │            ├────────────────────> Failed
        │            │            └─> Stopping ─> Uploading ─> Stopped | MaxRuntimeExceeded
        └────────────┴──────────────────────────────────> Failed | Stopped
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from botocore.exceptions import ClientError

from limner.local.clock import Clock
from limner.local.errors import ServiceError
from limner.local.images import Images
from limner.local.objects import Location, Objects
from limner.local.sagemaker.checkpoints import CheckpointSync
from limner.local.sagemaker.container import FAILURE_CHARACTERS, GRACE_S, Container
from limner.local.sagemaker.metrics import LogMetrics
from limner.local.sagemaker.records import artifact_location, transition
from limner.local.sagemaker.store import Record, Store
from limner.local.settings import DaemonSettings, aws_environment
from limner.local.trouble import Trouble

CAPACITY_ERROR = (
    "CapacityError: Unable to provision requested ML compute capacity. "
    "Please retry using a different ML instance type."
)
DEFAULT_MAX_RUNTIME_S = 86_400
_POLL_S = 0.03
_SYNC_EVERY_S = 0.5
_log = logging.getLogger("limner.local.jobs")


@dataclass(frozen=True)
class Platform:
    """What all jobs share.

    Attributes:
        settings: The daemon's settings.
        store: Records of training jobs.
        objects: S3.
        images: Commands of images.
        trouble: Capacity failures.
        clock: MaxRuntimeInSeconds and the grace after SIGTERM.
        slots: One for each training process that may run at once.
        closing: Set when the laptop stops: jobs end at once and leave their records as they are.
        announce: Told of each new status, with the record.
    """

    settings: DaemonSettings
    store: Store
    objects: Objects
    images: Images
    trouble: Trouble
    clock: Clock
    slots: threading.Semaphore
    closing: threading.Event
    announce: Callable[[Record], None]


class _Ended(Exception):  # noqa: N818  # a way out, not an error
    """The job ends here, in this status."""

    def __init__(self, status: str, secondary: str, reason: str = "") -> None:
        self.status = status
        self.secondary = secondary
        self.reason = reason
        super().__init__(secondary)


@dataclass
class JobRun:
    """A job that runs.

    Attributes:
        name: TrainingJobName.
        platform: What all jobs share.
        stop: Set by StopTrainingJob.
        done: Set when the record is in its last status.
    """

    name: str
    platform: Platform
    stop: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begins the job's life in the background."""
        self._thread = threading.Thread(target=self._live, name=f"job-{self.name}", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Waits until the job's process is gone, after ``platform.closing`` was set."""
        self._thread.join(timeout_s)

    @property
    def folder(self) -> Path:
        """Where log and work files of the job are."""
        return self.platform.settings.layout.jobs / self.name

    def _live(self) -> None:
        try:
            self.platform.announce(self._record())
            self.folder.mkdir(parents=True, exist_ok=True)
            log = self.folder / "log"
            log.touch()
            container = Container(self.folder / "opt-ml", log)
            end = self._run(container)
            if end is None:
                return
            if end.status != "Failed":
                shutil.rmtree(container.root, ignore_errors=True)
            self._move(end.status, end.secondary, end.reason)
            _log.info("job %s: %s %s", self.name, end.secondary, end.reason)
        except Exception:  # noqa: BLE001  # the end of the thread; who waits must hear
            _log.exception("job %s", self.name)
        self.done.set()  # whatever happened, or who waits would wait for ever

    def _run(self, container: Container) -> _Ended | None:
        """Runs the phases; None if the laptop stops meanwhile."""
        platform = self.platform
        has_slot = False
        try:
            self._find_machine()
            has_slot = self._wait_for_slot()
            self._download(container)
            ending = self._train(container)
            self._upload(container)
        except _Ended as end:
            ending = end
        except (ClientError, ServiceError) as error:
            ending = _failed(f"ClientError: {error}")
        except Exception as error:  # noqa: BLE001  # the end of the thread; who waits must hear
            _log.exception("job %s", self.name)
            ending = _failed(f"InternalServerError: {error}")
        finally:
            container.kill()
            if has_slot:
                platform.slots.release()
        return None if platform.closing.is_set() else ending

    def _find_machine(self) -> None:
        if self.platform.trouble.no_capacity():
            raise _failed(CAPACITY_ERROR)

    def _wait_for_slot(self) -> bool:
        while not self.platform.slots.acquire(timeout=0.1):
            self._stop_if_asked()
        return True

    def _stop_if_asked(self) -> None:
        if self.stop.is_set() or self.platform.closing.is_set():
            raise _Ended("Stopped", "Stopped")

    def _download(self, container: Container) -> None:
        self._stop_if_asked()
        self._move("InProgress", "Downloading")
        record = self._record()
        container.prepare(record)
        for channel in record.get("InputDataConfig", []):
            uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
            folder = container.channel(channel["ChannelName"])
            if not self.platform.objects.download_prefix(Location.parse(uri), folder):
                raise _failed(
                    "ClientError: Data download failed: No S3 objects found under S3 URL "
                    f'"{uri}" given in input data source.'
                )
        self._stop_if_asked()

    def _train(self, container: Container) -> _Ended:
        """Runs the program; returns how the job ends once its model is uploaded."""
        record = self._record()
        sync = self._checkpoint_sync(container, record)
        metrics = LogMetrics(
            container.log, record["AlgorithmSpecification"].get("MetricDefinitions", [])
        )
        self._move("InProgress", "Training")
        image = record["AlgorithmSpecification"]["TrainingImage"]
        container.start(self.platform.images.command(image), self._environment(record))
        try:
            ending = self._watch(container, sync, metrics, record)
        finally:
            if not self.platform.closing.is_set():
                self._report(sync, metrics)
        code = container.exit_code()
        if ending is None and code:
            raise _failed(container.failure_reason(code))
        return ending or _Ended("Completed", "Completed")

    def _watch(
        self,
        container: Container,
        sync: CheckpointSync | None,
        metrics: LogMetrics,
        record: Record,
    ) -> _Ended | None:
        """Waits for the program's end; returns the reason if it was made to end."""
        clock = self.platform.clock
        limit_s = record["StoppingCondition"].get("MaxRuntimeInSeconds", DEFAULT_MAX_RUNTIME_S)
        deadline = clock.deadline(limit_s)
        grace = clock.deadline(GRACE_S)
        ending: _Ended | None = None
        report_at = time.monotonic() + _SYNC_EVERY_S
        while container.exit_code() is None:
            if self.platform.closing.is_set():
                container.kill()
            elif ending is None and (self.stop.is_set() or deadline.passed()):
                secondary = "Stopped" if self.stop.is_set() else "MaxRuntimeExceeded"
                ending = _Ended("Stopped", secondary)
                self._move("Stopping", "Stopping")
                container.terminate()
                grace = clock.deadline(GRACE_S)
            elif ending is not None and grace.passed():
                container.kill()
            if time.monotonic() >= report_at:
                self._report(sync, metrics)
                report_at = time.monotonic() + _SYNC_EVERY_S
            time.sleep(_POLL_S)
        return ending

    def _upload(self, container: Container) -> None:
        if self.platform.closing.is_set():
            return
        record = self._record()
        self._move(record["TrainingJobStatus"], "Uploading")
        archive = container.root / "model.tar.gz"
        if container.pack_model(archive):
            output = Location.parse(record["OutputDataConfig"]["S3OutputPath"])
            self.platform.objects.upload(archive, artifact_location(output, self.name))

    def _checkpoint_sync(self, container: Container, record: Record) -> CheckpointSync | None:
        config = record.get("CheckpointConfig")
        if config is None:
            return None
        target = Location.parse(config["S3Uri"])
        sync = CheckpointSync(self.platform.objects, container.checkpoints, target)
        sync.restore()
        return sync

    def _report(self, sync: CheckpointSync | None, metrics: LogMetrics) -> None:
        if sync is not None:
            sync.run()
        values = metrics.update()
        if values:
            with self.platform.store.change(self.name) as record:
                record["FinalMetricDataList"] = values

    def _environment(self, record: Record) -> dict[str, str]:
        return {
            **aws_environment(self.platform.settings),
            "OMP_NUM_THREADS": str(self.platform.settings.threads_per_job),
            **record.get("Environment", {}),
            "TRAINING_JOB_NAME": record["TrainingJobName"],
            "TRAINING_JOB_ARN": record["TrainingJobArn"],
        }

    def _record(self) -> Record:
        record = self.platform.store.get(self.name)
        if record is None:
            raise _failed("InternalServerError: the job's record is gone")
        return record

    def _move(self, status: str, secondary: str, reason: str = "") -> None:
        with self.platform.store.change(self.name) as record:
            transition(record, status, secondary, reason)
            moved = dict(record)  # once it has ended, it may be deleted at any time
        self.platform.announce(moved)


def _failed(reason: str) -> _Ended:
    return _Ended("Failed", "Failed", reason[:FAILURE_CHARACTERS])
