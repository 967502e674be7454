"""P13: 507 heals itself; memory for 3 models, 30 models in turn, from several threads."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.laptop import TestLaptop
from tests.workflows.test_laptop_endpoint import Endpoint

ROOM = 3
MODELS = 30
ROUNDS = 3
THREADS = 6


def test_thirty_models_in_the_memory_of_three(laptop: TestLaptop, record_property: Any) -> None:
    endpoint = Endpoint(laptop, TEST_MAX_MODELS=str(ROOM))
    try:
        users = [f"user{index}" for index in range(MODELS)]
        target_of = {user: endpoint.model(user) for user in users}
        endpoint.invoke(target_of["user0"])

        def call(user: str) -> tuple[bool, int]:
            answer = endpoint.invoke(target_of[user])
            return answer["manifest"] == {"user": user}, answer["loads"]

        began = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            answers = list(pool.map(call, users * ROUNDS))
        took = time.monotonic() - began
        right = sum(own for own, _ in answers)
        loads = max(count for _, count in answers)
    finally:
        endpoint.delete()
    assert right == len(answers), json.dumps(answers)
    # The memory was full nearly all the time: whoever came next had to push somebody out.
    assert loads >= MODELS
    record_property(
        "figure",
        f"P13: {MODELS} models in turn in the memory of {ROOM}, {THREADS} threads: "
        f"{right} of {len(answers)} right at the first call, {loads} loads, {took:.1f} s",
    )
