"""The stack: parameters in, constructs wired, outputs out."""

from __future__ import annotations

from aws_cdk import Aws, CfnOutput, CfnParameter, DefaultStackSynthesizer, Stack
from constructs import Construct

from infra import bundle
from infra.data import Data
from infra.encryption import Encryption
from infra.onboarding import OnboardingWorkflow
from infra.platform import Platform
from infra.serving import PersonalModelEndpoint
from infra.settings import StageSettings
from infra.workflow import TrainingImage
from workflows import onboard, onboard_batch, worker


class LimnerStack(Stack):
    """One stage of Limner."""

    def __init__(self, scope: Construct, settings: StageSettings) -> None:
        super().__init__(
            scope,
            settings.stack_name,
            description=f"Limner, stage {settings.stage}: a personal model for every user.",
            termination_protection=not settings.is_local,
            tags={} if settings.is_local else {"limner:stage": settings.stage},
            # Without assets there is nothing that a bootstrap would have to provide.
            synthesizer=DefaultStackSynthesizer(
                generate_bootstrap_version_rule=not settings.is_local
            ),
        )
        training = TrainingImage(
            self._parameter(
                "TrainingImage", "Image of the training program.", settings.training_image
            ),
            self._parameter(
                "TrainingInstanceTypes",
                "The machines that a training job may run on, one a try, separated by commas.",
                ",".join(settings.training_instance_types),
            ),
        )
        inference_image = self._parameter(
            "InferenceImage", "Image of the endpoint's container.", settings.inference_image
        )
        base_id = self._parameter("BaseId", "The frozen base under all adapters.", settings.base_id)

        key = Encryption(self, "Encryption").key if settings.has_key else None
        data = Data(self, "Data", settings, key)
        images = (settings.training_image, settings.inference_image)
        platform = Platform(self, "Platform", settings, images)
        serving = PersonalModelEndpoint(
            self,
            "Serving",
            settings,
            bucket=data.bucket,
            image=inference_image,
            platform=platform,
        )
        self.onboarding = OnboardingWorkflow(
            self,
            "Onboarding",
            settings,
            store=data.store,
            endpoint=serving.endpoint,
            training_image=training,
            base_id=base_id,
            code=bundle.from_parameters(self) if settings.is_local else bundle.from_source(),
            platform=platform,
            key=key,
        )
        workflow, triggers = self.onboarding.workflow, self.onboarding.triggers
        self.resources_of_machine = {
            "BucketName": data.bucket.bucket_name,
            "ModelsTableName": data.models.table_name,
            "RequestsTableName": data.requests.table_name,
            "TopicArn": workflow.topic.topic_arn,
            "TrainingRoleArn": self.onboarding.training.jobs.role.role_arn,
            "WorkerRoleArn": self.onboarding.training.workers.role.role_arn,
            "TrainingImage": training.image,
            "TrainingInstanceTypes": training.instance_types,
            "BaseId": base_id,
            "Region": Aws.REGION,
            **{name: function.function_arn for name, function in workflow.functions_by_arn.items()},
        }
        """Each placeholder of the published machines, and what stands for it in this stack."""
        self.machines = {
            onboard.NAME: workflow.onboard.machine,
            onboard_batch.NAME: workflow.batch.machine,
            worker.NAME: workflow.worker.machine,
        }
        """The machines by the name that they are published under."""
        outputs = Construct(self, "Outputs")
        for name, value in {
            "BucketName": data.bucket.bucket_name,
            "ModelsTableName": data.models.table_name,
            "RequestsTableName": data.requests.table_name,
            "OnboardMachineArn": workflow.onboard.machine.state_machine_arn,
            "OnboardBatchMachineArn": workflow.batch.machine.state_machine_arn,
            "WorkerMachineArn": workflow.worker.machine.state_machine_arn,
            "EndpointName": serving.endpoint.name,
            "EndpointArn": serving.endpoint.arn,
            "TopicArn": workflow.topic.topic_arn,
            "BaseId": base_id,
            "BusName": triggers.bus.event_bus_name,
            "RegisterFunctionName": triggers.register.function_name,
            "DispatchFunctionName": triggers.dispatch.function_name,
            "ReconcileFunctionName": triggers.reconcile.function_name,
            "FailedEventsQueueUrl": self.onboarding.dead_letters.queue_url,
        }.items():
            CfnOutput(outputs, name, value=value).override_logical_id(name)

    def _parameter(self, name: str, description: str, default: str) -> str:
        parameter = CfnParameter(self, name, description=description, default=default or None)
        return parameter.value_as_string
