"""How every Lambda function of this product is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra.settings import StageSettings

# The code runs on Python 3.11 and later.
RUNTIME: Final = lambda_.Runtime.PYTHON_3_13


@dataclass(frozen=True)
class Functions:
    """Makes functions that share their code, and nothing else.

    Attributes:
        settings: The stage.
        code: ``lambdas/`` and what it may import.
    """

    settings: StageSettings
    code: lambda_.Code

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
    ) -> lambda_.Function:
        """A function with a role and a log group of its own.

        Args:
            scope: The construct that owns it.
            construct_id: Its id there.
            package: The package ``lambdas.<package>``.
            description: One sentence, for the console.
            timeout_s: Seconds until Lambda ends it.
            environment: Its settings.
            statements: All that it may do beyond writing its log.
        """
        log_group = logs.LogGroup(
            scope,
            f"{construct_id}Log",
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=RemovalPolicy.DESTROY,
        )
        role = iam.Role(
            scope,
            f"{construct_id}Role",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
        )
        log_group.grant_write(role)
        local = self.settings.is_local
        function = lambda_.Function(
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
            tracing=lambda_.Tracing.DISABLED if local else lambda_.Tracing.ACTIVE,
        )
        for statement in statements:
            function.add_to_role_policy(statement)
        return function
