"""The platform's half of a multi-model endpoint.

SageMaker developer guide, "Multi-model endpoints": the first call of a model downloads its artifact
to the instance and loads it; when the container answers 507, "SageMaker unloads" models that are
not used, least recently used first, and tries again; unloaded models "stay on the instance's
storage". A model that loads for longer than the call may wait is ModelNotReadyException, and goes
on loading. An artifact that is overwritten in S3 keeps being served from memory or disk: that is
AWS's trap too, and why Limner's keys are immutable.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from botocore.exceptions import ClientError

from limner.contracts.errors import LimnerError
from limner.contracts.generation import MAX_BODY_BYTES, TARGET_HEADER
from limner.local.errors import ServiceError
from limner.local.objects import Location, Objects
from limner.local.sagemaker.artifacts import unpack
from limner.local.sagemaker.hosting import (
    LOAD_TIMEOUT_S,
    ContainerDownError,
    InferenceContainer,
    Reply,
)

# InvokeEndpoint answers within 60 s, the time to load included.
ANSWER_WITHIN_S = 60
_MAX_TARGET_CHARACTERS = 1024
# An invocation tries again after a reload or an eviction, but not for ever.
_ATTEMPTS = 4
_DYING_S = 1.0


@dataclass
class _Model:
    """What the platform knows of one model on the instance."""

    target: str
    name: str
    loading: Future[None] | None = None
    generation: int = 0
    in_use: int = 0
    wants_room: bool = False
    used_at: float = field(default_factory=time.monotonic)


def check_target(target: str) -> None:
    """Refuses a TargetModel that cannot be the relative path of an artifact.

    Raises:
        ServiceError: ``ValidationError``, as the runtime API names it.
    """
    sound = (
        0 < len(target) <= _MAX_TARGET_CHARACTERS
        and target.isascii()
        and target.isprintable()
        and "\\" not in target
        and all(part not in ("", ".", "..") for part in target.split("/"))
    )
    if not sound:
        raise ServiceError("ValidationError", "The value of TargetModel is not valid.")


class MultiModelInstance:
    """One instance of a multi-model endpoint: its container, its disk and its memory.

    Args:
        endpoint: Name of the endpoint, for messages.
        prefix: ModelDataUrl.
        objects: S3.
        container: The process.
        models_root: Stands for /opt/ml/models.
        answer_within_s: Seconds after which a loading model is ModelNotReadyException.
    """

    def __init__(
        self,
        endpoint: str,
        prefix: Location,
        objects: Objects,
        container: InferenceContainer,
        models_root: Path,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> None:
        self._endpoint = endpoint
        self._prefix = prefix
        self._objects = objects
        self._container = container
        self._root = models_root
        self._answer_within_s = answer_within_s
        # Notified when a model becomes idle.
        self._lock = threading.Condition()
        self._models: dict[str, _Model] = {}
        shutil.rmtree(models_root, ignore_errors=True)
        models_root.mkdir(parents=True)

    def invoke(self, target: str, body: bytes, content_type: str, accept: str) -> Reply:
        """InvokeEndpoint.

        Args:
            target: TargetModel.
            body: The request, up to 6,291,456 bytes.
            content_type: Of the request.
            accept: What the caller accepts.

        Raises:
            ServiceError: In the runtime API's words.
        """
        check_target(target)
        if len(body) > MAX_BODY_BYTES:
            raise ServiceError("ValidationError", f"Body must not exceed {MAX_BODY_BYTES} bytes.")
        headers = {"Content-Type": content_type, "Accept": accept, TARGET_HEADER: target}
        deadline = time.monotonic() + self._answer_within_s
        for _ in range(_ATTEMPTS):
            with self._loaded(target, deadline) as model:
                reply = self._invoke(model, body, headers)
            if reply.status == 404:
                self._forget(model)
            elif reply.status != 507 or not self._make_room(model, deadline):
                break
        if reply.status >= 400:
            raise self._model_error(reply)
        return reply

    def _invoke(self, model: _Model, body: bytes, headers: dict[str, str]) -> Reply:
        try:
            return self._container.request("POST", f"/models/{model.name}/invoke", body, headers)
        except ContainerDownError as error:
            # The next call must find it dead, not dying.
            self._container.wait_for_end(_DYING_S)
            raise self._broken(str(error)) from error
        except TimeoutError as error:
            raise self._broken("the container did not answer within 60 s") from error

    @contextmanager
    def _loaded(self, target: str, deadline: float) -> Iterator[_Model]:
        """Gives a model that is loaded and stays so for the block."""
        model, loading = self._claim(target)
        try:
            try:
                loading.result(timeout=max(0.0, deadline - time.monotonic()))
            except FutureTimeoutError:
                raise ServiceError(
                    "ModelNotReadyException",
                    f"Model {target} of endpoint {self._endpoint} is not ready for inference yet.",
                    429,
                ) from None
            yield model
        finally:
            with self._lock:
                model.in_use -= 1
                model.used_at = time.monotonic()
                failed = loading.done() and loading.exception() is not None
                if failed and model.in_use == 0 and model.loading is loading:
                    del self._models[target]  # names that lead nowhere must not pile up
                self._lock.notify_all()

    def _claim(self, target: str) -> tuple[_Model, Future[None]]:
        """Counts the caller in, and begins to load the model unless that has begun already."""
        with self._lock:
            model = self._models.get(target)
            if model is None:
                digest = hashlib.sha256(f"{self._endpoint}\n{target}".encode()).hexdigest()
                model = self._models[target] = _Model(target, digest[:32])
            loading = model.loading
            if loading is None or (loading.done() and not self._is_loaded(model)):
                loading = model.loading = Future()
                threading.Thread(
                    target=self._load, args=(model, loading), name="model-load", daemon=True
                ).start()
            model.in_use += 1
            return model, loading

    def _is_loaded(self, model: _Model) -> bool:
        """Whether the model was loaded into the process that runs now."""
        return (
            model.loading is not None
            and model.loading.done()
            and model.loading.exception() is None
            and model.generation == self._container.generation
            and self._container.is_running()
        )

    def _load(self, model: _Model, loading: Future[None]) -> None:
        try:
            self._container.ensure_running()
            model.generation = self._container.generation
            folder = self._root / model.name / "model"
            if not folder.exists():
                self._download(model.target, folder)
            self._load_into_container(model, folder)
            loading.set_result(None)
        except ServiceError as error:
            loading.set_exception(error)
        except ContainerDownError as error:
            loading.set_exception(ServiceError("InternalFailure", str(error), 500))
        except Exception as error:  # noqa: BLE001  # the end of a thread; its caller must hear of it
            loading.set_exception(ServiceError("InternalFailure", repr(error), 500))
        finally:
            with self._lock:
                self._lock.notify_all()

    def _load_into_container(self, model: _Model, folder: Path) -> None:
        body = json.dumps({"model_name": model.name, "url": str(folder)}).encode()
        headers = {"Content-Type": "application/json", TARGET_HEADER: model.target}
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while True:
            try:
                reply = self._container.request("POST", "/models", body, headers, LOAD_TIMEOUT_S)
            except (ContainerDownError, TimeoutError) as error:
                raise self._broken(str(error)) from error
            if reply.status in (200, 409):
                return
            if reply.status != 507 or not self._make_room(model, deadline):
                raise self._model_error(reply)

    def _download(self, target: str, folder: Path) -> None:
        source = self._prefix.below(target)
        try:
            answer = self._objects.client.get_object(Bucket=source.bucket, Key=source.key)
        except ClientError as error:
            raise ServiceError(
                "ValidationError",
                f"Failed to download model data(bucket: {source.bucket}, key: {source.key}). "
                "Please ensure that there is an object located at the URL and that the role "
                "passed to CreateModel has permissions to download the model.",
            ) from error
        try:
            unpack(cast("IO[bytes]", answer["Body"]), folder)
        except LimnerError as error:
            body = json.dumps(error.to_dict()).encode()
            raise self._model_error(
                Reply(error.spec.http_status, "application/json", body)
            ) from error

    def _make_room(self, newcomer: _Model, deadline: float) -> bool:
        """Unloads the model that was least recently used and serves nobody now.

        Waits for one to become idle if all serve.

        Returns:
            False, if there is no other model, or none became idle by the deadline.
        """
        with self._lock:
            victim = self._wait_for_victim(newcomer, deadline)
            if victim is None:
                return False
            # Who calls it from now on loads it again.
            victim.loading = None
        try:
            self._container.request(
                "DELETE", f"/models/{victim.name}", headers={TARGET_HEADER: victim.target}
            )
        except (ContainerDownError, TimeoutError) as error:
            raise self._broken(str(error)) from error
        return True

    def _wait_for_victim(self, newcomer: _Model, deadline: float) -> _Model | None:
        """The idle model to unload; called with the lock held."""
        newcomer.wants_room = True
        self._lock.notify_all()
        try:
            while True:
                others = [model for model in self._models.values() if model is not newcomer]
                idle = [m for m in others if m.in_use == 0 and self._is_loaded(m)]
                if idle:
                    return min(idle, key=lambda model: model.used_at)
                # Memory is held by those who serve or load, not by those who want room as well.
                holders = [
                    m
                    for m in others
                    if self._is_loaded(m)
                    or (m.loading is not None and not m.loading.done() and not m.wants_room)
                ]
                left = deadline - time.monotonic()
                if not holders or left <= 0:
                    return None
                self._lock.wait(left)
        finally:
            newcomer.wants_room = False

    def _forget(self, model: _Model) -> None:
        """The container does not know the model although we do."""
        with self._lock:
            model.loading = None

    def _broken(self, what: str) -> ServiceError:
        return self._model_error(Reply(500, "text/plain", what.encode()))

    def _model_error(self, reply: Reply) -> ServiceError:
        return ServiceError(
            "ModelError",
            f"Received {'client' if reply.status < 500 else 'server'} error ({reply.status}) from "
            f'primary with message "{reply.text}". See the log of endpoint {self._endpoint}.',
            424,
            {
                "OriginalStatusCode": reply.status,
                "OriginalMessage": reply.text,
                "LogStreamArn": f"laptop:.limner/endpoints/{self._endpoint}/log",
            },
        )
