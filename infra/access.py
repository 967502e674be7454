"""Who may touch which objects: the bucket's own policy, one page for all roles.

A right to objects always ends in a wildcard (``uploads/*``). Spread over the policies of ten roles
nobody can review that; in the bucket's policy it stands side by side. Each role gets there

* an Allow for exactly the folders that it works with, and
* a Deny for everything else in the bucket, so that no policy that is ever attached to the role, by
  mistake or by a wider tool, opens another folder to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aws_cdk import Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from constructs import Construct, IDependable


@dataclass(frozen=True)
class Objects:
    """What a role may do with objects; each entry is a folder at the top of the bucket.

    Attributes:
        reads: Folders whose objects it reads. It may list them too: without that, S3 answers "no
            such object" with 403, which nobody can tell from a missing right.
        writes: Folders that it writes objects to.
    """

    reads: Sequence[str] = ()
    writes: Sequence[str] = ()


class Doors:
    """The doors of one bucket.

    A bucket that was made elsewhere (imported, or of another stack) keeps its policy, so there the
    same statements go to the role.

    Args:
        owner: The construct whose stack decides whether the bucket is ours.
        bucket: The bucket.
    """

    def __init__(self, owner: Construct, bucket: s3.IBucket) -> None:
        self._bucket = bucket
        self._is_ours = (
            isinstance(bucket, s3.Bucket) and bucket.stack.node.addr == Stack.of(owner).node.addr
        )

    def open(self, role: iam.Role, name: str, objects: Objects) -> None:
        """Lets a role to its objects, and nowhere else.

        Args:
            role: The role.
            name: Who that is, in one word of letters: the statements are named by it.
            objects: Where to.
        """
        for statement in self._statements(name, objects):
            if self._is_ours:
                statement.add_arn_principal(role.role_arn)
                self._bucket.add_to_resource_policy(statement)
            else:
                role.add_to_policy(statement)

    @property
    def opened(self) -> Iterable[IDependable]:
        """What must be there before a role can go through."""
        return [self._bucket.policy] if self._is_ours and self._bucket.policy else []

    def _statements(self, name: str, objects: Objects) -> Iterable[iam.PolicyStatement]:
        all_folders = sorted({*objects.reads, *objects.writes})
        if objects.reads:
            yield iam.PolicyStatement(
                sid=f"{name}Lists",
                actions=["s3:ListBucket"],
                resources=[self._bucket.bucket_arn],
                conditions={
                    "StringLike": {"s3:prefix": [f"{folder}/*" for folder in objects.reads]}
                },
            )
            yield iam.PolicyStatement(
                sid=f"{name}Reads",
                actions=["s3:GetObject"],
                resources=self._arns(objects.reads),
            )
        if objects.writes:
            yield iam.PolicyStatement(
                sid=f"{name}Writes",
                actions=["s3:AbortMultipartUpload", "s3:PutObject"],
                resources=self._arns(objects.writes),
            )
        yield iam.PolicyStatement(
            sid=f"{name}NowhereElse",
            effect=iam.Effect.DENY,
            actions=["s3:*"],
            not_resources=[self._bucket.bucket_arn, *self._arns(all_folders)],
        )

    def _arns(self, folders: Iterable[str]) -> list[str]:
        return [self._bucket.arn_for_objects(f"{folder}/*") for folder in folders]
