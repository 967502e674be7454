"""The figures of fine-tuning: users in one pass against users one by one.

``python -m benchmarks.training`` prints a JSON line a figure:

* ``step``: CPU time of one optimizer step of one user, on the bases G, S and M
  (``benchmarks.bases``), for diffusers' example loop (VAE and text encoder in each step, peft), for
  the same loop with both cached, and for ours with K users in a pass;
* ``job``: everything counted, from a fresh process to the artifacts, for 16 users on S: a process
  each, and one process for all, both ``python -m training`` over the container contract; with
  quality figures and a first image of each model, and without. A warm worker (decision 032) does
  the same work with its start behind it.

The method: CPU seconds of one thread (``time.process_time``), variants interleaved round by round
in one process, a warm-up round dropped, the median of at least 5 rounds with its spread. The same
run asserts that the fused users' adapters are those of peft's own loop. Nothing else should run
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from PIL import Image

from benchmarks.bases import save_base
from benchmarks.laptop import machine
from benchmarks.measured import say
from limner.contracts.tasks import Task
from limner.contracts.training import TrainingConfig
from tests.support.alone import train_alone_with_peft
from training.base import Base, load_base
from training.cohort import Cohort, Learner, Shape
from training.recipe import MAX_GRADIENT_NORM, add_noise, draw_batch, embed, encode, prepare
from training.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
PHOTOS = 5
STEPS_A_ROUND = {"G": 6, "S": 4, "M": 2}
USERS = {"G": (1, 2, 4, 8, 16, 32), "S": (1, 2, 4, 8, 16), "M": (1, 2, 4)}
JOB_USERS = 16
JOB_STEPS = 20
SINGLE_JOBS = 5
# The bound of fp32 (tests/unit/training/test_cohort.py has fp64's).
EQUAL = 1e-5

Round = Callable[[], None]


def config_of(user: int, **changes: object) -> TrainingConfig:
    """Rank 4 on attention, batch 1: what diffusers' example does by default."""
    return TrainingConfig(
        seed=user,
        steps=10_000,
        batch_size=1,
        learning_rate=1e-4,
        rank=4,
        target="attention",
        augmentations=1,
        preview_prompts=(),
    ).model_copy(update=changes)


def photos() -> list[Image.Image]:
    """Five pictures of 640x576."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 255, (PHOTOS, 9, 10, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((640, 576)) for pixels in small]


def alone(base: Base, steps: int, *, cached: bool, **changes: object) -> Round:
    """Peft's loop for one user."""
    config = config_of(0, **changes)
    base.use(config.precision)
    unet = base.pipeline.unet
    draw = torch.Generator().manual_seed(config.seed)
    images = [p.resize((base.card.resolution_px,) * 2) for p in photos()]
    kept = prepare(config, base, photos(), draw)
    unet.add_adapter(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.rank,
            init_lora_weights="gaussian",
            target_modules=list(TARGETS[config.target]),
        )
    )
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate)
    unet.train()

    def run() -> None:
        for step in range(steps):
            if cached:
                latents, text = kept.latents, kept.text
            else:
                latents = encode(base, [images[step % PHOTOS]])
                text, _ = embed(base, config.instance_prompt)
            clean, noise, timesteps = draw_batch(base, latents, config.batch_size, draw)
            noisy, wanted = add_noise(base, clean, noise, timesteps)
            predicted = unet(noisy, timesteps, text, return_dict=False)[0]
            torch.nn.functional.mse_loss(predicted, wanted).backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()

    return run


def fused(base: Base, users: int, steps: int, **changes: object) -> Round:
    """Our loop for many users."""
    config = config_of(0, **changes)
    shape, rank = Shape.of(config), config.rank
    cohort = Cohort(base, shape, rank=rank, slots=users, say=lambda _: None, lanes=1)
    for user in range(users):
        cohort.enter(Learner.of(config_of(user, **changes), base, photos()))

    def run() -> None:
        for _ in range(steps):
            cohort.step()

    return run


def check_equality(folder: Path) -> float:
    """The largest difference between two users trained together and each alone with peft.

    Raises:
        AssertionError: If it is too large: a faster wrong answer is none.
    """
    base = load_base(folder, CPU)
    wanted = [config_of(user, steps=3, learning_rate=1e-3) for user in range(2)]
    cohort = Cohort(base, Shape.of(wanted[0]), rank=4, slots=2, say=lambda _: None, lanes=1)
    for config in wanted:
        cohort.enter(Learner.of(config, base, photos()))
    for _ in range(3):
        cohort.step()
    worst = 0.0
    for user, config in enumerate(wanted):
        theirs = train_alone_with_peft(load_base(folder, CPU), config, photos())
        for name, ours in cohort.bank.tensors(user, config.rank).items():
            gap = (ours - theirs.tensors[name.removeprefix("unet.")]).abs().max()
            worst = max(worst, float(gap))
    cohort.close()
    assert worst < EQUAL, worst
    return worst


