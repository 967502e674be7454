"""The settings of the functions, from the environment; the only place that reads it.

A missing variable fails the cold start, not the first request that needs it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from limner.contracts.errors import LimnerError
from limner.contracts.packing import Pace


@dataclass(frozen=True, slots=True)
class SmokeTestSettings:
    """Settings of ``smoke_test``.

    Attributes:
        endpoint_name: The multi-model endpoint.
        base_id: The base that the endpoint must answer from.
    """

    endpoint_name: str
    base_id: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> SmokeTestSettings:
        """Reads ENDPOINT_NAME and BASE_ID."""
        return cls(_required(environ, "ENDPOINT_NAME"), _required(environ, "BASE_ID"))


# What the gate asks of a model, by the names of ``training.quality.Figures``.
FIGURES = ("similarity_gain", "prompt_response", "diversity", "novelty")


@dataclass(frozen=True, slots=True)
class InspectArtifactSettings:
    """Settings of ``inspect_artifact``.

    Attributes:
        base_id: The base that artifacts must be for.
        least: What figures must reach, by name; what is not named is not asked.
    """

    base_id: str
    least: Mapping[str, float]

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> InspectArtifactSettings:
        """Reads BASE_ID, and QUALITY_… where they are set.

        Raises:
            LimnerError: ``INTERNAL``, if BASE_ID is missing, or a threshold is no number.
        """
        least = {
            figure: _number(environ, name)
            for figure in FIGURES
            if environ.get(name := f"QUALITY_{figure.upper()}")
        }
        return cls(_required(environ, "BASE_ID"), least)


@dataclass(frozen=True, slots=True)
class RecordFailureSettings:
    """Settings of ``record_failure``.

    Attributes:
        models_table: Name of the table of models and versions.
        requests_table: Name of the table of requests.
        topic_arn: Where failures are announced that no execution can announce any more.
        stage: Dimension of the metrics.
    """

    models_table: str
    requests_table: str
    topic_arn: str
    stage: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> RecordFailureSettings:
        """Reads MODELS_TABLE, REQUESTS_TABLE, TOPIC_ARN and STAGE."""
        return cls(
            _required(environ, "MODELS_TABLE"),
            _required(environ, "REQUESTS_TABLE"),
            _required(environ, "TOPIC_ARN"),
            _required(environ, "STAGE"),
        )


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """Settings of ``dispatch``.

    Attributes:
        requests_table: Name of the table of requests.
        onboard_machine_arn: The machine of single onboardings.
        batch_machine_arn: The machine of batches.
        stage: Dimension of the metrics.
        max_instances: Training instances at work at the same time.
        launches_per_second: How often executions start, in the long run.
        burst: How many may start at once after a pause.
        daily_launches: Launches a day (UTC); a bug cannot spend more.
        user_active: Requests of one user at work at the same time.
        batch_from: So many waiting requests are worth a batch.
        batch_size: Requests of one batch.
        batch_instances: Instances of a batch's training job, as ``pack_tasks`` is told.
        lease_s: How long a request belongs to the invocation that starts it; longer than an
            invocation can last.
        worker_machine_arn: The machine of workers.
        workers: Workers at most; 0 for a stage without.
        worker_backlog: Users that wait, from which another worker starts.
        worker_patience_s: Seconds after which a request that no worker has taken gets a job.
    """

    requests_table: str
    onboard_machine_arn: str
    batch_machine_arn: str
    stage: str
    max_instances: int
    launches_per_second: float
    burst: int
    daily_launches: int
    user_active: int
    batch_from: int
    batch_size: int
    batch_instances: int
    lease_s: int
    worker_machine_arn: str
    workers: int
    worker_backlog: int
    worker_patience_s: int

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> DispatchSettings:
        """Reads the variables of the same names in upper case.

        Raises:
            LimnerError: ``INTERNAL``, if one is missing or out of range.
        """
        settings = cls(
            _required(environ, "REQUESTS_TABLE"),
            _required(environ, "ONBOARD_MACHINE_ARN"),
            _required(environ, "BATCH_MACHINE_ARN"),
            _required(environ, "STAGE"),
            _whole(environ, "MAX_INSTANCES"),
            _positive(environ, "LAUNCHES_PER_SECOND"),
            _whole(environ, "BURST"),
            _whole(environ, "DAILY_LAUNCHES"),
            _whole(environ, "USER_ACTIVE"),
            _whole(environ, "BATCH_FROM"),
            # limner.contracts.onboarding.MAX_BATCH; that module needs pydantic. A test compares.
            _whole(environ, "BATCH_SIZE", most=100),
            _whole(environ, "BATCH_INSTANCES"),
            _whole(environ, "LEASE_S", least=30),
            _required(environ, "WORKER_MACHINE_ARN"),
            _whole(environ, "WORKERS", least=0),
            _whole(environ, "WORKER_BACKLOG"),
            _whole(environ, "WORKER_PATIENCE_S"),
        )
        if settings.batch_instances + settings.workers > settings.max_instances:
            raise LimnerError(
                "INTERNAL",
                "BATCH_INSTANCES and WORKERS above MAX_INSTANCES: no batch could ever start.",
            )
        return settings


@dataclass(frozen=True, slots=True)
class ReconcileSettings:
    """Settings of ``reconcile``.

    Attributes:
        models_table: Name of the table of models and versions.
        requests_table: Name of the table of requests.
        topic_arn: Where endings are announced that no execution can announce any more.
        onboard_machine_arn: The machine of single onboardings.
        batch_machine_arn: The machine of batches.
        worker_machine_arn: The machine of workers.
        stage: Dimension of the metrics.
        job_prefix: How the names of our training jobs begin; no other job is ever touched.
        grace_s: How long a request may stand still before anybody asks why.
    """

    models_table: str
    requests_table: str
    topic_arn: str
    onboard_machine_arn: str
    batch_machine_arn: str
    worker_machine_arn: str
    stage: str
    job_prefix: str
    grace_s: int

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> ReconcileSettings:
        """Reads the variables of the same names in upper case.

        Raises:
            LimnerError: ``INTERNAL``, if one is missing or out of range.
        """
        return cls(
            _required(environ, "MODELS_TABLE"),
            _required(environ, "REQUESTS_TABLE"),
            _required(environ, "TOPIC_ARN"),
            _required(environ, "ONBOARD_MACHINE_ARN"),
            _required(environ, "BATCH_MACHINE_ARN"),
            _required(environ, "WORKER_MACHINE_ARN"),
            _required(environ, "STAGE"),
            _required(environ, "JOB_PREFIX"),
            _whole(environ, "GRACE_S"),
        )


@dataclass(frozen=True, slots=True)
class RegisterSettings:
    """Settings of ``register``.

    Attributes:
        bucket: Name of the bucket of photos and configs.
        requests_table: Name of the table of requests.
        bus_name: Name of the event bus.
    """

    bucket: str
    requests_table: str
    bus_name: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> RegisterSettings:
        """Reads BUCKET, REQUESTS_TABLE and BUS_NAME."""
        return cls(
            _required(environ, "BUCKET"),
            _required(environ, "REQUESTS_TABLE"),
            _required(environ, "BUS_NAME"),
        )


@dataclass(frozen=True, slots=True)
class PackTasksSettings:
    """Settings of ``pack_tasks``.

    Attributes:
        bucket: Name of the bucket.
        requests_table: Name of the table of requests.
        batch_instances: Machines of a batch's training job at most.
        batch_target_s: Seconds that a job should not exceed, if more machines help.
        pace: How long a fine-tune takes on this stage's base and machines, before any has ended.
    """

    bucket: str
    requests_table: str
    batch_instances: int
    batch_target_s: int
    pace: Pace

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> PackTasksSettings:
        """Reads the variables of the same names in upper case, and PACE_… where they are set.

        Raises:
            LimnerError: ``INTERNAL``, if one is missing or out of range.
        """
        pace = {
            name: _positive(environ, f"PACE_{name.upper()}")
            for name in ("fixed_s", "step_s", "photo_s")
            if environ.get(f"PACE_{name.upper()}")
        }
        return cls(
            _required(environ, "BUCKET"),
            _required(environ, "REQUESTS_TABLE"),
            _whole(environ, "BATCH_INSTANCES"),
            _whole(environ, "BATCH_TARGET_S"),
            Pace(**pace),
        )


@dataclass(frozen=True, slots=True)
class CollectResultsSettings:
    """Settings of ``collect_results``.

    Attributes:
        bucket: Name of the bucket.
        requests_table: Name of the table of requests.
    """

    bucket: str
    requests_table: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> CollectResultsSettings:
        """Reads BUCKET and REQUESTS_TABLE."""
        return cls(_required(environ, "BUCKET"), _required(environ, "REQUESTS_TABLE"))


@dataclass(frozen=True, slots=True)
class RecordProgressSettings:
    """Settings of ``record_progress``.

    Attributes:
        requests_table: Name of the table of requests.
    """

    requests_table: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> RecordProgressSettings:
        """Reads REQUESTS_TABLE."""
        return cls(_required(environ, "REQUESTS_TABLE"))


def _number(environ: Mapping[str, str], name: str) -> float:
    try:
        value = float(_required(environ, name))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LimnerError("INTERNAL", f"{name} must be a number.")
    return value


def _positive(environ: Mapping[str, str], name: str) -> float:
    value = _number(environ, name)
    if value <= 0:
        raise LimnerError("INTERNAL", f"{name} must be a number above 0.")
    return value


def _whole(
    environ: Mapping[str, str], name: str, *, least: int = 1, most: int = 1_000_000_000
) -> int:
    value = _number(environ, name)
    if value != int(value) or not least <= value <= most:
        raise LimnerError("INTERNAL", f"{name} must be a whole number from {least} to {most}.")
    return int(value)


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value:
        raise LimnerError("INTERNAL", f"The function's environment lacks {name}.")
    return value
