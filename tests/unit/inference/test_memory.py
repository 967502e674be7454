"""What is kept of freed memory."""

import subprocess
import sys

PROGRAM = """
import resource
import torch
from inference.engine.memory import keep_freed_memory

assert keep_freed_memory()
for turn in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        tensors = [torch.ones(size << 18) for size in (20, 5, 20, 11, 20)]  # MB
        del tensors
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_step_that_is_repeated_needs_no_new_pages() -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120
    )
    first, then = map(int, told.stdout.split())
    assert first >= 76 * 256, "the pages of one turn, of 4 kB each"
    assert then < first / 10
