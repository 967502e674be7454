"""The code of the Lambda functions: this repository's ``lambdas`` and ``limner.contracts``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aws_cdk import CfnParameter, IgnoreMode
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

ROOT: Final = Path(__file__).resolve().parent.parent
# Everything but the two packages, in the language of .gitignore.
_NOT_IN_THE_BUNDLE: Final = [
    "/*",
    "!/lambdas",
    "!/limner",
    "/limner/*",
    "!/limner/__init__.py",
    "!/limner/contracts",
    "__pycache__",
]


def from_parameters(scope: Construct) -> lambda_.Code:
    """Code whose place is told at deployment, so that the template holds no hash of it."""
    bucket = CfnParameter(
        scope, "AssetsBucketName", description="Bucket that holds the functions' code."
    )
    key = CfnParameter(
        scope, "LambdaCodeKey", description="Key of a zip of lambdas/ and limner/contracts/."
    )
    return lambda_.Code.from_cfn_parameters(bucket_name_param=bucket, object_key_param=key)


def from_source() -> lambda_.Code:
    """Code that the CDK CLI zips and uploads."""
    return lambda_.Code.from_asset(
        str(ROOT), exclude=_NOT_IN_THE_BUNDLE, ignore_mode=IgnoreMode.GIT
    )
