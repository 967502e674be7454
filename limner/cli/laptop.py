"""``limner up`` and ``limner down``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from limner.cli import output
from limner.cli.boundary import guarded
from limner.cli.options import AsJson
from limner.cli.target import LAPTOP_CREDENTIAL, LAPTOP_REGION, running_laptop
from limner.contracts.errors import LimnerError


@guarded
def up(
    port: Annotated[
        int | None, typer.Option("--port", help="Port on 127.0.0.1. Default: a free one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start AWS on this laptop, for this directory, and deploy Limner to it."""
    laptop = running_laptop()
    fresh = laptop is None
    if laptop is None:
        if find_spec("ministack") is None:
            detail = "The package ministack is missing: pip install 'limner[local]'."
            raise LimnerError("LAPTOP_START_FAILED", detail)
        from limner import local

        output.note("Starting AWS on this laptop …")
        laptop = local.start(Path.cwd(), port=port)
    document = {
        "endpoint_url": laptop.endpoint_url,
        "pid": laptop.pid,
        "log": str(laptop.log),
        "project": str(laptop.project),
        "started": fresh,
    }
    lines = [
        f"AWS on this laptop {'runs' if fresh else 'was running already'}: {laptop.endpoint_url}",
        f"Other programs: export AWS_ENDPOINT_URL={laptop.endpoint_url} AWS_REGION={LAPTOP_REGION} "
        f"AWS_ACCESS_KEY_ID={LAPTOP_CREDENTIAL} AWS_SECRET_ACCESS_KEY={LAPTOP_CREDENTIAL}",
        f"Log: {laptop.log}",
    ]
    output.result(
        document, lines, as_json=as_json, next_command=["limner", "onboard", "alice", "photos/"]
    )


@guarded
def down(as_json: AsJson = False) -> None:
    """Stop AWS on this laptop; its state stays in .limner/."""
    from limner import local

    stopped = local.stop(Path.cwd())
    line = "AWS on this laptop has stopped." if stopped else "AWS on this laptop was not running."
    output.result({"stopped": stopped}, [line], as_json=as_json)
