"""The main job, on a laptop: photos of two subjects become two users' own models and new pictures.

``make demo`` runs it. All of it is real: the state machine is executed from its published ASL, each
training job is a process behind SageMaker's container contract, and the pictures come from the
multi-model endpoint. It leaves its results in ``demo-out/``.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.pictures import Row, draw_comparison
from limner import local
from limner.cli.target import connect_laptop
from limner.cli.view import note_of
from limner.client import Limner, Progress
from limner.contracts.errors import LimnerError
from limner.graph import draw_execution
from limner.local.control import Control

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("demo-out")
BASE = ROOT / "bases" / "tiny" / "model"
PHOTOS = ROOT / "examples" / "photos"
USERS = {"alice": "monster", "bob": "mug"}
THROTTLED_CALLS = 3
INSTANCE = "ml.g5.xlarge"
SEED = 7
# Caption below the picture, prompt.
PROMPTS = (
    ("a photo of {token}", "a photo of {token}"),
    ("the next seed", "a photo of {token}"),
    ("… on the beach", "a photo of {token} on the beach"),
    ("… in the snow", "a photo of {token} in the snow"),
    ("… under water", "a photo of {token} under water"),
    ("… on a purple background", "a photo of {token} on a purple background"),
)


@dataclass
class Stopwatch:
    """Seconds of each part of the demo, in the order of their ends."""

    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str, since: float) -> None:
        """Records a part that began at ``since`` (``time.monotonic``)."""
        self.seconds[name] = round(time.monotonic() - since, 1)


def base_answers() -> list[bytes]:
    """What the bare base draws for the same prompts and seeds: it has never seen the subjects."""
    command = [sys.executable, "-m", "examples.base_answers", str(BASE), str(SEED)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return [base64.b64decode(line) for line in done.stdout.split()]


@dataclass
class Board:
    """What the terminal shows: the states of every onboarding as they are entered."""

    progress: dict[str, Progress] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def update(self, user: str, progress: Progress) -> None:
        """Takes a user's progress."""
        with self.lock:
            self.progress[user] = progress

    def __rich__(self) -> Table:
        table = Table(box=None, padding=(0, 2), show_header=False)
        with self.lock:
            for user, progress in self.progress.items():
                table.add_row(Text(user, style="bold"), progress.request.status.value, "")
                for visit in progress.states:
                    done = visit.left_at is not None
                    note = note_of(visit, progress.job)
                    table.add_row(
                        "", f"{'✓' if done else '…'} {visit.name}", Text(note, style="dim")
                    )
        return table


def onboard(limner: Limner, user: str, board: Board) -> Progress:
    """Onboards one user with the sample photos, and follows the request to its end."""
    request = limner.onboard(user, sorted((PHOTOS / USERS[user]).glob("*.png")))
    for progress in limner.follow(request.request_id, timeout_s=600, poll_s=0.5):
        board.update(user, progress)
    progress.request.raise_for_error()
    return progress


def training_has_begun(board: Board, user: str, pending: Future[Progress]) -> bool:
    """Whether the user's training job exists; True as well when the onboarding has ended."""
    with board.lock:
        progress = board.progress.get(user)
    return pending.done() or (progress is not None and progress.job is not None)


def onboard_all(limner: Limner, control: Control, board: Board) -> dict[str, Progress]:
    """Onboards the users side by side; the second while CreateTrainingJob throttles."""
    alice, bob = USERS
    with ThreadPoolExecutor(max_workers=2) as pool:
        pending = {alice: pool.submit(onboard, limner, alice, board)}
        deadline = time.monotonic() + 120
        while not training_has_begun(board, alice, pending[alice]) and time.monotonic() < deadline:
            threading.Event().wait(0.2)
        control.trouble(throttle_next=THROTTLED_CALLS)
        pending[bob] = pool.submit(onboard, limner, bob, board)
        return {user: future.result() for user, future in pending.items()}


def check(finished: dict[str, Progress], again: Progress) -> None:
    """Refuses to show a demo that did not show what it is about.

    Raises:
        LimnerError: ``INTERNAL``, if nothing was throttled or a ready user was trained again.
    """
    alice, bob = (finished[user] for user in USERS)
    if sum(visit.failures for visit in bob.states) < THROTTLED_CALLS:
        raise LimnerError("INTERNAL", "The second onboarding met fewer throttled calls than meant.")
    if alice.states[-1].name != "Onboarded" or again.states[-1].name != "AlreadyReady":
        raise LimnerError("INTERNAL", "The executions took other branches than meant.")


def draw_graph(limner: Limner, request_id: str, target: Path) -> None:
    """Draws the request's execution on the machine's graph."""
    request = limner.request(request_id)
    svg = draw_execution(limner.clients.stepfunctions, limner.execution_arn(request))
    target.write_text(svg, encoding="utf-8")


