"""Which AWS a command talks to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from limner.cli.options import Where
from limner.contracts.errors import LimnerError

if TYPE_CHECKING:
    from limner.client import Limner
    from limner.local import Laptop

# The laptop's AWS knows one account and region, and takes any credentials.
LAPTOP_CREDENTIAL = "test"
LAPTOP_REGION = "us-east-1"


def find_laptop(on: Where | None, stage: str | None) -> Laptop | None:
    """The laptop's AWS, where the command is to use it; None for the standard AWS settings.

    Whoever names a stage means that stage: a laptop that happens to run does not take the command.

    Raises:
        LimnerError: ``LAPTOP_NOT_RUNNING``, if it was asked for and does not run here;
            ``INVALID_INPUT``, if it was asked for a stage that it does not have.
    """
    from limner.settings import LAPTOP_STAGE, read_settings

    if stage not in (None, LAPTOP_STAGE):
        if on is Where.LAPTOP:
            detail = f"The laptop has the stage {LAPTOP_STAGE} only: leave out --stage {stage}."
            raise LimnerError("INVALID_INPUT", detail)
        return None
    if on is Where.AWS or (on is None and read_settings().aws_endpoint_url):
        return None
    laptop = running_laptop()
    if laptop is None and on is Where.LAPTOP:
        detail = f"AWS on this laptop is not running for {Path.cwd()}."
        raise LimnerError("LAPTOP_NOT_RUNNING", detail)
    return laptop


def running_laptop() -> Laptop | None:
    """The laptop's AWS of this directory, if it runs."""
    from limner import local

    return local.running(Path.cwd())


def connect(on: Where | None, stage: str | None) -> Limner:
    """A client for the AWS that the command is to use.

    Raises:
        LimnerError: ``LAPTOP_NOT_RUNNING``, ``NOT_DEPLOYED``, ``AWS_ERROR``.
    """
    from limner.client import Limner

    laptop = find_laptop(on, stage)
    if laptop is not None:
        return connect_laptop(laptop)
    try:
        return Limner.connect(stage)
    except LimnerError as error:
        if on is None and stage is None and _has_no_account(error):
            detail = f"No AWS runs on this laptop for {Path.cwd()}, and no AWS account is set up."
            raise LimnerError("LAPTOP_NOT_RUNNING", detail) from error
        raise


def connect_laptop(laptop: Laptop) -> Limner:
    """A client for a running laptop."""
    import boto3

    from limner.client import Limner
    from limner.settings import LAPTOP_STAGE

    session = boto3.Session(
        aws_access_key_id=LAPTOP_CREDENTIAL,
        aws_secret_access_key=LAPTOP_CREDENTIAL,
        region_name=LAPTOP_REGION,
    )
    return Limner.connect(LAPTOP_STAGE, session=session, endpoint_url=laptop.endpoint_url)


def _has_no_account(error: LimnerError) -> bool:
    from botocore.exceptions import NoCredentialsError, NoRegionError

    return isinstance(error.__cause__, NoCredentialsError | NoRegionError)
