"""What the job of a batch is to do: tasks, photos, machines, and time. Pure.

An item of the machine ``onboard_batch`` comes in and goes out with the same fields; only the
outcome changes, where a request cannot be packed::

    planned ──> planned (its task is in the file) | failed (its config or photos cannot be read)
            ──> trained | failed, where an earlier job has done it (``collect_results``)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from limner.contracts import keys
from limner.contracts.config_table import ConfigValue, complete_config
from limner.contracts.errors import LimnerError
from limner.contracts.outcomes import FAILED, failure
from limner.contracts.packing import Pace, Packing, pack

# A config of eight prompts of 400 characters has less than 6 kB.
MAX_CONFIG_BYTES: Final = 65_536
# One page of a listing; the training program's own limit of photos is far below.
MAX_FILES: Final = 1_000
# Predictions are made on the tiny base; a job is stopped only when it takes far longer.
SLACK: Final = 4
LEAST_RUNTIME_S: Final = 3_600

Item = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """One attempt of a batch.

    Attributes:
        batch_id: Its name.
        attempt: Number of its job.
        longest_s: Seconds that a job may run at most.
    """

    batch_id: str
    attempt: int
    longest_s: int

    @property
    def prefix(self) -> str:
        """Where its files lie."""
        return keys.batch_prefix(self.batch_id, self.attempt)


@dataclass(frozen=True, slots=True)
class Material:
    """What a request is trained from.

    Attributes:
        item: The request.
        config: Its training config, complete.
        photos: Keys of its photos, behind ``uploads/``.
    """

    item: Item
    config: Mapping[str, ConfigValue]
    photos: Sequence[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the job is told, and what the machine is told of the job.

    Attributes:
        tasks: The lines of ``tasks.jsonl``.
        manifest: The content of ``photos.manifest``.
        packing: Which machine does which task; None if there is no task.
        instances: Number of machines.
        max_runtime_s: When SageMaker stops the job.
    """

    tasks: Sequence[Mapping[str, object]]
    manifest: Sequence[object]
    packing: Packing | None
    instances: int
    max_runtime_s: int

    def tasks_jsonl(self) -> bytes:
        """The file of the channel ``tasks``."""
        return "".join(f"{json.dumps(task)}\n" for task in self.tasks).encode()

    def photos_manifest(self) -> bytes:
        """The file that the channel ``photos`` names."""
        return json.dumps(self.manifest).encode()

    def answer(self, batch: Batch, job_name: str) -> dict[str, object]:
        """What the machine needs to make the job, and figures for whoever reads the history."""
        packing = self.packing
        return {
            "attempt": batch.attempt,
            "job_name": job_name,
            "prefix": batch.prefix,
            "tasks": len(self.tasks),
            "instances": self.instances,
            "max_runtime_s": self.max_runtime_s,
            "makespan_s": round(packing.makespan_s, 1) if packing else 0,
            "lower_bound_s": round(packing.lower_bound_s, 1) if packing else 0,
            "bound": round(packing.bound, 4) if packing else 0,
        }


def read_config(body: bytes | None) -> dict[str, ConfigValue]:
    """Reads a request's ``config.json``.

    Args:
        body: At most ``MAX_CONFIG_BYTES`` + 1 of it; None if there is none.

    Raises:
        LimnerError: ``INVALID_INPUT``, in words without any value of the config.
    """
    if body is None:
        raise LimnerError("INVALID_INPUT", "The request's training config is not there any more.")
    if len(body) > MAX_CONFIG_BYTES:
        raise LimnerError("INVALID_INPUT", "The request's training config is too large.")
    try:
        document = json.loads(body)
    except ValueError as error:
        raise LimnerError("INVALID_INPUT", "The request's training config is no JSON.") from error
    if not isinstance(document, dict):
        raise LimnerError("INVALID_INPUT", "The request's training config is no JSON object.")
    return complete_config(document)


def check_photos(listed: Sequence[str], is_all: bool) -> list[str]:
    """The keys of a request's photos, as the manifest names them.

    Whether they are photos, and enough of them, is for the training program to say.

    Args:
        listed: Their keys in the bucket.
        is_all: Whether the listing was complete.

    Raises:
        LimnerError: ``TOO_FEW_PHOTOS`` or ``TOO_MANY_PHOTOS``.
    """
    if not listed:
        raise LimnerError("TOO_FEW_PHOTOS", "The request's photos are not there any more.")
    if not is_all:
        raise LimnerError("TOO_MANY_PHOTOS", f"The request has more than {MAX_FILES} photos.")
    return [key.removeprefix(f"{keys.UPLOADS}/") for key in listed]


def most_instances(asked: Mapping[str, Any], of_stage: int) -> int:
    """Machines of a job at most: those that the batch holds a place for, if its input says so.

    Args:
        asked: The execution's input.
        of_stage: What the stage allows.
    """
    return min(asked.get("instances") or of_stage, of_stage)


def failed(item: Item, error: LimnerError) -> dict[str, Any]:
    """The item of a request that cannot be packed: it fails by itself."""
    return {**item, "outcome": FAILED, "error": failure(error.code, error.message)}


def make_plan(
    batch: Batch,
    bucket: str,
    materials: Sequence[Material],
    *,
    pace: Pace,
    most_instances: int,
    target_s: float,
) -> Plan:
    """Plans a job; the same requests give the same plan.

    Args:
        batch: The attempt.
        bucket: Name of the bucket.
        materials: What is to be trained, in the order of the queue.
        pace: How long a fine-tune takes.
        most_instances: Machines of a job at most.
        target_s: Seconds that a job should not exceed, if more machines help.
    """
    durations = [
        pace.predict_s(int(str(material.config["steps"])), len(material.photos))
        for material in materials
    ]
    packing = _choose(durations, most_instances, target_s) if durations else None
    places = packing.instances if packing else ()
    tasks = [
        _task(material, place, duration)
        for material, place, duration in zip(materials, places, durations, strict=True)
    ]
    photos = [photo for material in materials for photo in material.photos]
    makespan_s = packing.makespan_s if packing else 0
    runtime_s = math.ceil(max(LEAST_RUNTIME_S, SLACK * makespan_s))
    return Plan(
        tasks=tasks,
        manifest=[{"prefix": f"s3://{bucket}/{keys.UPLOADS}/"}, *photos],
        packing=packing,
        instances=1 + max(places) if places else 0,
        max_runtime_s=min(runtime_s, batch.longest_s),
    )


def _choose(durations: Sequence[float], most: int, target_s: float) -> Packing:
    """The packing on the fewest machines that meets the target, else on the most there may be."""
    most = min(most, len(durations))
    packings = (pack(durations, instances) for instances in range(1, most))
    return next((p for p in packings if p.makespan_s <= target_s), pack(durations, most))


def _task(material: Material, instance: int, predicted_s: float) -> dict[str, object]:
    """A line: ``limner.contracts.tasks.Task``."""
    item = material.item
    return {
        "schema_version": 1,
        "request_id": item["request_id"],
        "user_id": item["user_id"],
        "model_id": item["model_id"],
        "photos": f"{item['user_id']}/{item['request_id']}/",
        "config": dict(material.config),
        "instance": instance,
        "predicted_s": round(predicted_s, 1),
    }
