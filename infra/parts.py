"""What constructs ask of each other: plain data, so that another CDK app can bring its own."""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import Aws
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_s3 as s3


@dataclass(frozen=True)
class Store:
    """Where things are kept.

    Attributes:
        bucket: Photos, jobs, artifacts.
        models: The table of models and versions.
        requests: The table of requests.
    """

    bucket: s3.IBucket
    models: dynamodb.ITable
    requests: dynamodb.ITable


@dataclass(frozen=True)
class EndpointRef:
    """The multi-model endpoint that everyone's models are served by.

    Attributes:
        name: Its name.
    """

    name: str

    @property
    def arn(self) -> str:
        """Its ARN; the right to invoke ends there."""
        return f"arn:{Aws.PARTITION}:sagemaker:{Aws.REGION}:{Aws.ACCOUNT_ID}:endpoint/{self.name}"
