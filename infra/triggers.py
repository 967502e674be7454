"""What sets the machines going, and what looks after them.

::

    app ── register ──> requests table ── stream ──┐
    app ── event ──> bus ── rule ──> onboard       ├──> dispatch ──> onboard | onboard_batch
                          schedule ────────────────┤                       | worker
                          an execution has ended ──┘
                          schedule, an execution has died ──> reconcile
                          an onboarding has died ──> record_failure

Whatever cannot be delivered, or fails after all its repetitions, lands in one queue of dead
letters, with an alarm on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from aws_cdk import Aws, Duration
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sns as sns
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from infra import findings, rights
from infra.access import Objects
from infra.data import BY_USER, OPEN, QUEUE
from infra.functions import EVENT_AGE_S, Functions
from infra.parts import Store
from infra.settings import StageSettings
from infra.training import JOB_NAME_PREFIX
from limner.contracts import keys
from limner.contracts.onboarding import REQUESTED_EVENT, OnboardingInput

SOURCE: Final = "limner"
# Every end, and those that an execution cannot tell of by itself.
ENDED: Final = ("SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT")
DIED: Final = ("ABORTED", "FAILED", "TIMED_OUT")

# Of deliveries, which fail when a service is out of order.
DELIVERY_RETRIES: Final = 20
# What the machine reads of its input.
_READ_FIELDS: Final = tuple(sorted(set(OnboardingInput.model_fields) - {"schema_version"}))

# The stream: few records at once, since one poisoned record holds up its shard until it has been
# bisected out and given up.
STREAM_BATCH: Final = 25
STREAM_WINDOW_S: Final = 1
STREAM_RETRIES: Final = 5
STREAM_AGE_S: Final = 3600
# Shorter than a lease (LIMNER_LEASE_S), which must outlast its holder.
DISPATCH_TIMEOUT_S: Final = 60
RECONCILE_TIMEOUT_S: Final = 120


@dataclass(frozen=True)
class Driven:
    """What is set going.

    Attributes:
        machine: The machine of single onboardings.
        batch_machine: The machine of batches.
        worker_machine: The machine of jobs that stay.
        record_failure: Ends the request of a dead execution.
        topic: Where endings are announced.
    """

    machine: sfn.IStateMachine
    batch_machine: sfn.IStateMachine
    worker_machine: sfn.IStateMachine
    record_failure: lambda_.IFunction
    topic: sns.ITopic


class Triggers(Construct):
    """Bus, rules, schedules, the stream, their functions, and the queue of dead letters."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: StageSettings,
        *,
        store: Store,
        functions: Functions,
        driven: Driven,
    ) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._store = store
        self._functions = functions
        self._driven = driven
        self._dead_letters = functions.dead_letters
        self.bus = events.EventBus(
            self,
            "Bus",
            event_bus_name=settings.stack_name,
            description="Where an app asks for onboardings.",
        )
        self.register = self._register()
        self.dispatch = self._dispatch()
        self.reconcile = self._reconcile()
        self._supervise(self.dispatch, self.reconcile)
        self._feed_dispatch_from_the_stream()
        self._connect()

    # -- functions --------------------------------------------------------------------------------

    def _register(self) -> lambda_.Function:
        return self._functions.make(
            self,
            "Register",
            "register",
            "Takes a new request, gives out places for its photos, and puts it into the queue.",
            timeout_s=30,
            environment={
                "BUCKET": self._store.bucket.bucket_name,
                "REQUESTS_TABLE": self._store.requests.table_name,
                "BUS_NAME": self.bus.event_bus_name,
            },
            statements=[
                rights.records(self._store.requests, "GetItem", "UpdateItem"),
                rights.query(self._store.requests, BY_USER),
                iam.PolicyStatement(
                    actions=["events:PutEvents"], resources=[self.bus.event_bus_arn]
                ),
            ],
            # A presigned POST may do what its signer may do.
            objects=Objects(reads=(keys.UPLOADS,), writes=(keys.UPLOADS, keys.CONFIGS)),
        )

    def _dispatch(self) -> lambda_.Function:
        settings = self._settings
        stream = self._store.requests.table_stream_arn
        reading = iam.PolicyStatement(
            actions=[
                "dynamodb:DescribeStream",
                "dynamodb:GetRecords",
                "dynamodb:GetShardIterator",
                "dynamodb:ListStreams",
            ],
            resources=[stream] if stream else [],
        )
        return self._functions.make(
            self,
            "Dispatch",
            "dispatch",
            "Starts queued requests: fairly, within rate, concurrency and budget.",
            timeout_s=DISPATCH_TIMEOUT_S,
            environment={
                "STAGE": settings.stage,
                "REQUESTS_TABLE": self._store.requests.table_name,
                "ONBOARD_MACHINE_ARN": self._driven.machine.state_machine_arn,
                "BATCH_MACHINE_ARN": self._driven.batch_machine.state_machine_arn,
                "MAX_INSTANCES": str(settings.max_instances),
                "LAUNCHES_PER_SECOND": str(settings.launches_per_second),
                "BURST": str(settings.burst),
                "DAILY_LAUNCHES": str(settings.daily_launches),
                "USER_ACTIVE": str(settings.user_active),
                "BATCH_FROM": str(settings.batch_from),
                "BATCH_SIZE": str(settings.batch_size),
                "BATCH_INSTANCES": str(settings.batch_instances),
                "LEASE_S": str(settings.lease_s),
                "WORKER_MACHINE_ARN": self._driven.worker_machine.state_machine_arn,
                "WORKERS": str(settings.workers),
                "WORKER_BACKLOG": str(settings.worker_backlog),
                "WORKER_PATIENCE_S": str(settings.worker_patience_s),
            },
            statements=[
                rights.records(self._store.requests, "GetItem", "UpdateItem"),
                rights.query(self._store.requests, QUEUE),
                rights.start(
                    self._driven.machine, self._driven.batch_machine, self._driven.worker_machine
                ),
                iam.PolicyStatement(
                    actions=["states:ListExecutions"],
                    resources=[self._driven.worker_machine.state_machine_arn],
                ),
                # It asks what became of an execution that exists already, and ends none.
                rights.deny("states:StopExecution"),
                *([reading, rights.send(self._dead_letters)] if stream else []),
            ],
            for_events=True,
        )

    def _reconcile(self) -> lambda_.Function:
        driven, here = self._driven, f"{Aws.PARTITION}:sagemaker:{Aws.REGION}:{Aws.ACCOUNT_ID}"
        function = self._functions.make(
            self,
            "Reconcile",
            "reconcile",
            "Compares records with executions and jobs; repairs what nobody else would end.",
            timeout_s=RECONCILE_TIMEOUT_S,
            environment={
                "STAGE": self._settings.stage,
                "MODELS_TABLE": self._store.models.table_name,
                "REQUESTS_TABLE": self._store.requests.table_name,
                "TOPIC_ARN": driven.topic.topic_arn,
                "ONBOARD_MACHINE_ARN": driven.machine.state_machine_arn,
                "BATCH_MACHINE_ARN": driven.batch_machine.state_machine_arn,
                "WORKER_MACHINE_ARN": driven.worker_machine.state_machine_arn,
                "JOB_PREFIX": JOB_NAME_PREFIX,
                "GRACE_S": str(self._settings.grace_s),
            },
            statements=[
                rights.records(self._store.models, "UpdateItem"),
                rights.records(self._store.requests, "GetItem", "UpdateItem"),
                rights.query(self._store.requests, OPEN),
                iam.PolicyStatement(
                    actions=["sagemaker:DescribeTrainingJob", "sagemaker:StopTrainingJob"],
                    resources=[f"arn:{here}:training-job/{JOB_NAME_PREFIX}*"],
                ),
                iam.PolicyStatement(actions=["sns:Publish"], resources=[driven.topic.topic_arn]),
            ],
            for_events=True,
        )
        findings.forced_wildcard(
            cast(iam.Role, function.role).node.find_child("DefaultPolicy"),
            findings.arn("sagemaker", f"training-job/{JOB_NAME_PREFIX}*"),
            "Describes and stops jobs that lost their execution; their names do not exist when the"
            " stack is deployed. It can start none.",
        )
        return function

    def _supervise(self, *functions: lambda_.Function) -> None:
        """Looking at executions: one policy, since their names are a wildcard for everybody."""
        policy = iam.ManagedPolicy(
            self,
            "Supervision",
            description="Look at this stage's executions, and end them.",
            statements=[
                rights.executions(self._settings.stack_name, "DescribeExecution", "StopExecution")
            ],
        )
        findings.forced_wildcard(
            policy,
            findings.arn("states", f"execution:{self._settings.stack_name}-*"),
            "Executions are named after requests, which do not exist when the stack is deployed;"
            " the names of their machines begin with the stage.",
        )
        for function in functions:
            cast(iam.Role, function.role).add_managed_policy(policy)

    # -- who calls them ---------------------------------------------------------------------------

    def _feed_dispatch_from_the_stream(self) -> None:
        """A row that has come into the queue wakes dispatch at once.

        A table of somebody else may have no stream: then the schedule alone does it.
        """
        stream = self._store.requests.table_stream_arn
        if not stream:
            return
        mapping = lambda_.CfnEventSourceMapping
        mapping(
            self,
            "Stream",
            function_name=self.dispatch.function_arn,
            event_source_arn=stream,
            starting_position="TRIM_HORIZON",
            batch_size=STREAM_BATCH,
            maximum_batching_window_in_seconds=STREAM_WINDOW_S,
            parallelization_factor=1,
            bisect_batch_on_function_error=True,
            function_response_types=["ReportBatchItemFailures"],
            maximum_retry_attempts=STREAM_RETRIES,
            maximum_record_age_in_seconds=STREAM_AGE_S,
            destination_config=mapping.DestinationConfigProperty(
                on_failure=mapping.OnFailureProperty(destination=self._dead_letters.queue_arn)
            ),
            filter_criteria=mapping.FilterCriteriaProperty(
                filters=[mapping.FilterProperty(pattern=_QUEUED_ROWS)]
            ),
        ).node.add_dependency(self.dispatch)

    def _connect(self) -> None:
        driven, settings = self._driven, self._settings
        events.Rule(
            self,
            "Requested",
            description="An app asks for an onboarding.",
            event_bus=self.bus,
            # An input that lacks a field would die at the state that reads it.
            event_pattern=events.EventPattern(
                source=[SOURCE],
                detail_type=[REQUESTED_EVENT],
                detail={name: events.Match.exists() for name in _READ_FIELDS},
            ),
            targets=[
                targets.SfnStateMachine(
                    driven.machine,
                    input=events.RuleTargetInput.from_event_path("$.detail"),
                    dead_letter_queue=self._dead_letters,
                    retry_attempts=DELIVERY_RETRIES,
                    max_event_age=Duration.seconds(EVENT_AGE_S),
                )
            ],
        )
        machines = (driven.machine, driven.batch_machine, driven.worker_machine)
        self._on_end(
            "Ended",
            "Frees the place of an execution that has ended.",
            machines,
            ENDED,
            self.dispatch,
        )
        self._on_end(
            "OnboardDied",
            "Ends the request of an onboarding that was stopped, timed out or failed.",
            (driven.machine,),
            DIED,
            driven.record_failure,
        )
        self._on_end(
            "Died",
            "Looks after the requests of a dead batch, and after jobs that outlive an execution.",
            machines,
            DIED,
            self.reconcile,
        )
        self._every(settings.dispatch_minutes, "DispatchSchedule", self.dispatch)
        self._every(settings.reconcile_minutes, "ReconcileSchedule", self.reconcile)

    def _on_end(
        self,
        construct_id: str,
        description: str,
        machines: Sequence[sfn.IStateMachine],
        statuses: Sequence[str],
        function: lambda_.IFunction,
    ) -> None:
        events.Rule(
            self,
            construct_id,
            description=description,
            event_pattern=events.EventPattern(
                source=["aws.states"],
                detail_type=["Step Functions Execution Status Change"],
                detail={
                    "stateMachineArn": [machine.state_machine_arn for machine in machines],
                    "status": list(statuses),
                },
            ),
            targets=[self._call(function)],
        )

    def _every(self, minutes: int, construct_id: str, function: lambda_.IFunction) -> None:
        events.Rule(
            self,
            construct_id,
            description="Makes up for events that were lost.",
            schedule=events.Schedule.rate(Duration.minutes(minutes)),
            targets=[self._call(function)],
        )

    def _call(self, function: lambda_.IFunction) -> targets.LambdaFunction:
        return targets.LambdaFunction(
            function,
            dead_letter_queue=self._dead_letters,
            retry_attempts=DELIVERY_RETRIES,
            max_event_age=Duration.seconds(EVENT_AGE_S),
        )


# Rows that have come into the queue, or back into it. The gate's own row, progress and endings
# have no attribute `queue` and wake nobody.
_QUEUED_ROWS: Final = (
    '{"eventName":["INSERT","MODIFY"],"dynamodb":{"NewImage":{"queue":{"S":[{"exists":true}]}}}}'
)
