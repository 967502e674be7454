"""AWS::SageMaker::Model, ::EndpointConfig and ::Endpoint for ministack's CloudFormation.

CloudFormation resource reference: Ref gives the ARN of each; GetAtt gives its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from limner.local.json_types import Json
from limner.local.sagemaker.endpoints import Endpoints
from limner.local.sagemaker.store import Store
from limner.local.seams import Module

Properties = dict[str, Any]
Provisioned = tuple[str, dict[str, str]]
_MAX_NAME = 63
# What CloudFormation takes beside the members of the API: tags are kept nowhere here, and the
# others say how UpdateEndpoint treats what autoscaling has changed.
_NOT_OF_THE_API = frozenset(
    {
        "ExcludeRetainedVariantProperties",
        "RetainAllVariantProperties",
        "RetainDeploymentConfig",
        "Tags",
    }
)


@dataclass(frozen=True)
class _Kind:
    """How one resource type maps to its API."""

    name_member: str
    arn_member: str
    create: Callable[[Properties], Properties]
    delete: Callable[[Properties], Properties]
    store: Store


def install(provisioners: Module, endpoints: Endpoints) -> None:
    """Registers the three resource types."""
    kinds = {
        "Model": _Kind(
            "ModelName",
            "ModelArn",
            endpoints.create_model,
            endpoints.delete_model,
            endpoints.models,
        ),
        "EndpointConfig": _Kind(
            "EndpointConfigName",
            "EndpointConfigArn",
            endpoints.create_endpoint_config,
            endpoints.delete_endpoint_config,
            endpoints.configs,
        ),
        "Endpoint": _Kind(
            "EndpointName",
            "EndpointArn",
            endpoints.create_endpoint,
            endpoints.delete_endpoint,
            endpoints.endpoints,
        ),
    }
    for suffix, kind in kinds.items():
        provisioners._RESOURCE_HANDLERS[f"AWS::SageMaker::{suffix}"] = {
            "create": _creator(provisioners, kind, endpoints),
            "delete": _deleter(kind),
        }


def _creator(
    provisioners: Module, kind: _Kind, endpoints: Endpoints
) -> Callable[[str, Properties, str], Provisioned]:
    """Creates, or replaces in place: ministack calls create for updates too, with one name."""

    def create(logical_id: str, properties: Properties, stack: str) -> Provisioned:
        name = properties.get(kind.name_member) or provisioners._physical_name(
            stack, logical_id, max_len=_MAX_NAME
        )
        if kind.store.get(name):
            kind.delete({kind.name_member: name})
        request = {**_with_numbers(properties), kind.name_member: name}
        created = kind.create(request)[kind.arn_member]
        if kind.name_member == "ModelName":
            endpoints.restart_users_of(name)
        return created, {kind.name_member: name, "Arn": created}

    return create


def _deleter(kind: _Kind) -> Callable[[str, Properties], None]:
    def delete(physical_id: str, properties: Properties) -> None:  # noqa: ARG001  # theirs
        for record in kind.store.all():
            if record[kind.arn_member] == physical_id:
                kind.delete({kind.name_member: record[kind.name_member]})

    return delete


def _with_numbers(value: Json) -> Json:
    """Template parameters arrive as text where the API wants numbers."""
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: int(item)
        if key == "InitialInstanceCount" and isinstance(item, str) and item.isdigit()
        else _with_numbers(item)
        for key, item in value.items()
        if key not in _NOT_OF_THE_API
    }
