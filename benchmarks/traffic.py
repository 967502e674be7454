"""The figures of serving over HTTP: the real containers of both shells, under open traffic.

``python -m benchmarks.traffic`` prints a JSON line a figure: ``equal`` (both shells draw the same
images), ``capacity``, and ``http`` for each shell, traffic, number of registered models and rate.

The method: the container is a process of its own, started as its tests start it; this process is
the load generator and plays the platform's part (a model is loaded at its first request; at 507 the
one that was used longest ago, and that nobody uses, is unloaded). Capacity is what 16 clients get
who ask again as soon as they are answered, all models loaded; the lower one of the shells. Arrivals
are a Poisson process at a share of it, drawn from the seed, so all shells get the same ones. Nobody
waits for anybody: a latency begins when the request was **due**, not when it was sent, so a
container that stands still pays for all who came meanwhile (no coordinated omission). Each answer
must name its user's adapter. ``cold`` requests waited for a load; ``warm`` ones found their model.
The registered models are hard links to the weights of 16, with a manifest each, which names an
adapter of its own. So that a cold request reads its files from the disk all the same, they are
dropped from the page cache before each load.
A refusal outside of the contract is ``wrong``; the run then fails, at its end. Who has no answer
60 s after he was due has given up, as InvokeEndpoint does, and counts with the time that he waited.
``rss_mb`` is the sum over the container's processes, and counts the pages that they share once for
each; ``pss_mb`` counts them once.

Each ``http`` figure has a container of its own. Where all models fit in its memory, it begins with
none, and first uses are cold. Where they do not, it is filled by the same traffic until the first
507: then it holds whoever was asked for last, as after a long life. Nothing else should run
meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import re
import subprocess
import tempfile
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import psutil
from PIL import Image
from safetensors import safe_open

from benchmarks.bases import SIZES, save_base
from benchmarks.laptop import machine
from benchmarks.measured import say
from benchmarks.models import can_be_cold, digest_of, drop_model, register, written
from benchmarks.serving import EQUAL, REGISTERED
from benchmarks.ways import USERS, wish
from limner.contracts import artifact
from limner.contracts import triton as wire
from limner.contracts.generation import JSON_TYPE, TARGET_HEADER
from tests.support.artifacts import write_artifact
from tests.support.containers import SHELLS, Container, ended, family

TRAFFICS: Final = ("uniform", "zipf")
ZIPF_EXPONENT: Final = 1.1
CLIENTS: Final = 16
PERCENTILES: Final = (50, 95, 99)
# InvokeEndpoint waits no longer (docs/serving.md).
GIVE_UP_S: Final = 60.0
# Of a load or an unload; Triton may take 350 s (docs/serving-triton.md).
LONGEST_S: Final = 400
# What the platform, or a client of it, knows what to do about. Triton has no 503 (words.py).
CONTRACT: Final = frozenset({404, 409, 503, 507})
BUSY: Final = "400 ENDPOINT_BUSY"

Unpack = Callable[[str], Path]


# -- Who comes when -------------------------------------------------------------------------------


def weights(traffic: str, registered: int, rng: np.random.Generator) -> np.ndarray:
    """Each user's share of the requests; who is popular is chosen by the generator."""
    exponent = ZIPF_EXPONENT if traffic == "zipf" else 0.0
    shares = np.arange(1, registered + 1) ** -exponent
    return rng.permutation(shares / shares.sum())


@dataclass(frozen=True)
class Schedule:
    """Who comes when.

    Attributes:
        before: Users who came before, to fill the memory; without end.
        due_s: When each request is due, in seconds from the start.
        users: Whose it is.
    """

    before: Iterator[int]
    due_s: np.ndarray
    users: np.ndarray

    @classmethod
    def of(cls, traffic: str, registered: int, rate: float, seconds: float, seed: int) -> Schedule:
        """A Poisson process; equal arguments give equal arrivals."""
        rng = np.random.default_rng([seed, registered, TRAFFICS.index(traffic)])
        shares = weights(traffic, registered, rng)
        count = int(rng.poisson(rate * seconds))
        # Given their number, the arrivals of a Poisson process are uniform.
        due_s = np.sort(rng.uniform(0, seconds, count))
        users = rng.choice(registered, count, p=shares)
        before = (int(rng.choice(registered, p=shares)) for _ in itertools.count())
        return cls(before, due_s, users)


