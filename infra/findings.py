"""Findings of cdk-nag that AWS forces on us, each acknowledged where it arises, with its evidence.

``docs/security.md`` repeats them for people; tests count them and compare.
"""

from __future__ import annotations

from aws_cdk import Acknowledgment, Validations
from constructs import IConstruct


def forced_wildcard(policy: IConstruct, resource: str, evidence: str) -> None:
    """Acknowledges that a policy names a resource with a wildcard.

    Args:
        policy: The construct of the policy.
        resource: The resource as cdk-nag shows it: pseudo parameters as ``<AWS::Region>``.
        evidence: Why AWS leaves no other way.
    """
    Validations.of(policy).acknowledge(
        Acknowledgment(id=f"AwsSolutions::AwsSolutions-IAM5[Resource::{resource}]", reason=evidence)
    )


def arn(service: str, resource: str) -> str:
    """An ARN of this account and region as cdk-nag shows it."""
    return f"arn:<AWS::Partition>:{service}:<AWS::Region>:<AWS::AccountId>:{resource}"
