"""P12 and P13: eight threads load, invoke and unload at random; a thousand users need 64 places."""

import itertools
import random
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from inference.engine import engine as engine_module
from inference.engine.base import ResidentBase
from inference.engine.engine import Engine, Generation
from inference.engine.lora import LayerShape, derive_layout
from inference.engine.reader import Adapter
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest
from tests.support.artifacts import write_artifact
from tests.support.linearizable import Call, check
from tests.unit.inference.stubs import StubArtist

THREADS = 8
CALLS = 10_000
NAMES = [f"m{index}" for index in range(24)]
ROOM = 12
SLOTS = 6
LAYOUT = derive_layout((LayerShape("to_q", (2, 3)),), ("to_q",), 1)
DIGEST = LAYOUT.digest()
SIZE_BYTES = LAYOUT.size * 4
REQUEST = GenerateRequest(prompt="x", steps=1, guidance=0)


def stubbed(base: ResidentBase, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine with real locks, tables, banks and queue; files and drawing are stubs.

    The weights of the n-th load are all n, and so are its images.
    """
    loads = itertools.count(1)

    def read(*_: object) -> Adapter:
        key = next(loads)
        row = torch.full((LAYOUT.size,), float(key))
        manifest = SimpleNamespace(subject_phrase="", adapter_sha256="")
        return Adapter(key, manifest, LAYOUT, DIGEST, row)  # type: ignore[arg-type]

    monkeypatch.setattr(engine_module, "Artist", lambda _: StubArtist("to_q"))
    monkeypatch.setattr(
        engine_module, "check_artifact", lambda *_: SimpleNamespace(size_bytes=SIZE_BYTES)
    )
    monkeypatch.setattr(engine_module, "read_adapter", read)
    return Engine(
        base,
        max_models=ROOM + 2,
        max_rank=8,
        adapter_bytes=ROOM * SIZE_BYTES,
        slot_bytes=2 * SLOTS * SIZE_BYTES,
    )


def one_call(engine: Engine, kind: str, name: str) -> tuple[str, int]:
    """Code and version."""
    try:
        if kind == "load":
            return "ok", engine.load(name, Path()).adapter.key
        if kind == "unload":
            engine.unload(name)
            return "ok", 0
        if kind == "get":
            return "ok", engine.get(name).adapter.key
        return "ok", int(engine.submit(name, REQUEST).result(timeout=60).pixels.flat[0])
    except LimnerError as error:
        return error.code, 0


def test_80_000_calls_of_eight_threads_are_linearizable(
    base: ResidentBase,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    engine = stubbed(base, monkeypatch)
    clock = itertools.count()
    histories: list[list[Call]] = [[] for _ in range(THREADS)]
    misses: Counter[str] = Counter()
    monkeypatch.setattr(
        engine_module.metrics, "record", lambda _, __, values: misses.update(values)
    )

    def work(index: int) -> None:
        draw = random.Random(index)
        for _ in range(CALLS):
            kind = draw.choices(("load", "unload", "invoke", "get"), (5, 4, 8, 3))[0]
            name = draw.choice(NAMES)
            began = next(clock)
            code, version = one_call(engine, kind, name)
            histories[index].append(Call(kind, name, code, version, began, next(clock)))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    started = time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    spent = time.process_time() - started
    calls = [call for history in histories for call in history]
    assert len(calls) == THREADS * CALLS
    most = check(calls)
    codes = Counter((call.kind, call.code) for call in calls)
    overlapping = sum(call.ended - call.began > 1 for call in calls)
    record_property(
        "figure",
        f"P12: {len(calls):,} calls of {THREADS} threads, linearizable ({overlapping:,} overlapping"
        f" others, at most {most} states possible, {misses['SlotMisses']:,} fills,"
        f" {misses['Evictions']:,} evictions),"
        f" {spent:.1f} s of CPU",
    )
    # Everything that the contract knows has happened.
    expected = {"ok", "MODEL_ALREADY_LOADED", "MODEL_NOT_LOADED", "OUT_OF_MEMORY"}
    assert {code for _, code in codes} == expected
    assert misses["Evictions"] > 100
    for model in engine.models():
        engine.unload(model.name)
    assert engine.resident_bytes == SLOTS * SIZE_BYTES  # the slots, which are preallocated
    engine.close()


def test_the_check_finds_what_is_wrong() -> None:
    loaded = Call("load", "a", "ok", 1, 0, 1)
    unloaded = Call("unload", "a", "ok", 0, 2, 3)
    check([loaded, unloaded, Call("invoke", "a", "MODEL_NOT_LOADED", 0, 4, 5)])
    for wrong in (
        Call("invoke", "a", "ok", 1, 4, 5),  # drawn after it was unloaded
        Call("load", "a", "MODEL_ALREADY_LOADED", 0, 4, 5),
        Call("unload", "a", "ok", 0, 4, 5),
    ):
        with pytest.raises(AssertionError, match="nothing explains"):
            check([loaded, unloaded, wrong])
    again = Call("load", "a", "ok", 2, 4, 5)
    for wrong in (
        Call("invoke", "a", "ok", 1, 6, 7),  # drawn with the weights before
        Call("get", "a", "MODEL_NOT_LOADED", 0, 6, 7),
        Call("load", "a", "ok", 3, 6, 7),
    ):
        with pytest.raises(AssertionError, match="nothing explains"):
            check([loaded, unloaded, again, wrong])
    with pytest.raises(AssertionError, match="outside of the contract"):
        check([Call("get", "a", "INTERNAL", 0, 0, 1)])


USERS = 1_000
PLACES = 64


def resident_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def test_a_thousand_users_share_64_places_without_an_error_outside_the_contract(
    base: ResidentBase,
    base_folder: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """The platform's part is played by the test: at 507 it unloads who was used longest ago."""
    kinds = 8
    for kind in range(kinds):
        write_artifact(tmp_path / str(kind), base_folder, seed=kind)
    probe = Engine(base, max_models=1, max_rank=8)
    size_bytes = probe.load("a", tmp_path / "0").adapter.size_bytes
    probe.close()
    engine = Engine(
        base,
        max_models=USERS,
        max_rank=8,
        adapter_bytes=PLACES * size_bytes,
        slot_bytes=PLACES // 4 * size_bytes,
    )
    loaded: OrderedDict[str, None] = OrderedDict()
    codes: Counter[str] = Counter()
    first_of: dict[int, np.ndarray] = {}
    waiting: list[tuple[int, Future[Generation]]] = []
    memory_kb = 0
    worst = 0

    def load(name: str, folder: Path) -> None:
        while True:
            try:
                engine.load(name, folder)
            except LimnerError as error:
                codes[error.code] += 1
                oldest, _ = loaded.popitem(last=False)
                engine.unload(oldest)
            else:
                loaded[name] = None
                return

    request = GenerateRequest(prompt="x", steps=1, guidance=0)
    for user in range(USERS):
        load(f"u{user}", tmp_path / str(user % kinds))
        waiting.append((user % kinds, engine.submit(f"u{user}", request)))
        if len(waiting) == 16:
            for kind, future in waiting:
                pixels = future.result(timeout=60).pixels.astype(int)
                worst = max(worst, np.abs(first_of.setdefault(kind, pixels) - pixels).max())
            waiting.clear()
        if user == USERS // 4:
            memory_kb = resident_kb()
    for _, future in waiting:
        future.result(timeout=60)
    growth = resident_kb() / memory_kb - 1
    record_property(
        "figure",
        f"P12: {USERS:,} users in room for {PLACES}: {dict(codes)} and nothing else, memory"
        f" {growth:+.1%} over the last three quarters",
    )
    assert set(codes) == {"OUT_OF_MEMORY"}
    assert len(loaded) == PLACES
    # Everybody was drawn with his own adapter.
    assert worst <= 1
    assert np.abs(first_of[0] - first_of[1]).mean() > 3
    assert growth < 0.05
    for name in loaded:
        engine.unload(name)
    assert engine.models() == []
    engine.close()
