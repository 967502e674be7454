"""The entry point ``limner``."""

from __future__ import annotations

import typer

from limner.cli.boundary import EXIT_CODES
from limner.cli.doctor import doctor
from limner.cli.generate import generate
from limner.cli.graph import graph
from limner.cli.laptop import down, up
from limner.cli.metrics import metrics
from limner.cli.onboard import cancel, onboard
from limner.cli.status import status
from limner.cli.train import train
from limner.cli.versions import activate, prefetch, versions

# Without rich's markup, help is printed without importing rich.
app = typer.Typer(
    name="limner",
    help="A personal generative model for every user, on AWS or on this laptop.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
COMMANDS = (
    up,
    down,
    onboard,
    status,
    cancel,
    generate,
    versions,
    activate,
    prefetch,
    metrics,
    train,
    graph,
    doctor,
)
for command in COMMANDS:
    app.command(epilog=EXIT_CODES)(command)


def main() -> None:
    """Runs the command line of this process."""
    app(prog_name="limner")
