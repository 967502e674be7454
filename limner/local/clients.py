"""boto3 clients of this laptop, for the laptop's own use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limner.local.settings import CREDENTIALS, REGION

if TYPE_CHECKING:
    from botocore.config import Config


def make_client(service: str, endpoint_url: str, config: Config | None = None) -> Any:  # noqa: ANN401
    """A client; the caller's annotation gives it its type.

    Args:
        service: boto3's name of the service.
        endpoint_url: Where the laptop listens.
        config: botocore's settings beyond the defaults.
    """
    import boto3  # takes 0.2 s, which a start without deployment saves

    # A session of its own: to make clients from the default one is not thread-safe.
    made: Any = boto3.Session().client(  # type: ignore[call-overload]  # any service's name
        service,
        endpoint_url=endpoint_url,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        config=config,
    )
    return made
