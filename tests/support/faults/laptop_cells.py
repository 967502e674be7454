"""The part of the fault matrix that is played on the laptop, too: a real engine, real processes.

What the laptop's trouble can do to a call of one execution: refuse it once or for ever, and lose
its reply once or for ever. Deaths at an exact moment it cannot do; those are played in memory only.
All
cells run at the same time on one laptop, with a shell script as trainer, and what each one leaves
must be what the same cell has left in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from limner.local.trouble import Fault, FaultKind
from tests.support.faults import stories
from tests.support.faults.cells import Cell, Moment, Trouble, all_cells, decider, story_of
from tests.support.faults.machine import Call
from tests.support.faults.machine import Fault as Strike
from tests.support.faults.sites import task_states
from tests.support.faults.stories import Story, Summary, System

MACHINE: Final = "onboard"
COLUMNS: Final = (
    (Moment.BEFORE, Trouble.THROTTLE),
    (Moment.BEFORE, Trouble.SERVER),
    (Moment.BEFORE, Trouble.DENIED),
    (Moment.BEFORE, Trouble.FOR_EVER),
    (Moment.AFTER, Trouble.SERVER),
    (Moment.AFTER, Trouble.FOR_EVER),
)
CREATE: Final = "sagemaker:CreateTrainingJob"
# What SageMaker's own API answers; Step Functions has one error name for all of them.
_CODES: Final = {
    Trouble.THROTTLE: "ThrottlingException",
    Trouble.DENIED: "AccessDeniedException",
}

# The trainer of the laptop's cells; a process that starts in a millisecond.
TRAINER: Final = r"""
cd "$SAGEMAKER_BASE_DIR" || exit 9
if [ -f input/data/photos/fail ]; then
    printf 'PHOTO_TOO_SMALL: 1.png is too small. Fix: Replace the photo.' > output/failure
    exit 1
fi
mkdir -p model/1
cp "@SHELL@/config.pbtxt" model/config.pbtxt
cp "@SHELL@/model.py" model/1/model.py
echo weights > model/adapter.safetensors
echo weights > model/adapter.packed.safetensors
printf '{"schema_version": 1, "request_id": "%s", "base_id": "tiny-1",
"metrics": {"similarity_gain": 1, "diversity": 1, "novelty": 1}}' \
    "$LIMNER_REQUEST_ID" > model/manifest.json
""".replace("@SHELL@", str(Path(__file__).parents[3] / "limner" / "contracts" / "shell"))

# How the story of a cell is staged on the laptop: faults of its own, by the request's id.
_STAGED: Final[dict[Story, Callable[[str], tuple[Fault, ...]]]] = {
    stories.direct: lambda _: (),
    stories.already_ready: lambda _: (),
    stories.training_fails: lambda _: (),
    stories.adopted: lambda request_id: (Fault(CREATE, FaultKind.LOST_REPLY, matching=request_id),),
    # Three refusals leave the task, three more leave it again.
    stories.quota: lambda request_id: (
        Fault(CREATE, times=6, code="ResourceLimitExceeded", matching=request_id),
    ),
}


@dataclass(frozen=True)
class Staged:
    """A cell as the laptop plays it.

    Attributes:
        cell: The cell.
        request_id: Its only request, or the second one of a user who has a model.
        has_model: Whether the user has a model before.
        fails: Whether the training fails.
        faults: Trouble for the laptop.
        expected: Status and error code that the cell has left in memory.
    """

    cell: Cell
    request_id: str
    has_model: bool
    fails: bool
    faults: tuple[Fault, ...]
    expected: tuple[str, str]

    @property
    def user_id(self) -> str:
        return f"user-{self.request_id}"


@cache
def laptop_cells() -> tuple[Cell, ...]:
    """The cells of the matrix that the laptop plays as well."""
    return tuple(
        cell
        for cell in all_cells()
        if cell.machine == MACHINE
        and (cell.moment, cell.trouble) in COLUMNS
        and _story(cell) in _STAGED
    )


def _story(cell: Cell) -> Story:
    """RecordWaiting is staged by a full quota: that can be had for one request alone."""
    story = story_of(cell)
    return stories.quota if story is stories.no_capacity else story


def staged(cell: Cell, number: int) -> Staged:
    """Stages a cell.

    Args:
        cell: The cell.
        number: Makes the ids of its own.
    """
    story, request_id = _story(cell), f"fm{number:03}x"
    calls: list[tuple[str, str]] = []
    strikes: list[str] = []
    strike = decider(cell, [])

    def decide(call: Call) -> Strike | None:
        if not call.resource:
            return None
        fault = strike(call)
        if fault is not None:
            strikes.append(fault.error)
        elif not strikes:
            calls.append((call.execution.arn, _operation(call)))
        return fault

    system = System(decide=decide)
    story(system)
    (ending,) = list(Summary.of(system.world).requests.values())[-1:]
    struck = next(e for e in system.world.executions.values() if cell.state in e.visits)
    operation = _operation_of(cell)
    before = [name for arn, name in calls if arn == struck.arn]
    fault = Fault(
        operation,
        FaultKind.LOST_REPLY if cell.moment is Moment.AFTER else FaultKind.ERROR,
        times=len(strikes),
        code=_CODES.get(cell.trouble, "InternalFailure")
        if operation.startswith("sagemaker:")
        else strikes[0].partition(".")[2],
        message="on demand",
        matching=request_id,
        skip=before.count(operation),
    )
    return Staged(
        cell=cell,
        request_id=request_id,
        has_model=story is stories.already_ready,
        fails=story is stories.training_fails,
        faults=(*_STAGED[story](request_id), fault),
        expected=ending,
    )


def _operation(call: Call) -> str:
    return _named(call.resource)


def _operation_of(cell: Cell) -> str:
    return _named(task_states(cell.machine)[cell.state]["Resource"])


def _named(resource: str) -> str:
    """Service and action as the laptop's trouble knows them."""
    service, _, action = (
        resource.partition(":::")[2].removeprefix("aws-sdk:").removesuffix(".sync").partition(":")
    )
    return f"{service}:{action[:1].upper()}{action[1:]}"
