"""The settings of the functions, from the environment; the only place that reads it.

A missing variable fails the cold start, not the first request that needs it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from limner.contracts.errors import LimnerError


@dataclass(frozen=True, slots=True)
class SmokeTestSettings:
    """Settings of ``smoke_test``.

    Attributes:
        endpoint_name: The multi-model endpoint.
        base_id: The base that the endpoint must answer from.
    """

    endpoint_name: str
    base_id: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> SmokeTestSettings:
        """Reads ENDPOINT_NAME and BASE_ID."""
        return cls(_required(environ, "ENDPOINT_NAME"), _required(environ, "BASE_ID"))


@dataclass(frozen=True, slots=True)
class RecordFailureSettings:
    """Settings of ``record_failure``.

    Attributes:
        models_table: Name of the table of models and versions.
        requests_table: Name of the table of requests.
        topic_arn: Where failures are announced that no execution can announce any more.
    """

    models_table: str
    requests_table: str
    topic_arn: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> RecordFailureSettings:
        """Reads MODELS_TABLE, REQUESTS_TABLE and TOPIC_ARN."""
        return cls(
            _required(environ, "MODELS_TABLE"),
            _required(environ, "REQUESTS_TABLE"),
            _required(environ, "TOPIC_ARN"),
        )


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value:
        raise LimnerError("INTERNAL", f"The function's environment lacks {name}.")
    return value
