"""Where Limner finds its AWS resources: explicit settings, or the outputs of its stack.

Environment variables (all optional):

====================================  ==========================================================
``LIMNER_STAGE``                      the stage; its stack is ``limner-<stage>``
``LIMNER_BUCKET``                     the bucket of photos and artifacts
``LIMNER_MODELS_TABLE``               the table of models and versions
``LIMNER_REQUESTS_TABLE``             the table of requests
``LIMNER_ONBOARD_MACHINE_ARN``        the state machine ``onboard``
``LIMNER_ENDPOINT_NAME``              the multi-model endpoint
``LIMNER_BASE_ID``                    the base under all adapters
``LIMNER_REGISTER_FUNCTION``          the function ``register``, for ``Limner.register/submit``
``LIMNER_ONBOARD_BATCH_MACHINE_ARN``  the state machine ``onboard_batch``
``LIMNER_BUS_NAME``                   the bus that takes ``limner.onboarding.requested``
``LIMNER_CAPTURE``                    ``client``: ``generate`` keeps what it drew in the bucket
``AWS_ENDPOINT_URL``                  the AWS to talk to, where it is not AWS itself
====================================  ==========================================================

With the first six resource settings present, nothing is read from CloudFormation, so a production
role needs no permission for it. The last three may be left out: what needs one says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Final

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from limner.contracts.capture import CaptureBy
from limner.contracts.errors import LimnerError
from limner.contracts.training import explain

DEFAULT_STAGE: Final = "prod"
LAPTOP_STAGE: Final = "local"

# Field of Deployment -> output of the stack (``infra`` names them).
STACK_OUTPUTS: Final[dict[str, str]] = {
    "bucket": "BucketName",
    "models_table": "ModelsTableName",
    "requests_table": "RequestsTableName",
    "onboard_machine_arn": "OnboardMachineArn",
    "endpoint_name": "EndpointName",
    "base_id": "BaseId",
    "register_function": "RegisterFunctionName",
    "onboard_batch_machine_arn": "OnboardBatchMachineArn",
    "bus_name": "BusName",
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """The AWS resources of one deployed stage.

    Attributes:
        bucket: Name of the bucket of photos, jobs and artifacts.
        models_table: Name of the table of models and versions.
        requests_table: Name of the table of requests.
        onboard_machine_arn: ARN of the state machine ``onboard``.
        endpoint_name: Name of the multi-model endpoint.
        base_id: The base under all adapters.
        register_function: Name of the function ``register``; empty where it is not known.
        onboard_batch_machine_arn: ARN of the state machine ``onboard_batch``, likewise.
        bus_name: Name of the event bus, likewise.
    """

    bucket: str
    models_table: str
    requests_table: str
    onboard_machine_arn: str
    endpoint_name: str
    base_id: str
    register_function: str = ""
    onboard_batch_machine_arn: str = ""
    bus_name: str = ""

    @classmethod
    def from_outputs(cls, outputs: Mapping[str, str]) -> Deployment:
        """The deployment that a stack's outputs describe.

        Raises:
            LimnerError: ``NOT_DEPLOYED``, naming the outputs that are missing.
        """
        missing = sorted(STACK_OUTPUTS[f] for f in _NEEDED if not outputs.get(STACK_OUTPUTS[f]))
        if missing:
            raise LimnerError("NOT_DEPLOYED", f"The stack has no output {', '.join(missing)}.")
        return cls(**{field: outputs.get(name, "") for field, name in STACK_OUTPUTS.items()})

    def execution_arn(self, name: str) -> str:
        """ARN of an execution of the machine ``onboard`` by its name."""
        return f"{self.onboard_machine_arn.replace(':stateMachine:', ':execution:', 1)}:{name}"

    def works_alone(self, execution_arn: str) -> bool:
        """Whether an execution is one of ``onboard``, which has one request, and not a batch's."""
        return execution_arn.startswith(self.execution_arn(""))


# An older stack, or an older environment, lacks the others.
_NEEDED: Final = tuple(field.name for field in fields(Deployment) if field.default is MISSING)


class Settings(BaseSettings):
    """The environment of a program that uses ``limner.client``."""

    model_config = SettingsConfigDict(env_prefix="LIMNER_", frozen=True, extra="ignore")

    stage: str = Field(default=DEFAULT_STAGE, pattern=r"^[a-z][a-z0-9-]{0,31}$")
    bucket: str = ""
    models_table: str = ""
    requests_table: str = ""
    onboard_machine_arn: str = ""
    endpoint_name: str = ""
    base_id: str = ""
    register_function: str = ""
    onboard_batch_machine_arn: str = ""
    bus_name: str = ""
    # The stage's own setting; of its values only ``client`` is about this program.
    capture: CaptureBy = "off"
    aws_endpoint_url: str = Field(default="", validation_alias="AWS_ENDPOINT_URL")

    def deployment(self) -> Deployment | None:
        """The deployment that the environment names in full, or None where it names none.

        Raises:
            LimnerError: ``INVALID_INPUT``, if some of the first six settings are missing.
        """
        values = {field.name: str(getattr(self, field.name)) for field in fields(Deployment)}
        missing = [f"LIMNER_{name.upper()}" for name in _NEEDED if not values[name]]
        if len(missing) == len(_NEEDED):
            return None
        if missing:
            detail = f"Set {', '.join(missing)} too, or none of the LIMNER_ resource settings."
            raise LimnerError("INVALID_INPUT", detail)
        return Deployment(**values)


def read_settings(stage: str | None = None) -> Settings:
    """Reads the environment.

    Args:
        stage: The stage, where the caller names one; else the environment's.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming each wrong setting.
    """
    try:
        return Settings() if stage is None else Settings(stage=stage)
    except ValidationError as error:
        raise LimnerError("INVALID_INPUT", f"Settings: {explain(error)}.") from error


def stack_name(stage: str) -> str:
    """Name of the CloudFormation stack of a stage."""
    return f"limner-{stage}"
