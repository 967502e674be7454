"""boto3 clients and the deployed resources, made once for each ``Limner``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from limner.client.errors import translate, translated
from limner.contracts.errors import LimnerError
from limner.settings import Deployment, stack_name

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient
    from mypy_boto3_stepfunctions import SFNClient

_CONNECT_TIMEOUT_S: Final = 5
_READ_TIMEOUT_S: Final = 30
# The endpoint answers within 60 s, with ModelNotReadyException while it still loads; AWS asks for
# a socket timeout of 70 s (SageMaker developer guide, "Multi-model endpoints").
_INVOKE_TIMEOUT_S: Final = 70
# The function ``register`` looks at up to 50 photos in S3 before it answers.
_FUNCTION_TIMEOUT_S: Final = 65


@dataclass(frozen=True)
class Clients:
    """The boto3 clients that ``Limner`` uses; each may be shared between threads."""

    dynamodb: DynamoDBClient
    s3: S3Client
    stepfunctions: SFNClient
    sagemaker: SageMakerClient
    runtime: SageMakerRuntimeClient
    cloudformation: CloudFormationClient
    functions: LambdaClient

    @classmethod
    def of(
        cls,
        session: boto3.Session | None = None,
        *,
        endpoint_url: str | None = None,
        path_style: bool = False,
    ) -> Clients:
        """Clients of a session.

        Args:
            session: Credentials and region; the standard AWS settings where absent.
            endpoint_url: Another AWS than AWS itself, for all services.
            path_style: Whether a bucket is a part of the path and not of the host name, as a
                loopback address needs.

        Raises:
            LimnerError: ``AWS_ERROR``, if there is no region or the profile does not exist.
        """
        style: Final = "path" if path_style or endpoint_url else "auto"
        config = Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": 5},
            s3={"addressing_style": style},
            user_agent_extra="limner",
        )
        # One attempt: generate has its own retries, which end at the caller's deadline.
        once = config.merge(
            Config(read_timeout=_INVOKE_TIMEOUT_S, retries={"total_max_attempts": 1})
        )
        try:
            session = session or boto3.Session()
            patient = config.merge(Config(read_timeout=_FUNCTION_TIMEOUT_S))
            return cls(
                dynamodb=session.client("dynamodb", endpoint_url=endpoint_url, config=config),
                s3=session.client("s3", endpoint_url=endpoint_url, config=config),
                stepfunctions=session.client(
                    "stepfunctions", endpoint_url=endpoint_url, config=config
                ),
                sagemaker=session.client("sagemaker", endpoint_url=endpoint_url, config=config),
                runtime=session.client("sagemaker-runtime", endpoint_url=endpoint_url, config=once),
                cloudformation=session.client(
                    "cloudformation", endpoint_url=endpoint_url, config=config
                ),
                functions=session.client("lambda", endpoint_url=endpoint_url, config=patient),
            )
        except BotoCoreError as error:
            raise translate(error) from error


def find_deployment(cloudformation: CloudFormationClient, stage: str) -> Deployment:
    """The resources of a stage, from the outputs of its stack.

    Raises:
        LimnerError: ``NOT_DEPLOYED``, ``LAPTOP_NOT_RUNNING`` or ``AWS_ERROR``.
    """
    name = stack_name(stage)
    with translated():
        stacks = cloudformation.describe_stacks(StackName=name)["Stacks"]
    if not stacks:
        raise LimnerError("NOT_DEPLOYED", f"There is no stack {name}.")
    outputs = stacks[0].get("Outputs", [])
    return Deployment.from_outputs(
        {output["OutputKey"]: output["OutputValue"] for output in outputs}
    )