def in_ms(latencies_s: Sequence[float]) -> dict[str, float] | None:
    """Percentiles in milliseconds; None where there is nothing to tell."""
    if not latencies_s:
        return None
    found = np.percentile(np.asarray(latencies_s) * 1000, PERCENTILES)
    return {f"p{p}": round(float(ms), 1) for p, ms in zip(PERCENTILES, found, strict=True)}


# -- The platform's part --------------------------------------------------------------------------


class Platform:
    """What SageMaker does before a container: load at first use, make room at 507, pass on.

    Args:
        http: A client whose base URL is the container's.
        unpack: Brings a model to where the container is told to load it from.
    """

    def __init__(self, http: httpx.AsyncClient, unpack: Unpack) -> None:
        self._http, self._unpack = http, unpack
        self._loaded: OrderedDict[int, None] = OrderedDict()
        self._using: Counter[int] = Counter()
        # A model is loaded by one, and not while it is being unloaded.
        self._changing: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running: set[asyncio.Task[None]] = set()
        self.loads = 0
        self.unloads = 0

    async def load(self, user: int) -> bool:
        """Has a user's model in memory; returns whether it had to be loaded for that."""
        if user in self._loaded:
            self._loaded.move_to_end(user)
            return False
        # It goes on where who has asked for it gives up.
        task = asyncio.create_task(self._load(user))
        self._running.add(task)
        task.add_done_callback(self._ended)
        await asyncio.shield(task)
        return True

    async def invoke(self, user: int, seed: int) -> tuple[bool, dict[str, Any] | str]:
        """One request of a user.

        Returns:
            Whether his model had to be loaded, and the answer; or status and code of its refusal.
        """
        self._using[user] += 1
        try:
            cold = await self.load(user)
            answer = await self._ask(
                "POST",
                f"/models/u{user}/invoke",
                user,
                content=wish(seed).model_dump_json(),
                headers={"Content-Type": wire.RAW_TYPE, "Accept": JSON_TYPE},
            )
        finally:
            self._using[user] -= 1
        if not answer.is_success:
            return cold, refusal(answer)
        body = wire.unwrap(answer.content, answer.headers.get("content-type", ""))
        return cold, json.loads(body)

    async def close(self) -> None:
        """Ends what is still being loaded; raises what no request was there to raise."""
        for task in self._running:
            task.cancel()
        for outcome in await asyncio.gather(*self._running, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or not task.exception():
            self._running.discard(task)

    async def _load(self, user: int) -> None:
        async with self._changing[user]:
            if user in self._loaded:
                return
            body = {"model_name": f"u{user}", "url": str(self._unpack(f"u{user}"))}
            while True:
                answer = await self._ask("POST", "/models", user, json=body)
                if answer.status_code != httpx.codes.INSUFFICIENT_STORAGE:
                    break
                await self._make_room()
            assert answer.is_success, refusal(answer)
            self.loads += 1
            self._loaded[user] = None

    async def _make_room(self) -> None:
        # Unloading a model in use would wait for it, on Triton all others too.
        idle = next((user for user in self._loaded if not self._using[user]), None)
        if idle is None:
            await asyncio.sleep(0.02)
            return
        del self._loaded[idle]
        async with self._changing[idle]:
            answer = await self._ask("DELETE", f"/models/u{idle}", idle)
        assert answer.is_success, refusal(answer)
        self.unloads += 1

    async def _ask(self, method: str, path: str, user: int, **options: Any) -> httpx.Response:  # noqa: ANN401
        headers = {TARGET_HEADER: f"u{user}/m/v000001.tar.gz", **options.pop("headers", {})}
        return await self._http.request(method, path, headers=headers, **options)


def refusal(answer: httpx.Response) -> str:
    """Status of an error, and its code; where that is none of ours, what was said instead."""
    try:
        code = json.loads(wire.own_words(answer.text))["error"]["code"]
    except (ValueError, TypeError, KeyError):
        code = re.sub(r"\bu\d+\b", "…", answer.text)[:200]
    return f"{answer.status_code} {code}".strip()


@dataclass
class Tally:
    """What became of requests.

    Attributes:
        cold_s: Latencies of those who waited for a load.
        warm_s: Latencies of the others.
        given_up_s: What those waited who have no answer.
        refusals: Statuses and codes.
    """

    cold_s: list[float] = field(default_factory=list)
    warm_s: list[float] = field(default_factory=list)
    given_up_s: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)

    def wrong(self) -> dict[str, int]:
        """The refusals that lie outside of the contract; there should be none."""
        return {r: n for r, n in self.refusals.items() if int(r[:3]) not in CONTRACT and r != BUSY}


