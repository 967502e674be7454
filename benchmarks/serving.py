"""The figures of serving: many users on one base, against the ways that diffusers and peft offer.

``python -m benchmarks.serving`` prints a JSON line a figure:

* ``switch`` (P5): to a user never seen, from the adapter's file to a usable slot;
* ``request`` (P6): one request, every one of another user, with everything that it costs; ours with
  K requests in a pass;
* ``registered`` (P7): the same with 10 to 10,000 models on disk and room for 256 MB of them;
* ``lone`` (P8): a lone request through queue and batcher, and without them.

The containers over HTTP, with latencies under load: ``python -m benchmarks.traffic``.

The method: CPU time of one thread (``time.process_time``), variants interleaved round by round in
one process, a warm-up round dropped, the median of at least 5 rounds with its spread, wall time
beside it. Peers are the published packages, unmodified. The same run asserts that all ways draw
the same images. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import peft
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer

from benchmarks.bases import SIZES, save_base
from benchmarks.laptop import machine
from inference.engine.base import ResidentBase, load_base
from inference.engine.denoise import Artist
from inference.engine.engine import Engine
from limner.contracts import artifact
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest
from tests.support.artifacts import write_artifact

USERS: Final = 16
TOGETHER: Final = (1, 2, 4, 8, 16)
PEER_BATCHES: Final = (8, 16)
STEPS: Final = 10
GUIDANCE: Final = 3.0
PROMPT: Final = "a photo of sks"
REGISTERED: Final = (10, 100, 1_000, 10_000)
CAP_BYTES: Final = 256_000_000
# Levels of 255; rounding may fall to the other side.
EQUAL: Final = 1
# Ranks of the adapters that P5 switches to: what users have, and one of some megabytes.
SWITCH_RANKS: Final = (4, 64)

Images = np.ndarray
Way = Callable[[Sequence[int]], list[Images]]
"""Draws one image for each of these users."""


def say(figure: str, **values: object) -> None:
    """Prints a figure."""
    print(json.dumps({"figure": figure, **values}), flush=True)


def wish(seed: int) -> GenerateRequest:
    """What every way draws."""
    return GenerateRequest(prompt=PROMPT, steps=STEPS, guidance=GUIDANCE, seed=seed)


def forget(path: Path) -> None:
    """Drops a file from the system's cache."""
    with path.open("rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Measured:
    """CPU and wall milliseconds of some variants, round by round."""

    def __init__(self) -> None:
        self.cpu: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}

    def time(self, variant: str, work: Callable[[], object], *, units: int = 1) -> None:
        """Adds one measurement of a variant, in milliseconds a unit."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.cpu.setdefault(variant, []).append((time.process_time() - cpu) * 1000 / units)
        self.wall.setdefault(variant, []).append((time.perf_counter() - wall) * 1000 / units)

    def forget_warm_up(self) -> None:
        """Drops the first round."""
        for found in (*self.cpu.values(), *self.wall.values()):
            del found[0]

    def say(self, figure: str, over: Sequence[str], **values: object) -> None:
        """Prints all variants, and how many times faster than some of them each is."""
        middle = {variant: statistics.median(found) for variant, found in self.cpu.items()}
        for variant, found in self.cpu.items():
            say(
                figure,
                **values,
                variant=variant,
                cpu_ms=round(middle[variant], 3),
                spread=[round(min(found), 3), round(max(found), 3)],
                wall_ms=round(statistics.median(self.wall[variant]), 3),
                rounds=len(found),
                times={o: round(middle[o] / middle[variant], 2) for o in over if o in middle},
            )


# -- The peers ------------------------------------------------------------------------------------


def pipeline_of(base: Path) -> Any:  # noqa: ANN401 (diffusers has no types)
    """A diffusers pipeline of the base."""
    found = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


def drawn(pipeline: Any, users: Sequence[int]) -> list[Images]:  # noqa: ANN401
    """One call of a pipeline, with one image for each of these users."""
    images = pipeline(
        [PROMPT] * len(users),
        negative_prompt=[""] * len(users),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(user) for user in users],
        output_type="np",
    ).images
    return list((images * 255).round())


def load(pipeline: Any, folder: Path, name: str, **options: object) -> None:  # noqa: ANN401
    """Loads a user's adapter, as diffusers does it."""
    pipeline.load_lora_weights(folder, weight_name=artifact.ADAPTER, adapter_name=name, **options)


