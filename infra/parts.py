"""What constructs ask of each other: plain data, so that another CDK app can bring its own."""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import Aws
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sagemaker as sagemaker


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

    The ARN is not made of the name: SageMaker writes names into its ARNs in lower case, IAM
    compares resources letter by letter, and the names that CloudFormation makes up have capitals.

    Attributes:
        name: Its name, as calls and metrics name it.
        arn: Its ARN; the right to invoke ends there.
    """

    name: str
    arn: str

    @classmethod
    def of(cls, endpoint: sagemaker.CfnEndpoint) -> EndpointRef:
        """An endpoint of this app; CloudFormation knows its ARN."""
        return cls(endpoint.attr_endpoint_name, endpoint.ref)

    @classmethod
    def named(cls, name: str) -> EndpointRef:
        """An endpoint of this account and region that was made elsewhere.

        Args:
            name: Its name as text. A reference to a resource has no letters yet that could be
                lowered: give the ARN of such an endpoint to the constructor.
        """
        here = f"{Aws.PARTITION}:sagemaker:{Aws.REGION}:{Aws.ACCOUNT_ID}"
        return cls(name, f"arn:{here}:endpoint/{name.lower()}")
