"""The CreateTrainingJob request: what a stage chooses, and what each machine adds.

Which of its fields ``createTrainingJob.sync`` is documented to take, and the way that does not
depend on it, is told in ``docs/decisions/012-fields-of-sync.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from limner.contracts.errors import LimnerError
from limner.contracts.training import METRIC_DEFINITIONS
from workflows import retries

Call = Literal["sync", "sdk"]

# The API takes up to six hours, the developer guide speaks of one (SageMaker API reference,
# ResourceConfig; developer guide, "SageMaker AI managed warm pools").
LONGEST_KEEP_ALIVE_S: Final = 21_600
CHECKPOINTS: Final = "/opt/ml/checkpoints"
# Whose job it is, in its environment: what the program is told, and what adoption compares.
REQUEST_MARK: Final = "LIMNER_REQUEST_ID"
BATCH_MARK: Final = "LIMNER_BATCH_ID"
CLAIMS: Final = "LIMNER_CLAIMS"
ROWS: Final = "LIMNER_ROWS"
QUALITY: Final = "LIMNER_QUALITY"


@dataclass(frozen=True)
class JobSettings:
    """How a stage runs its training jobs, whatever they train.

    Attributes:
        keep_alive_s: Seconds that a machine is kept warm for the next job after a job
            (KeepAlivePeriodInSeconds); 0 for no warm pool. A pool matches by role, number and type
            of machines, volume, network and isolation, which are the same for all single jobs.
        spot: Whether jobs run on spot machines (EnableManagedSpotTraining). An interrupted job
            starts again: a batch keeps the tasks that it has finished, and the task at work begins
            anew, since the program writes no checkpoints inside of a task yet.
        max_wait_s: Seconds that a spot job may take, its waits included (MaxWaitTimeInSeconds);
            without effect for jobs on demand.
        claims: Whether the machines of a batch claim its tasks from each other, which takes S3: its
            program gets a network and the job's role then, where it has neither else.
        rows: Images that one pass through the UNet may hold; 0 for the program's own default.
        quality: Whether the program draws quality figures.
        volume_gb: Size of each machine's volume.
        call: ``sync`` lets Step Functions wait for the job; ``sdk`` calls SageMaker's own API and
            looks at the job until it has ended.
        kms_key: Key that encrypts the volumes and the job's archive; SageMaker's own if empty.
        subnets: Subnets that jobs run in; none for no VPC.
        security_groups: Their security groups.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming the setting, if SageMaker would refuse the jobs.
    """

    keep_alive_s: int = 0
    spot: bool = False
    max_wait_s: int = retries.SPOT_WAIT_S
    claims: bool = False
    rows: int = 0
    quality: bool = True
    volume_gb: int = 50
    call: Call = "sync"
    kms_key: str = ""
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.spot and self.keep_alive_s:
            raise LimnerError(
                "INVALID_INPUT",
                "Warm pools (keep_alive_s) and spot machines (spot) exclude each other: take one.",
            )
        if not 0 <= self.keep_alive_s <= LONGEST_KEEP_ALIVE_S:
            raise LimnerError(
                "INVALID_INPUT", f"keep_alive_s must be 0 to {LONGEST_KEEP_ALIVE_S} seconds."
            )
        if self.spot and not retries.BATCH_RUNTIME_S <= self.max_wait_s <= retries.SPOT_WAIT_S:
            raise LimnerError(
                "INVALID_INPUT",
                f"max_wait_s must be {retries.BATCH_RUNTIME_S} to {retries.SPOT_WAIT_S} seconds:"
                " no shorter than a job may run, no longer than a task may wait.",
            )
        if bool(self.subnets) != bool(self.security_groups):
            raise LimnerError("INVALID_INPUT", "subnets and security_groups belong together.")
        if self.volume_gb < 1:
            raise LimnerError("INVALID_INPUT", "volume_gb must be 1 or more.")


@dataclass(frozen=True)
class Job:
    """What one kind of job adds to the settings of the stage; all values are ASL parameters.

    Attributes:
        channels: Input channels, made by ``channel``.
        output: S3 URI of the jobs' archives.
        checkpoints: ASL field with the S3 URI that is kept equal to ``CHECKPOINTS``; none for a
            job that keeps nothing.
        instances: ASL field with the number of machines.
        runtime: ASL field with the seconds after which SageMaker stops the program.
        environment: Environment of the program.
        claims: What it is told besides where its machines claim tasks; none if they never do.
        calls_aws: Whether its program calls AWS, with the job's role.
    """

    channels: Sequence[Mapping[str, object]]
    output: str
    checkpoints: Mapping[str, str]
    instances: Mapping[str, object]
    runtime: Mapping[str, object]
    environment: Mapping[str, str]
    claims: Mapping[str, str] = field(default_factory=dict)
    calls_aws: bool = False


def channel(name: str, uri: Mapping[str, str], *, data_type: str = "S3Prefix") -> dict[str, object]:
    """An input channel that every machine of a job gets in full.

    Args:
        name: The folder below ``/opt/ml/input/data``.
        uri: The field ``S3Uri`` or ``S3Uri.$``.
        data_type: ``S3Prefix``, or ``ManifestFile`` for a list of objects.
    """
    source = {"S3DataType": data_type, "S3DataDistributionType": "FullyReplicated", **uri}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def request(image: str, settings: JobSettings, job: Job) -> dict[str, object]:
    """The CreateTrainingJob request as ASL parameters, but for the role (``StepFactory.train``).

    Name and type of the machine come from ``$.job``: they change from attempt to attempt. There
    are no hyperparameters: the config is a file in a channel, where it expires and can be erased.
    """
    claims = job.claims if settings.claims else {}
    program = {
        **({ROWS: str(settings.rows)} if settings.rows else {}),
        **({} if settings.quality else {QUALITY: "false"}),
    }
    checkpoints: dict[str, object] = (
        {"CheckpointConfig": {**job.checkpoints, "LocalPath": CHECKPOINTS}}
        if job.checkpoints
        else {}
    )
    encryption = {"KmsKeyId": settings.kms_key} if settings.kms_key else {}
    volume = {"VolumeKmsKeyId": settings.kms_key} if settings.kms_key else {}
    pool = {"KeepAlivePeriodInSeconds": settings.keep_alive_s} if settings.keep_alive_s else {}
    spot: dict[str, object] = {"EnableManagedSpotTraining": True} if settings.spot else {}
    patience = {"MaxWaitTimeInSeconds": settings.max_wait_s} if settings.spot else {}
    network: dict[str, object] = (
        {
            "VpcConfig": {
                "SecurityGroupIds": list(settings.security_groups),
                "Subnets": list(settings.subnets),
            }
        }
        if settings.subnets
        else {}
    )
    return {
        "TrainingJobName.$": "$.job.name",
        "AlgorithmSpecification": {
            "TrainingImage": image,
            "TrainingInputMode": "File",
            "MetricDefinitions": [
                {"Name": name, "Regex": regex} for name, regex in METRIC_DEFINITIONS
            ],
        },
        "InputDataConfig": list(job.channels),
        "OutputDataConfig": {"S3OutputPath": job.output, **encryption},
        **checkpoints,
        "ResourceConfig": {
            **job.instances,
            "InstanceType.$": "$.job.instance_type",
            "VolumeSizeInGB": settings.volume_gb,
            **volume,
            **pool,
        },
        "StoppingCondition": {**job.runtime, **patience},
        "RetryStrategy": {"MaximumRetryAttempts": retries.TRAINING_RESTARTS},
        # The program needs its channels only; what it must not reach cannot leak a photo.
        "EnableNetworkIsolation": not (claims or job.calls_aws),
        **spot,
        **network,
        "Environment": {**job.environment, **program, **claims},
    }