def whole_pipeline(base: Path, adapters: Sequence[Path]) -> Way:
    """A pipeline of his own for each request."""

    def way(users: Sequence[int]) -> list[Images]:
        images = []
        for user in users:
            pipeline = pipeline_of(base)
            load(pipeline, adapters[user], "own")
            images += drawn(pipeline, [user])
        return images

    return way


def load_and_unload(base: Path, adapters: Sequence[Path]) -> Way:
    """A resident base; each request loads its adapter and takes it off again."""
    pipeline = pipeline_of(base)

    def way(users: Sequence[int]) -> list[Images]:
        images = []
        for user in users:
            load(pipeline, adapters[user], "own")
            images += drawn(pipeline, [user])
            pipeline.unload_lora_weights()
        return images

    return way


def hotswap(base: Path, adapters: Sequence[Path]) -> Way:
    """A resident base with one adapter, whose weights each request replaces."""
    pipeline = pipeline_of(base)
    load(pipeline, adapters[0], "own")

    def way(users: Sequence[int]) -> list[Images]:
        images = []
        for user in users:
            load(pipeline, adapters[user], "own", hotswap=True)
            images += drawn(pipeline, [user])
        return images

    return way


def all_resident(base: Path, adapters: Sequence[Path]) -> Any:  # noqa: ANN401
    """A pipeline with everybody's adapter."""
    pipeline = pipeline_of(base)
    for user, folder in enumerate(adapters):
        load(pipeline, folder, f"u{user}")
    return pipeline


def set_adapters(pipeline: Any) -> Way:  # noqa: ANN401
    """Everybody's adapter is resident; each request chooses one."""

    def way(users: Sequence[int]) -> list[Images]:
        images = []
        for user in users:
            pipeline.set_adapters(f"u{user}")
            images += drawn(pipeline, [user])
        return images

    return way


