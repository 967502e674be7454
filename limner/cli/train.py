"""``limner train``: a fine-tune outside of the workflow, for people who tune recipes."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli import output
from limner.cli.boundary import guarded
from limner.cli.onboard import find_photos
from limner.cli.options import AsJson, Stage
from limner.contracts.errors import LimnerError

if TYPE_CHECKING:
    from limner.contracts.training import TrainingConfig
    from limner.launcher.here import Step
    from limner.launcher.plan import HerePlan, SageMakerPlan
    from limner.photos import Photo

_TINY_BASE = Path("bases/tiny/model")


class Place(StrEnum):
    """Where a fine-tune runs."""

    HERE = "here"
    SAGEMAKER = "sagemaker"


@guarded
def train(
    photos: Annotated[
        list[Path],
        typer.Argument(
            help="3 to 50 photos (PNG, JPEG, WebP), or folders of them.", metavar="PHOTOS..."
        ),
    ],
    on: Annotated[
        Place,
        typer.Option("--on", help="This machine, or SageMaker with the jobs of a deployed stage."),
    ] = Place.HERE,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "-c",
            help="One choice of the recipe, such as steps=300; may be given many times.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The base: a folder here, an S3 URI on SageMaker."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder that gets the artifact and the first images.")
    ] = Path("train-out"),
    instance_type: Annotated[
        str | None,
        typer.Option("--instance-type", help="On SageMaker: another machine than the stage's."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", help="On SageMaker: another training image than the stage's."),
    ] = None,
    stage: Stage = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="On SageMaker: follow the job until it ends.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, and do nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune outside of the workflow, to tune a recipe."""
    from limner.launcher.plan import config_of
    from limner.photos import check_photos

    recipe = config_of(config or [])
    checked = check_photos(find_photos(photos))
    if on is Place.SAGEMAKER:
        choices = {"instance_type": instance_type, "image": image, "base": base}
        _on_sagemaker(checked, recipe, choices, out, stage, wait, dry_run, as_json)
        return
    _refuse({"--instance-type": instance_type, "--image": image, "--stage": stage})
    _here(checked, recipe, base, out, dry_run, as_json)


def _refuse(options: dict[str, str | None]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        detail = f"{', '.join(given)} is for --on {Place.SAGEMAKER}."
        raise LimnerError("INVALID_INPUT", detail)


def _here(
    photos: tuple[Photo, ...],
    recipe: TrainingConfig,
    base: str | None,
    out: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    from limner.contracts.keys import new_request_id
    from limner.launcher import here
    from limner.launcher.plan import plan_here

    folder = here.PROGRAM_HOME / _TINY_BASE if base is None else Path(base)
    plan = plan_here(photos, folder, recipe, out, request_id=new_request_id())
    if dry_run:
        _print_plan(plan, as_json)
        return
    output.note(f"{len(photos)} photos, {recipe.steps} steps, on this machine.")
    made = here.execute(plan, progress=lambda step: output.note(_words(step, recipe.steps)))
    lines = [f"{name:<20} {value:.4g}" for name, value in sorted(made.metrics.items())]
    lines += [str(path) for path in (made.artifact, *made.previews)]
    document = {
        **plan.to_dict(),
        "metrics": dict(made.metrics),
        "artifact": str(made.artifact),
        "previews": [str(path) for path in made.previews],
    }
    output.result(document, lines, as_json=as_json)


def _on_sagemaker(
    photos: tuple[Photo, ...],
    recipe: TrainingConfig,
    choices: dict[str, str | None],
    out: Path,
    stage: str | None,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    import boto3

    from limner.client import Limner
    from limner.contracts.keys import new_request_id
    from limner.launcher import modeltrainer
    from limner.launcher.plan import check_out, plan_sagemaker

    if not dry_run:
        check_out(out)
        modeltrainer.check_sdk()
    limner = Limner.connect(stage)
    plan = plan_sagemaker(
        modeltrainer.stage_definition(limner.clients, limner.deployment),
        limner.deployment,
        photos,
        recipe,
        request_id=new_request_id(),
        **choices,
    )
    if dry_run:
        _print_plan(plan, as_json)
        return
    # What the SDK prints is progress; stdout is for the result.
    with redirect_stdout(sys.stderr):
        job = modeltrainer.execute(
            plan, limner.clients, boto3.Session(), wait=wait, started=_tell_start
        )
        files = modeltrainer.collect(plan, limner.clients, job, out) if wait else []
    lines = [f"Job {job} {'is done' if wait else 'is started'}.", *map(str, files)]
    document = {**plan.to_dict(), "job": job, "files": [str(path) for path in files]}
    output.result(document, lines, as_json=as_json)


def _tell_start(job: str) -> None:
    output.note(f"Job {job} is started; it goes on if this command is interrupted.")
    output.note(f"Stop it: aws sagemaker stop-training-job --training-job-name {job}")


def _print_plan(plan: HerePlan | SageMakerPlan, as_json: bool) -> None:
    document = plan.to_dict()
    lines = json.dumps(document, indent=2, ensure_ascii=False).splitlines()
    output.result(document, lines, as_json=as_json)


def _words(step: Step, steps: int) -> str:
    speed = f"{step.images_per_second:.1f} images/s"
    return f"step {step.step}/{steps}  loss {step.loss:.4f}  {speed}"