async def drive(
    platform: Platform,
    schedule: Schedule,
    digest: Callable[[int], str] = digest_of,
    give_up_s: float = GIVE_UP_S,
) -> tuple[Tally, float]:
    """Sends all requests when they are due; returns what became of them, and the seconds."""
    tally = Tally()
    start = time.perf_counter()

    async def one(index: int, due: float, user: int) -> None:
        try:
            async with asyncio.timeout(due + give_up_s - time.perf_counter()):
                cold, answer = await platform.invoke(user, seed=index)
        except TimeoutError:
            tally.given_up_s.append(time.perf_counter() - due)
            return
        latency = time.perf_counter() - due
        if isinstance(answer, str):
            tally.refusals[answer] += 1
        else:
            assert answer["adapter_sha256"] == digest(user)
            (tally.cold_s if cold else tally.warm_s).append(latency)

    async with asyncio.TaskGroup() as sent:
        for index, (due_s, user) in enumerate(zip(schedule.due_s, schedule.users, strict=True)):
            await asyncio.sleep(max(0.0, start + due_s - time.perf_counter()))
            sent.create_task(one(index, start + float(due_s), int(user)))
    return tally, time.perf_counter() - start


# -- The containers -------------------------------------------------------------------------------


def memory_mb(pid: int) -> dict[str, int]:
    """Memory of a process and all that come from it, in MB (10^6 bytes)."""
    used: Counter[str] = Counter()
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            memory = process.memory_full_info()
            used["rss"] += memory.rss
            used["pss"] += memory.pss
    return {f"{kind}_mb": round(used[kind] / 1e6) for kind in ("rss", "pss")}


class Ground:
    """A base, and models of its users.

    Args:
        place: An empty folder, with a short path.
        base: Name of the base.
        registered: How many models there are.
        adapters_bytes: Memory for adapters, and as much for slots.
    """

    def __init__(self, place: Path, base: str, registered: int, adapters_bytes: int) -> None:
        self._place, self._adapters_bytes = place, adapters_bytes
        self._base = save_base(place / "base", base)
        self._models, self._containers = place / "models", itertools.count()
        adapters = [place / f"a{user}" for user in range(USERS)]
        for user, adapter in enumerate(adapters):
            write_artifact(adapter, self._base, seed=user)
        with safe_open(adapters[0] / artifact.PACKED, "numpy") as packed:
            self._model_bytes: int = packed.get_tensor(artifact.PACKED_TENSOR).nbytes
        for user in range(max(registered, USERS)):
            register(adapters[user % USERS], self._models / f"u{user}" / "model", user)
        written()
        self.can_be_cold = can_be_cold(adapters[0] / artifact.PACKED)

    def fits(self, registered: int) -> bool:
        """Whether there is room for so many models at once."""
        return registered * self._model_bytes <= self._adapters_bytes

    @contextmanager
    def container(self, shell: str) -> Iterator[Container]:
        """A container with no models, until the block ends."""
        settings = {
            "LIMNER_MODELS_ROOT": str(self._models),
            "LIMNER_MAX_MODELS": "10000",
            "LIMNER_ADAPTER_BYTES": str(self._adapters_bytes),
            "LIMNER_SLOT_BYTES": str(self._adapters_bytes),
        }
        folder = self._place / f"c{next(self._containers)}"
        with ended():
            container = SHELLS[shell].start(self._base, folder, extra=settings)
            container.models = self._models
            yield container
            with suppress(subprocess.TimeoutExpired):  # Triton, in the middle of unloading many
                container.stop()


def unpacked(container: Container, name: str) -> Path:
    """Where a model lies; nobody has read its files since they were written to the disk."""
    drop_model(container.models / name / "model")
    return container.url(name)


