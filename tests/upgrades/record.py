"""Records what this version's machines do: ``python -m tests.upgrades.record 0.2.0``.

At each release, once. Histories of earlier versions are never recorded again: the machines that
made them are gone, and that is what they are kept for.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from limner.contracts.onboarding import OnboardingInput
from tests.support.engines.cases import CASES, Case, play
from tests.support.engines.moto_stack import definition, moto_stack
from tests.upgrades.histories import FOLDER, History, normal, one_by_one, steps_of
from workflows import retries

RECORDED: Final = (
    "a new user",
    "a user with a model",
    "the quota is full for a while",
    "no capacity once",
    "no capacity for ever",
    "the reply to the job is lost",
    "the training fails",
    "the model does not draw",
    "somebody else owns the request",
    "the model is busy",
    "nobody can be told",
)


@dataclass(frozen=True)
class BatchCase:
    """A batch.

    Attributes:
        name: What it is called.
        behave: What the training program does with each request.
        attempt: Which attempt of each request it is.
    """

    name: str
    behave: tuple[str, ...]
    attempt: int = 1


BATCHES: Final = (
    BatchCase("a batch, all ready", ("ok", "ok")),
    BatchCase("a batch, one fails, one is missing", ("ok", "fail", "vanish")),
    BatchCase("a batch whose job fails", ("ok", "die")),
    BatchCase("a batch whose job fails for the last time", ("die",), retries.MAX_ATTEMPTS),
)


def record(case: Case, version: str) -> History:
    """Runs a case on moto and keeps what happened."""
    wish = OnboardingInput(request_id="recorded", user_id="somebody", retrain=case.retrain)
    rows: list[dict[str, Any]] = []

    def keep_row(stack: Any, wish: OnboardingInput) -> None:
        if case.prepare is not None:
            case.prepare(stack, wish)
        rows.append(stack.request(wish))

    with moto_stack() as stack:
        outcome = play(stack, replace(case, prepare=keep_row, told=""), wish)
        return History(
            name=_file_name(version, case.name),
            machine="onboard",
            input=normal(json.loads(outcome.execution["input"])),
            row=normal(rows[0]),
            steps=steps_of(stack.history(outcome.execution)),
            status=outcome.execution["status"],
            error=outcome.execution.get("error", ""),
        )


def record_batch(case: BatchCase, version: str) -> History:
    """Runs a batch on moto, one request after another, and keeps what happened."""
    machine = one_by_one(definition("onboard_batch"))
    with moto_stack({"onboard_batch": machine}) as stack:
        wishes = [
            OnboardingInput(
                request_id=f"recorded-{number}",
                user_id=f"somebody-{number}",
                attempt=case.attempt,
            )
            for number in range(len(case.behave))
        ]
        for wish, behave in zip(wishes, case.behave, strict=True):
            stack.put_request(wish, behave=behave)
        first, *others = [normal(stack.request(wish)) for wish in wishes]
        execution = stack.onboard_batch(*wishes)
        return History(
            name=_file_name(version, case.name),
            machine="onboard_batch",
            input=normal(json.loads(execution["input"])),
            row=first,
            steps=steps_of(stack.history(execution)),
            status=execution["status"],
            error=execution.get("error", ""),
            others=tuple(others),
        )


def _file_name(version: str, case: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", case.lower()).strip("-")
    return f"{version}-{slug}"


def recordings(version: str) -> Iterator[History]:
    """Runs all cases that are kept."""
    for case in CASES:
        if case.name in RECORDED:
            yield record(case, version)
    for batch in BATCHES:
        yield record_batch(batch, version)


def main(arguments: list[str], folder: Path = FOLDER) -> int:
    """Records the version that is named."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m tests.upgrades.record VERSION\n")
        return 2
    logging.disable(logging.CRITICAL)
    folder.mkdir(exist_ok=True)
    for history in recordings(arguments[0]):
        sys.stdout.write(f"{history.save(folder).name}: {' '.join(history.path[-2:])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
