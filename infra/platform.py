"""What SageMaker's own machines need, whether they train or serve: images, logs and metrics."""

from __future__ import annotations

from aws_cdk import Aws
from aws_cdk import aws_iam as iam


def statements(log_group: str, image_repositories: str) -> list[iam.PolicyStatement]:
    """The part of an execution role that is not about our data.

    From "SageMaker AI roles" in the SageMaker developer guide, narrowed to one log group, one
    family of repositories and SageMaker's own metrics.

    Args:
        log_group: Name of the log group, perhaps with a wildcard at its end.
        image_repositories: Names of ECR repositories, perhaps with a wildcard at its end.
    """
    here = f"{Aws.REGION}:{Aws.ACCOUNT_ID}"
    group = f"arn:{Aws.PARTITION}:logs:{here}:log-group:{log_group}"
    return [
        iam.PolicyStatement(
            actions=[
                "logs:CreateLogGroup",
                "logs:CreateLogStream",
                "logs:DescribeLogStreams",
                "logs:PutLogEvents",
            ],
            resources=[group, f"{group}:log-stream:*"],
        ),
        # Neither action knows a resource; the metrics are bound to SageMaker's names.
        iam.PolicyStatement(
            actions=["cloudwatch:PutMetricData"],
            resources=["*"],
            conditions={
                "StringLike": {
                    "cloudwatch:namespace": ["/aws/sagemaker/*", "aws/sagemaker/*", "AWS/SageMaker"]
                }
            },
        ),
        iam.PolicyStatement(actions=["ecr:GetAuthorizationToken"], resources=["*"]),
        iam.PolicyStatement(
            actions=[
                "ecr:BatchCheckLayerAvailability",
                "ecr:BatchGetImage",
                "ecr:GetDownloadUrlForLayer",
            ],
            resources=[f"arn:{Aws.PARTITION}:ecr:{here}:repository/{image_repositories}"],
        ),
    ]
