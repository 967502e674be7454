"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence

import typer

from limner.contracts.errors import LimnerError


def result(
    document: Mapping[str, object],
    lines: Sequence[str],
    *,
    as_json: bool,
    next_command: Sequence[str] = (),
) -> None:
    """Prints a command's result: one JSON document, or lines for people.

    Args:
        document: What ``--json`` prints.
        lines: What people read on stdout.
        as_json: Which of the two.
        next_command: What to type next, by words; people find it on stderr.
    """
    if as_json:
        suggestion = {"next": shlex.join(next_command)} if next_command else {}
        typer.echo(json.dumps({**document, **suggestion}, ensure_ascii=False))
        return
    for line in lines:
        typer.echo(line)
    if next_command:
        note(f"Next: {shlex.join(next_command)}")


def failure(error: LimnerError, *, as_json: bool) -> None:
    """Prints an error with its fix on stderr, and as JSON on stdout where that was asked for."""
    if as_json:
        typer.echo(json.dumps(error.to_dict(), ensure_ascii=False))
    note(f"{error.code} {error.message}")
    note(f"Fix: {error.spec.fix}")


def note(text: str) -> None:
    """Prints a line on stderr."""
    typer.echo(text, err=True)


def seconds(value: float) -> str:
    """A duration for people: ``0.4 s``, ``93 s``, ``12 min 5 s``."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"
