"""The stage's own key, and the one page that says who may use it."""

from __future__ import annotations

from typing import Final

from aws_cdk import Aws, RemovalPolicy
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

# Services that people and roles of this account reach their data through.
_ON_BEHALF: Final = ("s3", "dynamodb", "sns", "sqs")
# Services that use the key by themselves: rules deliver to queues, alarms to topics, logs are kept.
_BY_THEMSELVES: Final = ("events", "cloudwatch", "sns")


class Encryption(Construct):
    """A key that is rotated each year.

    Its policy works as that of AWS's own keys for S3 or DynamoDB: whoever in this account may use
    the service on a resource may use the key through that service. So no role needs a statement
    about the key, and the rights on the data are in one place instead of two. Unlike with AWS's
    keys, every use is in our trail, and the key can be disabled.
    """

    def __init__(self, scope: Construct, construct_id: str) -> None:
        super().__init__(scope, construct_id)
        self.key = kms.Key(
            self,
            "Key",
            description="Limner: photos, models, records, messages and logs of one stage.",
            enable_key_rotation=True,
            removal_policy=RemovalPolicy.RETAIN,
        )
        for statement in self._statements():
            self.key.add_to_resource_policy(statement)

    @staticmethod
    def _statements() -> list[iam.PolicyStatement]:
        return [
            iam.PolicyStatement(
                sid="ThroughServices",
                principals=[iam.AnyPrincipal()],
                actions=[
                    "kms:CreateGrant",
                    "kms:Decrypt",
                    "kms:DescribeKey",
                    "kms:Encrypt",
                    "kms:GenerateDataKey",
                    "kms:GenerateDataKeyWithoutPlaintext",
                    "kms:ReEncryptFrom",
                    "kms:ReEncryptTo",
                ],
                resources=["*"],
                conditions={
                    "StringEquals": {
                        "kms:CallerAccount": Aws.ACCOUNT_ID,
                        "kms:ViaService": [
                            f"{name}.{Aws.REGION}.{Aws.URL_SUFFIX}" for name in _ON_BEHALF
                        ],
                    }
                },
            ),
            iam.PolicyStatement(
                sid="Messages",
                principals=[
                    iam.ServicePrincipal(f"{name}.amazonaws.com") for name in _BY_THEMSELVES
                ],
                actions=["kms:Decrypt", "kms:GenerateDataKey"],
                resources=["*"],
                conditions={"StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID}},
            ),
            iam.PolicyStatement(
                sid="Logs",
                principals=[iam.ServicePrincipal(f"logs.{Aws.REGION}.amazonaws.com")],
                actions=[
                    "kms:Decrypt",
                    "kms:DescribeKey",
                    "kms:Encrypt",
                    "kms:GenerateDataKey",
                    "kms:GenerateDataKeyWithoutPlaintext",
                    "kms:ReEncryptFrom",
                    "kms:ReEncryptTo",
                ],
                resources=["*"],
                conditions={
                    "ArnLike": {
                        "kms:EncryptionContext:aws:logs:arn": (
                            f"arn:{Aws.PARTITION}:logs:{Aws.REGION}:{Aws.ACCOUNT_ID}:log-group:*"
                        )
                    }
                },
            ),
        ]
