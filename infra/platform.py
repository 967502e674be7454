"""What SageMaker's own machines need, whether they train or serve: images, logs and metrics."""

from __future__ import annotations

from collections.abc import Iterable

from aws_cdk import Aws
from aws_cdk import aws_iam as iam
from constructs import Construct

from infra import findings, images
from infra.settings import StageSettings


class Platform(Construct):
    """The part of SageMaker's execution roles that is not about our data, as one policy.

    From "SageMaker AI roles" in the SageMaker developer guide, narrowed to SageMaker's log groups,
    the repositories of our images and SageMaker's own metrics.

    Attributes:
        policy: The policy.
    """

    def __init__(
        self, scope: Construct, construct_id: str, settings: StageSettings, pulled: Iterable[str]
    ) -> None:
        """Makes the policy.

        Args:
            scope: The construct that owns it.
            construct_id: Its id there.
            settings: The stage.
            pulled: The images that the machines run.
        """
        super().__init__(scope, construct_id)
        here = f"{Aws.REGION}:{Aws.ACCOUNT_ID}"
        self.policy = iam.ManagedPolicy(
            self,
            "Policy",
            description="Images, logs and metrics of SageMaker's machines; no data.",
            statements=[
                # SageMaker names groups and streams after jobs and endpoints.
                iam.PolicyStatement(
                    actions=[
                        "logs:CreateLogGroup",
                        "logs:CreateLogStream",
                        "logs:DescribeLogStreams",
                        "logs:PutLogEvents",
                    ],
                    resources=[f"arn:{Aws.PARTITION}:logs:{here}:log-group:/aws/sagemaker/*"],
                ),
                # Neither of the two knows a resource; the metrics are bound to SageMaker's names.
                iam.PolicyStatement(
                    actions=["cloudwatch:PutMetricData"],
                    resources=["*"],
                    conditions={
                        "StringLike": {
                            "cloudwatch:namespace": [
                                "/aws/sagemaker/*",
                                "aws/sagemaker/*",
                                "AWS/SageMaker",
                            ]
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
                    resources=images.repositories(pulled, settings.image_repositories),
                ),
            ],
        )
        findings.forced_wildcard(
            self.policy,
            "*",
            "cloudwatch:PutMetricData and ecr:GetAuthorizationToken know no resource (Service"
            " Authorization Reference); the metrics are bound to SageMaker's namespaces.",
        )
        findings.forced_wildcard(
            self.policy,
            findings.arn("logs", "log-group:/aws/sagemaker/*"),
            "SageMaker names log groups and streams after endpoints and jobs that do not exist yet"
            " (SageMaker developer guide, Log groups and streams); no other group begins so.",
        )
