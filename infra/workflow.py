"""The machine ``onboard`` with its functions, its topic, and the rule on its end."""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_sns as sns
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from infra.functions import Functions
from infra.parts import EndpointRef, Store
from infra.settings import StageSettings
from infra.training import Training
from workflows import onboard, retries


@dataclass(frozen=True)
class TrainingImage:
    """The training program.

    Attributes:
        image: Its container image.
        instance_types: The machines that it runs on, one a try, separated by commas.
    """

    image: str
    instance_types: str


class Workflow(Construct):
    """Everything between "onboard this user" and "the user's model serves"."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: StageSettings,
        *,
        data: Store,
        training: Training,
        endpoint: EndpointRef,
        functions: Functions,
        training_image: TrainingImage,
        base_id: str,
    ) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self.topic = sns.Topic(self, "Topic", enforce_ssl=True)

        self.smoke_test = functions.make(
            self,
            "SmokeTest",
            "smoke_test",
            "Makes the first inference on a new model.",
            timeout_s=90,
            environment={"ENDPOINT_NAME": endpoint.name, "BASE_ID": base_id},
            statements=[
                iam.PolicyStatement(actions=["sagemaker:InvokeEndpoint"], resources=[endpoint.arn])
            ],
        )
        self.record_failure = functions.make(
            self,
            "RecordFailure",
            "record_failure",
            "Ends a request whose execution has failed, and frees its model.",
            timeout_s=30,
            environment={
                "MODELS_TABLE": data.models.table_name,
                "REQUESTS_TABLE": data.requests.table_name,
                "TOPIC_ARN": self.topic.topic_arn,
            },
            statements=[
                iam.PolicyStatement(
                    actions=["dynamodb:GetItem", "dynamodb:UpdateItem"],
                    resources=[data.requests.table_arn],
                ),
                iam.PolicyStatement(
                    actions=["dynamodb:UpdateItem"], resources=[data.models.table_arn]
                ),
                iam.PolicyStatement(actions=["sns:Publish"], resources=[self.topic.topic_arn]),
            ],
        )

        steps = onboard.Onboard(
            self,
            "Steps",
            onboard.Uses(
                bucket=data.bucket,
                models=data.models,
                requests=data.requests,
                topic=self.topic,
                smoke_test=self.smoke_test,
                record_failure=self.record_failure,
                jobs=training.jobs,
                training_image=training_image.image,
                training_instance_types=training_image.instance_types,
                base_id=base_id,
            ),
        )
        self.machine = sfn.StateMachine(
            self,
            "Onboard",
            comment=onboard.COMMENT,
            definition_body=sfn.DefinitionBody.from_chainable(steps.start),
            timeout=Duration.seconds(retries.MACHINE_TIMEOUT_S),
            tracing_enabled=None if settings.is_local else True,
            logs=None if settings.is_local else self._machine_logs(),
        )
        for statement in steps.statements:
            self.machine.add_to_role_policy(statement)
        self._end_requests_of_dead_executions()

    def _end_requests_of_dead_executions(self) -> None:
        """An execution that was stopped or ran out of time cannot record that by itself."""
        events.Rule(
            self,
            "ExecutionEnded",
            description="Ends the request of an onboarding that was stopped, timed out or failed.",
            event_pattern=events.EventPattern(
                source=["aws.states"],
                detail_type=["Step Functions Execution Status Change"],
                detail={
                    "stateMachineArn": [self.machine.state_machine_arn],
                    "status": ["ABORTED", "FAILED", "TIMED_OUT"],
                },
            ),
            targets=[targets.LambdaFunction(self.record_failure)],
        )

    def _machine_logs(self) -> sfn.LogOptions:
        """All events, without their data: the input of an execution holds a user's prompts."""
        # The prefix keeps the account's one resource policy for log delivery short.
        group = logs.LogGroup(
            self,
            "OnboardLog",
            log_group_name=f"/aws/vendedlogs/states/{self._settings.stack_name}-onboard",
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=RemovalPolicy.DESTROY,
        )
        return sfn.LogOptions(
            destination=group, level=sfn.LogLevel.ALL, include_execution_data=False
        )
