"""One training job from Starting to its end, as a thread of its own.

::

    Starting ─> Downloading ─> Training ─> Uploading ─> Completed
      │ ^           │            ├──────────────────────> Failed
      │ └── Interrupted <────────┤ (spot)
      │             │            └─> Stopping ─> Uploading ─> Stopped | Max…TimeExceeded
      └─────────────┴───────────────────────────────────> Failed | Stopped | MaxWaitTimeExceeded
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

from limner.local.clock import Clock, Deadline
from limner.local.errors import ServiceError
from limner.local.images import Images
from limner.local.objects import Location, Objects
from limner.local.sagemaker import channels
from limner.local.sagemaker.container import FAILURE_CHARACTERS, GRACE_S
from limner.local.sagemaker.fleet import Fleet
from limner.local.sagemaker.limits import Limits
from limner.local.sagemaker.pools import WarmPools
from limner.local.sagemaker.records import artifact_location, transition
from limner.local.sagemaker.reports import Reports
from limner.local.sagemaker.store import Record, Store
from limner.local.settings import DaemonSettings, aws_environment
from limner.local.trouble import Trouble

CAPACITY_ERROR = (
    "CapacityError: Unable to provision requested ML compute capacity. "
    "Please retry using a different ML instance type."
)
# How long new spot capacity is waited for, in seconds of the dial ``waits``.
INTERRUPTION_S = 60.0
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
        trouble: Capacity failures and spot interruptions.
        clock: MaxRuntimeInSeconds, MaxWaitTimeInSeconds and the grace after SIGTERM.
        pools: Instances that earlier jobs have left.
        slots: One for each job that may run at once, whatever its InstanceCount: a job that
            collected its slots one by one could wait for those of another that does the same.
        closing: Set when the laptop stops: jobs end at once and leave their records as they are.
        announce: Told of each new status, with the record.
    """

    settings: DaemonSettings
    store: Store
    objects: Objects
    images: Images
    trouble: Trouble
    clock: Clock
    pools: WarmPools
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


class _Interrupted(Exception):  # noqa: N818  # a way back, not an error
    """The spot instances are gone; the job begins again."""


