"""The figures of serving: many users on one base, against the ways that diffusers and peft offer.

``python -m benchmarks.serving`` prints a JSON line a figure:

* ``switch`` (P5, H3): to a user never seen, from the adapter's file to a usable slot, and back;
  and from a copy in memory to a slot;
* ``request`` (P6, H4): one request, every one of another user, with everything that it costs; ours
  with K requests in a pass;
* ``registered`` (P7): the same with 10 to 10,000 models on disk and room for 256 MB of them;
* ``lone`` (P8): a lone request through queue and batcher, and without them.

The containers over HTTP, with latencies under load: ``python -m benchmarks.traffic``.

The method: CPU time of one thread (``time.process_time``), variants interleaved round by round in
one process, in an order that is drawn for each round (seeded), a warm-up round dropped, the median
of at least 5 rounds with its spread, wall time beside it. Peers are the published packages,
unmodified. The same run asserts that all ways draw the same images. Nothing else should run
meanwhile.

The process keeps freed memory, as our container does: all ways would otherwise be faster or slower
by an eighth, from one run to the next, by what glibc's allocator has learnt.

Cold means that the files were dropped from the system's page cache. The ``registered`` models are
hard links to the weights of 16, with a manifest each; a model is dropped before it is loaded.

``--device cuda --bases SD15`` measures all ways on a GPU, in half precision: there the figure is
wall time between two synchronisations, with the largest device memory beside it. **It has never
been run on a GPU**; ``--device cpu`` goes through the same functions.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import tempfile
from collections import Counter, OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import peft
import torch

from benchmarks import ways
from benchmarks.bases import SIZES, save_base
from benchmarks.laptop import machine
from benchmarks.measured import Measured, device_name, say
from benchmarks.models import (
    READ_BY_PEERS,
    READ_BY_US,
    can_be_cold,
    digest_of,
    drop,
    drop_model,
    register,
    written,
)
from benchmarks.ways import MAX_RANK, PROMPT, STEPS, USERS, Images, Scene, Way
from inference.engine.bank import Residency, Seat, shares_of
from inference.engine.denoise import Artist
from inference.engine.engine import SLOT_BYTES, Engine
from inference.engine.memory import keep_freed_memory
from limner.contracts import artifact
from limner.contracts.errors import LimnerError
from tests.support.artifacts import write_artifact

TOGETHER: Final = (1, 2, 4, 8, 16)
PEER_BATCHES: Final = (8, 16)
REGISTERED: Final = (10, 100, 1_000, 10_000)
CAP_BYTES: Final = 256_000_000
# Levels of 255; rounding may fall to the other side.
EQUAL: Final = 1
# In half precision single pixels may lie further apart. Another user's adapter would move the
# whole image, as far as two users' images differ; of the mean, this share of that is the bound.
# (No GPU was at hand. In half precision on a CPU, G's ways lie 0.11 levels apart, and users 46.)
HALF_SHARE: Final = 0.05
# Ranks of the adapters that P5 switches to: what users have, and one of some megabytes. On the
# real shape rank 16 has these.
SWITCH_RANKS: Final = {"SD15": (16,)}
COMMON_SWITCH_RANKS: Final = (4, MAX_RANK)
REQUEST_RANKS: Final = {"SD15": 16}
COMMON_REQUEST_RANK: Final = 4
SWITCHED: Final = 4
KINDS: Final = ("cold", "warm")
LOADS: Final = (("ours, load", "ours, unload"), ("load_lora_weights", "unload_lora_weights"))
OUR_SWITCHES: Final = (
    "ours, slot from memory",
    *(f"ours, load{more}, {kind}" for more in ("", " + unload") for kind in KINDS),
)
# The load alone, and with the unload that diffusers needs before the next one.
PEERS_OF_SWITCHES: Final = (
    *(f"load_lora_weights{more}, {kind}" for more in ("", " + unload") for kind in KINDS),
    *(f"hotswap, {kind}" for kind in KINDS),
    "set_adapters",
    "whole pipeline",
)

# -- Requests (P6, H4) ----------------------------------------------------------------------------


def measure_requests(scene: Scene, rounds: int) -> None:
    """Prints P6, after having checked that all ways draw the same."""
    found = all_ways(scene)
    check_equality(scene, {w: way for w, (way, _) in found.items() if not w.startswith("base")})
    measured, turns = Measured(scene.device), itertools.cycle(range(USERS))

    def once(variant: str, _: int) -> None:
        way, together = found[variant]
        users = [next(turns) for _ in range(together)]
        measured.time(variant, lambda: way(users), units=together)

    measured.in_rounds({variant: partial(once, variant) for variant in found}, rounds)
    over = ["load_lora_weights", "set_adapters", *(f"adapter_names, {k}" for k in PEER_BATCHES)]
    measured.say("request", [*over, *(f"base only, {k}" for k in TOGETHER)], base=scene.name)


def all_ways(scene: Scene) -> dict[str, tuple[Way, int]]:
    """All ways, and how many users each draws for at once."""
    base, resident = scene.resident(), ways.all_resident(scene)
    own, names = ways.ours(base, scene), ways.mixed_batch(resident, scene)
    bare = ways.bare(base, scene)
    return {
        "whole pipeline": (ways.whole_pipeline(scene), 1),
        "load_lora_weights": (ways.load_and_unload(scene), 1),
        "hotswap": (ways.hotswap(scene), 1),
        "set_adapters": (ways.set_adapters(resident, scene), 1),
        **{f"adapter_names, {k}": (names, k) for k in PEER_BATCHES},
        **{f"base only, {k}": (bare, k) for k in TOGETHER},
        **{f"ours, {k}": (own, k) for k in TOGETHER},
    }


def check_equality(scene: Scene, found: dict[str, Way]) -> None:
    """Asserts that every way draws the same images for two users, who are not alike.

    Raises:
        AssertionError: If one does not: a faster wrong answer is none.
    """
    users = [0, 1]
    expected = found["load_lora_weights"](users)
    worst = {variant: distance(way(users), expected, scene) for variant, way in found.items()}
    crowd = list(range(USERS))
    alone = [found["ours, 1"]([user])[0] for user in crowd]
    worst["ours, 16 against 1"] = distance(found["ours, 16"](crowd), alone, scene)
    apart = float(np.abs(expected[0] - expected[1]).mean())
    bound = EQUAL if scene.dtype == torch.float32 else HALF_SHARE * apart
    say("equal", base=scene.name, levels=worst, bound=bound, users_differ_by=round(apart, 1))
    assert max(worst.values()) <= bound, worst
    assert apart > EQUAL


def distance(images: list[Images], others: list[Images], scene: Scene) -> float:
    """Levels between pairs of images: the most of any pixel, in half precision of the mean."""
    pairs = zip(images, others, strict=True)
    apart = [np.abs(one.astype(float) - other) for one, other in pairs]
    exact = scene.dtype == torch.float32
    return max(float(each.max() if exact else each.mean()) for each in apart)


# -- Switches (P5, H3) ----------------------------------------------------------------------------


class Switches:
    """All ways to a user's adapter; each takes its own measurements of a round.

    In one round, no way has the same files cold and warm. Ours and diffusers' read other members of
    an artifact, so that neither makes the other's files cold or warm.

    Args:
        scene: With the adapters that are switched between.
        resident: With copies of their files, for adapters that stay: diffusers keeps these files
            mapped, and then nothing could drop them from the page cache.
        measured: Where the measurements go.
    """

    def __init__(self, scene: Scene, resident: Scene, measured: Measured) -> None:
        self._scene, self._measured = scene, measured
        base = scene.resident()
        self._engine = Engine(base, max_models=SWITCHED + 1, max_rank=MAX_RANK)
        # The engine's own slots are its thread's. These are the same, in the open.
        self._slots = Residency(SLOT_BYTES, SWITCHED, base.device, base.dtype)
        self._kept = [
            self._engine.load(f"kept{user}", path).adapter
            for user, path in enumerate(scene.adapters)
        ]
        self._loading, self._swapping = ways.pipeline_of(scene), ways.pipeline_of(scene)
        ways.load(self._swapping, resident.adapters[0], "own")
        self._choosing = ways.all_resident(resident)

    def ours(self, index: int, *, cold: bool) -> None:
        """A load, until its slot is usable, and an unload."""
        path, kind = self._prepared(index, READ_BY_US, cold=cold)
        seats: list[Seat] = []

        def load() -> None:
            seat = self._slots.pin(self._engine.load("u", path).adapter)
            assert seat is not None
            assert not seat.hit
            seats.append(seat)

        def unload() -> None:
            self._slots.unpin(seats[0])
            self._slots.drop(self._engine.get("u").adapter)
            self._engine.unload("u")

        self._measured.time(f"ours, load, {kind}", load)
        self._measured.time(f"ours, unload, {kind}", unload)

    def ours_from_memory(self, index: int) -> None:
        """From the host's copy of a loaded model to a slot."""
        adapter = self._kept[index % SWITCHED]
        self._measured.time("ours, slot from memory", lambda: self._slots.pin(adapter))
        seat = self._slots.pin(adapter)
        assert seat is not None
        assert seat.hit
        for _ in range(2):
            self._slots.unpin(seat)
        self._slots.drop(adapter)

    def load_lora_weights(self, index: int, *, cold: bool) -> None:
        """Diffusers' load on a base without adapters, and its unload."""
        path, kind = self._prepared(index, READ_BY_PEERS, cold=cold)
        self._measured.time(
            f"load_lora_weights, {kind}", lambda: ways.load(self._loading, path, "own")
        )
        self._measured.time(f"unload_lora_weights, {kind}", self._loading.unload_lora_weights)

    def hotswap(self, index: int, *, cold: bool) -> None:
        """Diffusers' replacement of a loaded adapter's weights."""
        path, kind = self._prepared(index, READ_BY_PEERS, cold=cold)
        self._measured.time(
            f"hotswap, {kind}", lambda: ways.load(self._swapping, path, "own", hotswap=True)
        )

    def set_adapters(self, index: int) -> None:
        """Diffusers' choice among resident adapters."""
        name = f"u{index % SWITCHED}"
        self._measured.time("set_adapters", lambda: self._choosing.set_adapters(name))

    def whole_pipeline(self, _: int) -> None:
        """A pipeline of his own, its files warm, still without an adapter."""
        self._measured.time("whole pipeline", lambda: ways.pipeline_of(self._scene))

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()

    def _prepared(self, index: int, members: tuple[str, ...], *, cold: bool) -> tuple[Path, str]:
        """An artifact whose files are cold or warm, and the word for it."""
        path = self._scene.adapters[(index + (0 if cold else SWITCHED // 2)) % SWITCHED]
        for member in members:
            drop(path / member, cold=cold)
        return path, "cold" if cold else "warm"


def measure_switch(scene: Scene, scratch: Path, rounds: int) -> None:
    """Prints P5, for each rank."""
    for rank in SWITCH_RANKS.get(scene.name, COMMON_SWITCH_RANKS):
        switched, resident = (
            switching(scene, scratch / f"{kind}-{rank}", rank) for kind in ("switched", "resident")
        )
        written()
        size = (switched.adapters[0] / artifact.PACKED).stat().st_size
        switches(switched, resident, 2 * rounds).say(
            "switch",
            PEERS_OF_SWITCHES,
            compared=OUR_SWITCHES,
            base=scene.name,
            rank=rank,
            packed_mb=round(size / 1e6, 2),
        )


def switching(scene: Scene, folder: Path, rank: int) -> Scene:
    """The same with adapters of this rank, in a new folder."""
    adapters = tuple(folder / str(user) for user in range(SWITCHED))
    for user, path in enumerate(adapters):
        write_artifact(path, scene.folder, rank=rank, seed=user)
    return replace(scene, adapters=adapters)


def switches(scene: Scene, resident: Scene, rounds: int) -> Measured:
    """The measurements of all ways to switch between a scene's adapters."""
    measured = Measured(scene.device)
    all_of_them = Switches(scene, resident, measured)
    try:
        measured.in_rounds(
            {
                "ours, cold": partial(all_of_them.ours, cold=True),
                "ours, warm": partial(all_of_them.ours, cold=False),
                "ours, memory": all_of_them.ours_from_memory,
                "load_lora_weights, cold": partial(all_of_them.load_lora_weights, cold=True),
                "load_lora_weights, warm": partial(all_of_them.load_lora_weights, cold=False),
                "hotswap, cold": partial(all_of_them.hotswap, cold=True),
                "hotswap, warm": partial(all_of_them.hotswap, cold=False),
                "set_adapters": all_of_them.set_adapters,
                "whole pipeline": all_of_them.whole_pipeline,
            },
            rounds,
        )
    finally:
        all_of_them.close()
    for kind in KINDS:
        for load, unload in LOADS:
            measured.add(f"{load} + unload, {kind}", [f"{load}, {kind}", f"{unload}, {kind}"])
    return measured


# -- Many registered models (P7) ------------------------------------------------------------------


class Crowd:
    """An engine whose platform loads at first use, and at 507 unloads who was used longest ago.

    Args:
        engine: With less room than there are models.
        models: A folder with a model of each user.
    """

    def __init__(self, engine: Engine, models: Path) -> None:
        self.engine, self._models = engine, models
        self._loaded: OrderedDict[int, None] = OrderedDict()

    @property
    def loaded(self) -> int:
        """How many models are loaded."""
        return len(self._loaded)

    def must_load(self, user: int) -> bool:
        """Whether a user's model has to be loaded first; if so, its files are made cold."""
        if user in self._loaded:
            return False
        drop_model(self._models / str(user))
        return True

    def use(self, user: int) -> None:
        """Makes a model resident."""
        if user in self._loaded:
            self._loaded.move_to_end(user)
            return
        while not self._load(user):
            self.engine.unload(str(self._loaded.popitem(last=False)[0]))
        self._loaded[user] = None

    def request(self, user: int, scene: Scene) -> None:
        """One request."""
        self.use(user)
        answer = self.engine.submit(str(user), scene.wish(user)).result()
        assert answer.adapter_sha256 == digest_of(user)

    def _load(self, user: int) -> bool:
        """Loads a model; false if there is no room."""
        try:
            self.engine.load(str(user), self._models / str(user))
        except LimnerError as error:
            assert error.code == "OUT_OF_MEMORY"
            return False
        return True


def measure_registered(scene: Scene, scratch: Path, *, most: int, requests: int) -> None:
    """Prints P7: the platform's part is played here. Each number of models has its engine."""
    models = scratch / "registered"
    for user in range(most):
        register(scene.adapters[user % USERS], models / str(user), user)
    written()
    base, draw, measured = scene.resident(), random.Random(0), Measured(scene.device)  # noqa: S311
    crowds: dict[int, Crowd] = {}
    misses: Counter[int] = Counter()
    for registered in (count for count in REGISTERED if count <= most):
        # On a CPU the slots lie in the same memory as the host's copies: one cap for both.
        engine = Engine(
            base,
            max_models=most,
            max_rank=MAX_RANK,
            adapter_bytes=CAP_BYTES * 7 // 8,
            slot_bytes=CAP_BYTES // 8,
        )
        crowds[registered] = crowd = Crowd(engine, models)
        # First everybody who finds room comes once, which is what a long life amounts to.
        for user in range(registered):
            crowd.use(user)

    def request(registered: int, number: int) -> None:
        crowd, user = crowds[registered], draw.randrange(registered)
        missing = crowd.must_load(user)
        misses[registered] += missing and number > 0  # round 0 warms up
        measured.time(f"{registered} registered", partial(crowd.request, user, scene))

    measured.in_rounds({str(count): partial(request, count) for count in crowds}, requests)
    middle = [statistics.median(times) for times in measured.figures.values()]
    measured.say("registered", [], base=scene.name)
    for registered, crowd in crowds.items():
        say(
            "registered, memory",
            base=scene.name,
            models=registered,
            loaded=crowd.loaded,
            misses=misses[registered],
            adapters_mb=round(crowd.engine.resident_bytes / 1e6, 1),
        )
        crowd.engine.close()
    say("registered", base=scene.name, most_over_least=max(middle) / min(middle))


# -- A lone request (P8) --------------------------------------------------------------------------


class Direct:
    """Draws with one adapter, without queue, batcher and thread.

    Args:
        scene: The first adapter is drawn with.
        engine: Which has it as ``u``, and does not draw meanwhile.
    """

    def __init__(self, scene: Scene, engine: Engine) -> None:
        self._scene, self._artist = scene, Artist(engine.base)
        # The same slots as the engine's own, which are its thread's.
        slots = Residency(SLOT_BYTES, 1, engine.base.device, engine.base.dtype)
        seat = slots.pin(engine.get("u").adapter)
        assert seat is not None
        self._seat = seat

    def draw(self, seed: int) -> Images:
        """One image."""
        artist = self._artist
        (drawing,) = artist.begin([(PROMPT, self._scene.wish(seed))])
        batch = artist.assemble([drawing], shares_of([(self._seat, drawing.rows)]))
        for _ in range(self._scene.steps):
            artist.step(batch)
        (pixels,) = artist.finish([drawing])
        assert pixels is not None
        return pixels


def measure_lone(scene: Scene, rounds: int) -> None:
    """Prints P8."""
    engine = Engine(scene.resident(), max_models=1, max_rank=MAX_RANK)
    engine.load("u", scene.adapters[0])
    direct, measured = Direct(scene, engine), Measured(scene.device)

    def batched(seed: int) -> Images:
        return engine.submit("u", scene.wish(seed)).result().pixels

    # In half precision a GPU may choose another product for other addresses.
    bound = 0 if scene.dtype == torch.float32 else EQUAL
    assert distance([direct.draw(0)], [batched(0)], scene) <= bound
    measured.in_rounds(
        {
            "off": lambda _: measured.time("batching off", partial(direct.draw, 0)),
            "on": lambda _: measured.time("batching on", partial(batched, 0)),
        },
        4 * rounds,
    )
    measured.say("lone", ["batching off"], base=scene.name)
    engine.close()


# -- The command line -----------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="*", default=["G", "S"], choices=list(SIZES))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of each image; 20 for H4")
    parser.add_argument("--rounds", type=int, default=5, help="5 or more for a figure")
    parser.add_argument("--registered", type=int, default=1_000, help="10,000 for the full P7")
    parser.add_argument("--requests", type=int, default=20, help="rounds of P7")
    figures = ("switch", "request", "registered", "lone")
    parser.add_argument("--figures", nargs="*", default=figures, choices=figures)
    return parser.parse_args()


def measure(scene: Scene, scratch: Path, args: argparse.Namespace) -> None:
    """Prints the figures of one base."""
    if "switch" in args.figures:
        measure_switch(scene, scratch, args.rounds)
    if "request" in args.figures:
        measure_requests(scene, args.rounds)
    if "registered" in args.figures:
        measure_registered(scene, scratch, most=args.registered, requests=args.requests)
    if "lone" in args.figures:
        measure_lone(scene, args.rounds)


def main() -> None:
    """Prints all figures."""
    args = arguments()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    keep_freed_memory()  # as our container does; for all ways, since it is the process's
    versions = {"peft": peft.__version__, "device": device_name(device), "steps": args.steps}
    say("machine", **machine(), **versions)
    with tempfile.TemporaryDirectory() as place:
        for name in args.bases:
            scratch = Path(place) / name
            folder = save_base(scratch / "base", name)
            adapters = tuple(scratch / f"u{user}" for user in range(USERS))
            rank = REQUEST_RANKS.get(name, COMMON_REQUEST_RANK)
            for user, path in enumerate(adapters):
                write_artifact(path, folder, seed=user, rank=rank)
            written()
            cold = can_be_cold(adapters[0] / artifact.PACKED)
            say("page cache", base=name, files_can_be_cold=cold)
            measure(Scene(name, folder, adapters, device, args.steps), scratch, args)
        say("machine", load_average=os.getloadavg()[0])


if __name__ == "__main__":
    main()
