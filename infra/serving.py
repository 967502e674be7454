"""The multi-model endpoint: one base, everyone's adapters. A construct for any CDK app."""

from __future__ import annotations

from typing import Final

from aws_cdk import aws_applicationautoscaling as autoscaling
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from infra.access import Doors, Objects
from infra.parts import EndpointRef
from infra.platform import Platform
from infra.settings import StageSettings
from limner.contracts import keys

VARIANT: Final = "AllTraffic"
# A machine is worth its start for several minutes; taking one away forgets its warm models.
_OUT_AGAIN_S: Final = 120
_IN_AGAIN_S: Final = 900


class PersonalModelEndpoint(Construct):
    """Model, endpoint configuration, endpoint, autoscaling, and the role that reads ``models/``.

    Where the endpoint captures, the role writes ``generations/``.

    Attributes:
        endpoint: What others need to know of it.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: StageSettings,
        *,
        bucket: s3.IBucket,
        image: str,
        platform: Platform | None = None,
    ) -> None:
        """Makes the endpoint.

        Args:
            scope: The construct that owns it.
            construct_id: Its id there.
            settings: The stage.
            bucket: The bucket with the prefix ``models/``.
            image: The endpoint's container image.
            platform: The rights of SageMaker's machines, if the stack has them already.
        """
        super().__init__(scope, construct_id)
        platform = platform or Platform(self, "Platform", settings, [image])
        doors = Doors(self, bucket)
        role = iam.Role(
            self,
            "Role",
            assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"),
            managed_policies=[platform.policy],
        )
        captures = settings.capture == "endpoint"
        doors.open(
            role,
            "Serving",
            Objects(reads=(keys.MODELS,), writes=(keys.GENERATIONS,) if captures else ()),
        )
        environment = dict(settings.endpoint_environment)
        if captures:
            environment["LIMNER_CAPTURE_BUCKET"] = bucket.bucket_name
        model = sagemaker.CfnModel(
            self,
            "Model",
            execution_role_arn=role.role_arn,
            primary_container=sagemaker.CfnModel.ContainerDefinitionProperty(
                image=image,
                environment=environment or None,
                mode="MultiModel",
                # TargetModel is the key behind this prefix.
                model_data_url=f"s3://{bucket.bucket_name}/{keys.MODELS}/",
                multi_model_config=sagemaker.CfnModel.MultiModelConfigProperty(
                    model_cache_setting="Enabled"
                ),
            ),
        )
        # The role's rights must exist before SageMaker looks at the prefix.
        model.node.add_dependency(role, *doors.opened)
        config = sagemaker.CfnEndpointConfig(
            self,
            "Config",
            production_variants=[
                sagemaker.CfnEndpointConfig.ProductionVariantProperty(
                    variant_name=VARIANT,
                    model_name=model.attr_model_name,
                    initial_instance_count=settings.endpoint_instances,
                    initial_variant_weight=1,
                    instance_type=settings.endpoint_instance_type,
                )
            ],
        )
        endpoint = sagemaker.CfnEndpoint(
            self,
            "Endpoint",
            endpoint_config_name=config.attr_endpoint_config_name,
            # An update must not take back the machines that autoscaling has added.
            retain_all_variant_properties=True,
        )
        self.endpoint = EndpointRef.of(endpoint)
        if settings.endpoint_max_instances > settings.endpoint_instances:
            self._scale(settings)

    def _scale(self, settings: StageSettings) -> None:
        """More machines for more invocations; the metric that AWS recommends for these endpoints.

        No role is named: Application Auto Scaling has a service-linked one for endpoints.
        """
        target = autoscaling.CfnScalableTarget(
            self,
            "Machines",
            service_namespace="sagemaker",
            scalable_dimension="sagemaker:variant:DesiredInstanceCount",
            resource_id=f"endpoint/{self.endpoint.name}/variant/{VARIANT}",
            min_capacity=settings.endpoint_instances,
            max_capacity=settings.endpoint_max_instances,
        )
        configuration = autoscaling.CfnScalingPolicy
        configuration(
            self,
            "Invocations",
            policy_name="invocations-per-instance",
            policy_type="TargetTrackingScaling",
            scaling_target_id=target.ref,
            target_tracking_scaling_policy_configuration=(
                configuration.TargetTrackingScalingPolicyConfigurationProperty(
                    target_value=settings.endpoint_invocations_per_instance,
                    scale_out_cooldown=_OUT_AGAIN_S,
                    scale_in_cooldown=_IN_AGAIN_S,
                    predefined_metric_specification=(
                        configuration.PredefinedMetricSpecificationProperty(
                            predefined_metric_type="SageMakerVariantInvocationsPerInstance"
                        )
                    ),
                )
            ),
        )
