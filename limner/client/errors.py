"""The one place where AWS's errors become Limner's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
)
from botocore.exceptions import ConnectionError as UnreachableError

from limner.contracts.errors import REGISTRY, LimnerError
from limner.contracts.triton import own_words

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

# Error codes of the services that Limner calls (botocore's service models; the throttling codes
# are those of botocore's own standard retry mode).
_CODES: Final[dict[str, str]] = {
    "Throttling": "THROTTLED",
    "ThrottlingException": "THROTTLED",
    "ThrottledException": "THROTTLED",
    "RequestThrottled": "THROTTLED",
    "RequestLimitExceeded": "THROTTLED",
    "TooManyRequestsException": "THROTTLED",
    "ProvisionedThroughputExceededException": "THROTTLED",
    "SlowDown": "THROTTLED",
    "ExecutionLimitExceeded": "THROTTLED",
    "NoSuchBucket": "NOT_DEPLOYED",
    "StateMachineDoesNotExist": "NOT_DEPLOYED",
    "ModelNotReadyException": "MODEL_LOADING",
}
_CREDENTIALS: Final = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_NO_ENDPOINT: Final = re.compile(r"could not find endpoint|endpoint \S+.* not found", re.IGNORECASE)
# Other answers of the container that are for the caller: to ask for something else, or later.
_CALLERS: Final = frozenset({"CONTENT_REFUSED", "ENDPOINT_BUSY"})
_MAX_TEXT: Final = 500


@contextmanager
def translated() -> Iterator[None]:
    """Turns the errors of boto3 in its block into ``LimnerError``."""
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise translate(error) from error


def code_of(error: ClientError) -> str:
    """AWS's own code of an error, such as ``ThrottlingException``."""
    return error.response.get("Error", {}).get("Code", "")


def translate(error: ClientError | BotoCoreError) -> LimnerError:
    """The registry's error for an error of boto3."""
    if isinstance(error, ClientError):
        return _of_answer(error)
    if isinstance(error, ReadTimeoutError):
        return LimnerError("AWS_ERROR", "AWS did not answer in time.")
    if isinstance(error, UnreachableError):
        return _unreachable(error)
    if isinstance(error, _CREDENTIALS):
        return LimnerError("AWS_ERROR", "There are no AWS credentials (or they are incomplete).")
    if isinstance(error, NoRegionError):
        return LimnerError("AWS_ERROR", "No AWS region is set (AWS_REGION, or a profile).")
    if isinstance(error, ProfileNotFound):
        return LimnerError("AWS_ERROR", f"{error}.")
    return LimnerError("AWS_ERROR", f"{type(error).__name__}: {str(error)[:_MAX_TEXT]}")


def _of_answer(error: ClientError) -> LimnerError:
    code = code_of(error)
    operation = error.operation_name
    message = error.response.get("Error", {}).get("Message", "")[:_MAX_TEXT]
    if code == "ModelError":
        return _of_container(error)
    if code in _CODES:
        return LimnerError(_CODES[code], f"{operation}: {message or code}")
    if _is_missing_resource(operation, code, message):
        return LimnerError("NOT_DEPLOYED", f"{operation}: {message or code}")
    if operation == "InvokeEndpoint" and code != "AccessDeniedException":
        return LimnerError("GENERATION_FAILED", f"{code}: {message}")
    return LimnerError("AWS_ERROR", f"{operation}: {code}: {message}")


def _is_missing_resource(operation: str, code: str, message: str) -> bool:
    """Whether a table, stack or endpoint of the deployment does not exist."""
    match operation, code:
        case ("DescribeStacks", "ValidationError"):
            return "does not exist" in message
        case ("InvokeEndpoint" | "DescribeEndpoint", "ValidationError" | "ValidationException"):
            return bool(_NO_ENDPOINT.search(message))
        case (
            "GetItem" | "PutItem" | "UpdateItem" | "TransactWriteItems" | "Query" | "Invoke",
            "ResourceNotFoundException",
        ):
            return True
    return False


def _of_container(error: ClientError) -> LimnerError:
    """The endpoint's container answered with an error: its own JSON, or any text.

    What the caller can mend (the registry's 400s, and ``_CALLERS``) keeps its code; everything else
    is ours.
    """
    text = own_words(str(error.response.get("OriginalMessage", "")))
    code, message = "", text[:_MAX_TEXT]
    try:
        inner = json.loads(text)["error"]
        code, message = str(inner["code"]), str(inner["message"])[:_MAX_TEXT]
    except (ValueError, KeyError, TypeError):
        pass  # not our container's form: the text says what there is to say
    if code in REGISTRY and (REGISTRY[code].http_status == 400 or code in _CALLERS):
        return LimnerError(code, message)
    reason = f"{code}: {message}" if code else message or "The container gave no reason."
    return LimnerError("GENERATION_FAILED", reason)


def _unreachable(error: UnreachableError) -> LimnerError:
    url = str(error.kwargs.get("endpoint_url", ""))
    if urlsplit(url).hostname in LOOPBACK:
        return LimnerError("LAPTOP_NOT_RUNNING", f"Nothing answers at {url}.")
    return LimnerError("AWS_ERROR", f"{url or 'AWS'} cannot be reached.")
