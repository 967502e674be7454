from __future__ import annotations

import re

import pytest

from limner.contracts.training import METRIC_DEFINITIONS
from training.progress import event_line, step_line


@pytest.mark.parametrize("loss", [0.0812, 12345.678, 3.2e-7, 1e9])
def test_metric_definitions_read_the_printed_line(loss: float) -> None:
    line = step_line(step=50, steps=300, loss=loss, images_per_second=41.23)
    read = {
        name: [float(value) for value in re.findall(pattern, line)]
        for name, pattern in METRIC_DEFINITIONS
    }
    assert read == {
        "train:loss": [pytest.approx(loss, rel=1e-3)],
        "train:step": [50.0],
        "train:images_per_second": [41.2],
    }


def test_events_are_not_taken_for_metrics() -> None:
    line = event_line("prepared", photos=5, seconds=2.123456)
    assert line == "event=prepared photos=5 seconds=2.123"
    assert not any(re.search(pattern, line) for _, pattern in METRIC_DEFINITIONS)
