"""How every Lambda function of this product is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from aws_cdk import Duration
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from infra import rights
from infra.access import Doors, Objects
from infra.telemetry import Telemetry

# The code runs on Python 3.11 and later.
RUNTIME: Final = lambda_.Runtime.PYTHON_3_14
# Later than that the schedules have done an event's work; and a function that fails three times on
# one event fails for a reason.
EVENT_AGE_S: Final = 2 * 3600
EVENT_RETRIES: Final = 2
MEMORY_MB: Final = 512


@dataclass(frozen=True)
class Functions:
    """Makes functions that share their code, and nothing else.

    Attributes:
        code: ``lambdas/`` and what it may import.
        telemetry: Where they log.
        doors: How they come to objects.
        dead_letters: Where events go that a function could not handle.
        made: Each function by its package, so that none is left unwatched.
    """

    code: lambda_.Code
    telemetry: Telemetry
    doors: Doors
    dead_letters: sqs.IQueue
    made: dict[str, lambda_.Function] = field(default_factory=dict)

    def make(
        self,
        scope: Construct,
        construct_id: str,
        package: str,
        description: str,
        *,
        timeout_s: int,
        environment: Mapping[str, str],
        memory_mb: int = MEMORY_MB,
        statements: Iterable[iam.PolicyStatement] = (),
        objects: Objects | None = None,
        for_events: bool = False,
    ) -> lambda_.Function:
        """A function with a role and a log group of its own.

        Args:
            scope: The construct that owns it.
            construct_id: Its id there.
            package: The package ``lambdas.<package>``.
            description: One sentence, for the console.
            timeout_s: Seconds until Lambda ends it.
            environment: Its settings.
            memory_mb: Its memory; its share of a processor and of the network grows with it.
            statements: All that it may do beyond writing its log, but for the bucket.
            objects: What it may do with the bucket; nothing if absent.
            for_events: Whether events call it: nobody waits for its answer or sees its error, so
                what it cannot handle becomes a dead letter.
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
            memory_size=memory_mb,
            environment=dict(environment),
        )
        if for_events:
            self._keep_what_fails(function, role)
        self.made[package] = function
        return function

    def _keep_what_fails(self, function: lambda_.Function, role: iam.Role) -> None:
        """Bounded repetition, then a dead letter whose body is the event, as those of rules are.

        Not by ``dead_letter_queue=``: CDK would give the role ``kms:ReEncrypt*`` along with it.
        """
        role.add_to_policy(rights.send(self.dead_letters))
        resource = cast(lambda_.CfnFunction, function.node.default_child)
        resource.dead_letter_config = lambda_.CfnFunction.DeadLetterConfigProperty(
            target_arn=self.dead_letters.queue_arn
        )
        lambda_.CfnEventInvokeConfig(
            function,
            "Events",
            function_name=function.function_name,
            qualifier="$LATEST",
            maximum_event_age_in_seconds=EVENT_AGE_S,
            maximum_retry_attempts=EVENT_RETRIES,
        )
