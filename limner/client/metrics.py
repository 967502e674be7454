"""The lines of an endpoint's log group that ``limner.metrics`` reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from limner.client.errors import code_of, translate, translated
from limner.contracts.metrics import EVENT, INVOKE_EVENT

if TYPE_CHECKING:
    import boto3

_METRICS: Final = f'{{ $.event = "{EVENT}" }}'
_WITH_REQUESTS: Final = f'{{ ($.event = "{EVENT}") || ($.event = "{INVOKE_EVENT}") }}'


def log_group(endpoint: str) -> str:
    """The group that SageMaker writes the containers' output of an endpoint to."""
    return f"/aws/sagemaker/Endpoints/{endpoint}"


def logs_client(session: boto3.Session | None = None) -> Any:  # noqa: ANN401  # boto3's, untyped
    """A client of CloudWatch Logs with the standard AWS settings.

    Raises:
        LimnerError: ``AWS_ERROR``.
    """
    import boto3

    with translated():
        return (session or boto3.Session()).client("logs")


def read(
    logs: Any,  # noqa: ANN401  # boto3's, untyped
    endpoint: str,
    since_ms: int,
    *,
    with_requests: bool = False,
) -> Iterator[str]:
    """The lines of metrics since a time; none where the endpoint has not logged anything yet.

    Args:
        logs: A boto3 client of CloudWatch Logs.
        endpoint: Name of the endpoint.
        since_ms: Milliseconds since 1970.
        with_requests: Whether to read the requests' own lines as well.

    Raises:
        LimnerError: ``AWS_ERROR``, ``THROTTLED``.
    """
    pages = logs.get_paginator("filter_log_events").paginate(
        logGroupName=log_group(endpoint),
        startTime=since_ms,
        filterPattern=_WITH_REQUESTS if with_requests else _METRICS,
    )
    try:
        for page in pages:
            yield from (event["message"] for event in page["events"])
    except (ClientError, BotoCoreError) as error:
        # SageMaker makes the group at the first line.
        if isinstance(error, ClientError) and code_of(error) == "ResourceNotFoundException":
            return
        raise translate(error) from error
