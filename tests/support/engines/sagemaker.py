"""SageMaker by script: training jobs that end at once, and an endpoint that draws one image.

A job's behaviour is the entry ``behave`` of a JSON file ``behave`` among its photos, as in
``tests.support.trainer``:

``ok``     (default) leaves an artifact in S3 and completes
``poor``   as ``ok``, of a model that has learnt nothing
``fail``   fails with a reason in the container's own words
``crash``  fails without a reason
``hang``   is at work until somebody stops it

Jobs of a batch (channel ``tasks``) do this for each line of ``tasks.jsonl``, whose photos lie in
a folder of their own, and leave artifact and result below their checkpoints. There, also:

``vanish`` leaves no result; the job goes on
``die``    leaves no result, and the job fails there and then
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from limner.contracts import keys
from limner.local.errors import ServiceError
from limner.local.trouble import Trouble
from tests.support.archives import GOOD, manifest_of, packed
from tests.support.endpoint import two_pixel_png

FAILURE = "PHOTO_TOO_SMALL: a.png is 8x8. Fix: use a larger."
UNFINISHED = frozenset({"InProgress", "Stopping"})
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


_TRAINS = frozenset({"ok", "poor"})


def _artifact(request_id: str, behaviour: str) -> bytes:
    worse = {"similarity_gain": -0.5} if behaviour == "poor" else {}
    return packed(manifest_of(request_id, metrics={**GOOD, **worse}))


class Objects:
    """The bucket as SageMaker sees it: S3 addresses instead of buckets and keys.

    Args:
        client: Makes an S3 client; at each use, because moto forgets those of an earlier test.
    """

    def __init__(self, client: Callable[[], Any]) -> None:
        self._client = client

    def read(self, uri: str) -> bytes | None:
        """An object's content; None if there is none."""
        place = urlsplit(uri)
        client = self._client()
        try:
            reply = client.get_object(Bucket=place.netloc, Key=place.path.lstrip("/"))
        except client.exceptions.NoSuchKey:
            return None
        body: bytes = reply["Body"].read()
        return body

    def write(self, uri: str, body: bytes) -> None:
        """Writes an object."""
        place = urlsplit(uri)
        self._client().put_object(Bucket=place.netloc, Key=place.path.lstrip("/"), Body=body)


