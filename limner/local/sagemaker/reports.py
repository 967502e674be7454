"""What a running job leaves outside of its instances: checkpoints and metrics."""

from __future__ import annotations

from typing import Any

from limner.local.objects import Location, Objects
from limner.local.sagemaker.checkpoints import CheckpointSync
from limner.local.sagemaker.fleet import Fleet
from limner.local.sagemaker.metrics import LogMetrics, latest
from limner.local.sagemaker.store import Record


class Reports:
    """The checkpoints and logs of all instances; used by one thread.

    Args:
        objects: S3.
        fleet: The instances, prepared.
        record: Of the job.
    """

    def __init__(self, objects: Objects, fleet: Fleet, record: Record) -> None:
        config = record.get("CheckpointConfig")
        self._syncs = (
            [
                CheckpointSync(objects, container.checkpoints, Location.parse(config["S3Uri"]))
                for container in fleet.containers
            ]
            if config is not None
            else []
        )
        definitions = record["AlgorithmSpecification"].get("MetricDefinitions", [])
        self._metrics = [LogMetrics(container.log, definitions) for container in fleet.containers]

    def restore(self) -> None:
        """Copies existing checkpoints in to each instance, before the first program starts."""
        for sync in self._syncs:
            sync.restore()

    def has_something_to_lose(self) -> bool:
        """Whether a checkpoint has gone up since the start; always so without a CheckpointConfig.

        An ordered interruption of spot instances waits for it: one that strikes before would show
        nothing.
        """
        return not self._syncs or any(sync.has_uploaded for sync in self._syncs)

    def run(self) -> list[dict[str, Any]]:
        """Uploads new checkpoints and reads new lines; returns FinalMetricDataList."""
        for sync in self._syncs:
            sync.run()
        return latest([metrics.update() for metrics in self._metrics])