@asynccontextmanager
async def platform_of(container: Container) -> AsyncIterator[Platform]:
    """The platform before a container."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=container.http.base_url, timeout=LONGEST_S, limits=limits
    ) as http:
        platform = Platform(http, partial(unpacked, container))
        try:
            yield platform
        finally:
            await platform.close()


# -- The figures ----------------------------------------------------------------------------------


async def warm_up(container: Container, seconds: float) -> tuple[list[np.ndarray], float]:
    """An image of each of two users, and the requests a second that the container can answer."""
    async with platform_of(container) as platform:
        images = []
        for user in (0, 1):
            _, answer = await platform.invoke(user, seed=7)
            assert not isinstance(answer, str), answer
            png = base64.b64decode(answer["images"][0]["png_base64"])
            images.append(np.asarray(Image.open(io.BytesIO(png))).astype(int))
        for user in range(CLIENTS):
            await platform.load(user)
        start = time.perf_counter()

        async def client(user: int) -> int:
            count = 0
            while time.perf_counter() - start < seconds:
                _, answer = await platform.invoke(user, seed=count)
                assert not isinstance(answer, str), answer
                count += 1
            return count

        answered = sum(await asyncio.gather(*(client(user) for user in range(CLIENTS))))
        return images, answered / (time.perf_counter() - start)


def measure_capacity(ground: Ground, base: str, shells: Sequence[str], seconds: float) -> float:
    """Prints what each shell can do, after having checked that all draw the same; the lowest."""
    images, capacity = {}, {}
    for shell in shells:
        with ground.container(shell) as container:
            images[shell], capacity[shell] = asyncio.run(warm_up(container, seconds))
            memory = memory_mb(container.process.pid)
        per_second = round(capacity[shell], 2)
        say("capacity", base=base, shell=shell, clients=CLIENTS, per_second=per_second, **memory)
    first = images[shells[0]]
    worst = max(
        int(np.abs(one - two).max())
        for other in images.values()
        for one, two in zip(first, other, strict=True)
    )
    apart = float(np.abs(first[0] - first[1]).mean())
    say("equal", base=base, shells=shells, levels=worst, users_differ_by=round(apart, 1))
    assert worst <= EQUAL
    assert apart > EQUAL
    return min(capacity.values())


async def measure(
    ground: Ground, container: Container, schedule: Schedule, registered: int
) -> dict[str, object]:
    """What becomes of this traffic at a container that has just started."""
    async with platform_of(container) as platform:
        fill = not ground.fits(registered)
        while fill and not platform.unloads and platform.loads < registered:
            await platform.load(next(schedule.before))
        # The first pass costs more than any other.
        await platform.invoke(next(schedule.before), seed=0)
        loads, unloads = platform.loads, platform.unloads
        tally, took_s = await drive(platform, schedule)
        answered = tally.cold_s + tally.warm_s
        return {
            "requests": len(schedule.due_s),
            "ms": in_ms(answered + tally.given_up_s),
            "cold_ms": in_ms(tally.cold_s),
            "warm_ms": in_ms(tally.warm_s),
            "cold_share": round(len(tally.cold_s) / max(len(answered), 1), 3),
            "per_second": round(len(answered) / took_s, 2),
            "errors": dict(tally.refusals),
            "wrong": tally.wrong(),
            "given_up": len(tally.given_up_s),
            "loads": platform.loads - loads,
            "unloads": platform.unloads - unloads,
            **memory_mb(container.process.pid),
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="G", choices=list(SIZES))
    parser.add_argument("--shells", nargs="+", default=list(SHELLS), choices=list(SHELLS))
    parser.add_argument("--registered", nargs="+", type=int, default=list(REGISTERED))
    parser.add_argument("--traffic", nargs="+", default=list(TRAFFICS), choices=TRAFFICS)
    parser.add_argument("--seconds", type=float, default=60, help="of arrivals, for each figure")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.5, 0.8], help="of capacity")
    parser.add_argument("--capacity", type=float, help="requests a second; measured by default")
    parser.add_argument(
        "--adapters-mb",
        type=float,
        default=64,
        help="memory for adapters; on Triton each model in it is a process of 13 MB besides",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    say("machine", **machine(), adapters_mb=args.adapters_mb, seed=args.seed)
    with tempfile.TemporaryDirectory() as place:
        most = max(args.registered)
        ground = Ground(Path(place), args.base, most, int(args.adapters_mb * 1e6))
        say("page cache", base=args.base, files_can_be_cold=ground.can_be_cold)
        measured = measure_capacity(ground, args.base, args.shells, min(args.seconds, 20))
        capacity = args.capacity or measured
        wrong = []
        for traffic, registered, share, shell in itertools.product(
            args.traffic, args.registered, args.rates, args.shells
        ):
            schedule = Schedule.of(traffic, registered, share * capacity, args.seconds, args.seed)
            with ground.container(shell) as container:
                found = asyncio.run(measure(ground, container, schedule, registered))
            say(
                "http",
                base=args.base,
                shell=shell,
                traffic=traffic,
                registered=registered,
                of_capacity=share,
                rate=round(share * capacity, 2),
                seconds=args.seconds,
                **found,
                load_average=round(os.getloadavg()[0], 2),
            )
            if found["wrong"]:
                wrong.append((shell, traffic, registered, found["wrong"]))
        # Only here: the figures before and after it are true all the same.
        assert not wrong, wrong


if __name__ == "__main__":
    main()
