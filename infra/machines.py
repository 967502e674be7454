"""How every state machine of this product is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aws_cdk import Duration
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from infra.access import Doors, Objects
from infra.settings import StageSettings
from infra.telemetry import Telemetry


@dataclass(frozen=True)
class Machine:
    """A machine and its log.

    Attributes:
        machine: The state machine.
        log: Where its executions are logged.
    """

    machine: sfn.StateMachine
    log: logs.LogGroup


@dataclass(frozen=True)
class Machines:
    """Makes machines with a name, a log, a trace, and the rights that they are given, no more.

    Attributes:
        settings: The stage.
        telemetry: Where they log and trace.
        jobs: Policy of whoever runs training jobs; all machines do.
        doors: How they come to objects.
    """

    settings: StageSettings
    telemetry: Telemetry
    jobs: iam.IManagedPolicy
    doors: Doors

    def make(
        self,
        scope: Construct,
        construct_id: str,
        name: str,
        *,
        comment: str,
        start: sfn.IChainable,
        timeout_s: int,
        statements: Iterable[iam.PolicyStatement] = (),
        objects: Objects | None = None,
    ) -> Machine:
        """A machine with a role of its own.

        CDK derives rights from states; but with ``function:*`` beside each function, and, for
        ``copyObject``, with prefixes that the bucket's policy names already. The role is closed
        to that, and a test compares what each state calls with what the role may do.

        Args:
            scope: The construct that owns it.
            construct_id: Its id there.
            name: The machine is called ``limner-<stage>-<name>``: the right to look at executions
                ends with a name, since their ARNs hold no other sign of the stage.
            comment: What the console shows.
            start: Its first state.
            timeout_s: Seconds until Step Functions ends an execution.
            statements: What it may do, but for training jobs and the bucket.
            objects: What it may do with the bucket; nothing if absent.
        """
        full_name = f"{self.settings.stack_name}-{name}"
        # Without this prefix each log group takes a place in the account's one resource policy
        # for log delivery, which has room for few.
        log = self.telemetry.log_group(
            scope, f"{construct_id}Log", f"/aws/vendedlogs/states/{full_name}"
        )
        role = iam.Role(
            scope,
            f"{construct_id}Role",
            assumed_by=iam.ServicePrincipal("states.amazonaws.com"),
            managed_policies=[self.telemetry.machines, self.jobs],
        )
        for statement in statements:
            role.add_to_policy(statement)
        if objects:
            self.doors.open(role, construct_id, objects)
        machine = sfn.StateMachine(
            scope,
            construct_id,
            state_machine_name=full_name,
            comment=comment,
            definition_body=sfn.DefinitionBody.from_chainable(start),
            timeout=Duration.seconds(timeout_s),
            role=role.without_policy_updates(),
            tracing_enabled=True,
            # Events without their data: what users say is nobody's business here.
            logs=sfn.LogOptions(
                destination=log, level=sfn.LogLevel.ALL, include_execution_data=False
            ),
        )
        machine.node.add_dependency(role)
        return Machine(machine, log)
