"""``limner onboard`` and ``limner cancel``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import output
from limner.cli.boundary import guarded
from limner.cli.options import AsJson, ModelOption, On, RequestArgument, Stage, User
from limner.cli.target import connect
from limner.contracts.errors import LimnerError

if TYPE_CHECKING:
    from limner.client import Limner, Request, TrainingConfig


@guarded
def onboard(
    user: User,
    photos: Annotated[
        list[Path],
        typer.Argument(
            help="3 to 50 photos (PNG, JPEG, WebP), or folders of them.", metavar="PHOTOS..."
        ),
    ],
    model: ModelOption = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train a new version of a model that is ready.")
    ] = False,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.")] = None,
    subject: Annotated[
        str, typer.Option("--subject", help="What it is, in one or two words, such as 'dog'.")
    ] = "",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the training.")] = 0,
    client_token: Annotated[
        str | None,
        typer.Option("--client-token", help="Makes the command repeatable: one token, one model."),
    ] = None,
    queue: Annotated[
        bool,
        typer.Option("--queue", help="Let the deployed queue start it when there is room."),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the onboarding until it ends.")
    ] = True,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait at the most.", min=0)
    ] = 3_600,
    on: On = None,
    stage: Stage = None,
    as_json: AsJson = False,
) -> None:
    """Train a user's own model from photos of the subject."""
    from limner.contracts.keys import DEFAULT_MODEL_ID

    files = find_photos(photos)
    config = training_config(steps=steps, subject=subject, seed=seed)
    limner = connect(on, stage)
    request = limner.onboard(
        user,
        files,
        model_id=model or DEFAULT_MODEL_ID,
        client_token=client_token,
        retrain=retrain,
        config=config,
        queue=queue,
    )
    if wait:
        output.note(f"Request {request.request_id}: {request.photos} photos of {user}.")
        request = _follow(limner, request, timeout)
    output.result(
        {"request": request.model_dump(mode="json")},
        [summary(request)],
        as_json=as_json,
        next_command=_next_command(request),
    )


@guarded
def cancel(
    request_id: RequestArgument,
    on: On = None,
    stage: Stage = None,
    as_json: AsJson = False,
) -> None:
    """Stop an onboarding."""
    request = connect(on, stage).cancel(request_id)
    lines = [f"Request {request_id} is stopping."]
    if request.has_ended:
        lines = [f"Request {request_id} is {request.status}."]
    elif request.cancel_requested:
        lines = [
            f"Request {request_id} shares a job with others, which goes on; "
            "the wish to cancel it is noted."
        ]
    output.result({"request": request.model_dump(mode="json")}, lines, as_json=as_json)


def find_photos(paths: list[Path]) -> list[Path]:
    """The photos that paths name: files as they are, and of folders their PNG, JPEG and WebP.

    Raises:
        LimnerError: ``INVALID_INPUT``, for a path that does not exist.
    """
    from limner.photos import SUFFIXES

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            files += sorted(p for p in inside if not p.name.startswith("."))
        elif path.exists():
            files.append(path)
        else:
            raise LimnerError("INVALID_INPUT", f"{path} does not exist.")
    return files


def training_config(*, steps: int | None, subject: str, seed: int) -> TrainingConfig:
    """The training config of the options.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming the wrong option.
    """
    from pydantic import ValidationError

    from limner.contracts.training import TrainingConfig, explain

    given = {} if steps is None else {"steps": steps}
    try:
        return TrainingConfig.model_validate({**given, "subject": subject, "seed": seed})
    except ValidationError as error:
        raise LimnerError("INVALID_INPUT", f"{explain(error)}.") from error


def summary(request: Request) -> str:
    """One sentence on where a request stands."""
    model = f"{request.user_id}'s model {request.model_id}"
    if request.already_ready:
        return f"{model} was ready already; --retrain trains a new version."
    if request.status == "READY":
        return f"{model} is ready: version {request.version}."
    return f"Request {request.request_id} for {model} is {request.status}."


def _next_command(request: Request) -> list[str]:
    from limner.contracts.keys import DEFAULT_MODEL_ID

    if request.status != "READY":
        return ["limner", "status", request.user_id, "--request", request.request_id]
    model = [] if request.model_id == DEFAULT_MODEL_ID else ["--model", request.model_id]
    return ["limner", "generate", request.user_id, "a photo of {token} on the beach", *model]


def _follow(limner: Limner, request: Request, timeout_s: float) -> Request:
    """Shows the request's progress until it ends; raises its own error if it fails."""
    from limner.cli.view import ProgressView

    last = request
    try:
        with ProgressView() as view:
            for progress in limner.follow(request.request_id, timeout_s=timeout_s):
                view.update(progress)
                last = progress.request
    except KeyboardInterrupt:
        output.note("The onboarding goes on. Stop it: limner cancel " + request.request_id)
        raise
    return last.raise_for_error()
