"""Where things are kept: the bucket and the two tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infra.parts import Store
from infra.settings import StageSettings
from limner.contracts import keys

# Long enough to undo a mistake; short enough that "deleted" means deleted.
NONCURRENT_DAYS: Final = 7
ACCESS_LOG_DAYS: Final = 90
TTL: Final = "expires_at"

BY_USER: Final = "by_user"
QUEUE: Final = "queue"
OPEN: Final = "open"
# Index -> partition and sort key. Rows that lack the partition key are not in the index: `queue`
# holds what waits for dispatch, `open` what has not ended, each spread by the user's shard.
_INDEXES: Final = {
    BY_USER: ("user_id", "created_at"),
    QUEUE: ("queue", "queued_at"),
    OPEN: ("open", "updated_at"),
}


class Data(Construct):
    """The bucket, the bucket of its access log, the models table and the requests table.

    On the laptop all of it goes with the stack; elsewhere users' data outlives a deleted stack.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: StageSettings,
        key: kms.IKey | None = None,
    ) -> None:
        super().__init__(scope, construct_id)
        # The access log comes in by the bucket's policy, whatever flags the app has: no ACLs here.
        self.node.set_context("@aws-cdk/aws-s3:serverAccessLogsUseBucketPolicy", True)
        self._settings = settings
        self._key = key
        self._keep = RemovalPolicy.DESTROY if settings.is_local else RemovalPolicy.RETAIN
        self.bucket = self._bucket(self._access_log())
        self.models = self._table("Models", "user_id", "model_row")
        self.requests = self._table("Requests", "request_id")
        for index, (partition, sort) in _INDEXES.items():
            self.requests.add_global_secondary_index(
                index_name=index, partition_key=_text(partition), sort_key=_text(sort)
            )

    @property
    def store(self) -> Store:
        """What other constructs see of it."""
        return Store(self.bucket, self.models, self.requests)

    def _bucket(self, access_log: s3.IBucket) -> s3.Bucket:
        settings = self._settings
        return s3.Bucket(
            self,
            "Bucket",
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            versioned=True,
            encryption=s3.BucketEncryption.KMS if self._key else s3.BucketEncryption.S3_MANAGED,
            encryption_key=self._key,
            # One data key a while instead of a call of KMS for each object.
            bucket_key_enabled=True if self._key else None,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            removal_policy=self._keep,
            server_access_logs_bucket=access_log,
            cors=_uploads_from(settings.cors_origins),
            lifecycle_rules=[
                _expire("Photos", keys.UPLOADS, settings.photo_days),
                _expire("Configs", keys.CONFIGS, settings.photo_days),
                _expire("FirstImages", keys.PREVIEWS, settings.photo_days),
                _expire("Jobs", keys.JOBS, settings.job_days),
                _expire("Batches", keys.BATCHES, settings.job_days),
                # Whether or not anything is captured now: it may have been, before.
                _expire("Generations", keys.GENERATIONS, settings.generation_days),
                s3.LifecycleRule(
                    id="Remains",
                    noncurrent_version_expiration=Duration.days(NONCURRENT_DAYS),
                    # What expires in a versioned bucket leaves a marker, which stays for ever and
                    # makes listings slow.
                    expired_object_delete_marker=True,
                    abort_incomplete_multipart_upload_after=Duration.days(NONCURRENT_DAYS),
                ),
            ],
        )

    def _access_log(self) -> s3.Bucket:
        """Who read what, by S3's own log; S3 delivers it under its own encryption only."""
        return s3.Bucket(
            self,
            "AccessLog",
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            enforce_ssl=True,
            encryption=s3.BucketEncryption.S3_MANAGED,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            removal_policy=self._keep,
            lifecycle_rules=[s3.LifecycleRule(expiration=Duration.days(ACCESS_LOG_DAYS))],
        )

    def _table(self, construct_id: str, partition: str, sort: str | None = None) -> dynamodb.Table:
        managed = dynamodb.TableEncryption.CUSTOMER_MANAGED
        return dynamodb.Table(
            self,
            construct_id,
            partition_key=_text(partition),
            sort_key=_text(sort) if sort else None,
            billing_mode=dynamodb.BillingMode.PAY_PER_REQUEST,
            stream=dynamodb.StreamViewType.NEW_AND_OLD_IMAGES,
            time_to_live_attribute=TTL,
            encryption=managed if self._key else None,
            encryption_key=self._key,
            point_in_time_recovery_specification=dynamodb.PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            deletion_protection=not self._settings.is_local,
            removal_policy=self._keep,
        )


def _text(name: str) -> dynamodb.Attribute:
    return dynamodb.Attribute(name=name, type=dynamodb.AttributeType.STRING)


def _expire(rule: str, folder: str, days: int) -> s3.LifecycleRule:
    return s3.LifecycleRule(id=rule, prefix=f"{folder}/", expiration=Duration.days(days))


def _uploads_from(origins: Sequence[str]) -> list[s3.CorsRule] | None:
    """Presigned POSTs from pages of these origins; without origins, no browser gets through."""
    if not origins:
        return None
    return [
        s3.CorsRule(
            allowed_methods=[s3.HttpMethods.POST],
            allowed_origins=list(origins),
            allowed_headers=["*"],
            max_age=3600,
        )
    ]
