"""The machine ``onboard`` with its functions, its topic, and the rule on its end."""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_sns as sns
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from infra.data import Data
from infra.serving import Serving
from infra.settings import StageSettings
from infra.training import Training
from workflows import onboard, retries

# The code runs on Python 3.11 and later.
RUNTIME = lambda_.Runtime.PYTHON_3_13


@dataclass(frozen=True)
class TrainingImage:
    """The training program: image, and the machine that it runs on."""

    image: str
    instance_type: str


class Workflow(Construct):
    """Everything between "onboard this user" and "the user's model serves"."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: StageSettings,
        *,
        data: Data,
        training: Training,
        serving: Serving,
        code: lambda_.Code,
        training_image: TrainingImage,
        base_id: str,
    ) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._code = code
        self.topic = sns.Topic(self, "Topic", enforce_ssl=True)

        self.smoke_test = self._function(
            "SmokeTest",
            "smoke_test",
            "Makes the first inference on a new model.",
            timeout_s=90,
            environment={"ENDPOINT_NAME": serving.endpoint_name, "BASE_ID": base_id},
        )
        self.smoke_test.add_to_role_policy(
            iam.PolicyStatement(
                actions=["sagemaker:InvokeEndpoint"], resources=[serving.endpoint_arn]
            )
        )
        self.record_failure = self._function(
            "RecordFailure",
            "record_failure",
            "Ends a request whose execution has failed, and frees its model.",
            timeout_s=30,
            environment={
                "MODELS_TABLE": data.models.table_name,
                "REQUESTS_TABLE": data.requests.table_name,
                "TOPIC_ARN": self.topic.topic_arn,
            },
        )
        for statement in (
            iam.PolicyStatement(
                actions=["dynamodb:GetItem", "dynamodb:UpdateItem"],
                resources=[data.requests.table_arn],
            ),
            iam.PolicyStatement(actions=["dynamodb:UpdateItem"], resources=[data.models.table_arn]),
            iam.PolicyStatement(actions=["sns:Publish"], resources=[self.topic.topic_arn]),
        ):
            self.record_failure.add_to_role_policy(statement)

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
                training_instance_type=training_image.instance_type,
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

    def _function(
        self,
        construct_id: str,
        package: str,
        description: str,
        *,
        timeout_s: int,
        environment: dict[str, str],
    ) -> lambda_.Function:
        """A function with a role and a log group of its own, and no right beyond its log."""
        log_group = logs.LogGroup(
            self,
            f"{construct_id}Log",
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=RemovalPolicy.DESTROY,
        )
        role = iam.Role(
            self,
            f"{construct_id}Role",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
        )
        log_group.grant_write(role)
        return lambda_.Function(
            self,
            construct_id,
            description=description,
            runtime=RUNTIME,
            architecture=lambda_.Architecture.ARM_64,
            handler=f"lambdas.{package}.handler.handle",
            code=self._code,
            role=role,
            log_group=log_group,
            timeout=Duration.seconds(timeout_s),
            memory_size=512,
            environment=environment,
            tracing=lambda_.Tracing.DISABLED if self._settings.is_local else lambda_.Tracing.ACTIVE,
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
