"""A small IAM: who may do what, evaluated over a synthesized template.

The evaluation logic of "Policy evaluation logic" in the IAM user guide, within one account: an
explicit Deny wins; else an Allow of the role's own policies or of the resource's policy decides.
Known: Allow and Deny, Action, Resource and NotResource with ``*`` and ``?``, principals, and the
conditions that the templates use. A condition that is not known raises: it must not pass as true.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

PSEUDO = {
    "AWS::Partition": "aws",
    "AWS::Region": "eu-west-1",
    "AWS::AccountId": "111122223333",
    "AWS::URLSuffix": "amazonaws.com",
}
HERE = "eu-west-1:111122223333"

# What GetAtt and Ref give, as far as policies ask.
_ARNS = {
    "AWS::IAM::Role": "arn:aws:iam::111122223333:role/{}",
    "AWS::IAM::ManagedPolicy": "arn:aws:iam::111122223333:policy/{}",
    "AWS::S3::Bucket": "arn:aws:s3:::{}",
    "AWS::DynamoDB::Table": f"arn:aws:dynamodb:{HERE}:table/{{}}",
    "AWS::SNS::Topic": f"arn:aws:sns:{HERE}:{{}}",
    "AWS::SQS::Queue": f"arn:aws:sqs:{HERE}:{{}}",
    "AWS::Lambda::Function": f"arn:aws:lambda:{HERE}:function:{{}}",
    "AWS::StepFunctions::StateMachine": f"arn:aws:states:{HERE}:stateMachine:{{}}",
    "AWS::Events::EventBus": f"arn:aws:events:{HERE}:event-bus/{{}}",
    "AWS::Events::Rule": f"arn:aws:events:{HERE}:rule/{{}}",
    "AWS::Logs::LogGroup": f"arn:aws:logs:{HERE}:log-group:{{}}:*",
    "AWS::KMS::Key": f"arn:aws:kms:{HERE}:key/{{}}",
    "AWS::SageMaker::Endpoint": f"arn:aws:sagemaker:{HERE}:endpoint/{{}}",
}
# Ref of these is their ARN, not their name.
_REF_IS_ARN = (
    *("AWS::IAM::ManagedPolicy", "AWS::SNS::Topic", "AWS::StepFunctions::StateMachine"),
    "AWS::SageMaker::Endpoint",
)


@dataclass(frozen=True)
class Call:
    """One call: who does what to which resource.

    Attributes:
        role: Logical id of the role.
        action: Such as ``s3:GetObject``.
        resource: ARN.
        context: Condition keys of the call.
    """

    role: str
    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


class Account:
    """The account after the deployment of one template."""

    def __init__(self, template: Mapping[str, Any], parameters: Mapping[str, str] = {}) -> None:
        self._resources: Mapping[str, Any] = template["Resources"]
        self._parameters = parameters
        self._statements: dict[str, list[dict[str, Any]]] = {}
        self.roles = self.names("AWS::IAM::Role")

    def names(self, kind: str) -> list[str]:
        """Logical ids of a type of resource."""
        return [name for name, item in self._resources.items() if item["Type"] == kind]

    def arn(self, name: str) -> str:
        """ARN of a resource."""
        kind = self._resources[name]["Type"]
        # SageMaker names things in its ARNs in lower case.
        return _ARNS[kind].format(name.lower() if kind.startswith("AWS::SageMaker::") else name)

    def text(self, value: Any) -> str:
        """A value of the template as text."""
        match value:
            case str():
                return value
            case {"Ref": name} if name in PSEUDO:
                return PSEUDO[name]
            case {"Ref": name} if name not in self._resources:
                return self._parameters.get(name, f"<{name}>")
            case {"Ref": name}:
                is_arn = self._resources[name]["Type"] in _REF_IS_ARN
                return self.arn(name) if is_arn else name
            case {"Fn::GetAtt": [name, "Arn" | "TopicArn"]}:
                return self.arn(name)
            case {"Fn::GetAtt": [name, "StreamArn"]}:
                return f"{self.arn(name)}/stream/2026"
            case {"Fn::GetAtt": [name, _]}:
                return str(name)
            case {"Fn::Join": [separator, parts]}:
                return str(separator).join(self.text(part) for part in parts)
        raise AssertionError(f"unknown: {value}")

    def statements_of(self, role: str) -> list[dict[str, Any]]:
        """All statements of a role's own policies, inline and managed, with ARNs as text."""
        if role not in self._statements:
            self._statements[role] = [self._plain(item) for item in self._own_policies(role)]
        return self._statements[role]

    def _plain(self, statement: Mapping[str, Any]) -> dict[str, Any]:
        plain = dict(statement)
        for part in ("Resource", "NotResource"):
            if part in plain:
                plain[part] = [self.text(item) for item in listed(plain[part])]
        return plain

    def _own_policies(self, role: str) -> Iterator[dict[str, Any]]:
        attached = self._resources[role]["Properties"].get("ManagedPolicyArns", [])
        managed = {reference["Ref"] for reference in attached}
        for name, item in self._resources.items():
            match item:
                case {"Type": "AWS::IAM::Policy", "Properties": {"Roles": roles}}:
                    theirs = {"Ref": role} in roles
                case {"Type": "AWS::IAM::ManagedPolicy"}:
                    theirs = name in managed
                case _:
                    theirs = False
            if theirs:
                yield from item["Properties"]["PolicyDocument"]["Statement"]

    def statements_of_bucket(self, bucket: str) -> list[dict[str, Any]]:
        """The statements of a bucket's policy, with ARNs as text."""
        key = f"bucket {bucket}"
        if key not in self._statements:
            self._statements[key] = [self._plain(item) for item in self._bucket_policy(bucket)]
        return self._statements[key]

    def _bucket_policy(self, bucket: str) -> Iterator[dict[str, Any]]:
        for item in self._resources.values():
            if (
                item["Type"] == "AWS::S3::BucketPolicy"
                and self.text(item["Properties"]["Bucket"]) == bucket
            ):
                yield from item["Properties"]["PolicyDocument"]["Statement"]

    def allows(self, call: Call) -> bool:
        """Whether the call would go through."""
        verdicts = [
            statement["Effect"] for statement in self._about(call) if self._matches(statement, call)
        ]
        return "Deny" not in verdicts and "Allow" in verdicts

    def _about(self, call: Call) -> Iterator[dict[str, Any]]:
        yield from self.statements_of(call.role)
        if call.resource.startswith("arn:aws:s3:::"):
            bucket = call.resource.removeprefix("arn:aws:s3:::").partition("/")[0]
            for statement in self.statements_of_bucket(bucket):
                if self._is_principal(statement["Principal"], call.role):
                    yield statement

    def _is_principal(self, principal: Any, role: str) -> bool:
        match principal:
            case "*" | {"AWS": "*"}:
                return True
            case {"AWS": names}:
                return self.arn(role) in map(self.text, listed(names))
        return False

    def _matches(self, statement: Mapping[str, Any], call: Call) -> bool:
        assert "NotAction" not in statement
        resources = listed(statement.get("Resource", []))
        others = listed(statement.get("NotResource", []))
        if not any(
            like(name, call.action, ignore_case=True) for name in listed(statement["Action"])
        ):
            return False
        hit = any(like(item, call.resource) for item in resources) or (
            bool(others) and not any(like(item, call.resource) for item in others)
        )
        return hit and self._holds(statement.get("Condition", {}), call.context)

    def _holds(self, condition: Mapping[str, Any], context: Mapping[str, str]) -> bool:
        context = {"aws:SecureTransport": "true", **context}
        for operator, tests in condition.items():
            for key, wanted in tests.items():
                found = context.get(key)
                values = [self.text(value) for value in listed(wanted)]
                match operator:
                    case "StringEquals" | "Bool":
                        good = found in values
                    case "StringLike" | "ArnLike":
                        good = found is not None and any(like(value, found) for value in values)
                    case "ForAllValues:StringLike":  # a call without the key has no wrong value
                        good = found is None or any(like(value, found) for value in values)
                    case _:
                        raise AssertionError(f"unknown condition {operator}")
                if not good:
                    return False
        return True


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def like(pattern: str, text: str, *, ignore_case: bool = False) -> bool:
    """IAM's ``*`` and ``?``."""
    if not {"*", "?"} & set(pattern):
        return pattern.lower() == text.lower() if ignore_case else pattern == text
    regex = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
    return re.fullmatch(regex, text, re.IGNORECASE if ignore_case else 0) is not None
