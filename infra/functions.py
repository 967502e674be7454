"""How every Lambda function of this product is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from infra.access import Doors, Objects
from infra.telemetry import Telemetry

# The code runs on Python 3.11 and later.
RUNTIME: Final = lambda_.Runtime.PYTHON_3_14


@dataclass(frozen=True)
class Functions:
    """Makes functions that share their code, and nothing else.

    Attributes:
        code: ``lambdas/`` and what it may import.
        telemetry: Where they log.
        doors: How they come to objects.
    """

    code: lambda_.Code
    telemetry: Telemetry
    doors: Doors

    def make(
        self,
        scope: Construct,
        construct_id: str,
        package: str,
        description: str,
        *,
        timeout_s: int,
        environment: Mapping[str, str],
        statements: Iterable[iam.PolicyStatement] = (),
        objects: Objects | None = None,
    ) -> lambda_.Function:
        """A function with a role and a log group of its own.

        Args:
            scope: The construct that owns it.
            construct_id: Its id there.
            package: The package ``lambdas.<package>``.
            description: One sentence, for the console.
            timeout_s: Seconds until Lambda ends it.
            environment: Its settings.
            statements: All that it may do beyond writing its log, but for the bucket.
            objects: What it may do with the bucket; nothing if absent.
        """
        log_group = self.telemetry.log_group(scope, f"{construct_id}Log")
        role = iam.Role(
            scope, f"{construct_id}Role", assumed_by=iam.ServicePrincipal("lambda.amazonaws.com")
        )
        role.add_to_policy(
            iam.PolicyStatement(
                actions=["logs:CreateLogStream", "logs:PutLogEvents"],
                resources=[log_group.log_group_arn],
            )
        )
        for statement in statements:
            role.add_to_policy(statement)
        if objects:
            self.doors.open(role, construct_id, objects)
        return lambda_.Function(
            scope,
            construct_id,
            description=description,
            runtime=RUNTIME,
            architecture=lambda_.Architecture.ARM_64,
            handler=f"lambdas.{package}.handler.handle",
            code=self.code,
            role=role,
            log_group=log_group,
            timeout=Duration.seconds(timeout_s),
            memory_size=512,
            environment=dict(environment),
        )
