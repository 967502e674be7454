"""Resource types that ministack's CloudFormation refuses: kept, without any effect.

The laptop deploys the very template that goes to AWS. What only matters there (scaling of an
endpoint, alarms over several metrics, budgets) must not keep the rest from being deployed, so these
resources are accepted, have the Ref and GetAtt that the CloudFormation resource reference names,
and do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from limner.local.seams import Module
from limner.local.settings import ACCOUNT, REGION

Properties: TypeAlias = dict[str, Any]
Provisioned: TypeAlias = tuple[str, dict[str, str]]
# From the physical name to what Ref gives and to what GetAtt knows.
_Identity: TypeAlias = Callable[[str, Properties], Provisioned]

_MAX_NAME: Final = 255
_ALARM: Final = "AWS::CloudWatch::Alarm"


def _scalable_target(_: str, properties: Properties) -> Provisioned:
    """Ref is ResourceId|ScalableDimension|ServiceNamespace, as in AWS's example."""
    parts = ("ResourceId", "ScalableDimension", "ServiceNamespace")
    reference = "|".join(str(properties.get(part, "")) for part in parts)
    return reference, {"Id": reference}


def _scaling_policy(name: str, _: Properties) -> Provisioned:
    policy_arn = f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:scalingPolicy:policyName/{name}"
    return policy_arn, {"Arn": policy_arn}


def _alarm(name: str, _: Properties) -> Provisioned:
    return name, {"Arn": f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:{name}"}


def _by_name(name: str, _: Properties) -> Provisioned:
    return name, {"Id": name}


# By resource type: the property with its name, and its identity.
_KEPT: Final[dict[str, tuple[str, _Identity]]] = {
    "AWS::ApplicationAutoScaling::ScalableTarget": ("", _scalable_target),
    "AWS::ApplicationAutoScaling::ScalingPolicy": ("PolicyName", _scaling_policy),
    "AWS::Budgets::Budget": ("", _by_name),
    "AWS::CloudWatch::AnomalyDetector": ("", _by_name),
    "AWS::CloudWatch::CompositeAlarm": ("AlarmName", _alarm),
    "AWS::Logs::QueryDefinition": ("", _by_name),
}


def install(provisioners: Module) -> None:
    """Registers the types, and alarms over several metrics beside ministack's own alarms."""
    handlers = provisioners._RESOURCE_HANDLERS
    for kind, (name_property, identity) in _KEPT.items():
        handlers[kind] = {"create": _keeper(provisioners, name_property, identity), "delete": _drop}
    handlers[_ALARM] = _with_metric_math(provisioners, handlers[_ALARM])


def _keeper(
    provisioners: Module, name_property: str, identity: _Identity
) -> Callable[[str, Properties, str], Provisioned]:
    def create(logical_id: str, properties: Properties, stack: str) -> Provisioned:
        name = properties.get(name_property) or provisioners._physical_name(
            stack, logical_id, max_len=_MAX_NAME
        )
        return identity(name, properties)

    return create


def _drop(physical_id: str, properties: Properties) -> None:
    """Nothing was made, so nothing is deleted."""


def _with_metric_math(provisioners: Module, handler: dict[str, Any]) -> dict[str, Any]:
    """Alarms with ``Metrics`` are kept without effect; all others stay ministack's."""
    keep = _keeper(provisioners, "AlarmName", _alarm)

    def create(logical_id: str, properties: Properties, stack: str) -> Provisioned:
        if properties.get("Metrics"):
            return keep(logical_id, properties, stack)
        made: Provisioned = handler["create"](logical_id, properties, stack)
        return made

    def update(
        physical_id: str,
        old: Properties,
        new: Properties,
        stack: str,
        logical_id: str | None = None,
    ) -> Provisioned:
        if new.get("Metrics"):
            handler["delete"](physical_id, old)
            return keep(logical_id or physical_id, new, stack)
        made: Provisioned = handler["update"](physical_id, old, new, stack, logical_id=logical_id)
        return made

    return {**handler, "create": create, "update": update}
