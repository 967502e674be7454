"""Metrics of a training job: its MetricDefinitions, run over its log.

SageMaker API reference, MetricDefinition: "A regular expression that searches the output of a
training job and gets the value of the metric"; FinalMetricDataList holds each metric's last value.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class LogMetrics:
    """Reads a growing log; used by one thread.

    Args:
        log: The job's log.
        definitions: MetricDefinitions of the request.
    """

    def __init__(self, log: Path, definitions: Sequence[dict[str, str]]) -> None:
        self._log = log
        self._patterns = [(item["Name"], re.compile(item["Regex"])) for item in definitions]
        self._read_bytes = 0
        self._last: dict[str, dict[str, Any]] = {}

    def update(self) -> list[dict[str, Any]]:
        """Reads the complete lines that are new; returns FinalMetricDataList as it is now."""
        with self._log.open("rb") as file:
            file.seek(self._read_bytes)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            for name, pattern in self._patterns:
                match = pattern.search(line)
                if match and match.groups():
                    self._note(name, match[1])
        return list(self._last.values())

    def _note(self, name: str, text: str) -> None:
        try:
            value = float(text)
        except ValueError:
            return  # AWS drops what is not a number
        self._last[name] = {"MetricName": name, "Value": value, "Timestamp": time.time()}


def latest(data: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """FinalMetricDataList of a job from those of its instances' logs: the newest value of each."""
    newest: dict[str, dict[str, Any]] = {}
    for item in (item for log in data for item in log):
        name = item["MetricName"]
        if name not in newest or item["Timestamp"] > newest[name]["Timestamp"]:
            newest[name] = item
    return list(newest.values())