class Training:
    """CreateTrainingJob and its kin.

    Args:
        trouble: What goes wrong.
        objects: Where photos come from and artifacts go.
    """

    def __init__(self, trouble: Trouble, objects: Objects) -> None:
        self._trouble = trouble
        self._objects = objects
        self._lock = threading.RLock()
        self._jobs: dict[str, dict[str, Any]] = {}
        self.requests: list[dict[str, Any]] = []
        """The accepted CreateTrainingJob requests, in order."""

    def create_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        """Accepts a job and, unless it hangs, ends it."""
        name = request["TrainingJobName"]
        with self._lock:
            self._refuse(request)
            job = self._job(request)
            self._jobs[name] = job
            self.requests.append(request)
            self._train(job)
        return {"TrainingJobArn": job["TrainingJobArn"]}

    def describe_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        """The job as it is now."""
        with self._lock:
            return dict(self._find(request["TrainingJobName"]))

    def list_training_jobs(self, request: dict[str, Any]) -> dict[str, Any]:
        """All jobs of a name, on one page."""
        wanted = request.get("NameContains", "")
        with self._lock:
            return {
                "TrainingJobSummaries": [
                    {
                        member: job[member]
                        for member in (
                            "TrainingJobName",
                            "TrainingJobArn",
                            "TrainingJobStatus",
                            "CreationTime",
                        )
                    }
                    for name, job in self._jobs.items()
                    if wanted in name
                ]
            }

    def stop_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ends a job that is at work; its artifact is saved, as the container contract asks."""
        with self._lock:
            job = self._find(request["TrainingJobName"])
            if job["TrainingJobStatus"] not in UNFINISHED:
                raise ServiceError("ValidationException", "The job is not running.")
            self._end(job, "Stopped", "")
        return {}

    def _find(self, name: str) -> dict[str, Any]:
        if name not in self._jobs:
            raise ServiceError("ValidationException", "Requested resource not found.")
        return self._jobs[name]

    def _refuse(self, request: dict[str, Any]) -> None:
        if request["TrainingJobName"] in self._jobs:
            raise ServiceError("ResourceInUse", "Training job names must be unique.")
        quota = self._trouble.instance_quota
        if quota is None:
            return
        at_work = [job for job in self._jobs.values() if job["TrainingJobStatus"] in UNFINISHED]
        used = sum(job["ResourceConfig"]["InstanceCount"] for job in at_work)
        if used + request["ResourceConfig"]["InstanceCount"] > quota:
            raise ServiceError(
                "ResourceLimitExceeded", f"The account-level service limit is {quota} Instances."
            )

    def _job(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["TrainingJobName"]
        return {
            **request,
            "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{name}",
            "TrainingJobStatus": "InProgress",
            "SecondaryStatus": "Training",
            "CreationTime": _EPOCH,
            "LastModifiedTime": _EPOCH,
        }

    def _train(self, job: dict[str, Any]) -> None:
        if self._trouble.no_capacity():
            self._end(job, "Failed", "CapacityError: Unable to provision requested ML compute.")
            return
        channels = {
            channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
            for channel in job["InputDataConfig"]
        }
        if "tasks" in channels:
            self._train_batch(job, channels["tasks"], channels["photos"])
            return
        behaviour = self._behaviour(channels["photos"])
        if behaviour == "fail":
            self._end(job, "Failed", f"AlgorithmError: {FAILURE}, exit code: 1")
        elif behaviour == "crash":
            self._end(job, "Failed", "AlgorithmError: , exit code: 3")
        elif behaviour in _TRAINS:
            self._save_artifact(job, behaviour)
            self._end(job, "Completed", "")

    def _train_batch(self, job: dict[str, Any], tasks: str, manifest: str) -> None:
        listed = self._objects.read(f"{tasks.rstrip('/')}/tasks.jsonl") or b""
        places = json.loads(self._objects.read(manifest) or b"[{}]")
        photos = places[0].get("prefix", "")
        out = job["CheckpointConfig"]["S3Uri"].rstrip("/")
        for line in listed.decode().splitlines():
            task = json.loads(line)
            behaviour = self._behaviour(photos + task["photos"])
            if behaviour == "die":
                self._end(job, "Failed", "AlgorithmError: , exit code: 3")
                return
            if behaviour != "vanish":
                self._finish_task(f"{out}/{task['request_id']}", task["request_id"], behaviour)
        self._save_artifact(job)
        self._end(job, "Completed", "")

    def _finish_task(self, folder: str, request_id: str, behaviour: str) -> None:
        code, _, message = FAILURE.partition(": ")
        is_trained = behaviour in _TRAINS
        artifact = _artifact(request_id, behaviour)
        if is_trained:
            self._objects.write(f"{folder}/model.tar.gz", artifact)
        result = {
            "schema_version": 1,
            "request_id": request_id,
            "status": "trained" if is_trained else "failed",
            "seconds": 1.0,
            "metrics": {},
            "error": None if is_trained else {"code": code, "message": message},
            "artifact_sha256": hashlib.sha256(artifact).hexdigest() if is_trained else "",
        }
        self._objects.write(f"{folder}/result.json", json.dumps(result).encode())

    def _behaviour(self, photos: str) -> str:
        told = self._objects.read(f"{photos.rstrip('/')}/behave")
        return str(json.loads(told).get("behave", "ok")) if told else "ok"

    def _save_artifact(self, job: dict[str, Any], behaviour: str = "ok") -> None:
        folder = job["OutputDataConfig"]["S3OutputPath"].rstrip("/")
        uri = f"{folder}/{job['TrainingJobName']}/output/model.tar.gz"
        request_id = job.get("Environment", {}).get("LIMNER_REQUEST_ID", "")
        self._objects.write(uri, _artifact(request_id, behaviour))
        job["ModelArtifacts"] = {"S3ModelArtifacts": uri}

    def _end(self, job: dict[str, Any], status: str, reason: str) -> None:
        job |= {"TrainingJobStatus": status, "SecondaryStatus": status, "TrainingEndTime": _EPOCH}
        if reason:
            job["FailureReason"] = reason


class Endpoint:
    """InvokeEndpoint: one sound image, or one that is broken.

    Attributes:
        image: What the next invocations draw; a test may break it.
        calls: The TargetModel of each call, in order.
    """

    def __init__(self, base_id: str, objects: Objects, bucket: str) -> None:
        self.image = two_pixel_png()
        self.calls: list[str] = []
        self._base_id = base_id
        self._objects = objects
        self._bucket = bucket

    def invoke_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        """Draws, if the artifact lies under the endpoint's prefix."""
        target = request["TargetModel"]
        self.calls.append(target)
        if self._objects.read(f"s3://{self._bucket}/{keys.MODELS}/{target}") is None:
            raise ServiceError("ValidationError", f"Model {target} does not exist.")
        answer = {
            "schema_version": 1,
            "images": [{"png_base64": base64.b64encode(self.image).decode(), "seed": 0}],
            "prompt": json.loads(request["Body"])["prompt"],
            "base_id": self._base_id,
            "adapter_sha256": "0" * 64,
            "denoise_ms": 1.0,
        }
        return {"ContentType": "application/json", "Body": io.BytesIO(json.dumps(answer).encode())}
