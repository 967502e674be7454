"""Statements about records, machines and jobs, each for exact resources where AWS knows any."""

from __future__ import annotations

from aws_cdk import Aws
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_sqs as sqs
from aws_cdk import aws_stepfunctions as sfn


def records(table: dynamodb.ITable, *actions: str) -> iam.PolicyStatement:
    """Work with a table's items.

    Args:
        table: The table.
        *actions: Names of DynamoDB's actions, such as ``GetItem``.
    """
    return iam.PolicyStatement(
        actions=[f"dynamodb:{action}" for action in actions], resources=[table.table_arn]
    )


def rows(table: dynamodb.ITable, prefix: str, *actions: str) -> iam.PolicyStatement:
    """Work with those of a table's items whose partition keys begin with a prefix.

    Args:
        table: The table.
        prefix: The beginning.
        *actions: Names of DynamoDB's actions on single items, such as ``GetItem``.
    """
    statement = records(table, *actions)
    statement.add_conditions({"ForAllValues:StringLike": {"dynamodb:LeadingKeys": [f"{prefix}*"]}})
    return statement


def query(table: dynamodb.ITable, *indexes: str) -> iam.PolicyStatement:
    """Read some indexes of a table."""
    return iam.PolicyStatement(
        actions=["dynamodb:Query"],
        resources=[f"{table.table_arn}/index/{index}" for index in indexes],
    )


def start(*machines: sfn.IStateMachine) -> iam.PolicyStatement:
    """Start executions."""
    return iam.PolicyStatement(
        actions=["states:StartExecution"],
        resources=[machine.state_machine_arn for machine in machines],
    )


def executions(prefix: str, *actions: str) -> iam.PolicyStatement:
    """Look at executions, or end them; their names are not known beforehand.

    Args:
        prefix: What the names of the machines begin with.
        *actions: Names of the actions of Step Functions.
    """
    here = f"{Aws.PARTITION}:states:{Aws.REGION}:{Aws.ACCOUNT_ID}"
    return iam.PolicyStatement(
        actions=[f"states:{action}" for action in actions],
        resources=[f"arn:{here}:execution:{prefix}-*"],
    )


def send(queue: sqs.IQueue) -> iam.PolicyStatement:
    """Put messages into a queue."""
    return iam.PolicyStatement(actions=["sqs:SendMessage"], resources=[queue.queue_arn])


def deny(*actions: str) -> iam.PolicyStatement:
    """Take something back that a shared policy gives."""
    return iam.PolicyStatement(effect=iam.Effect.DENY, actions=list(actions), resources=["*"])
