"""``limner versions``, ``limner activate`` and ``limner prefetch``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import output
from limner.cli.boundary import guarded
from limner.cli.options import AsJson, ModelOption, On, Stage, User
from limner.cli.target import connect
from limner.contracts.errors import LimnerError

if TYPE_CHECKING:
    from limner.client import Version

PREVIOUS = "previous"


@guarded
def versions(
    user: User,
    model: ModelOption = None,
    on: On = None,
    stage: Stage = None,
    as_json: AsJson = False,
) -> None:
    """List the versions of a model, and say which one serves."""
    from limner.contracts.keys import DEFAULT_MODEL_ID

    found = connect(on, stage).versions(user, model or DEFAULT_MODEL_ID)
    live = found.model.live_version
    document = {
        "user_id": user,
        "model_id": found.model.model_id,
        "live_version": live,
        "previous": found.previous,
        "versions": [version.model_dump(mode="json") for version in found.versions],
    }
    lines = [_line(version, live) for version in found.versions]
    if found.model.active_request:
        lines.append(f"request {found.model.active_request} trains a new version")
    output.result(document, lines, as_json=as_json)


@guarded
def activate(
    user: User,
    version: Annotated[
        str,
        typer.Argument(
            help="1, 2, 3 …, or previous: the one that served before the present one.",
            metavar="VERSION",
        ),
    ],
    model: ModelOption = None,
    on: On = None,
    stage: Stage = None,
    as_json: AsJson = False,
) -> None:
    """Let another version of a model serve."""
    from limner.contracts.keys import DEFAULT_MODEL_ID

    model_id = model or DEFAULT_MODEL_ID
    number = _number(version)
    limner = connect(on, stage)
    if number is None:
        now = limner.roll_back(user, model_id)
    else:
        now = limner.activate(user, model_id, number)
    lines = [f"{user}'s model {model_id}: version {now.live_version} serves."]
    if now.active_request:
        lines.append(
            f"Request {now.active_request} trains a new version, which goes live at its end."
        )
    output.result(now.model_dump(mode="json"), lines, as_json=as_json)


@guarded
def prefetch(
    user: User,
    model: ModelOption = None,
    version: Annotated[
        int | None, typer.Option("--version", help="An older version; default: the live one.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for a cold model.", min=0)
    ] = 360,
    on: On = None,
    stage: Stage = None,
    as_json: AsJson = False,
) -> None:
    """Load a user's model into the endpoint's memory, before the first image is asked for."""
    from dataclasses import asdict

    from limner.contracts.keys import DEFAULT_MODEL_ID

    done = connect(on, stage).prefetch(
        user, model or DEFAULT_MODEL_ID, version=version, deadline_s=timeout
    )
    line = f"{done.target_model} is in memory ({output.seconds(done.seconds)})."
    output.result(asdict(done), [line], as_json=as_json)


def _number(version: str) -> int | None:
    """The number that was typed; None for the previous version."""
    if version == PREVIOUS:
        return None
    if not version.isdecimal():
        raise LimnerError("INVALID_INPUT", f"VERSION {version!r} is neither a number nor previous.")
    return int(version)


def _line(version: Version, live: int | None) -> str:
    serves = "  serves" if version.version == live else ""
    return (
        f"version {version.version}  {version.status}  {version.created_at}  "
        f"request {version.request_id}{serves}"
    )
