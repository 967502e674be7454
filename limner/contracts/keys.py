"""The names of things: identifiers, S3 keys, DynamoDB sort keys, job and execution names.

All of these are pure functions; nobody else in the code base puts a key together by hand, but for
the state machines, which do the same with ``States.Format`` from the templates in this module.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from typing import Final

from limner.contracts.errors import LimnerError

# User and model ids become parts of S3 keys, TargetModel and IAM conditions ("alice/*"), so the
# grammar leaves no room for "..", "/", "%", wildcards or white space.
_USER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MODEL_ID: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
# Request ids become parts of TrainingJobName, at most 63 of [a-zA-Z0-9](-*[a-zA-Z0-9])*, and of
# execution names, at most 80 (Step Functions API reference, StartExecution).
_REQUEST_ID: Final = re.compile(r"[a-z0-9](-?[a-z0-9]){0,39}")
_BATCH_JOB: Final = re.compile(r"limner-batch-([a-z0-9](?:-?[a-z0-9]){0,39})-([1-9][0-9]{0,3})")
_TARGET_MODEL: Final = re.compile(r"([^/]+)/([^/]+)/v([1-9][0-9]{0,8})\.tar\.gz")
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_BASE_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

DEFAULT_MODEL_ID: Final = "default"

UPLOADS: Final = "uploads"
BASES: Final = "base"
JOBS: Final = "jobs"
PREVIEWS: Final = "previews"
MODELS: Final = "models"
CONFIGS: Final = "configs"
BATCHES: Final = "batches"
GENERATIONS: Final = "generations"
CONFIG_FILE: Final = "config.json"

# Requests are spread over this many partitions of each index, by user: a user who floods the queue
# fills one of them.
SHARDS: Final = 8
# The row of the requests table that counts what runs; no request id has this form.
GATE_ROW: Final = "#gate"
# Its rows that tell how long fine-tunes take, and which jobs are counted there.
PACE_ROWS: Final = "#pace#"

# The same names as templates of States.Format, for the state machines.
JOB_NAME_TEMPLATE: Final = "limner-{}-{}"  # request_id, attempt
UPLOADS_TEMPLATE: Final = f"{UPLOADS}/{{}}/{{}}/"  # user_id, request_id
PREVIEWS_TEMPLATE: Final = f"{PREVIEWS}/{{}}/"  # request_id
JOB_ARTIFACT_TEMPLATE: Final = f"{JOBS}/{{}}/output/model.tar.gz"  # job name
TARGET_MODEL_TEMPLATE: Final = "{}/{}/v{}.tar.gz"  # user_id, model_id, version
GENERATION_TEMPLATE: Final = f"{GENERATIONS}/{{}}/{{}}/{{}}/"  # user_id, date, generation id
CONFIG_TEMPLATE: Final = f"{CONFIGS}/{{}}/"  # request_id
BATCH_JOB_NAME_TEMPLATE: Final = "limner-batch-{}-{}"  # batch_id, attempt
BATCH_TEMPLATE: Final = f"{BATCHES}/{{}}/{{}}/"  # batch_id, attempt
BATCH_TASKS_TEMPLATE: Final = f"{BATCH_TEMPLATE}tasks/"
BATCH_PHOTOS_TEMPLATE: Final = f"{BATCH_TEMPLATE}photos.manifest"
BATCH_OUT_TEMPLATE: Final = f"{BATCH_TEMPLATE}out/"
BATCH_CLAIMS_TEMPLATE: Final = f"{BATCH_TEMPLATE}claims/"  # training.claims adds request_id
BATCH_ARTIFACT_TEMPLATE: Final = f"{BATCH_OUT_TEMPLATE}{{}}/model.tar.gz"  # and request_id
VERSION_ROW_TEMPLATE: Final = "{}#v{}"  # model_id, version
PACE_ROW_TEMPLATE: Final = f"{PACE_ROWS}{{}}#{{}}"  # base_id, machine type
PACE_MARK_TEMPLATE: Final = f"{PACE_ROWS}job#{{}}"  # job name


def _checked(kind: str, grammar: re.Pattern[str], value: str) -> str:
    if not grammar.fullmatch(value):
        raise LimnerError("INVALID_INPUT", f"{kind} {value[:80]!r} must match {grammar.pattern}.")
    return value


def check_user_id(value: str) -> str:
    """Returns the id if it has the grammar of a user id, else raises ``INVALID_INPUT``."""
    return _checked("user id", _USER_ID, value)


def check_model_id(value: str) -> str:
    """Returns the id if it has the grammar of a model id, else raises ``INVALID_INPUT``."""
    return _checked("model id", _MODEL_ID, value)


def check_request_id(value: str) -> str:
    """Returns the id if it has the grammar of a request id, else raises ``INVALID_INPUT``."""
    return _checked("request id", _REQUEST_ID, value)


def check_base_id(value: str) -> str:
    """Returns the id if it has the grammar of a base id, else raises ``INVALID_INPUT``."""
    return _checked("base id", _BASE_ID, value)


def check_version(value: int) -> int:
    """Returns the version if it is 1 or more, else raises ``INVALID_INPUT``."""
    if value < 1:
        raise LimnerError("INVALID_INPUT", f"version {value} must be 1 or more.")
    return value


def new_request_id() -> str:
    """A fresh, unguessable request id of 20 hexadecimal digits."""
    return secrets.token_hex(10)


def request_id_of_token(user_id: str, client_token: str) -> str:
    """The request id of a caller's idempotency token: the same token gives the same request."""
    digest = hashlib.sha256(f"{check_user_id(user_id)}\n{client_token}".encode())
    return digest.hexdigest()[:20]


