"""The stack: parameters in, constructs wired, outputs out."""

from __future__ import annotations

from aws_cdk import CfnOutput, CfnParameter, DefaultStackSynthesizer, Stack
from constructs import Construct

from infra import bundle
from infra.data import Data
from infra.functions import Functions
from infra.parts import Store
from infra.serving import Serving
from infra.settings import StageSettings
from infra.training import Training
from infra.workflow import TrainingImage, Workflow


class LimnerStack(Stack):
    """One stage of Limner."""

    def __init__(self, scope: Construct, settings: StageSettings) -> None:
        super().__init__(
            scope,
            settings.stack_name,
            description=f"Limner, stage {settings.stage}: a personal model for every user.",
            # Without assets there is nothing that a bootstrap would have to provide.
            synthesizer=DefaultStackSynthesizer(
                generate_bootstrap_version_rule=not settings.is_local
            ),
        )
        training_image = self._parameter(
            "TrainingImage", "Image of the training program.", settings.training_image
        )
        inference_image = self._parameter(
            "InferenceImage", "Image of the endpoint's container.", settings.inference_image
        )
        instance_type = self._parameter(
            "TrainingInstanceType",
            "The machine that a training job runs on.",
            settings.training_instance_type,
        )
        base_id = self._parameter("BaseId", "The frozen base under all adapters.", settings.base_id)

        data = Data(self, "Data", settings)
        training = Training(self, "Training", settings, data.bucket)
        serving = Serving(self, "Serving", settings, data.bucket, inference_image)
        workflow = Workflow(
            self,
            "Workflow",
            settings,
            data=Store(data.bucket, data.models, data.requests),
            training=training,
            endpoint=serving.endpoint,
            functions=Functions(
                settings,
                bundle.from_parameters(self) if settings.is_local else bundle.from_source(),
            ),
            training_image=TrainingImage(training_image, instance_type),
            base_id=base_id,
        )
        self.resources_of_machine = {
            "BucketName": data.bucket.bucket_name,
            "ModelsTableName": data.models.table_name,
            "RequestsTableName": data.requests.table_name,
            "TopicArn": workflow.topic.topic_arn,
            "SmokeTestArn": workflow.smoke_test.function_arn,
            "RecordFailureArn": workflow.record_failure.function_arn,
            "TrainingRoleArn": training.jobs.role.role_arn,
            "TrainingImage": training_image,
            "TrainingInstanceType": instance_type,
            "BaseId": base_id,
        }
        """Each placeholder of the published machine, and what stands for it in this stack."""
        self.machine = workflow.machine
        outputs = Construct(self, "Outputs")
        for name, value in {
            "BucketName": data.bucket.bucket_name,
            "ModelsTableName": data.models.table_name,
            "RequestsTableName": data.requests.table_name,
            "OnboardMachineArn": workflow.machine.state_machine_arn,
            "EndpointName": serving.endpoint.name,
            "TopicArn": workflow.topic.topic_arn,
            "BaseId": base_id,
        }.items():
            CfnOutput(outputs, name, value=value).override_logical_id(name)

    def _parameter(self, name: str, description: str, default: str) -> str:
        parameter = CfnParameter(self, name, description=description, default=default or None)
        return parameter.value_as_string
