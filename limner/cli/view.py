"""The live view of a request: the states of its execution as they are entered."""

from __future__ import annotations

from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from limner.cli.output import seconds

if TYPE_CHECKING:
    from limner.client import JobProgress, Progress, StateVisit

_FRAMES_PER_S = 4


class ProgressView:
    """Shows progress on stderr: a live table on a terminal, else a line for each change."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._lines: list[str] = []
        self._spinner = Spinner("dots")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self._table,
                refresh_per_second=_FRAMES_PER_S,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: Progress) -> None:
        """Shows the progress at present."""
        self._progress = progress
        if self._live is not None:
            self._live.refresh()
            return
        lines = describe(progress)
        for line in lines:
            if line not in self._lines:
                self._console.print(Text(line), soft_wrap=True)
        self._lines = lines

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        if self._progress is None:
            table.add_row(self._spinner, "Uploaded; waiting for the execution")
            return table
        if not self._progress.states:
            table.add_row(self._spinner, Text(standing(self._progress)))
        moment = datetime.now(UTC)
        for visit in self._progress.states:
            mark = self._spinner if visit.left_at is None else Text(*_mark(visit))
            took = Text(seconds(visit.seconds(moment)), justify="right")
            words = note_of(visit, self._progress.job)
            table.add_row(mark, visit.name, took, Text(words, style="dim"))
        return table


def describe(progress: Progress) -> list[str]:
    """The progress as lines of text, one for each fact, for logs and pipes."""
    lines: list[str] = []
    for i, visit in enumerate(progress.states, start=1):
        words = note_of(visit, progress.job)
        lines.append(f"{i:>3}  {visit.name}" + (f"  {words}" if words else ""))
    lines.append(f"     {standing(progress)}")
    return lines


def standing(progress: Progress) -> str:
    """Where the request stands, and of what shows no states, what else is known."""
    request, job = progress.request, progress.job
    words = f"request {request.request_id} is {request.status}"
    if request.queue is not None:
        words += ", in the queue"
    elif not progress.states and job is not None and job.status == "InProgress":
        words += f", in a job with others: {_job_words(job)}"
    return words


def note_of(visit: StateVisit, job: JobProgress | None) -> str:
    """What else to say of a visit: failed tries, and the job while it is under way."""
    words = []
    if visit.failures and visit.error:
        words.append(f"{visit.failures} x {visit.error}")
    elif visit.failures:
        words.append(f"{visit.failures} retries")
    if job is not None and visit.left_at is None and job.status == "InProgress":
        words.append(_job_words(job))
    return ", ".join(words)


def _job_words(job: JobProgress) -> str:
    words = job.secondary_status or job.status
    if job.step is not None:
        words += f" step {job.step}" + (f"/{job.steps}" if job.steps else "")
    if job.loss is not None:
        words += f" loss {job.loss:.4f}"
    return words


def _mark(visit: StateVisit) -> tuple[str, str]:
    return ("✗", "red") if visit.error else ("✓", "green")
