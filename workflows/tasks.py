"""The task states of our machines, each with its policy from ``retries`` and its IAM statements.

``StepFactory`` makes task states. It looks up TimeoutSeconds, Retry and Catch by the state's name,
so no state can be made without them. Most states come from ``aws_stepfunctions_tasks``; two kinds
need help:

* SageMaker training: ``SageMakerCreateTrainingJob`` of aws-cdk-lib has no checkpoints and no
  RetryStrategy (nor warm pools and spot), so ``FineTune`` is a ``CustomState`` with its statements
  written by hand.
* ``CallAwsService`` derives the IAM action from the API's name, and neither
  ``s3:copyObject`` nor ``dynamodb:transactWriteItems`` is an action that IAM knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar

from aws_cdk import Aws, Duration
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from aws_cdk import aws_stepfunctions as sfn
from aws_cdk import aws_stepfunctions_tasks as tasks
from constructs import Construct

from workflows.retries import Retrier, TaskPolicy

Value = tasks.DynamoAttributeValue
TaskState: TypeAlias = sfn.TaskStateBase | sfn.CustomState
State = TypeVar("State", bound=TaskState)

_SDK_CREATE: Final = "aws-sdk:sagemaker:createTrainingJob"


def text(path: str) -> Value:
    """A DynamoDB string from a JSONPath."""
    return Value.from_string(sfn.JsonPath.string_at(path))


def number(path: str) -> Value:
    """A DynamoDB number from a JSONPath to a JSON number (the wire format is a string)."""
    return Value.number_from_string(sfn.JsonPath.format("{}", sfn.JsonPath.string_at(path)))


def literal(value: str) -> Value:
    """A DynamoDB string that is known now."""
    return Value.from_string(value)


def truth(value: bool) -> Value:
    """A DynamoDB boolean that is known now."""
    return Value.from_boolean(value)


@dataclass(frozen=True)
class Write:
    """One conditional update of one item.

    Attributes:
        table: The table.
        key: Partition and sort key.
        update: UpdateExpression; attribute names are written ``#name``.
        condition: ConditionExpression, likewise. There is no write without one.
        values: What the ``:name`` in both expressions stand for.
    """

    table: dynamodb.ITable
    key: Mapping[str, Value]
    update: str
    condition: str
    values: Mapping[str, Value]

    @property
    def names(self) -> dict[str, str]:
        """ExpressionAttributeNames: many good names (status, owner) are reserved in DynamoDB."""
        found = re.findall(r"#(\w+)", f"{self.update} {self.condition}")
        return {f"#{name}": name for name in sorted(set(found))}

    def to_item(self) -> dict[str, object]:
        """The write as a member of TransactItems."""
        return {
            "Update": {
                "TableName": self.table.table_name,
                "Key": {name: value.to_object() for name, value in self.key.items()},
                "UpdateExpression": self.update,
                "ConditionExpression": self.condition,
                "ExpressionAttributeNames": self.names,
                "ExpressionAttributeValues": {
                    name: value.to_object() for name, value in self.values.items()
                },
            }
        }


@dataclass(frozen=True)
class TrainingJobs:
    """The training jobs of this stage, and the right to run them.

    Attributes:
        name_prefix: What the names of all jobs begin with; the IAM statements end there.
        role: The role that a job assumes.
    """

    name_prefix: str
    role: iam.IRole

    @property
    def arns(self) -> str:
        """The ARN pattern of the jobs."""
        account = f"{Aws.PARTITION}:sagemaker:{Aws.REGION}:{Aws.ACCOUNT_ID}"
        return f"arn:{account}:training-job/{self.name_prefix}*"

    def create_statements(self) -> list[iam.PolicyStatement]:
        """What SageMaker's own CreateTrainingJob needs, and no more."""
        return [
            iam.PolicyStatement(actions=["sagemaker:CreateTrainingJob"], resources=[self.arns]),
            self.pass_role(),
        ]

    def run_statements(self) -> list[iam.PolicyStatement]:
        """What ``sagemaker:createTrainingJob.sync`` needs, and no more.

        From "IAM policies for calling SageMaker AI" in the Step Functions developer guide: the job
        itself, its tags (Step Functions tags each job with its execution), the role that is passed
        to SageMaker alone, and the managed rule that tells when the job has ended. Without the
        rule an execution learns of the end late; without Describe it may never learn.
        """
        return [*self.follow_statements(), self.pass_role()]

    def follow_statements(self) -> list[iam.PolicyStatement]:
        """The same without the role, so that machines whose jobs have others can share it."""
        events = f"arn:{Aws.PARTITION}:events:{Aws.REGION}:{Aws.ACCOUNT_ID}:rule"
        return [
            iam.PolicyStatement(
                actions=[
                    "sagemaker:AddTags",
                    "sagemaker:CreateTrainingJob",
                    "sagemaker:DescribeTrainingJob",
                    "sagemaker:ListTags",
                    "sagemaker:StopTrainingJob",
                ],
                resources=[self.arns],
            ),
            iam.PolicyStatement(
                actions=["events:DescribeRule", "events:PutRule", "events:PutTargets"],
                resources=[f"{events}/StepFunctionsGetEventsForSageMakerTrainingJobsRule"],
            ),
        ]

    def pass_role(self) -> iam.PolicyStatement:
        """Giving the role to SageMaker, and to nobody else."""
        return iam.PolicyStatement(
            actions=["iam:PassRole"],
            resources=[self.role.role_arn],
            conditions={"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
        )


class StepFactory:
    """Makes the task states of one machine.

    Args:
        scope: The construct that owns the states.
        policies: Policy of each task state, by its name.
    """

    def __init__(self, scope: Construct, policies: Mapping[str, TaskPolicy]) -> None:
        self.scope = scope
        """The construct that owns the states."""
        self._policies = policies
        self._made: dict[str, TaskState] = {}
        self.statements: list[iam.PolicyStatement] = []
        """Statements that the machine's role needs beyond those that CDK's own tasks bring."""

    def get_item(
        self, name: str, comment: str, table: dynamodb.ITable, key: dict[str, Value], result: str
    ) -> sfn.TaskStateBase:
        """Reads an item, consistently."""
        return self._ready(
            name,
            tasks.DynamoGetItem(
                self.scope,
                name,
                comment=comment,
                table=table,
                key=key,
                consistent_read=True,
                result_path=result,
                task_timeout=self._timeout(name),
            ),
        )

    def update_item(self, name: str, comment: str, write: Write) -> sfn.TaskStateBase:
        """Writes one item under its condition."""
        return self._ready(
            name,
            tasks.DynamoUpdateItem(
                self.scope,
                name,
                comment=comment,
                table=write.table,
                key=dict(write.key),
                update_expression=write.update,
                condition_expression=write.condition,
                expression_attribute_names=write.names,
                expression_attribute_values=dict(write.values),
                result_path=sfn.JsonPath.DISCARD,
                task_timeout=self._timeout(name),
            ),
        )

    def transaction(self, name: str, comment: str, writes: Sequence[Write]) -> tasks.CallAwsService:
        """Writes several items, all or none.

        The client token is the same for every attempt of one visit to the state: DynamoDB answers
        a repetition within ten minutes with the first outcome (API reference, TransactWriteItems).
        It names the request, too: items of one Map may enter a state in the same millisecond.
        """
        return self._ready(
            name,
            tasks.CallAwsService(
                self.scope,
                name,
                comment=comment,
                service="dynamodb",
                action="transactWriteItems",
                parameters={
                    # 32 hexadecimal digits: a token has at most 36 characters.
                    "ClientRequestToken": sfn.JsonPath.hash(
                        sfn.JsonPath.format(
                            "{} {} {} {}",
                            sfn.JsonPath.string_at("$.request_id"),
                            sfn.JsonPath.string_at("$$.Execution.Id"),
                            sfn.JsonPath.string_at("$$.State.Name"),
                            sfn.JsonPath.string_at("$$.State.EnteredTime"),
                        ),
                        "MD5",
                    ),
                    "TransactItems": [write.to_item() for write in writes],
                },
                # IAM has no action TransactWriteItems: each member needs the right to its own.
                iam_action="dynamodb:UpdateItem",
                iam_resources=list(dict.fromkeys(write.table.table_arn for write in writes)),
                result_path=sfn.JsonPath.DISCARD,
                task_timeout=self._timeout(name),
            ),
        )

    def copy_object(
        self,
        name: str,
        comment: str,
        bucket: s3.IBucket,
        *,
        source: str,
        source_folder: str,
        target: str,
        target_folder: str,
    ) -> tasks.CallAwsService:
        """Copies an object within a bucket.

        Args:
            name: Name of the state.
            comment: What the console shows.
            bucket: The bucket.
            source: Intrinsic that gives ``bucket/key``.
            source_folder: First part of the source's key; where the right to read ends.
            target: JSONPath to the new key.
            target_folder: First part of the new key; where the right to write ends.
        """
        return self._ready(
            name,
            tasks.CallAwsService(
                self.scope,
                name,
                comment=comment,
                service="s3",
                action="copyObject",
                parameters={
                    "Bucket": bucket.bucket_name,
                    "CopySource.$": source,
                    "Key.$": target,
                },
                iam_action="s3:GetObject",
                iam_resources=[bucket.arn_for_objects(f"{source_folder}/*")],
                additional_iam_statements=[
                    iam.PolicyStatement(
                        actions=["s3:PutObject"],
                        resources=[bucket.arn_for_objects(f"{target_folder}/*")],
                    )
                ],
                result_path=sfn.JsonPath.DISCARD,
                task_timeout=self._timeout(name),
            ),
        )

    def invoke(
        self,
        name: str,
        comment: str,
        function: lambda_.IFunction,
        payload: dict[str, object],
        *,
        result: str | None = None,
    ) -> tasks.LambdaInvoke:
        """Invokes a function; ``result`` is where its answer goes, nowhere if absent."""
        return self._ready(
            name,
            tasks.LambdaInvoke(
                self.scope,
                name,
                comment=comment,
                lambda_function=function,
                payload=sfn.TaskInput.from_object(payload),
                result_selector={"body.$": "$.Payload"} if result else None,
                result_path=result or sfn.JsonPath.DISCARD,
                retry_on_service_exceptions=False,  # the table has our own
                task_timeout=self._timeout(name),
            ),
        )

    def publish(
        self, name: str, comment: str, topic: sns.ITopic, kind: str, message: sfn.TaskInput
    ) -> tasks.SnsPublish:
        """Publishes an event; subscribers can filter by the message attribute ``type``."""
        return self._ready(
            name,
            tasks.SnsPublish(
                self.scope,
                name,
                comment=comment,
                topic=topic,
                message=message,
                message_attributes={"type": tasks.MessageAttribute(value=kind)},
                result_path=sfn.JsonPath.DISCARD,
                task_timeout=self._timeout(name),
            ),
        )

    def train(
        self,
        name: str,
        comment: str,
        jobs: TrainingJobs,
        job: Mapping[str, object],
        *,
        call: Literal["sync", "sdk"],
    ) -> sfn.CustomState:
        """Makes a training job.

        Args:
            name: Name of the state.
            comment: What the console shows.
            jobs: The jobs that this machine may run.
            job: The CreateTrainingJob request as ASL parameters.
            call: ``sync`` also waits for the job's end; ``sdk`` does not.
        """
        self.statements += jobs.run_statements() if call == "sync" else jobs.create_statements()
        api = "sagemaker:createTrainingJob.sync" if call == "sync" else _SDK_CREATE
        return self._ready(
            name,
            sfn.CustomState(
                self.scope,
                name,
                state_json={
                    "Type": "Task",
                    "Comment": comment,
                    "Resource": f"arn:{Aws.PARTITION}:states:::{api}",
                    "TimeoutSeconds": self._policies[name].timeout_s,
                    "Parameters": {**job, "RoleArn": jobs.role.role_arn},
                    # Not null: jsii drops it. The job's name leads to all the rest.
                    "ResultSelector": {"job_arn.$": "$.TrainingJobArn"},
                    "ResultPath": "$.trained",
                },
            ),
        )

    def describe_job(
        self, name: str, comment: str, jobs: TrainingJobs, *, job_name: str, result: str
    ) -> tasks.CallAwsService:
        """Looks at a training job; its description lands in ``job`` below the result path."""
        return self._ready(
            name,
            tasks.CallAwsService(
                self.scope,
                name,
                comment=comment,
                service="sagemaker",
                action="describeTrainingJob",
                parameters={"TrainingJobName.$": job_name},
                iam_resources=[jobs.arns],
                result_selector={"job.$": "$"},
                result_path=result,
                task_timeout=self._timeout(name),
            ),
        )

    def stop_job(
        self, name: str, comment: str, jobs: TrainingJobs, *, job_name: str
    ) -> tasks.CallAwsService:
        """Asks a training job to stop."""
        return self._ready(
            name,
            tasks.CallAwsService(
                self.scope,
                name,
                comment=comment,
                service="sagemaker",
                action="stopTrainingJob",
                parameters={"TrainingJobName.$": job_name},
                iam_resources=[jobs.arns],
                result_path=sfn.JsonPath.DISCARD,
                task_timeout=self._timeout(name),
            ),
        )

    def connect_catchers(self, states: Mapping[str, sfn.State]) -> None:
        """Wires each Catch of the table, once all states exist.

        Args:
            states: The states that a Catch may lead to and that are no tasks of this factory.

        Raises:
            KeyError: If a Catch leads nowhere.
            ValueError: If a policy belongs to no state.
        """
        if unused := set(self._policies) - set(self._made):
            raise ValueError(f"policies without a state: {sorted(unused)}")
        targets: dict[str, sfn.State] = {**self._made, **states}
        for name, state in self._made.items():
            for catcher in self._policies[name].catchers:
                state.add_catch(
                    targets[catcher.next_state],
                    errors=list(catcher.errors),
                    result_path=catcher.result_path,
                )

    def _timeout(self, name: str) -> sfn.Timeout:
        return sfn.Timeout.duration(Duration.seconds(self._policies[name].timeout_s))

    def _ready(self, name: str, state: State) -> State:
        for retrier in self._policies[name].retriers:
            _add_retry(state, retrier)
        self._made[name] = state
        return state


def _add_retry(state: TaskState, retrier: Retrier) -> None:
    if retrier.attempts == 0:
        state.add_retry(errors=list(retrier.errors), max_attempts=0)
        return
    state.add_retry(
        errors=list(retrier.errors),
        max_attempts=retrier.attempts,
        interval=Duration.seconds(retrier.first_delay_s),
        backoff_rate=retrier.rate,
        max_delay=Duration.seconds(retrier.longest_delay_s),
        jitter_strategy=sfn.JitterType.FULL if retrier.jitter else sfn.JitterType.NONE,
    )
