"""What a batch is told to do: ``tasks.jsonl``, one task a line."""

from __future__ import annotations

from pathlib import Path

from limner.contracts.errors import LimnerError
from limner.contracts.tasks import Task
from training.forms import parse_form, read_bytes


def read_tasks(path: Path) -> tuple[Task, ...]:
    """Reads and checks all tasks of a batch, those of other hosts too.

    Args:
        path: The file ``tasks.jsonl``; empty lines are passed over.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming the line and the entry.
    """
    tasks: dict[str, Task] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        task = parse_form(line, Task, where=where)
        # Each would train one user's model on another's photos, or write over another's result.
        if task.photos != f"{task.user_id}/{task.request_id}/":
            raise LimnerError(
                "INVALID_INPUT", f"{where}: photos: Not the folder of this user and request."
            )
        if task.request_id in tasks:
            raise LimnerError("INVALID_INPUT", f"{where}: request_id: It has a line already.")
        tasks[task.request_id] = task
    return tuple(tasks.values())
