"""``limner metrics``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from limner.cli import output
from limner.cli.boundary import guarded
from limner.cli.options import AsJson, ModelOption, On, Stage
from limner.cli.target import connect, connect_laptop, find_laptop
from limner.contracts.errors import LimnerError

if TYPE_CHECKING:
    from pathlib import Path

    from limner.metrics import Row

_HEADER: Final = (
    "model", "generations", "hits", "loads", "load p50", "queue p50", "p95",
    "denoise p50", "p95", "evictions", "resident MB",
)  # fmt: skip


@guarded
def metrics(
    user: Annotated[
        str | None, typer.Option("--user", help="Only this user's model.", metavar="USER")
    ] = None,
    model: ModelOption = None,
    minutes: Annotated[int, typer.Option("--minutes", help="How far to look back.", min=1)] = 60,
    on: On = None,
    stage: Stage = None,
    as_json: AsJson = False,
) -> None:
    """Show the endpoint's figures per model: hits, milliseconds, evictions, bytes."""
    from dataclasses import asdict

    from limner.client import metrics as cloudwatch
    from limner.contracts import keys
    from limner.metrics import summarize

    if model is not None and user is None:
        raise LimnerError("INVALID_INPUT", "--model names one of a user's models: add --user USER.")
    since_ms = int((time.time() - minutes * 60) * 1000)
    laptop = find_laptop(on, stage)
    limner = connect_laptop(laptop) if laptop else connect(on, stage)
    endpoint = limner.deployment.endpoint_name
    targets = None
    if user is not None:
        model_id = model or keys.DEFAULT_MODEL_ID
        found = limner.versions(user, model_id).versions
        targets = [keys.target_model(user, model_id, version.version) for version in found]
    lines: Iterable[str]
    if laptop:
        from limner.local.layout import Layout

        lines = _lines_of(Layout(laptop.project).endpoints / endpoint / "log")
    else:
        logs = cloudwatch.logs_client()
        lines = cloudwatch.read(logs, endpoint, since_ms, with_requests=targets is not None)
    rows = summarize(lines, since_ms=since_ms, targets=targets)
    document = {
        "endpoint": endpoint,
        "minutes": minutes,
        "models": [asdict(row) for row in rows[:-1]],
        "total": asdict(rows[-1]) if rows else None,
    }
    output.result(document, _table(rows) if rows else [_nothing(user, minutes)], as_json=as_json)


def _lines_of(log: Path) -> Iterator[str]:
    # The container makes it at its first start.
    if log.exists():
        with log.open(encoding="utf-8", errors="replace") as lines:
            yield from lines


def _nothing(user: str | None, minutes: int) -> str:
    return (
        f"No metrics in the last {minutes} minutes. Draw an image "
        f"(limner generate {user or 'USER'} PROMPT), or look further back (--minutes 1440)."
    )


def _table(rows: Sequence[Row]) -> list[str]:
    cells = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADER))]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in cells
    ]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.model,
        str(row.generations),
        "-" if row.hit_rate is None else f"{row.hit_rate:.0%}",
        str(row.loads),
        _ms(row.load_ms_p50),
        _ms(row.queue_ms_p50),
        _ms(row.queue_ms_p95),
        _ms(row.denoise_ms_p50),
        _ms(row.denoise_ms_p95),
        str(row.evictions),
        "-" if row.resident_bytes is None else f"{row.resident_bytes / 1e6:.1f}",
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
