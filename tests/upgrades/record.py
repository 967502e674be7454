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
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from limner.contracts.onboarding import OnboardingInput
from tests.support.engines.cases import CASES, Case, play
from tests.support.engines.moto_stack import moto_stack
from tests.upgrades.histories import FOLDER, History, normal, steps_of

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


def record(case: Case, version: str) -> History:
    """Runs a case on moto and keeps what happened."""
    slug = re.sub(r"[^a-z0-9]+", "-", case.name.lower()).strip("-")
    wish = OnboardingInput(request_id="recorded", user_id="somebody", retrain=case.retrain)
    rows: list[dict[str, Any]] = []

    def keep_row(stack: Any, wish: OnboardingInput) -> None:
        if case.prepare is not None:
            case.prepare(stack, wish)
        rows.append(stack.request(wish))

    with moto_stack() as stack:
        outcome = play(stack, replace(case, prepare=keep_row, told=""), wish)
        return History(
            name=f"{version}-{slug}",
            machine="onboard",
            input=normal(json.loads(outcome.execution["input"])),
            row=normal(rows[0]),
            steps=steps_of(stack.history(outcome.execution)),
            status=outcome.execution["status"],
            error=outcome.execution.get("error", ""),
        )


def recordings(version: str) -> Iterator[History]:
    """Runs all cases that are kept."""
    for case in CASES:
        if case.name in RECORDED:
            yield record(case, version)


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