@contextmanager
def adapter_names(unet: torch.nn.Module, names: list[str]) -> Iterator[None]:
    """Each row with its own adapter, the way ``PeftModel.forward(adapter_names=…)`` does it."""

    def hook(_: object, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
        return args, {**kwargs, "adapter_names": names}

    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mixed_batch(pipeline: Any) -> Way:  # noqa: ANN401
    """Everybody's adapter is resident; one batch holds rows of all of them."""

    def way(users: Sequence[int]) -> list[Images]:
        # The rows without the prompt come first, then those with it.
        with adapter_names(pipeline.unet, [f"u{user}" for user in users] * 2):
            return drawn(pipeline, users)

    return way


# -- Ours -----------------------------------------------------------------------------------------


def ours(base: ResidentBase, adapters: Sequence[Path]) -> Way:
    """Each request loads its model, as the platform would have it; all are drawn together."""
    engine = Engine(base, max_models=USERS, max_rank=max(SWITCH_RANKS), max_rows=2 * USERS)

    def way(users: Sequence[int]) -> list[Images]:
        for user in users:
            engine.load(f"u{user}", adapters[user])
        futures = [engine.submit(f"u{user}", wish(user)) for user in users]
        images = [future.result().pixels[0].astype(float) for future in futures]
        for user in users:
            engine.unload(f"u{user}")
        return images

    return way


def bare(base: ResidentBase) -> Way:
    """The base without adapters: what no way of having them can beat at the same batch."""
    artist = Artist(base)

    def way(users: Sequence[int]) -> list[Images]:
        drawings = artist.begin([(PROMPT, wish(user)) for user in users])
        batch = artist.assemble(drawings, ())
        for _ in range(STEPS):
            artist.step(batch)
        return [pixels[0] for pixels in artist.finish(drawings) if pixels is not None]

    return way


# -- The figures ----------------------------------------------------------------------------------


def measure_requests(name: str, folder: Path, adapters: list[Path], rounds: int) -> None:
    """Prints P6, after having checked that all ways draw the same."""
    base = load_base(folder)
    resident = all_resident(folder, adapters)
    own, names = ours(base, adapters), mixed_batch(resident)
    ways: dict[str, tuple[Way, int]] = {
        "whole pipeline": (whole_pipeline(folder, adapters), 1),
        "load_lora_weights": (load_and_unload(folder, adapters), 1),
        "hotswap": (hotswap(folder, adapters), 1),
        "set_adapters": (set_adapters(resident), 1),
        **{f"adapter_names, {k}": (names, k) for k in PEER_BATCHES},
        **{f"base only, {k}": (bare(base), k) for k in TOGETHER},
        **{f"ours, {k}": (own, k) for k in TOGETHER},
    }
    check_equality(name, {w: way for w, (way, _) in ways.items() if not w.startswith("base")})
    measured = Measured()
    turns = itertools.cycle(range(USERS))
    for index in range(rounds + 1):
        for variant, (way, together) in ways.items():
            users = [next(turns) for _ in range(together)]
            measured.time(variant, lambda way=way, users=users: way(users), units=together)
        if not index:
            measured.forget_warm_up()
    over = ["load_lora_weights", "set_adapters", *(f"adapter_names, {k}" for k in PEER_BATCHES)]
    measured.say("request", [*over, *(f"base only, {k}" for k in TOGETHER)], base=name)


def check_equality(name: str, ways: dict[str, Way]) -> None:
    """Asserts that every way draws the same images for two users, who are not alike.

    Raises:
        AssertionError: If one does not: a faster wrong answer is none.
    """
    users = [0, 1]
    expected = ways["load_lora_weights"](users)
    worst = {
        variant: max(
            float(np.abs(image.astype(float) - wanted).max())
            for image, wanted in zip(way(users), expected, strict=True)
        )
        for variant, way in ways.items()
    }
    crowd = list(range(USERS))
    in_crowd, alone = ways["ours, 16"](crowd), [ways["ours, 1"]([user])[0] for user in crowd]
    worst["ours, 16 against 1"] = max(
        float(np.abs(one - two).max()) for one, two in zip(in_crowd, alone, strict=True)
    )
    apart = float(np.abs(expected[0] - expected[1]).mean())
    say("equal", base=name, levels=worst, users_differ_by=round(apart, 1))
    assert max(worst.values()) <= EQUAL, worst
    assert apart > EQUAL


def measure_switch(name: str, folder: Path, scratch: Path, rounds: int) -> None:
    """Prints P5."""
    base = load_base(folder)
    for rank in SWITCH_RANKS:
        adapters = [scratch / f"switch-{rank}-{user}" for user in range(4)]
        for user, path in enumerate(adapters):
            write_artifact(path, folder, rank=rank, seed=user)
        size_mb = (adapters[0] / artifact.PACKED).stat().st_size / 1e6
        engine = Engine(base, max_models=4, max_rank=max(SWITCH_RANKS))
        loading, swapping = pipeline_of(folder), pipeline_of(folder)
        load(swapping, adapters[0], "own")
        choosing = all_resident(folder, adapters)

        def to_slot(path: Path, engine: Engine = engine) -> None:
            adapter = engine.load("u", path).adapter
            seat = engine._residency.pin(adapter)
            assert seat is not None
            engine._residency.unpin(seat)

        def load_and_off(path: Path, loading: Any = loading) -> None:  # noqa: ANN401
            load(loading, path, "own")
            loading.unload_lora_weights()

        measured = Measured()
        for index in range(2 * rounds + 1):
            path = adapters[index % 4]
            for kind in ("warm", "cold"):
                if kind == "cold":
                    for member in artifact.MEMBERS:
                        forget(path / member)
                measured.time(f"ours, {kind}", lambda path=path: to_slot(path))
                engine.unload("u")
            measured.time("load_lora_weights + unload", lambda path=path: load_and_off(path))
            measured.time(
                "hotswap", lambda path=path, p=swapping: load(p, path, "own", hotswap=True)
            )
            measured.time(
                "set_adapters", lambda index=index, p=choosing: p.set_adapters(f"u{index % 4}")
            )
            measured.time("whole pipeline", lambda: pipeline_of(folder))
            if not index:
                measured.forget_warm_up()
        engine.close()
        over = ["load_lora_weights + unload", "hotswap", "set_adapters", "whole pipeline"]
        measured.say("switch", over, base=name, rank=rank, packed_mb=round(size_mb, 2))


def link(source: Path, target: Path) -> None:
    """The same artifact under another name, without its bytes once more."""
    for member in artifact.MEMBERS:
        (target / member).parent.mkdir(parents=True, exist_ok=True)
        os.link(source / member, target / member)


def resident_mb() -> float:
    """Resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def measure_registered(
    name: str, folder: Path, adapters: list[Path], scratch: Path, *, most: int, requests: int
) -> None:
    """Prints P7: the platform's part (unload who was used longest ago at 507) is played here."""
    base = load_base(folder)
    models = scratch / "registered"
    for user in range(most):
        link(adapters[user % len(adapters)], models / str(user))
    draw = random.Random(0)  # noqa: S311 (not a secret)
    medians: dict[int, float] = {}
    for registered in (count for count in REGISTERED if count <= most):
        # On a CPU the slots lie in the same memory as the host's copies: one cap for both.
        engine = Engine(
            base,
            max_models=most,
            max_rank=8,
            adapter_bytes=CAP_BYTES * 7 // 8,
            slot_bytes=CAP_BYTES // 8,
        )
        loaded: OrderedDict[int, None] = OrderedDict()

        def use(user: int, engine: Engine = engine, loaded: Any = loaded) -> bool:  # noqa: ANN401
            """Makes a model resident; whether it was not."""
            if user in loaded:
                loaded.move_to_end(user)
                return False
            while True:
                try:
                    engine.load(str(user), models / str(user))
                except LimnerError as error:
                    assert error.code == "OUT_OF_MEMORY"
                    engine.unload(str(loaded.popitem(last=False)[0]))
                else:
                    loaded[user] = None
                    return True

        def request(user: int, engine: Engine = engine, use: Any = use) -> None:  # noqa: ANN401
            use(user)
            engine.submit(str(user), wish(user)).result()

        # First everybody who finds room comes once, which is what a long life amounts to.
        for user in range(registered):
            use(user)
        request(0)
        measured, misses = Measured(), 0
        for _ in range(requests):
            user = draw.randrange(registered)
            misses += user not in loaded
            measured.time("request", lambda user=user: request(user))
        medians[registered] = statistics.median(measured.cpu["request"])
        engine_mb = engine.resident_bytes / 1e6
        measured.say(
            "registered",
            [],
            base=name,
            models=registered,
            loaded=len(loaded),
            misses=misses,
            adapters_mb=round(engine_mb, 1),
            process_mb=round(resident_mb()),
        )
        engine.close()
    say("registered", base=name, most_over_least=max(medians.values()) / min(medians.values()))


def measure_lone(name: str, folder: Path, adapters: list[Path], rounds: int) -> None:
    """Prints P8."""
    base = load_base(folder)
    engine = Engine(base, max_models=1, max_rank=8)
    engine.load("u", adapters[0])
    direct = Artist(base)
    seat = engine._residency.pin(engine.get("u").adapter)
    assert seat is not None
    from inference.engine.bank import shares_of

    def without() -> Images:
        (drawing,) = direct.begin([(PROMPT, wish(0))])
        batch = direct.assemble([drawing], shares_of([(seat, drawing.rows)]))
        for _ in range(STEPS):
            direct.step(batch)
        (pixels,) = direct.finish([drawing])
        assert pixels is not None
        return pixels

    assert np.array_equal(without(), engine.submit("u", wish(0)).result().pixels)
    measured = Measured()
    for index in range(4 * rounds + 1):
        measured.time("batching off", without)
        measured.time("batching on", lambda: engine.submit("u", wish(0)).result())
        if not index:
            measured.forget_warm_up()
    measured.say("lone", ["batching off"], base=name)
    engine._residency.unpin(seat)
    engine.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="*", default=["G", "S"], choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5, help="5 or more for a figure")
    parser.add_argument("--registered", type=int, default=1_000, help="10,000 for the full P7")
    parser.add_argument("--requests", type=int, default=20, help="of each number of models in P7")
    figures = ("switch", "request", "registered", "lone")
    parser.add_argument("--figures", nargs="*", default=figures, choices=figures)
    args = parser.parse_args()
    torch.set_num_threads(1)
    say("machine", **machine(), peft=peft.__version__)
    with tempfile.TemporaryDirectory() as place:
        for name in args.bases:
            scratch = Path(place) / name
            folder = save_base(scratch / "base", name)
            adapters = [scratch / f"u{user}" for user in range(USERS)]
            for user, path in enumerate(adapters):
                write_artifact(path, folder, seed=user)
            if "switch" in args.figures:
                measure_switch(name, folder, scratch, args.rounds)
            if "request" in args.figures:
                measure_requests(name, folder, adapters, args.rounds)
            if "registered" in args.figures:
                measure_registered(
                    name,
                    folder,
                    adapters,
                    scratch,
                    most=args.registered,
                    requests=args.requests,
                )
            if "lone" in args.figures:
                measure_lone(name, folder, adapters, args.rounds)
        say("machine", load_average=os.getloadavg()[0])


if __name__ == "__main__":
    main()