@dataclass
class JobRun:
    """A job that runs.

    Attributes:
        name: TrainingJobName.
        platform: What all jobs share.
        is_warm: Whether it has taken over a warm pool: its instances are there.
        stop: Set by StopTrainingJob.
        done: Set when the record is in its last status.
    """

    name: str
    platform: Platform
    is_warm: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begins the job's life in the background."""
        self._thread = threading.Thread(target=self._live, name=f"job-{self.name}", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Waits until the job's processes are gone, after ``platform.closing`` was set."""
        self._thread.join(timeout_s)

    @property
    def folder(self) -> Path:
        """Where logs and work files of the job are."""
        return self.platform.settings.layout.jobs / self.name

    def _live(self) -> None:
        try:
            record = self._record()
            self.platform.announce(record)
            self.folder.mkdir(parents=True, exist_ok=True)
            fleet = Fleet(self.folder, record["ResourceConfig"]["InstanceCount"])
            fleet.touch_logs()
            end = self._run(fleet)
            if end is None:
                return
            if end.status != "Failed":
                shutil.rmtree(fleet.root, ignore_errors=True)
            # Without capacity there are no instances, so none to keep.
            self.platform.pools.keep(record, is_there=not end.reason.startswith(CAPACITY_ERROR))
            self._move(end.status, end.secondary, end.reason)
            _log.info("job %s: %s %s", self.name, end.secondary, end.reason)
        except Exception:  # noqa: BLE001  # the end of the thread; who waits must hear
            _log.exception("job %s", self.name)
        self.done.set()  # whatever happened, or who waits would wait for ever

    def _run(self, fleet: Fleet) -> _Ended | None:
        """Runs the phases; None if the laptop stops meanwhile."""
        platform = self.platform
        has_slot = False
        self._limits = Limits(platform.clock, self._record())
        try:
            self._find_machines()
            has_slot = self._wait_for_slot()
            ending = self._work(fleet)
            self._upload(fleet)
        except _Ended as end:
            ending = end
        except (ClientError, ServiceError) as error:
            ending = _failed(f"ClientError: {error}")
        except Exception as error:  # noqa: BLE001  # the end of the thread; who waits must hear
            _log.exception("job %s", self.name)
            ending = _failed(f"InternalServerError: {error}")
        finally:
            fleet.kill()
            if has_slot:
                platform.slots.release()
        return None if platform.closing.is_set() else ending

    def _find_machines(self) -> None:
        if not self.is_warm and self.platform.trouble.no_capacity():
            raise _failed(CAPACITY_ERROR)

    def _wait_for_slot(self) -> bool:
        while not self.platform.slots.acquire(timeout=0.1):
            self._stop_if_asked()
        return True

    def _stop_if_asked(self) -> None:
        end = self._reason_to_end()
        if end is not None:
            raise end

    def _reason_to_end(self) -> _Ended | None:
        if self.stop.is_set() or self.platform.closing.is_set():
            return _Ended("Stopped", "Stopped")
        exceeded = self._limits.exceeded()
        return None if exceeded is None else _Ended("Stopped", exceeded)

    def _work(self, fleet: Fleet) -> _Ended:
        """Downloads and trains, again after each interruption of spot instances."""
        while True:
            self._download(fleet)
            try:
                return self._train(fleet)
            except _Interrupted:
                self._move("InProgress", "Interrupted")
                self.platform.clock.sleep(INTERRUPTION_S, lambda: self._reason_to_end() is not None)
                self._stop_if_asked()
                self._move("InProgress", "Starting")

    def _download(self, fleet: Fleet) -> None:
        self._stop_if_asked()
        self._move("InProgress", "Downloading")
        record = self._record()
        fleet.prepare(record)
        for channel in record.get("InputDataConfig", []):
            source = channel["DataSource"]["S3DataSource"]
            for container in fleet.containers:
                folder = container.channel(channel["ChannelName"])
                if not channels.download(self.platform.objects, source, folder):
                    raise _failed(
                        "ClientError: Data download failed: No S3 objects found under S3 URL "
                        f'"{source["S3Uri"]}" given in input data source.'
                    )
        self._stop_if_asked()

    def _train(self, fleet: Fleet) -> _Ended:
        """Runs the programs; returns how the job ends once its model is uploaded."""
        record = self._record()
        reports = Reports(self.platform.objects, fleet, record)
        reports.restore()
        self._move("InProgress", "Training")
        image = record["AlgorithmSpecification"]["TrainingImage"]
        fleet.start(self.platform.images.command(image), self._environment(record))
        try:
            ending = self._watch(fleet, reports, record)
        finally:
            if not self.platform.closing.is_set():
                self._report(reports)
        culprit = fleet.failed()
        if ending is None and culprit is not None:
            raise _failed(culprit.failure_reason(culprit.exit_code() or 0))
        return ending or _Ended("Completed", "Completed")

    def _watch(self, fleet: Fleet, reports: Reports, record: Record) -> _Ended | None:
        """Waits for the end of all programs; returns the reason if they were made to end.

        Raises:
            _Interrupted: After the programs' end, if the spot instances were taken away.
        """
        clock, is_spot = self.platform.clock, record["EnableManagedSpotTraining"]
        self._limits.training_begins()
        grace: Deadline | None = None
        ending: _Ended | None = None
        is_interrupted = False
        report_at = time.monotonic() + _SYNC_EVERY_S
        while fleet.is_running():
            if self.platform.closing.is_set() or (grace is not None and grace.passed()):
                fleet.kill()
            elif grace is None:
                ending = self._reason_to_end()
                if ending is not None:
                    self._move("Stopping", "Stopping")
                else:
                    is_interrupted = (
                        is_spot
                        and reports.has_something_to_lose()
                        and self.platform.trouble.interrupts_spot()
                    )
                # One instance that fails ends the others: the job has failed.
                if ending is not None or is_interrupted or fleet.failed() is not None:
                    fleet.terminate()
                    grace = clock.deadline(GRACE_S)
            if time.monotonic() >= report_at:
                self._report(reports)
                report_at = time.monotonic() + _SYNC_EVERY_S
            time.sleep(_POLL_S)
        if is_interrupted:
            raise _Interrupted
        return ending

    def _upload(self, fleet: Fleet) -> None:
        if self.platform.closing.is_set():
            return
        record = self._record()
        self._move(record["TrainingJobStatus"], "Uploading")
        archive = fleet.root / "model.tar.gz"
        if fleet.pack_model(archive):
            output = Location.parse(record["OutputDataConfig"]["S3OutputPath"])
            self.platform.objects.upload(archive, artifact_location(output, self.name))

    def _report(self, reports: Reports) -> None:
        values = reports.run()
        if values:
            with self.platform.store.change(self.name) as record:
                record["FinalMetricDataList"] = values

    def _environment(self, record: Record) -> dict[str, str]:
        instances = record["ResourceConfig"]["InstanceCount"]
        return {
            **aws_environment(self.platform.settings),
            "OMP_NUM_THREADS": str(self.platform.settings.threads(instances)),
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
