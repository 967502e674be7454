"""Container images, as far as the right to pull them goes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from aws_cdk import Aws

# 111122223333.dkr.ecr.eu-west-1.amazonaws.com/limner/training:1, or …@sha256:…
_ECR: Final = re.compile(
    r"^(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?"
    r"/(?P<name>[a-z0-9]+([._/-]+[a-z0-9]+)*)(:[\w.-]+)?(@sha256:[0-9a-f]{64})?$"
)


def is_in_ecr(image: str) -> bool:
    """Whether SageMaker can pull an image: it takes them from ECR alone."""
    return bool(_ECR.match(image))


def repositories(images: Iterable[str], own: Iterable[str]) -> list[str]:
    """ARNs of the repositories that images are pulled from.

    An image says itself where it lies: AWS's Deep Learning Containers and shared registries are
    repositories of another account.

    Args:
        images: Images. Those that are told only at deployment say nothing yet.
        own: Names of repositories of the stack's own account and region, for these.
    """
    found = [_ECR.match(image) for image in images]
    told = [
        f"arn:{Aws.PARTITION}:ecr:{match['region']}:{match['account']}:repository/{match['name']}"
        for match in found
        if match
    ]
    here = f"arn:{Aws.PARTITION}:ecr:{Aws.REGION}:{Aws.ACCOUNT_ID}:repository"
    untold = [f"{here}/{name}" for name in own] if None in found or not found else []
    return list(dict.fromkeys([*told, *untold]))
