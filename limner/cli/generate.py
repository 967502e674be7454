"""``limner generate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from limner.cli import output
from limner.cli.boundary import guarded
from limner.cli.options import AsJson, ModelOption, On, Stage, User
from limner.cli.target import connect
from limner.contracts.errors import LimnerError

if TYPE_CHECKING:
    from limner.contracts.generation import ImageFormat


@guarded
def generate(
    user: User,
    prompt: Annotated[
        str,
        typer.Argument(
            help="What to draw; {token} stands for the user's subject.", metavar="PROMPT"
        ),
    ],
    number: Annotated[int, typer.Option("-n", "--images", help="Images, 1 to 8.")] = 1,
    out: Annotated[Path, typer.Option("--out", help="Folder for the image files.")] = Path(),
    seed: Annotated[int, typer.Option("--seed", help="Of the first image; image i adds i.")] = 0,
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps, 1 to 100.")] = 20,
    guidance: Annotated[
        float, typer.Option("--guidance", help="How strictly to follow the prompt, 0 to 20.")
    ] = 3.0,
    negative: Annotated[str, typer.Option("--negative", help="What to keep away from.")] = "",
    image_format: Annotated[
        str, typer.Option("--format", help="Of the files: png, jpeg or webp.")
    ] = "png",
    model: ModelOption = None,
    version: Annotated[
        int | None, typer.Option("--version", help="An older version; default: the live one.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for a cold model.", min=0)
    ] = 360,
    on: On = None,
    stage: Stage = None,
    as_json: AsJson = False,
) -> None:
    """Draw images with a user's model."""
    from limner.contracts.keys import DEFAULT_MODEL_ID

    if out.exists() and not out.is_dir():
        raise LimnerError("INVALID_INPUT", f"--out {out} is not a folder.")
    drawn = connect(on, stage).generate(
        user,
        prompt,
        model_id=model or DEFAULT_MODEL_ID,
        version=version,
        negative_prompt=negative,
        images=number,
        seed=seed,
        steps=steps,
        guidance=guidance,
        image_format=cast("ImageFormat", image_format),
        deadline_s=timeout,
    )
    try:
        paths = drawn.save(out)
    except OSError as error:
        raise LimnerError("INVALID_INPUT", f"--out {out}: {error.strerror}.") from error
    document = {
        "user_id": drawn.user_id,
        "model_id": drawn.model_id,
        "version": drawn.version,
        "target_model": drawn.target_model,
        "prompt": drawn.prompt,
        "denoise_ms": drawn.denoise_ms,
        "images": [
            {"path": str(path), "seed": image.seed}
            for path, image in zip(paths, drawn.images, strict=True)
        ],
    }
    output.result(document, [str(path) for path in paths], as_json=as_json)
