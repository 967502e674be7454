"""``limner status``."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import output
from limner.cli.boundary import guarded
from limner.cli.options import AsJson, On, Stage, User
from limner.cli.target import connect
from limner.contracts.errors import LimnerError

if TYPE_CHECKING:
    from limner.client import Limner, Model, Request


@guarded
def status(
    user: User,
    model: Annotated[str | None, typer.Option("--model", help="Only this model.")] = None,
    request_id: Annotated[
        str | None, typer.Option("--request", help="One request, with its states.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Requests to list.", min=1)] = 5,
    on: On = None,
    stage: Stage = None,
    as_json: AsJson = False,
) -> None:
    """Show a user's models and last requests."""
    limner = connect(on, stage)
    if request_id is not None:
        _show_request(limner, user, request_id, as_json=as_json)
        return
    models = [m for m in limner.list_models(user) if model in (None, m.model_id)]
    of_model = (r for r in limner.list_requests(user) if model in (None, r.model_id))
    requests = list(islice(of_model, limit))
    if not models and not requests:
        raise LimnerError(
            "MODEL_NOT_FOUND", f"{user} has no {'model ' + model if model else 'models'}."
        )
    lines = [_model_line(m) for m in models] + [_request_line(r) for r in requests]
    document = {
        "user_id": user,
        "models": [m.model_dump(mode="json") for m in models],
        "requests": [r.model_dump(mode="json") for r in requests],
    }
    output.result(document, lines, as_json=as_json)


def _show_request(limner: Limner, user: str, request_id: str, *, as_json: bool) -> None:
    from limner.cli.view import describe

    progress = limner.progress(request_id)
    request = progress.request
    if request.user_id != user:
        raise LimnerError("REQUEST_NOT_FOUND", f"{user} has no request {request_id}.")
    states = [
        {
            "name": visit.name,
            "entered_at": visit.entered_at.isoformat(),
            "left_at": visit.left_at and visit.left_at.isoformat(),
            "failures": visit.failures,
            "error": visit.error,
        }
        for visit in progress.states
    ]
    document = {
        "request": request.model_dump(mode="json"),
        "states": states,
        "job": progress.job and asdict(progress.job),
    }
    lines = describe(progress)
    if request.error is not None:
        lines += [
            f"     {request.error.code} {request.error.message}",
            f"     Fix: {request.error.to_error().spec.fix}",
        ]
    output.result(document, lines, as_json=as_json, next_command=["limner", "graph", request_id])


def _model_line(model: Model) -> str:
    live = "not ready yet" if model.live_version is None else f"version {model.live_version} serves"
    busy = f", request {model.active_request} trains" if model.active_request else ""
    return f"model {model.model_id}: {live}{busy}"


def _request_line(request: Request) -> str:
    why = f"  {request.error.code}: {request.error.message}" if request.error else ""
    version = f" version {request.version}" if request.version else ""
    return (
        f"request {request.request_id}  {request.created_at}  "
        f"{request.model_id}{version}  {request.status}{why}"
    )