def measure_steps(name: str, folder: Path, rounds: int) -> None:
    """Prints a base's ``step`` figures."""
    steps = STEPS_A_ROUND[name]
    variants: dict[str, tuple[int, Round]] = {
        "example loop": (1, alone(load_base(folder, CPU), steps, cached=False)),
        "peft, cached": (1, alone(load_base(folder, CPU), steps, cached=True)),
    }
    for users in USERS[name]:
        variants[f"fused, {users}"] = (users, fused(load_base(folder, CPU), users, steps))
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for index in range(rounds + 1):
        for variant, (users, run) in variants.items():
            started = time.process_time()
            run()
            if index:
                spent = time.process_time() - started
                times[variant].append(1000 * spent / steps / users)
    medians = {variant: statistics.median(found) for variant, found in times.items()}
    gap = check_equality(folder)
    for variant, found in times.items():
        say(
            "step",
            base=name,
            variant=variant,
            cpu_ms=round(medians[variant], 2),
            spread=[round(min(found), 2), round(max(found), 2)],
            over_example=round(medians["example loop"] / medians[variant], 2),
            over_cached=round(medians["peft, cached"] / medians[variant], 2),
        )
    say("equal", base=name, largest_difference=gap, rounds=rounds, load=os.getloadavg()[0])


def job_folder(root: Path, base: Path, users: list[int], *, draws: bool) -> Path:
    """/opt/ml of a batch job."""
    shown = {"preview_prompts": ("a photo of {token}",)} if draws else {}
    configs = root / "input/config"
    data = root / "input/data"
    for folder in (configs, data / "tasks", root / "model", root / "output", root / "checkpoints"):
        folder.mkdir(parents=True)
    (data / "base").symlink_to(base, target_is_directory=True)
    lines = []
    for user in users:
        folder = data / "photos" / "user" / f"r{user}"
        folder.mkdir(parents=True)
        for index, image in enumerate(photos()):
            image.save(folder / f"{index}.png")
        task = Task(
            request_id=f"r{user}",
            user_id="user",
            model_id="default",
            photos=f"user/r{user}/",
            config=config_of(user, steps=JOB_STEPS, **shown),
            instance=0,
            predicted_s=1,
        )
        lines.append(task.model_dump_json())
    (data / "tasks" / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    channel = {"TrainingInputMode": "File"}
    for file, content in (
        ("hyperparameters", {}),
        ("inputdataconfig", dict.fromkeys(("tasks", "photos", "base"), channel)),
        ("resourceconfig", {"current_host": "algo-1", "hosts": ["algo-1"]}),
    ):
        (configs / f"{file}.json").write_text(json.dumps(content))
    return root


def run_job(root: Path, *, draws: bool) -> tuple[float, float]:
    """Runs the training program; its CPU seconds and its largest resident memory in MB."""
    return run(
        "-m",
        "training",
        SAGEMAKER_BASE_DIR=str(root),
        TRAINING_JOB_NAME="bench",
        LIMNER_QUALITY=str(draws).lower(),
    )


def run_start(base: Path) -> float:
    """CPU seconds of a process that only loads the base: what a warm worker has behind it."""
    program = (
        "import sys, pathlib; import training.batch; from training.production import open_base;"
        " open_base(pathlib.Path(sys.argv[1]))"
    )
    return run("-c", program, str(base))[0]


def run(*arguments: str, **environment: str) -> tuple[float, float]:
    """Runs Python; its CPU seconds and its largest resident memory in MB."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        # One core for each, whatever the machine has: threads that share caches cost more.
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def first_images(root: Path) -> list[float]:
    """Seconds from each task's begin to its first image."""
    results = [json.loads(path.read_text()) for path in root.glob("checkpoints/*/result.json")]
    return [r["metrics"]["first_image_seconds"] for r in results]


def measure_jobs(folder: Path, scratch: Path, *, draws: bool) -> None:
    """Prints the ``job`` figures."""
    scratch /= "drawn" if draws else "bare"
    roots = [
        job_folder(scratch / f"single-{user}", folder, [user], draws=draws)
        for user in range(SINGLE_JOBS)
    ]
    single = [run_job(root, draws=draws) for root in roots]
    everybody = job_folder(scratch / "all", folder, list(range(JOB_USERS)), draws=draws)
    started = time.perf_counter()
    together, memory = run_job(everybody, draws=draws)
    wall = time.perf_counter() - started
    each = statistics.median(seconds for seconds, _ in single)
    start = statistics.median(run_start(folder) for _ in range(3))
    say(
        "job",
        base="S",
        users=JOB_USERS,
        steps=JOB_STEPS,
        draws=draws,
        process_each_cpu_s=round(each, 2),
        one_process_cpu_s_a_user=round(together / JOB_USERS, 3),
        times=round(each * JOB_USERS / together, 1),
        start_cpu_s=round(start, 2),
        times_by_a_warm_worker=round(each * JOB_USERS / (together - start), 1),
        fine_tunes_a_cpu_minute=round(60 * JOB_USERS / together, 1),
        fine_tunes_a_minute=round(60 * JOB_USERS / wall, 1),
        **(
            {
                "first_image_s": {
                    "process each": round(
                        statistics.median(s for root in roots for s in first_images(root)), 2
                    ),
                    "one process": [round(s, 2) for s in sorted(first_images(everybody))[::15]],
                }
            }
            if draws
            else {}
        ),
        memory_mb={
            "process each": round(max(mb for _, mb in single)),
            "one process": round(memory),
        },
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="*", default=list(USERS), choices=list(USERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-jobs", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    say("machine", **machine())
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folders = {base: save_base(scratch / base, base) for base in {*args.bases, "S"}}
        for base in args.bases:
            measure_steps(base, folders[base], args.rounds)
        if not args.no_jobs:
            for draws in (False, True):
                measure_jobs(folders["S"], scratch, draws=draws)


if __name__ == "__main__":
    main()
