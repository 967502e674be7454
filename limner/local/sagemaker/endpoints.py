"""Models, endpoint configs and endpoints: their records, and the instances behind them."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from limner.local.errors import ServiceError, validation
from limner.local.images import Images
from limner.local.layout import REPOSITORY
from limner.local.objects import Location, Objects
from limner.local.sagemaker import requests
from limner.local.sagemaker.arns import ENDPOINT, ENDPOINT_CONFIG, MODEL, arn
from limner.local.sagemaker.hosting import (
    STOP_GRACE_S,
    ContainerDownError,
    InferenceContainer,
    Reply,
)
from limner.local.sagemaker.multimodel import MultiModelInstance
from limner.local.sagemaker.pages import page
from limner.local.sagemaker.store import Record, Store
from limner.local.settings import HOST, DaemonSettings, aws_environment

_log = logging.getLogger("limner.local.endpoints")
# The laptop's stop does not wait for the 30 s that AWS would give.
_CLOSE_GRACE_S = 5


@dataclass(frozen=True)
class _Served:
    """What stands behind an endpoint while it serves."""

    instance: MultiModelInstance
    container: InferenceContainer
    variant: str


class Endpoints:
    """Everything behind InvokeEndpoint; thread-safe.

    Args:
        settings: The daemon's settings.
        objects: S3.
        images: Commands of images.
    """

    def __init__(self, settings: DaemonSettings, objects: Objects, images: Images) -> None:
        folder = settings.layout.sagemaker
        self._settings = settings
        self._objects = objects
        self._images = images
        self.models = Store(folder / "models")
        self.configs = Store(folder / "endpoint-configs")
        self.endpoints = Store(folder / "endpoints")
        self._lock = threading.Lock()
        self._served: dict[str, _Served] = {}
        self._closing = False
        for record in self.endpoints.all():
            # After a restart containers start with their first call, and that one waits for them.
            if record["EndpointStatus"] in ("Creating", "Updating"):
                with self.endpoints.change(record["EndpointName"]) as interrupted:
                    interrupted["EndpointStatus"] = "InService"

    def create_model(self, request: dict[str, Any]) -> dict[str, Any]:
        """CreateModel."""
        requests.check("CreateModel", request)
        container = request.get("PrimaryContainer") or {}
        if (
            container.get("Mode") != "MultiModel"
            or not {"Image", "ModelDataUrl"} <= container.keys()
        ):
            raise validation(
                "The laptop serves models of Mode MultiModel with an Image and a ModelDataUrl."
            )
        Location.parse(container["ModelDataUrl"])
        name = request["ModelName"]
        return {"ModelArn": _add(self.models, MODEL, "ModelName", "ModelArn", name, request)}

    def create_endpoint_config(self, request: dict[str, Any]) -> dict[str, Any]:
        """CreateEndpointConfig."""
        requests.check("CreateEndpointConfig", request)
        if len(request["ProductionVariants"]) != 1 or "ShadowProductionVariants" in request:
            raise validation("The laptop serves one variant an endpoint.")
        (variant,) = request["ProductionVariants"]
        self.describe_model({"ModelName": variant.get("ModelName", "")})
        name = request["EndpointConfigName"]
        return {
            "EndpointConfigArn": _add(
                self.configs,
                ENDPOINT_CONFIG,
                "EndpointConfigName",
                "EndpointConfigArn",
                name,
                request,
            )
        }

    def create_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        """CreateEndpoint: the container starts in the background."""
        requests.check("CreateEndpoint", request)
        self.describe_endpoint_config(request)
        name = request["EndpointName"]
        record = {**request, "EndpointStatus": "Creating"}
        created = _add(self.endpoints, ENDPOINT, "EndpointName", "EndpointArn", name, record)
        self._begin(name)
        return {"EndpointArn": created}

    def update_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        """UpdateEndpoint: another config; the container starts anew."""
        requests.check("UpdateEndpoint", request)
        self.describe_endpoint_config(request)
        name = request["EndpointName"]
        found = self.describe_endpoint(request)
        with self.endpoints.change(name) as record:
            record["EndpointConfigName"] = request["EndpointConfigName"]
            record["EndpointStatus"] = "Updating"
        self._end_instance(name)
        self._begin(name)
        return {"EndpointArn": found["EndpointArn"]}

    def describe_model(self, request: dict[str, Any]) -> Record:
        """DescribeModel."""
        return _describe(self.models, MODEL, request["ModelName"])

    def describe_endpoint_config(self, request: dict[str, Any]) -> Record:
        """DescribeEndpointConfig."""
        return _describe(self.configs, ENDPOINT_CONFIG, request["EndpointConfigName"])

    def describe_endpoint(self, request: dict[str, Any]) -> Record:
        """DescribeEndpoint."""
        return _describe(self.endpoints, ENDPOINT, request["EndpointName"])

    def list_endpoints(self, request: dict[str, Any]) -> dict[str, Any]:
        """ListEndpoints."""
        requests.check("ListEndpoints", request)
        members = (
            "EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus",
        )  # fmt: skip
        items = [{key: item[key] for key in members} for item in self.endpoints.all()]
        return page("Endpoints", items, request)

    def delete_model(self, request: dict[str, Any]) -> dict[str, Any]:
        """DeleteModel."""
        self.describe_model(request)
        self.models.remove(request["ModelName"])
        return {}

    def delete_endpoint_config(self, request: dict[str, Any]) -> dict[str, Any]:
        """DeleteEndpointConfig."""
        self.describe_endpoint_config(request)
        self.configs.remove(request["EndpointConfigName"])
        return {}

    def delete_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        """DeleteEndpoint: stops the container and empties the instance's disk."""
        self.describe_endpoint(request)
        self.endpoints.remove(request["EndpointName"])
        self._end_instance(request["EndpointName"])
        folder = self._settings.layout.endpoints / request["EndpointName"]
        shutil.rmtree(folder / "models", ignore_errors=True)
        return {}

    def invoke(
        self, name: str, target: str, body: bytes, content_type: str, accept: str
    ) -> tuple[Reply, str]:
        """InvokeEndpoint; starts the container if a restart of the laptop has ended it.

        Returns:
            The container's answer, and the name of the variant that gave it.

        Raises:
            ServiceError: In the runtime API's words.
        """
        record = self.endpoints.get(name)
        if record is None:
            raise ServiceError("ValidationError", f"Endpoint {name} of account not found.")
        if not target:
            raise ServiceError(
                "ValidationError", "TargetModel is required to invoke a multi-model endpoint."
            )
        if record["EndpointStatus"] == "Failed":
            raise ServiceError("ValidationError", f"Endpoint {name} is in status Failed.")
        served = self._serve(name)
        return served.instance.invoke(target, body, content_type, accept), served.variant

    def restart_users_of(self, model_name: str) -> None:
        """Ends the instances that serve a model whose definition has changed."""
        for record in self.endpoints.all():
            config = self.configs.get(record["EndpointConfigName"])
            variants = config["ProductionVariants"] if config else []
            if any(variant.get("ModelName") == model_name for variant in variants):
                self._end_instance(record["EndpointName"])

    def close(self) -> None:
        """Ends all containers; the records stay."""
        with self._lock:
            self._closing = True
            names = list(self._served)
        # At once: the stop of the laptop has a deadline, however many endpoints there are.
        with ThreadPoolExecutor(max_workers=len(names) or 1) as pool:
            for ended in [pool.submit(self._end_instance, name, _CLOSE_GRACE_S) for name in names]:
                ended.result()

    def _begin(self, name: str) -> None:
        threading.Thread(
            target=self._bring_in_service, args=(name,), name=f"endpoint-{name}", daemon=True
        ).start()

    def _bring_in_service(self, name: str) -> None:
        status, reason, made = "InService", "", None
        try:
            made = self._serve(name)
            made.container.ensure_running()
        except (ContainerDownError, ServiceError, OSError) as error:
            status, reason = "Failed", f"The primary container did not pass the ping check: {error}"
        with self._lock:
            if self._closing or (made is not None and self._served.get(name) is not made):
                return  # ended meanwhile: deleted, updated, or the laptop stops
        try:
            with self.endpoints.change(name) as record:
                record.update(EndpointStatus=status, LastModifiedTime=time.time())
                if reason:
                    _log.warning("endpoint %s: %s", name, reason)
                    record["FailureReason"] = reason
        except KeyError:
            _log.info("endpoint %s was deleted before it was in service", name)

    def _serve(self, name: str) -> _Served:
        with self._lock:
            if self._closing:
                raise ServiceError("ServiceUnavailable", "The laptop is being stopped.", 503)
            if name not in self._served:
                self._served[name] = self._new_instance(name)
            return self._served[name]

    def _new_instance(self, name: str) -> _Served:
        config = self.describe_endpoint_config(self.describe_endpoint({"EndpointName": name}))
        variant = config["ProductionVariants"][0]
        model = self.describe_model(variant)["PrimaryContainer"]
        folder = self._settings.layout.endpoints / name
        models_root = folder / "models"
        models_root.mkdir(parents=True, exist_ok=True)
        environment = {
            **aws_environment(self._settings),
            "LIMNER_BASE_DIR": str(REPOSITORY / "bases" / "tiny" / "model"),
            "LIMNER_MODELS_ROOT": str(models_root),
            **model.get("Environment", {}),
            # Whatever the model wishes, it is not reachable from outside of this machine.
            "LIMNER_BIND_HOST": HOST,
            "SAGEMAKER_MULTI_MODEL": "true",
        }
        command = self._images.command(model["Image"])
        container = InferenceContainer(command, environment, folder / "log")
        prefix = Location.parse(model["ModelDataUrl"])
        instance = MultiModelInstance(name, prefix, self._objects, container, models_root)
        return _Served(instance, container, variant["VariantName"])

    def _end_instance(self, name: str, grace_s: float = STOP_GRACE_S) -> None:
        with self._lock:
            found = self._served.pop(name, None)
        if found is not None:
            found.container.stop(grace_s)


def _add(
    store: Store, kind: str, name_member: str, arn_member: str, name: str, request: dict[str, Any]
) -> str:
    now = time.time()
    made = arn(kind, name)
    record = {
        **{key: value for key, value in request.items() if key != "Tags"},
        name_member: name,
        arn_member: made,
        "CreationTime": now,
        "LastModifiedTime": now,
    }
    if not store.add(name, record):
        raise validation(f'Cannot create already existing {kind} "{made}".')
    return made


def _describe(store: Store, kind: str, name: str) -> Record:
    record = store.get(name)
    if record is None:
        raise validation(f'Could not find {kind} "{arn(kind, name)}".')
    return record
