"""Fine-tuning on a GPU: SD 1.5's shape at full size, random weights, bfloat16, rank 16.

``python -m benchmarks.gpu`` prints a JSON line a figure: the device's rate in large products, and,
for diffusers' example loop, the same with everything cached (plain, and under
``torch.compile``), and ours with K users in a pass: optimizer steps of one user a second, the
share of the measured rate, and the largest memory. Wall time between synchronisations, variants
interleaved, a warm-up round dropped, medians of 5.

``--device cpu --base S`` runs the same lines without a GPU. On one it was never run: none was lent.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from benchmarks.bases import SIZES, save_base
from benchmarks.laptop import machine
from benchmarks.measured import device_name, say, synchronised
from benchmarks.training import Round, alone, fused
from training.base import Base, load_base

USERS: Final = (1, 4, 8, 16)
STEPS: Final = 5
ROUNDS: Final = 5
# Of one image, forward and backward, without gradients of the base: counted on the meta device
# with SD 1.5's real shape at 512 px (tera-operations).
STEP_TFLOP: Final = {"SD15": 1.72}
_MATRIX: Final = 8192


def matrix_rate(device: torch.device, now: Callable[[], float]) -> float:
    """What the device reaches in a product of large matrices in bfloat16, in TFLOP/s."""
    side = _MATRIX if device.type == "cuda" else _MATRIX // 16
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(ROUNDS + 1):
        started = now()
        a @ b
        times.append(now() - started)
    return float(2 * side**3 / statistics.median(times[1:]) / 1e12)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--base", default="SD15", choices=list(SIZES))
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too")
    args = parser.parse_args()
    device = torch.device(args.device)
    now = synchronised(device)
    rate = matrix_rate(device, now)
    say("machine", **machine(), device=device_name(device), matrix_tflop_s=round(rate, 1))
    rank = {"rank": 16, "precision": "bfloat16" if device.type == "cuda" else "float32"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_base(Path(scratch) / "base", args.base)

        def base() -> Base:
            return load_base(folder, device)

        variants: dict[str, tuple[int, Round]] = {
            "example loop": (1, alone(base(), STEPS, cached=False, **rank)),
            "peft, cached": (1, alone(base(), STEPS, cached=True, **rank)),
        }
        if args.compile:
            compiled = base()
            compiled.pipeline.unet = torch.compile(compiled.pipeline.unet)
            variants["peft, cached, compiled"] = (1, alone(compiled, STEPS, cached=True, **rank))
        for users in USERS:
            variants[f"fused, {users}"] = (users, fused(base(), users, STEPS, **rank))
        times: dict[str, list[float]] = {variant: [] for variant in variants}
        for index in range(ROUNDS + 1):
            for variant, (_, run) in variants.items():
                started = now()
                run()
                if index:
                    times[variant].append((now() - started) / STEPS)
    for variant, (users, _) in variants.items():
        steps = users / statistics.median(times[variant])
        tflop = STEP_TFLOP.get(args.base)
        say(
            "gpu step",
            base=args.base,
            variant=variant,
            user_steps_a_second=round(steps, 2),
            share_of_matrix_rate=round(steps * tflop / rate, 3) if tflop else None,
            fine_tunes_of_500_steps_an_hour=round(3600 * steps / 500, 1),
        )
    if device.type == "cuda":
        say("gpu memory", largest_gb=round(torch.cuda.max_memory_allocated(device) / 1e9, 2))


if __name__ == "__main__":
    main()
