"""A fine-tune on SageMaker through AWS's own Python SDK, version 3: its ``ModelTrainer``.

The SDK weighs about a gigabyte, so it is the extra ``launcher`` and imported here alone, when a
job is really to be started.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from limner.client import uploads
from limner.client.errors import translated
from limner.contracts.errors import LimnerError
from limner.launcher.plan import ARTIFACT_FILE, JOB_PREFIX, Machine, Network, SageMakerPlan
from limner.launcher.reasons import error_of

if TYPE_CHECKING:
    import boto3

    from limner.client import Clients
    from limner.settings import Deployment

# The SDK asks IAM whether a role may do all that any training could need. The stage's role may do
# what its jobs need and no more, so it would be refused.
_VALIDATE_ROLE: Final = "SAGEMAKER_VALIDATE_ROLE"


def check_sdk() -> None:
    """Refuses early, before anything is uploaded.

    Raises:
        LimnerError: ``TOOL_MISSING``, if the SDK is not installed.
    """
    try:
        from sagemaker.train import ModelTrainer
    except ImportError as error:
        detail = (
            "The SageMaker SDK 3 (sagemaker, about 1 GB) is not installed: "
            "pip install 'limner[launcher]'."
        )
        raise LimnerError("TOOL_MISSING", detail) from error
    del ModelTrainer


def stage_definition(clients: Clients, deployment: Deployment) -> dict[str, Any]:
    """The definition of the stage's state machine ``onboard``, whose jobs ours shall be like.

    Raises:
        LimnerError: ``NOT_DEPLOYED``, ``AWS_ERROR`` …
    """
    with translated():
        machine = clients.stepfunctions.describe_state_machine(
            stateMachineArn=deployment.onboard_machine_arn
        )
    definition: dict[str, Any] = json.loads(machine["definition"])
    return definition


def execute(
    plan: SageMakerPlan,
    clients: Clients,
    session: boto3.Session,
    *,
    wait: bool,
    started: Callable[[str], None] = lambda _: None,
) -> str:
    """Uploads photos and config, and starts the job.

    Args:
        plan: What to do.
        clients: Clients of the stage's AWS.
        session: Its credentials and region.
        wait: Whether to show the job's log until it ends.
        started: Told the job's name as soon as the job exists.

    Returns:
        The job's name.

    Raises:
        LimnerError: ``TOOL_MISSING``, ``AWS_ERROR``, ``THROTTLED``, or the program's own error.
    """
    check_sdk()
    from sagemaker.core.utils.exceptions import SageMakerCoreError

    with translated():
        uploads.upload(clients.s3, plan.bucket, plan.photos_prefix, plan.photos)
        uploads.put_config(clients.s3, plan.bucket, plan.request_id, plan.config)
        with _trusted_role():
            trainer = model_trainer(plan, session)
        trainer.train(wait=False, logs=False)
        job = trainer._latest_training_job
        name = str(job.training_job_name)
        started(name)
        if wait:
            try:
                job.wait(logs=True)
            except SageMakerCoreError as error:
                raise error_of(str(error)) from error
    return name


def model_trainer(plan: SageMakerPlan, session: boto3.Session) -> Any:  # noqa: ANN401 - the SDK's
    """The SDK's own description of the job; nothing is started yet."""
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer

    output: dict[str, str] = {"s3_output_path": plan.output}
    if plan.output_key:
        output["kms_key_id"] = plan.output_key
    trainer = ModelTrainer(
        sagemaker_session=Session(boto_session=session),
        role=plan.role,
        base_job_name=JOB_PREFIX,
        training_image=plan.image,
        training_input_mode="File",
        compute=configs.Compute(**_compute(plan.machine)),
        networking=configs.Networking(**_networking(plan.network)),
        stopping_condition=configs.StoppingCondition(**_stopping(plan.machine)),
        input_data_config=[
            configs.InputData(channel_name=name, data_source=uri) for name, uri in plan.channels
        ],
        output_data_config=configs.OutputDataConfig(**output),
        checkpoint_config=configs.CheckpointConfig(s3_uri=plan.checkpoints),
        environment=dict(plan.environment),
        # None, as in the workflow: the recipe holds prompts, and a file can expire.
        hyperparameters={},
    )
    trainer.with_metric_definitions(
        [configs.MetricDefinition(name=name, regex=regex) for name, regex in plan.metrics]
    )
    if plan.machine.restarts:
        trainer.with_retry_strategy(
            configs.RetryStrategy(maximum_retry_attempts=plan.machine.restarts)
        )
    return trainer


def collect(plan: SageMakerPlan, clients: Clients, job_name: str, out: Path) -> list[Path]:
    """Downloads the artifact and the first images of a job that has ended well.

    Raises:
        LimnerError: ``AWS_ERROR``.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = {ARTIFACT_FILE: plan.artifact_key(job_name)}
    with translated():
        found = clients.s3.list_objects_v2(Bucket=plan.bucket, Prefix=plan.previews_prefix)
        for item in found.get("Contents", []):
            name = Path(item["Key"]).name
            if name.startswith("preview-"):
                wanted[name] = item["Key"]
        for name, key in wanted.items():
            clients.s3.download_file(plan.bucket, key, str(out / name))
    return [out / name for name in sorted(wanted)]


def _compute(machine: Machine) -> dict[str, object]:
    values: dict[str, object] = {
        "instance_type": machine.instance_type,
        "instance_count": 1,
        "volume_size_in_gb": machine.volume_gb,
    }
    if machine.volume_key:
        values["volume_kms_key_id"] = machine.volume_key
    if machine.keep_alive_s:
        values["keep_alive_period_in_seconds"] = machine.keep_alive_s
    if machine.spot:
        values["enable_managed_spot_training"] = True
    return values


def _networking(network: Network) -> dict[str, object]:
    values: dict[str, object] = {"enable_network_isolation": network.isolated}
    if network.subnets:
        values["subnets"] = list(network.subnets)
        values["security_group_ids"] = list(network.security_groups)
    return values


def _stopping(machine: Machine) -> dict[str, int]:
    values = {"max_runtime_in_seconds": machine.max_runtime_s}
    if machine.max_wait_s:
        values["max_wait_time_in_seconds"] = machine.max_wait_s
    return values


@contextmanager
def _trusted_role() -> Iterator[None]:
    before = os.environ.get(_VALIDATE_ROLE)
    os.environ[_VALIDATE_ROLE] = before or "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VALIDATE_ROLE]