def execution_name(request_id: str, attempt: int = 1) -> str:
    """Name of the execution of a request.

    StartExecution of a STANDARD machine is idempotent by name and input, which makes the start of
    one attempt happen once (Step Functions API reference, StartExecution).
    """
    return f"{check_request_id(request_id)}-{attempt}"


def job_name(request_id: str, attempt: int) -> str:
    """Name of the training job of one attempt; as ``JOB_NAME_TEMPLATE`` in the state machine."""
    return JOB_NAME_TEMPLATE.format(check_request_id(request_id), attempt)


def uploads_prefix(user_id: str, request_id: str) -> str:
    """Where the photos of a request lie."""
    return UPLOADS_TEMPLATE.format(check_user_id(user_id), check_request_id(request_id))


def config_prefix(request_id: str) -> str:
    """Where the training config of a request lies, as ``CONFIG_FILE``."""
    return CONFIG_TEMPLATE.format(check_request_id(request_id))


def shard_of(user_id: str) -> str:
    """Which of the ``SHARDS`` partitions of an index holds a user's requests."""
    digest = hashlib.sha256(check_user_id(user_id).encode()).digest()
    return str(digest[0] % SHARDS)


def batch_id(executions: Iterable[str]) -> str:
    """Name of a batch: the same executions give the same batch, however often it is started.

    Args:
        executions: ``execution_name`` of each request, with its attempt.
    """
    digest = hashlib.sha256("\n".join(sorted(executions)).encode()).hexdigest()
    return f"b{digest[:19]}"


def batch_job_name(batch: str, attempt: int) -> str:
    """Name of the training job of one attempt of a batch."""
    return BATCH_JOB_NAME_TEMPLATE.format(check_request_id(batch), attempt)


def batch_prefix(batch: str, attempt: int) -> str:
    """Where all files of one attempt of a batch lie.

    ::

        tasks/tasks.jsonl              what is to be done      (channel ``tasks``)
        photos.manifest                whose photos            (channel ``photos``)
        out/<request>/model.tar.gz     each artifact, as soon as it is done
        out/<request>/result.json      how its task ended, written last
        claims/<request>               which instance does it, where instances claim tasks
    """
    return BATCH_TEMPLATE.format(check_request_id(batch), attempt)


def batch_prefixes(batch: str, attempt: int) -> list[str]:
    """Where an attempt of a batch and those before it have their files; the newest first."""
    return [batch_prefix(batch, number) for number in range(attempt, 0, -1)]


def batch_of_job(job: str) -> tuple[str, int] | None:
    """The batch and the attempt that a training job's name tells of; None for other jobs."""
    found = _BATCH_JOB.fullmatch(job)
    return (found[1], int(found[2])) if found else None


def base_prefix(base_id: str) -> str:
    """Where the frozen base lies, in the layout of a diffusers pipeline folder."""
    return f"{BASES}/{check_base_id(base_id)}/"


def target_model(user_id: str, model_id: str, version: int) -> str:
    """The TargetModel of one version: its key behind the endpoint's prefix ``models/``.

    A version's key is written once and never again: a multi-model endpoint may go on serving the
    old copy of an overwritten artifact (SageMaker developer guide, "Add or Remove Models").
    """
    return TARGET_MODEL_TEMPLATE.format(
        check_user_id(user_id), check_model_id(model_id), check_version(version)
    )


def parts_of_target_model(value: str) -> tuple[str, str, int] | None:
    """User, model and version that a TargetModel names; None for whatever has another form."""
    found = _TARGET_MODEL.fullmatch(value)
    if not found or not _USER_ID.fullmatch(found[1]) or not _MODEL_ID.fullmatch(found[2]):
        return None
    return found[1], found[2], int(found[3])


def generation_prefix(user_id: str, date: str, generation_id: str) -> str:
    """Where a captured generation lies.

    Args:
        user_id: Whose model drew.
        date: The day, UTC, ``YYYY-MM-DD``: a day of a user is one listing.
        generation_id: A fresh ``new_request_id``.
    """
    return GENERATION_TEMPLATE.format(
        check_user_id(user_id), _checked("date", _DATE, date), check_request_id(generation_id)
    )


def artifact_key(user_id: str, model_id: str, version: int) -> str:
    """The S3 key of the artifact that the endpoint loads for one version."""
    return f"{MODELS}/{target_model(user_id, model_id, version)}"


def version_row(model_id: str, version: int) -> str:
    """Sort key of a version's row in the models table; the model's own row is ``model_id``."""
    return VERSION_ROW_TEMPLATE.format(check_model_id(model_id), check_version(version))


def version_rows(model_id: str) -> str:
    """What the sort keys of all versions of a model begin with, and those of no other model."""
    return VERSION_ROW_TEMPLATE.format(check_model_id(model_id), "")
