"""The settings of one stage; the only place where infra reads the environment.

Every setting is an environment variable ``LIMNER_<NAME>``, lists separated by commas. What AWS
would refuse at deployment, or worse at the first job, is refused here, with the fix in the message.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from infra import images, prices
from limner.contracts import keys
from limner.contracts.base import TINY_BASE_ID
from limner.contracts.capture import CaptureBy
from workflows import retries

LOCAL: Final = "local"


def _listed(value: object) -> object:
    """Text from the environment as a list: ``a,b``."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _or_off(value: object) -> object:
    """``off`` from the environment as nothing."""
    return None if value in ("", "off") else value


Threshold = Annotated[float | None, BeforeValidator(_or_off)]
Stage = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]{1,11}$")]
InstanceType = Annotated[str, StringConstraints(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$")]
Repository = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([._/-][a-z0-9]+)*$")]
Origin = Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.-]+(:\d+)?$")]
InstanceTypes = Annotated[
    tuple[InstanceType, ...],
    NoDecode,
    BeforeValidator(_listed),
    Field(min_length=1, max_length=retries.MOST_INSTANCE_TYPES),
]
Repositories = Annotated[tuple[Repository, ...], NoDecode, BeforeValidator(_listed)]
ContainerSetting = Annotated[str, StringConstraints(pattern=r"^LIMNER_[A-Z_]{1,64}$")]
Origins = Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_listed)]


