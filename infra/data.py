"""Where things are kept: the bucket and the two tables."""

from __future__ import annotations

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infra.settings import StageSettings
from limner.contracts import keys

BY_USER = "by_user"
# Long enough to undo a mistake; short enough that "deleted" means deleted.
NONCURRENT_DAYS = 7


class Data(Construct):
    """The bucket, the models table and the requests table.

    On the laptop all of it goes with the stack; elsewhere users' data outlives a deleted stack.
    """

    def __init__(self, scope: Construct, construct_id: str, settings: StageSettings) -> None:
        super().__init__(scope, construct_id)
        keep = RemovalPolicy.DESTROY if settings.is_local else RemovalPolicy.RETAIN
        self.bucket = s3.Bucket(
            self,
            "Bucket",
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            versioned=True,
            encryption=s3.BucketEncryption.S3_MANAGED,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            removal_policy=keep,
            lifecycle_rules=[
                _expire("Photos", keys.UPLOADS, settings.photo_days),
                _expire("FirstImages", keys.PREVIEWS, settings.photo_days),
                _expire("Jobs", keys.JOBS, settings.job_days),
                s3.LifecycleRule(
                    id="Remains",
                    noncurrent_version_expiration=Duration.days(NONCURRENT_DAYS),
                    abort_incomplete_multipart_upload_after=Duration.days(NONCURRENT_DAYS),
                ),
            ],
        )
        self.models = dynamodb.Table(
            self,
            "Models",
            partition_key=_text("user_id"),
            sort_key=_text("model_row"),
            billing_mode=dynamodb.BillingMode.PAY_PER_REQUEST,
            point_in_time_recovery_specification=_recovery(),
            removal_policy=keep,
        )
        self.requests = dynamodb.Table(
            self,
            "Requests",
            partition_key=_text("request_id"),
            billing_mode=dynamodb.BillingMode.PAY_PER_REQUEST,
            point_in_time_recovery_specification=_recovery(),
            removal_policy=keep,
        )
        self.requests.add_global_secondary_index(
            index_name=BY_USER, partition_key=_text("user_id"), sort_key=_text("created_at")
        )


def _text(name: str) -> dynamodb.Attribute:
    return dynamodb.Attribute(name=name, type=dynamodb.AttributeType.STRING)


def _recovery() -> dynamodb.PointInTimeRecoverySpecification:
    return dynamodb.PointInTimeRecoverySpecification(point_in_time_recovery_enabled=True)


def _expire(rule: str, folder: str, days: int) -> s3.LifecycleRule:
    return s3.LifecycleRule(id=rule, prefix=f"{folder}/", expiration=Duration.days(days))
