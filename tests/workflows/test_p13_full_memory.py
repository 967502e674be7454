"""P13: 507 heals itself; memory for 3 models, 30 models in turn, from several threads.

The container is the real one, with the tiny base.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from limner.contracts.artifact import MEMBERS
from limner.local.layout import REPOSITORY
from limner.metrics import summarize
from tests.support.artifacts import write_artifact
from tests.support.laptop import TestLaptop, until
from tests.workflows import test_laptop_endpoint
from tests.workflows.test_laptop_endpoint import Endpoint, archive

BASE = REPOSITORY / "bases" / "tiny" / "model"
REAL = "limner/inference:real"
ROOM = 3
MODELS = 30
ROUNDS = 2
THREADS = 6
# One step of the smallest image.
WISH = {"prompt": "a photo of {token}", "steps": 1, "guidance": 0, "height": 64, "width": 64}


@pytest.fixture
def endpoint(laptop: TestLaptop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    laptop.control.register_image(REAL, [sys.executable, "-m", "inference.server"])
    monkeypatch.setattr(test_laptop_endpoint, "TEST_INFERENCE", REAL)
    made = Endpoint(laptop, LIMNER_MAX_MODELS=str(ROOM), LIMNER_TORCH_THREADS="1")
    yield made
    made.delete()


def test_thirty_models_in_the_memory_of_three(
    endpoint: Endpoint, tmp_path: Path, record_property: Any
) -> None:
    digests: dict[str, str] = {}
    for index in range(MODELS):
        folder = tmp_path / str(index)
        manifest = write_artifact(folder, BASE, seed=index, rank=1)
        body = archive({name: (folder / name).read_bytes() for name in MEMBERS})
        digests[endpoint.put(f"user{index}/default/v1.tar.gz", body)] = manifest.adapter_sha256
    assert len(set(digests.values())) == MODELS
    assert until(endpoint.status, lambda status: status != "Creating") == "InService"

    def call(target: str) -> bool:
        return bool(endpoint.invoke(target, **WISH)["adapter_sha256"] == digests[target])

    began = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(call, list(digests) * ROUNDS))
    took = time.monotonic() - began
    log = endpoint.laptop.laptop.project / ".limner" / "endpoints" / endpoint.name / "log"
    lines = [json.loads(line) for line in log.read_text().splitlines() if '"event"' in line]
    refused = sum(line.get("code") == "OUT_OF_MEMORY" for line in lines)
    # Without 507s, nothing would have had to heal.
    assert refused >= MODELS - ROOM
    assert all(answers)
    # What ``limner metrics`` reads out of the same log.
    rows = summarize(log.read_text().splitlines())
    assert [row.generations for row in rows] == [*[ROUNDS] * MODELS, ROUNDS * MODELS]
    one, _ = summarize(log.read_text().splitlines(), targets=[next(iter(digests))])
    assert one.generations == ROUNDS
    record_property(
        "figure",
        f"P13: {MODELS} models in turn in the memory of {ROOM}, {THREADS} threads: {sum(answers)} "
        f"of {len(answers)} answers by the right model, {refused} times 507, {took:.1f} s",
    )
