"""What the quality figures say of the sample subjects: own photos, others' photos, no training.

``python -m benchmarks.quality [NAME=VALUE …]``; further options are fields of the training config.
Prints the table of docs/quality.md. Times are those of this machine, with whatever else it does.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from limner.contracts.training import TrainingConfig
from training.base import load_base
from training.cohort import set_threads, trained_alone
from training.photos import keep_side_px, load_photos
from training.quality import measure
from training.recipe import prepare
from training.settings import cpu_count

NAMES = ("similarity", "similarity_gain", "prompt_response", "diversity", "novelty")


def main() -> None:
    """Trains a model of each subject, and holds it against the photos of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", type=Path, default=Path("bases/tiny/model"))
    parser.add_argument("--photos", type=Path, default=Path("examples/photos"))
    parser.add_argument("config", nargs="*")
    args = parser.parse_args()
    config = TrainingConfig.from_hyperparameters(dict(pair.split("=") for pair in args.config))
    set_threads(cpu_count())
    base = load_base(args.base, torch.device("cpu"))
    photos = {
        folder.name: load_photos(folder, keep_side_px=keep_side_px(base.card))
        for folder in sorted(args.photos.iterdir())
    }
    measure_s: dict[str, float] = {}
    print(f"| model, {config.steps} steps | photos | {' | '.join(NAMES)} |")
    print("|---|---|" + "---|" * len(NAMES))
    for model in photos:
        with trained_alone(config, base, photos[model], lambda _: None) as (cohort, learner):
            for other in (model, *(name for name in photos if name != model)):
                draw = torch.Generator().manual_seed(config.seed)
                learner.material = prepare(config, base, photos[other], draw)
                started = time.perf_counter()
                figures = measure(base, cohort, learner)
                measure_s.setdefault(model, time.perf_counter() - started)
                cells = " | ".join(f"{figures[name]:.2f}" for name in NAMES)
                print(f"| {model} | {other} | {cells} |", flush=True)
            print(
                f"<!-- {model}: trained in {learner.seconds:.1f} s,"
                f" measured in {measure_s[model]:.1f} s -->",
                flush=True,
            )


if __name__ == "__main__":
    main()
