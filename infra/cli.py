"""Runs the CDK CLI: ``python -m infra.cli deploy``, or ``make deploy STAGE=prod``.

The CLI is a program of npm. Exactly this version of it is run: 3.0.0 was published by accident and
fails on the assembly's schema (aws-cdk issue 38113), and npx would take it as the latest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from limner.contracts.errors import LimnerError

PACKAGE: Final = "aws-cdk@2.1148.1"


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of the CLI.

    Node comes from the system or from the wheel (``infra.node``); the wheel carries npm with it.

    Args:
        arguments: What follows ``cdk``.

    Raises:
        LimnerError: ``TOOL_MISSING``, if there is no npx.
    """
    if npx := shutil.which("npx"):
        return [npx, "--yes", PACKAGE, *arguments]
    node = Path(os.environ.get("JSII_NODE", ""))
    script = node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npx-cli.js"
    if not script.is_file():
        raise LimnerError("TOOL_MISSING", "There is no npx: install Node 20 or later with npm.")
    return [str(node), str(script), "--yes", PACKAGE, *arguments]


def main() -> None:
    """Runs the CLI in its own process, in this directory."""
    line = command(sys.argv[1:])
    # cdk starts the app by itself, which finds its Node by itself.
    path = os.pathsep.join([str(Path(line[0]).parent), os.environ.get("PATH", "")])
    sys.exit(subprocess.run(line, env={**os.environ, "PATH": path}, check=False).returncode)


if __name__ == "__main__":
    main()