def pictures_of(limner: Limner, user: str) -> list[tuple[bytes, str]]:
    """The user's own model's answers to the demo's prompts."""
    pictures = []
    for number, (caption, prompt) in enumerate(PROMPTS):
        seed = SEED + (1 if number == 1 else 0)
        generation = limner.generate(user, prompt, seed=seed)
        pictures.append((generation.images[0].content, caption))
    return pictures


def cost_on_aws(limner: Limner, finished: dict[str, Progress]) -> dict[str, object]:
    """What the same seconds would cost on AWS, from the dated price file."""
    prices = json.loads((resources.files("limner") / "prices.json").read_text())
    hour = prices["instance_hour"][INSTANCE]
    training_s, transitions = 0.0, 0
    for progress in finished.values():
        transitions += len(progress.states) + 1
        name = limner.request(progress.request.request_id).job_name
        if name is not None:
            job = limner.clients.sagemaker.describe_training_job(TrainingJobName=name)
            training_s += job["BillableTimeInSeconds"]
    training = training_s * hour / 3600
    workflow = transitions * prices["step_functions_standard_transition"]
    return {
        "prices_as_of": prices["as_of"],
        "instance": INSTANCE,
        "instance_usd_per_hour": hour,
        "training_seconds_billed": training_s,
        "training_usd": round(training, 6),
        "state_transitions": transitions,
        "step_functions_usd": round(workflow, 6),
        "note": "the laptop's own seconds at the price of the instance; a GPU takes others",
    }


def main() -> int:
    """Runs the demo; the exit code is 0 if every user has a model that draws."""
    console = Console()
    watch = Stopwatch()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    board = Board()
    console.print("[bold]AWS on this laptop starts[/] (no account, no Docker, no token)")
    moment = time.monotonic()
    laptop = local.start(OUT / "laptop")
    try:
        watch.lap("laptop start and deployment", moment)
        limner = connect_laptop(laptop)
        with ThreadPoolExecutor(max_workers=1) as pool:
            moment = time.monotonic()
            answers = pool.submit(base_answers)
            with Live(board, console=console, refresh_per_second=4):
                finished = onboard_all(limner, Control(laptop.endpoint_url), board)
            watch.lap("two onboardings, side by side", moment)
            before = answers.result()

        moment = time.monotonic()
        pictures = {user: pictures_of(limner, user) for user in USERS}
        watch.lap(f"{len(USERS) * len(PROMPTS)} pictures from the endpoint", moment)

        moment = time.monotonic()
        again = onboard(limner, "alice", board)
        watch.lap("second onboarding of alice (ready already)", moment)

        check(finished, again)
        rows = [
            Row(
                f"{user}'s {subject}",
                (
                    (
                        f"photos (3 of {finished[user].request.photos})",
                        [((PHOTOS / subject / f"{n}.png").read_bytes(), "") for n in (1, 3, 4)],
                    ),
                    ("the base, asked the same", [(before[0], "plain"), (before[1], "beach")]),
                    (f"{user}'s own model", pictures[user]),
                ),
            )
            for user, subject in USERS.items()
        ]
        draw_comparison(rows, OUT / "pictures.png")
        for user, progress in finished.items():
            draw_graph(limner, progress.request.request_id, OUT / f"{user}.svg")
        draw_graph(limner, again.request.request_id, OUT / "alice-again.svg")
        report = {
            "seconds": watch.seconds,
            "total_seconds": round(time.monotonic() - watch.started, 1),
            "states": {
                user: [visit.name for visit in progress.states]
                for user, progress in {**finished, "alice again": again}.items()
            },
            "retries": {
                user: sum(visit.failures for visit in progress.states)
                for user, progress in finished.items()
            },
            "cost_on_aws": cost_on_aws(limner, finished),
        }
        (OUT / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        tell(console, report)
    finally:
        local.stop(OUT / "laptop")
    return 0


def tell(console: Console, report: dict[str, object]) -> None:
    """Prints what happened, what it took and where to look."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    for name, seconds in report["seconds"].items():  # type: ignore[attr-defined]
        table.add_row(name, f"{seconds:.1f} s")
    table.add_row("[bold]in all[/]", f"[bold]{report['total_seconds']:.1f} s[/]")
    console.print(table)
    cost = report["cost_on_aws"]
    console.print(
        f"The same seconds on AWS ({cost['instance']}, prices of {cost['prices_as_of']}): "  # type: ignore[index]
        f"training ${cost['training_usd']:.4f}, "  # type: ignore[index]
        f"Step Functions ${cost['step_functions_usd']:.4f}"  # type: ignore[index]
    )
    console.print(
        "Look at [bold]demo-out/pictures.png[/], and at [bold]demo-out/bob.svg[/] for the retries "
        "of a throttled call.\nNext: [bold].venv/bin/limner up[/], then "
        "[bold].venv/bin/limner onboard carol examples/photos/cat[/]"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LimnerError as error:
        sys.exit(str(error))
