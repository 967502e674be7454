"""Fine-tunes every sample subject with the real trainer, draws, compares, and makes a picture.

``python -m bases.tiny.recipe.evaluate --base bases/tiny/model --out docs/images/tiny-base.png``

Similarity of an image to a subject: the largest cosine to one of its photos. ``own`` is an
image of a user's model against that user's own photos.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from PIL import Image

from limner.contracts.training import TrainingConfig
from training.base import load_base
from training.cohort import set_threads, trained_alone
from training.photos import load_photos

from .encoder import Encoder

CPU = torch.device("cpu")
PLAIN = ("a photo of sks",) * 4
CONTEXTS = (
    "a photo of sks on a red background",
    "a photo of sks on a purple background",
    "a photo of sks on the beach",
    "a photo of sks at night",
    "a photo of sks in the snow",
    "a photo of sks under water",
)
CELL_PX = 128


def draw(pipeline, prompts: tuple[str, ...], guidance: float) -> list[Image.Image]:  # noqa: ANN001
    """One image a prompt, 20 steps, with the same seeds for every model."""
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return pipeline(
        list(prompts), num_inference_steps=20, guidance_scale=guidance, generator=seeds
    ).images


def sheet(rows: list[list[Image.Image | None]]) -> Image.Image:
    """All rows below each other."""
    columns = max(len(row) for row in rows)
    picture = Image.new("RGB", (columns * (CELL_PX + 2), len(rows) * (CELL_PX + 2)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            if image is not None:
                cell = image.convert("RGB").resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
                picture.paste(cell, (x * (CELL_PX + 2), y * (CELL_PX + 2)))
    return picture


def main() -> None:
    """Command line; further options NAME=VALUE are fields of the training config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--photos", type=Path, default=Path("examples/photos"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--subjects", nargs="*")
    parser.add_argument("config", nargs="*")
    args = parser.parse_args()
    config = TrainingConfig.from_hyperparameters(dict(pair.split("=") for pair in args.config))
    subjects = args.subjects or sorted(p.name for p in args.photos.iterdir() if p.is_dir())
    set_threads(2)
    photos = {name: load_photos(args.photos / name, keep_side_px=128) for name in subjects}
    drawn = {"base": draw(load_base(args.base, CPU).pipeline, PLAIN + CONTEXTS, args.guidance)}
    rows: list[list[Image.Image | None]] = [[None] * 5 + list(drawn["base"])]
    for name in subjects:
        base = load_base(args.base, CPU)
        start = time.process_time()
        with trained_alone(config, base, photos[name], lambda _: None) as (cohort, learner):
            cpu_s = time.process_time() - start
            with cohort.drawing_as(learner):
                drawn[name] = draw(base.pipeline, PLAIN + CONTEXTS, args.guidance)
        rows.append([*photos[name][:5], *drawn[name]])
        print(json.dumps({"subject": name, "loss": learner.loss, "cpu_seconds": cpu_s}), flush=True)
    sheet(rows).save(args.out, optimize=True)

    encode = Encoder()
    known = {name: encode(images) for name, images in photos.items()}
    own_plain, own_context, nearest = [], [], []
    for model, images in drawn.items():
        vectors = encode(images)
        similarity = torch.stack([(vectors @ known[s].T).max(1).values for s in subjects], 1)
        plain, context = similarity[: len(PLAIN)].mean(0), similarity[len(PLAIN) :].mean(0)
        table = {
            s: [round(plain[i].item(), 2), round(context[i].item(), 2)]
            for i, s in enumerate(subjects)
        }
        print(json.dumps({"model": model, "similarity_plain_context": table}))
        if model in subjects:
            column = subjects.index(model)
            own_plain.append(plain[column].item())
            own_context.append(context[column].item())
            nearest += (similarity.argmax(1) == column).tolist()
    print(
        json.dumps(
            {
                "own_plain": round(sum(own_plain) / len(own_plain), 3),
                "own_context": round(sum(own_context) / len(own_context), 3),
                "nearest_is_own": round(sum(nearest) / len(nearest), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
