"""What a fine-tune will do, wherever it runs: pure functions and frozen data.

On SageMaker, a job is the deployed workflow's own: image, role, machines, network, keys and limits
are read off its state ``FineTune``, so that a recipe is tuned on what will run it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from limner.photos import Photo
from limner.settings import Deployment

# Whose photos they are in the bucket: nobody's who uses the app. They expire like everybody's.
TUNING_USER: Final = "tuning"
# The stage's own jobs begin with "limner-"; nothing else may use that prefix.
JOB_PREFIX: Final = "tuning-limner"
PHOTOS_CHANNEL: Final = "photos"
CONFIG_CHANNEL: Final = "config"
BASE_CHANNEL: Final = "base"
ARTIFACT_FILE: Final = "model.tar.gz"

_STATE: Final = "FineTune"
_INSTANCE_TYPES: Final = re.compile(r"States\.StringSplit\('([^',]+)")


def config_of(options: Sequence[str]) -> TrainingConfig:
    """The training config that options NAME=VALUE describe; what is not named has its default.

    Args:
        options: Such as ``steps=300`` or ``preview_prompts=["a photo of {token} in the snow"]``.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming each wrong option.
    """
    values: dict[str, str] = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not sign:
            raise LimnerError("INVALID_INPUT", f"{option[:80]!r} is not of the form NAME=VALUE.")
        if name not in TrainingConfig.model_fields:
            known = ", ".join(TrainingConfig.model_fields)
            raise LimnerError("INVALID_INPUT", f"There is no option {name[:80]!r}, but {known}.")
        if name in values:
            raise LimnerError("INVALID_INPUT", f"{name} is given twice.")
        values[name] = value
    return TrainingConfig.from_hyperparameters(values)


@dataclass(frozen=True, slots=True)
class HerePlan:
    """A fine-tune as a process of this machine.

    Attributes:
        request_id: What the artifact's manifest calls it.
        photos: The photos, checked.
        base: Folder of the base.
        config: The recipe.
        out: Folder that gets the artifact and the first images.
    """

    request_id: str
    photos: tuple[Photo, ...]
    base: Path
    config: TrainingConfig
    out: Path

    def to_dict(self) -> dict[str, object]:
        """The plan as JSON."""
        return {
            "on": "here",
            "request_id": self.request_id,
            "photos": [photo.name for photo in self.photos],
            "base": str(self.base),
            "config": self.config.model_dump(mode="json"),
            "out": str(self.out),
        }


@dataclass(frozen=True, slots=True)
class Machine:
    """What a job runs on, and for how long.

    Attributes:
        instance_type: Type of the one machine.
        volume_gb: Size of its volume.
        volume_key: KMS key of the volume; SageMaker's own if empty.
        keep_alive_s: Seconds that the machine is kept warm for the next job.
        spot: Whether it is a spot machine.
        max_runtime_s: Seconds after which SageMaker stops the program.
        max_wait_s: Seconds that a spot job may take, waits included; 0 on demand.
        restarts: How often SageMaker starts it again after an error of its own.
    """

    instance_type: str
    volume_gb: int
    volume_key: str
    keep_alive_s: int
    spot: bool
    max_runtime_s: int
    max_wait_s: int
    restarts: int


@dataclass(frozen=True, slots=True)
class Network:
    """What a job may reach.

    Attributes:
        isolated: Whether the program reaches nothing at all.
        subnets: Subnets of its VPC; none for no VPC.
        security_groups: Their security groups.
    """

    isolated: bool
    subnets: tuple[str, ...]
    security_groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SageMakerPlan:
    """A fine-tune as a SageMaker training job.

    Attributes:
        request_id: What the artifact's manifest calls it, and where its files lie.
        photos: The photos, checked; uploaded before the job.
        config: The recipe; uploaded before the job.
        bucket: The stage's bucket, which gets both.
        image: The training image in ECR.
        role: ARN of the role that the job assumes.
        machine: What it runs on.
        network: What it may reach.
        channels: URI of each input channel, by name.
        output: URI below which SageMaker puts the job's archive.
        output_key: KMS key of the archive; S3's own if empty.
        checkpoints: URI that is kept equal to the folder of checkpoints and first images.
        metrics: Name and regular expression of each metric in the log.
        environment: Variables that tell the program its request.
    """

    request_id: str
    photos: tuple[Photo, ...]
    config: TrainingConfig
    bucket: str
    image: str
    role: str
    machine: Machine
    network: Network
    channels: tuple[tuple[str, str], ...]
    output: str
    output_key: str
    checkpoints: str
    metrics: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]

    @property
    def photos_prefix(self) -> str:
        """Where the photos go in the bucket."""
        return keys.uploads_prefix(TUNING_USER, self.request_id)

    @property
    def previews_prefix(self) -> str:
        """Where the first images lie in the bucket."""
        return keys.PREVIEWS_TEMPLATE.format(self.request_id)

    def artifact_key(self, job_name: str) -> str:
        """Where SageMaker puts the archive of a job."""
        return keys.JOB_ARTIFACT_TEMPLATE.format(job_name)

    def to_dict(self) -> dict[str, object]:
        """The plan as JSON."""
        machine, network = self.machine, self.network
        return {
            "on": "sagemaker",
            "request_id": self.request_id,
            "photos": [photo.name for photo in self.photos],
            "config": self.config.model_dump(mode="json"),
            "image": self.image,
            "role": self.role,
            "machine": {name: getattr(machine, name) for name in Machine.__slots__},
            "network": {
                "isolated": network.isolated,
                "subnets": list(network.subnets),
                "security_groups": list(network.security_groups),
            },
            "channels": dict(self.channels),
            "output": self.output,
            "output_key": self.output_key,
            "checkpoints": self.checkpoints,
            "metrics": dict(self.metrics),
            "environment": dict(self.environment),
        }


def plan_here(
    photos: Sequence[Photo], base: Path, config: TrainingConfig, out: Path, *, request_id: str
) -> HerePlan:
    """Plans a fine-tune on this machine.

    Raises:
        LimnerError: ``INVALID_INPUT``, if there is no such base, or ``out`` has an artifact.
    """
    if not base.is_dir():
        raise LimnerError("INVALID_INPUT", f"The base {base} is not a folder: give --base FOLDER.")
    check_out(out)
    return HerePlan(request_id, tuple(photos), base.resolve(), config, out)


def check_out(out: Path) -> None:
    """Refuses a folder that holds the result of an earlier fine-tune.

    Raises:
        LimnerError: ``INVALID_INPUT``.
    """
    if (out / ARTIFACT_FILE).exists():
        detail = f"{out / ARTIFACT_FILE} is there already: give another --out FOLDER."
        raise LimnerError("INVALID_INPUT", detail)


def plan_sagemaker(
    definition: Mapping[str, Any],
    deployment: Deployment,
    photos: Sequence[Photo],
    config: TrainingConfig,
    *,
    request_id: str,
    instance_type: str | None = None,
    image: str | None = None,
    base: str | None = None,
) -> SageMakerPlan:
    """Plans a fine-tune as a training job like those of a deployed stage.

    Args:
        definition: The definition of the stage's state machine ``onboard``.
        deployment: The stage's resources.
        photos: The photos.
        config: The recipe.
        request_id: A new request's id.
        instance_type: Another machine than the stage's first.
        image: Another image than the stage's.
        base: S3 URI of another base than the stage's; the job's role must be allowed to read it.

    Raises:
        LimnerError: ``NOT_DEPLOYED``, if the machine does not train; ``INVALID_INPUT``, if the
            base is no S3 URI.
    """
    job = _job(definition)
    bucket = deployment.bucket
    base = base or f"s3://{bucket}/{keys.base_prefix(deployment.base_id)}"
    if not base.startswith("s3://"):
        detail = f"On SageMaker, a base is an S3 URI, and {base} is none (docs/bases.md)."
        raise LimnerError("INVALID_INPUT", detail)
    algorithm, output = job["AlgorithmSpecification"], job["OutputDataConfig"]
    vpc = job.get("VpcConfig", {})
    return SageMakerPlan(
        request_id=request_id,
        photos=tuple(photos),
        config=config,
        bucket=bucket,
        image=image or algorithm["TrainingImage"],
        role=job["RoleArn"],
        machine=_machine(job, instance_type or _first_instance_type(definition)),
        network=Network(
            isolated=bool(job.get("EnableNetworkIsolation", False)),
            subnets=tuple(vpc.get("Subnets", ())),
            security_groups=tuple(vpc.get("SecurityGroupIds", ())),
        ),
        channels=(
            (PHOTOS_CHANNEL, f"s3://{bucket}/{keys.uploads_prefix(TUNING_USER, request_id)}"),
            (CONFIG_CHANNEL, f"s3://{bucket}/{keys.config_prefix(request_id)}"),
            (BASE_CHANNEL, base),
        ),
        output=output["S3OutputPath"],
        output_key=output.get("KmsKeyId", ""),
        checkpoints=f"s3://{bucket}/{keys.PREVIEWS_TEMPLATE.format(request_id)}",
        metrics=tuple((item["Name"], item["Regex"]) for item in algorithm["MetricDefinitions"]),
        environment=environment(request_id),
    )


def environment(request_id: str) -> tuple[tuple[str, str], ...]:
    """The variables that tell the program its request."""
    return (("LIMNER_REQUEST_ID", request_id), ("LIMNER_MODEL_ID", keys.DEFAULT_MODEL_ID))


def _job(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        job: Mapping[str, Any] = definition["States"][_STATE]["Parameters"]
    except (KeyError, TypeError) as error:
        detail = f"The stage's state machine has no state {_STATE}: it is of another version."
        raise LimnerError("NOT_DEPLOYED", detail) from error
    return job


def _machine(job: Mapping[str, Any], instance_type: str) -> Machine:
    resources, stopping = job["ResourceConfig"], job["StoppingCondition"]
    return Machine(
        instance_type=instance_type,
        volume_gb=resources["VolumeSizeInGB"],
        volume_key=resources.get("VolumeKmsKeyId", ""),
        keep_alive_s=resources.get("KeepAlivePeriodInSeconds", 0),
        spot=bool(job.get("EnableManagedSpotTraining", False)),
        max_runtime_s=stopping["MaxRuntimeInSeconds"],
        max_wait_s=stopping.get("MaxWaitTimeInSeconds", 0),
        restarts=job.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0),
    )


def _first_instance_type(definition: Mapping[str, Any]) -> str:
    """The machine that the stage's jobs ask for first: the list stands in one of its states."""
    found = _INSTANCE_TYPES.search(json.dumps(definition))
    if found is None:
        detail = "The stage names no type of machine: give --instance-type ml.g5.xlarge."
        raise LimnerError("INVALID_INPUT", detail)
    return found[1]
