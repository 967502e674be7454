"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Where(StrEnum):
    """Which AWS a command talks to."""

    LAPTOP = "laptop"
    AWS = "aws"


User = Annotated[str, typer.Argument(help="The user, in the words of your app.", metavar="USER")]
RequestArgument = Annotated[str, typer.Argument(help="The request.", metavar="REQUEST")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Which of the user's models. Default: default.")
]
On = Annotated[
    Where | None,
    typer.Option(
        "--on",
        envvar="LIMNER_ON",
        help="The AWS to use. Default: the laptop's if it runs for this directory and neither "
        "--stage nor AWS_ENDPOINT_URL is given, else the standard AWS settings.",
    ),
]
Stage = Annotated[
    str | None,
    typer.Option("--stage", help="The deployed stage, on aws. Default: LIMNER_STAGE, or prod."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, also for an error.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]
