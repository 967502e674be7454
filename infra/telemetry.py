"""Logs and traces: what AWS's own services need the rights for.

X-Ray and the log delivery of Step Functions know no resources, so their rights are on "*". CDK
would write such a statement into every role. Here it is one managed policy for all machines, to be
read and reviewed once. Functions are not traced by themselves: a machine's trace shows each call.
"""

from __future__ import annotations

from typing import Final

from aws_cdk import RemovalPolicy
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra import findings

# "Using CloudWatch Logs to log execution history" and "X-Ray and Step Functions" in the Step
# Functions developer guide.
_EVERYWHERE: Final = (
    "logs:CreateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:DescribeLogGroups",
    "logs:DescribeResourcePolicies",
    "logs:GetLogDelivery",
    "logs:ListLogDeliveries",
    "logs:PutResourcePolicy",
    "logs:UpdateLogDelivery",
    "xray:GetSamplingRules",
    "xray:GetSamplingTargets",
    "xray:PutTelemetryRecords",
    "xray:PutTraceSegments",
)


class Telemetry(Construct):
    """The log groups, and the state machines' right to deliver logs and traces.

    Attributes:
        machines: Policy of every state machine.
    """

    def __init__(self, scope: Construct, construct_id: str, key: kms.IKey | None = None) -> None:
        super().__init__(scope, construct_id)
        self._key = key
        self.machines = iam.ManagedPolicy(
            self,
            "Machines",
            description="Log delivery and X-Ray, which know no resources; for state machines only.",
            statements=[iam.PolicyStatement(actions=list(_EVERYWHERE), resources=["*"])],
        )
        findings.forced_wildcard(
            self.machines,
            "*",
            "Log delivery and X-Ray know no resource (Step Functions developer guide, Logging using"
            " CloudWatch Logs; Service Authorization Reference, AWS X-Ray).",
        )

    def log_group(
        self, scope: Construct, construct_id: str, name: str | None = None
    ) -> logs.LogGroup:
        """A log group that is encrypted, forgets after a month and goes with the stack."""
        return logs.LogGroup(
            scope,
            construct_id,
            log_group_name=name,
            encryption_key=self._key,
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=RemovalPolicy.DESTROY,
        )
