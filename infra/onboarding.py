"""Everything between "onboard this user" and "the user's model serves". A construct for any app."""

from __future__ import annotations

from aws_cdk import Duration
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from infra import bundle
from infra.access import Doors
from infra.functions import Functions
from infra.machines import Machines
from infra.observability import Observability, Watched
from infra.operators import Operators
from infra.parts import EndpointRef, Store
from infra.platform import Platform
from infra.settings import StageSettings
from infra.telemetry import Telemetry
from infra.training import Training
from infra.triggers import Driven, Triggers
from infra.workflow import TrainingImage, Workflow


class OnboardingWorkflow(Construct):
    """The machines with their jobs, functions, triggers, alarms and dashboard.

    Bring your own bucket, tables and endpoint; the tables need the keys and indexes of
    ``infra.data``. A bucket of another stack or account keeps its policy: the rights on it then
    lie with the roles (``infra.access``). Without a stream on the requests table, ``dispatch``
    runs by its schedule alone.

    Attributes:
        training: Role and rights of training jobs.
        workflow: The machines, their functions, and the topic of notifications.
        triggers: Bus, rules, schedules, and the functions behind them.
        dead_letters: What could not be delivered, or handled after all repetitions.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: StageSettings,
        *,
        store: Store,
        endpoint: EndpointRef,
        training_image: TrainingImage,
        base_id: str,
        code: lambda_.Code | None = None,
        platform: Platform | None = None,
        key: kms.IKey | None = None,
    ) -> None:
        """Makes it all.

        Args:
            scope: The construct that owns it.
            construct_id: Its id there.
            settings: The stage.
            store: Bucket and tables.
            endpoint: The endpoint that the models are for.
            training_image: The training program and its machines.
            base_id: The frozen base under all adapters.
            code: The functions' code; this repository's own if absent.
            platform: The rights of SageMaker's machines, if the stack has them already.
            key: What encrypts topics, queues and logs; AWS's keys if absent.
        """
        super().__init__(scope, construct_id)
        doors = Doors(self, store.bucket)
        telemetry = Telemetry(self, "Telemetry", key)
        self.training = Training(
            self,
            "Training",
            platform=platform or Platform(self, "Platform", settings, [training_image.image]),
            doors=doors,
            store=store,
        )
        self.dead_letters = sqs.Queue(
            self,
            "DeadLetters",
            encryption=sqs.QueueEncryption.KMS if key else sqs.QueueEncryption.SQS_MANAGED,
            encryption_master_key=key,
            enforce_ssl=True,
            retention_period=Duration.days(14),
        )
        functions = Functions(code or bundle.from_source(), telemetry, doors, self.dead_letters)
        self.workflow = Workflow(
            self,
            "Workflow",
            settings,
            store=store,
            training=self.training,
            endpoint=endpoint,
            functions=functions,
            machines=Machines(settings, telemetry, self.training.run, doors),
            training_image=training_image,
            base_id=base_id,
            key=key,
        )
        workflow = self.workflow
        self.triggers = Triggers(
            self,
            "Triggers",
            settings,
            store=store,
            functions=functions,
            driven=Driven(
                machine=workflow.onboard.machine,
                batch_machine=workflow.batch.machine,
                worker_machine=workflow.worker.machine,
                record_failure=workflow.record_failure,
                topic=workflow.topic,
            ),
        )
        triggers = self.triggers
        Observability(
            self,
            "Observability",
            settings,
            Watched(
                machines={
                    "onboard": workflow.onboard.machine,
                    "onboard_batch": workflow.batch.machine,
                    "worker": workflow.worker.machine,
                },
                machine_logs={
                    "onboard": workflow.onboard.log,
                    "onboard_batch": workflow.batch.log,
                    "worker": workflow.worker.log,
                },
                functions=functions.made,
                stream_reader=triggers.dispatch,
                dead_letters=self.dead_letters,
                endpoint=endpoint,
            ),
            Operators(self, "Operators", settings, key).topic,
        )
