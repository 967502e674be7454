"""``limner graph``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from limner.cli import output
from limner.cli.boundary import guarded
from limner.cli.options import AsJson, On, RequestArgument, Stage
from limner.cli.target import connect
from limner.contracts.errors import LimnerError


@guarded
def graph(
    request_id: RequestArgument,
    out: Annotated[
        Path | None, typer.Option("--out", help="The SVG file. Default: REQUEST.svg.")
    ] = None,
    on: On = None,
    stage: Stage = None,
    as_json: AsJson = False,
) -> None:
    """Draw a request's execution on the graph of its state machine (SVG)."""
    from limner.client.errors import translated
    from limner.graph import draw_execution

    limner = connect(on, stage)
    arn = limner.execution_arn(limner.request(request_id))
    with translated():
        svg = draw_execution(limner.clients.stepfunctions, arn)
    path = out or Path(f"{request_id}.svg")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise LimnerError("INVALID_INPUT", f"--out {path}: {error.strerror}.") from error
    document = {"request_id": request_id, "execution_arn": arn, "path": str(path)}
    output.result(document, [str(path)], as_json=as_json)
