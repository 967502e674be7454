"""The role of training jobs: reads photos and base, writes its archive and the first images."""

from __future__ import annotations

from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infra import platform
from infra.settings import StageSettings
from limner.contracts import keys
from workflows.tasks import TrainingJobs

# Fixed by keys.JOB_NAME_TEMPLATE; what the rights of the machine end at.
JOB_NAME_PREFIX = keys.JOB_NAME_TEMPLATE.partition("{")[0]


class Training(Construct):
    """What training jobs may do.

    One role for all users: a warm pool is matched by its role, and a role for each user would
    undo it. A job's input and output are named by the state machine, not by the job.
    """

    def __init__(
        self, scope: Construct, construct_id: str, settings: StageSettings, bucket: s3.IBucket
    ) -> None:
        super().__init__(scope, construct_id)
        role = iam.Role(self, "Role", assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"))
        reads, writes = (keys.UPLOADS, keys.BASES, keys.PREVIEWS), (keys.JOBS, keys.PREVIEWS)
        for statement in (
            iam.PolicyStatement(
                actions=["s3:ListBucket"],
                resources=[bucket.bucket_arn],
                conditions={
                    "StringLike": {
                        "s3:prefix": [f"{folder}/*" for folder in sorted({*reads, *writes})]
                    }
                },
            ),
            iam.PolicyStatement(
                actions=["s3:GetObject"],
                resources=[bucket.arn_for_objects(f"{folder}/*") for folder in reads],
            ),
            iam.PolicyStatement(
                actions=["s3:AbortMultipartUpload", "s3:PutObject"],
                resources=[bucket.arn_for_objects(f"{folder}/*") for folder in writes],
            ),
            *platform.statements("/aws/sagemaker/TrainingJobs", settings.image_repositories),
        ):
            role.add_to_policy(statement)
        self.jobs = TrainingJobs(JOB_NAME_PREFIX, role)