class StageSettings(BaseSettings):
    """What differs from stage to stage.

    Attributes:
        stage: Name of the stage; part of the stack's name. ``local`` is the laptop.
        kms: Whether a key of our own, rotated each year, encrypts bucket, tables, topics, queues
            and logs; else AWS's keys do. Never on the laptop.
        base_id: The frozen base under all adapters.
        training_image: The training program's image in ECR, whosever registry that is; the right
            to pull ends at its repository. A stack parameter without default if empty.
        inference_image: The endpoint's image, likewise.
        image_repositories: Where images lie that are told only at deployment: ECR repositories of
            this account and region, by exact name.
        training_instance_types: The machines that a training job may run on, one entry a try: a
            job that AWS has no machine for is tried again on the next one.
        training_volume_gb: Size of the volume of a training machine.
        training_call: ``sync`` lets Step Functions wait for a job; ``sdk`` calls SageMaker's API
            and looks at the job (``docs/decisions``, "Fields of .sync").
        warm_pool_s: Seconds that a training machine is kept for the next job (SageMaker's
            KeepAlivePeriodInSeconds); it costs as much as a working one. 0 for no warm pool. The
            quota of warm pools is 0 until AWS raises it.
        spot: Whether training runs on spot machines; not together with a warm pool.
        max_wait_s: Seconds that a spot job may take, interruptions included.
        endpoint_instance_type: The machine the endpoint runs on. On one with a GPU a multi-model
            endpoint takes NVIDIA Triton alone for a container (SageMaker developer guide,
            "Supported algorithms, frameworks, and instances"): ``inference_image`` must be that of
            ``inference/triton/Dockerfile`` then.
        endpoint_environment: Further settings of the endpoint's container, as a JSON object
            (docs/serving.md, "Settings"): ``{"LIMNER_ADAPTER_BYTES": "11500000000"}``.
        endpoint_instances: Number of machines behind the endpoint at least.
        endpoint_max_instances: At most; more than ``endpoint_instances`` turns autoscaling on.
        endpoint_invocations_per_instance: Invocations a minute and machine that autoscaling aims
            at.
        batch_from: Queued requests from which ``dispatch`` starts batches instead of single jobs.
        batch_size: Requests of one batch at most.
        batch_instances: Machines of one batch job at most.
        batch_claims: Whether the machines of a batch take tasks over from each other. Its program
            gets a network and the training role then (decision 031).
        batch_target_s: Seconds of training that a batch job is packed for.
        pace_fixed_s: Seconds of a fine-tune whatever the request; with the two below, what batches
            are packed by. Measure them on your base and machines; 0 for the tiny base on a CPU.
        pace_step_s: Seconds of each optimizer step.
        pace_photo_s: Seconds of each photo.
        quality: Whether quality figures are drawn of each model; without them, the four below ask
            for nothing (docs/quality.md).
        quality_similarity_gain: What ``similarity_gain`` of ``training.quality.Figures`` must reach
            before a model is published, else its request fails with QUALITY_TOO_LOW; ``off`` for no
            such bound. The defaults of these four refuse what has collapsed and no more; raise
            them to what your base reaches (docs/quality.md).
        quality_prompt_response: The same for ``prompt_response``.
        quality_diversity: The same for ``diversity``.
        quality_novelty: The same for ``novelty``.
        workers: Workers at most: training jobs that stay, and take queued requests themselves, so
            that neither a machine's start nor CreateTrainingJob's rate is in a user's way (decision
            032). They count in ``max_instances``, not in ``daily_launches``: each may start once in
            five minutes. Their programs get a network and a role with the queue in it. 0 for none.
        worker_backlog: Users that wait, from which another worker starts.
        worker_idle_s: Seconds that a worker stays without work; it costs as much as with.
        worker_lifetime_s: Seconds after which a worker takes nothing on any more.
        worker_patience_s: Seconds after which a request that no worker has taken gets a job.
        training_rows: Images that one pass through the UNet may hold, in any job; 0 for the
            program's own default (docs/bases.md says what a row costs).
        max_instances: Training machines that may work at once; the concurrency budget.
        launches_per_second: Training jobs started a second in the long run.
        burst: Training jobs that may be started at once after a pause.
        daily_launches: Training jobs a day at most; the bound on what a bug can spend.
        user_active: Requests of one user that may be at work at once.
        lease_s: Seconds that a dispatcher may keep a request before another one takes it; longer
            than ``dispatch`` may run.
        dispatch_minutes: Minutes between two visits of ``dispatch`` to the queue. The requests
            table's stream wakes it at once; this is for what the stream lost.
        reconcile_minutes: Minutes between two comparisons of records with executions.
        grace_s: Seconds that a row may stand still before ``reconcile`` looks at it.
        photo_days: Days until photos, configs and first images are deleted.
        job_days: Days until the archives of jobs and batches are deleted; published copies stay.
        generation_days: Days until captured generations are deleted.
        capture: Who keeps what is drawn in the bucket, below ``generations/``: ``endpoint`` (its
            container, which may write there then), ``client`` (apps, by their own setting of this
            name and their own right), or ``off``.
        cors_origins: Web origins whose pages may upload photos right from the browser.
        alarm_email: Who is told of alarms and of the budget; nobody by mail if empty.
        alarm_topic_arn: An SNS topic of yours for alarms, instead of a new one.
        alarm_failures_per_hour: Failed onboardings an hour from which an alarm rings.
        alarm_queue_minutes: Age of the oldest queued request from which an alarm rings.
        alarm_onboard_minutes: p95 of an onboarding's duration from which an alarm rings.
        alarm_cache_hit_ratio: Ratio of invocations that found their model in memory below which
            an alarm rings.
        alarm_launch_share: Share of ``daily_launches`` from which an alarm rings.
        monthly_budget_usd: Monthly cost of SageMaker in this account from which AWS Budgets sends
            a mail to ``alarm_email``. Absent: what the endpoint at its smallest and a tenth of the
            training machines cost (``infra.prices``), if there is a mail address. 0 for no budget.
    """

    model_config = SettingsConfigDict(env_prefix="LIMNER_", frozen=True, extra="ignore")

    stage: Stage = LOCAL
    kms: bool = True
    base_id: Annotated[str, AfterValidator(keys.check_base_id)] = TINY_BASE_ID

    training_image: str = ""
    inference_image: str = ""
    image_repositories: Repositories = ("limner/training", "limner/inference")

    training_instance_types: InstanceTypes = ("ml.g5.xlarge", "ml.g5.2xlarge", "ml.g4dn.xlarge")
    training_volume_gb: int = Field(default=50, ge=1, le=16_384)
    training_call: Literal["sync", "sdk"] = "sync"
    # The API takes six hours, the developer guide speaks of one.
    warm_pool_s: int = Field(default=0, ge=0, le=21_600)
    spot: bool = False
    # No shorter than a job may run, no longer than a task waits for its job (workflows.retries).
    max_wait_s: int = Field(
        default=retries.SPOT_WAIT_S, ge=retries.BATCH_RUNTIME_S, le=retries.SPOT_WAIT_S
    )

    endpoint_instance_type: InstanceType = "ml.m5.xlarge"
    endpoint_environment: dict[ContainerSetting, str] = Field(default={}, max_length=15)
    endpoint_instances: int = Field(default=1, ge=1, le=100)
    endpoint_max_instances: int = Field(default=4, ge=1, le=100)
    endpoint_invocations_per_instance: int = Field(default=60, ge=1)

    batch_from: int = Field(default=8, ge=2)
    batch_size: int = Field(default=32, ge=2, le=retries.MOST_REQUESTS)
    batch_instances: int = Field(default=4, ge=1, le=20)
    batch_claims: bool = False
    batch_target_s: int = Field(default=3600, ge=60)
    pace_fixed_s: float = Field(default=0, ge=0)
    pace_step_s: float = Field(default=0, ge=0)
    pace_photo_s: float = Field(default=0, ge=0)
    quality: bool = True
    quality_similarity_gain: Threshold = -0.1
    quality_prompt_response: Threshold = None
    quality_diversity: Threshold = 0.05
    quality_novelty: Threshold = 0.05
    workers: int = Field(default=0, ge=0, le=50)
    worker_backlog: int = Field(default=8, ge=1)
    # A slot starts once in five minutes (lambdas.dispatch.workers): no worker ends before that.
    worker_idle_s: int = Field(default=600, ge=300)
    worker_lifetime_s: int = Field(default=4 * 3600, ge=600, le=retries.WORKER_LIFETIME_S)
    worker_patience_s: int = Field(default=900, ge=60)
    training_rows: int = Field(default=0, ge=0, le=4096)
    max_instances: int = Field(default=8, ge=1)
    launches_per_second: float = Field(default=1.0, gt=0)
    burst: int = Field(default=5, ge=1)
    daily_launches: int = Field(default=500, ge=1)
    user_active: int = Field(default=1, ge=1)
    lease_s: int = Field(default=120, ge=90, le=3600)
    dispatch_minutes: int = Field(default=1, ge=1, le=60)
    reconcile_minutes: int = Field(default=5, ge=1, le=60)
    grace_s: int = Field(default=900, ge=60)

    photo_days: int = Field(default=30, ge=1, le=3_650)
    job_days: int = Field(default=14, ge=1, le=3_650)
    generation_days: int = Field(default=30, ge=1, le=3_650)
    capture: CaptureBy = "off"
    cors_origins: Origins = ()

    alarm_email: str = Field(default="", pattern=r"^([^@\s]+@[^@\s]+)?$")
    alarm_topic_arn: str = Field(default="", pattern=r"^(arn:[a-z-]+:sns:[a-z0-9-]+:\d{12}:\S+)?$")
    alarm_failures_per_hour: int = Field(default=5, ge=1)
    alarm_queue_minutes: int = Field(default=30, ge=1)
    alarm_onboard_minutes: int = Field(default=90, ge=1)
    alarm_cache_hit_ratio: float = Field(default=0.5, gt=0, le=1)
    alarm_launch_share: float = Field(default=0.8, gt=0, le=1)
    monthly_budget_usd: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _refuse_what_costs_nobody_knows_what(self) -> StageSettings:
        machines = (*self.training_instance_types, self.endpoint_instance_type)
        if missing := prices.unknown(machines):
            raise ValueError(
                f"{', '.join(missing)} has no price: write what AWS's price page says for your"
                " region to instance_hour in limner/prices.json, and the day to as_of"
            )
        return self

    @model_validator(mode="after")
    def _refuse_what_aws_would_refuse(self) -> StageSettings:
        for name in ("training_image", "inference_image"):
            image: str = getattr(self, name)
            if image and not self.is_local and not images.is_in_ecr(image):
                raise ValueError(
                    f"SageMaker pulls from ECR alone, and {image} is not there: push it (make"
                    f" images, docs/deploy.md) and set LIMNER_{name.upper()} to"
                    " ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG"
                )
        if self.spot and self.warm_pool_s:
            raise ValueError(
                "SageMaker keeps no warm pool of spot machines: set LIMNER_WARM_POOL_S=0 to train"
                " on spot machines, or LIMNER_SPOT=false to keep machines warm"
            )
        if self.endpoint_max_instances < self.endpoint_instances:
            raise ValueError(
                "the endpoint cannot have fewer machines at most than at least: set"
                f" LIMNER_ENDPOINT_MAX_INSTANCES to {self.endpoint_instances} or more"
            )
        if self.workers >= self.max_instances:
            raise ValueError(
                "workers would leave no machine for jobs, which do what workers cannot: set"
                f" LIMNER_WORKERS to {self.max_instances - 1} or less, or raise"
                " LIMNER_MAX_INSTANCES"
            )
        if self.batch_instances + self.workers > self.max_instances:
            raise ValueError(
                "a batch job larger than what workers leave of the concurrency budget would wait"
                f" for ever: set LIMNER_BATCH_INSTANCES to {self.max_instances - self.workers} or"
                " less, or raise LIMNER_MAX_INSTANCES"
            )
        if self.batch_from > self.batch_size:
            raise ValueError(
                "batches would never be full when they begin: set LIMNER_BATCH_FROM to"
                f" {self.batch_size} or less"
            )
        if self.burst > self.daily_launches:
            raise ValueError(
                "the burst exceeds the launches of a day: set LIMNER_BURST to"
                f" {self.daily_launches} or less"
            )
        if self.monthly_budget_usd and not self.alarm_email:
            raise ValueError(
                "AWS Budgets writes to a mail address: set LIMNER_ALARM_EMAIL, or"
                " LIMNER_MONTHLY_BUDGET_USD=0"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether this is the laptop: no assets, and nothing that needs a bootstrap."""
        return self.stage == LOCAL

    @property
    def budget_usd(self) -> int:
        """The month's budget in dollars; 0 for none: without a mail address nobody would hear."""
        if self.monthly_budget_usd is not None:
            return self.monthly_budget_usd
        return prices.budget(self) if self.alarm_email else 0

    @property
    def has_key(self) -> bool:
        """Whether the stage has a KMS key of its own."""
        return self.kms and not self.is_local

    @property
    def stack_name(self) -> str:
        """Name of the CloudFormation stack."""
        return f"limner-{self.stage}"


def laptop() -> StageSettings:
    """The settings of the committed template, whatever the environment says.

    What is not named here is the class's own default, which the environment must not change either.
    """
    ours: dict[str, object] = {
        "stage": LOCAL,
        "training_image": "limner/training:local",
        "inference_image": "limner/inference:local",
        "training_instance_types": ("ml.m5.xlarge", "ml.m5.2xlarge", "ml.c5.xlarge"),
    }
    defaults = {name: field.default for name, field in StageSettings.model_fields.items()}
    return StageSettings.model_validate({**defaults, **ours})
