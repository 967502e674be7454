"""The multi-model endpoint: one base, everyone's adapters."""

from __future__ import annotations

from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from infra import platform
from infra.parts import EndpointRef
from infra.settings import StageSettings
from limner.contracts import keys

VARIANT = "AllTraffic"


class Serving(Construct):
    """Model, endpoint configuration and endpoint, and the role that reads ``models/``."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: StageSettings,
        bucket: s3.IBucket,
        image: str,
    ) -> None:
        super().__init__(scope, construct_id)
        role = iam.Role(self, "Role", assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"))
        for statement in (
            iam.PolicyStatement(
                actions=["s3:ListBucket"],
                resources=[bucket.bucket_arn],
                conditions={"StringLike": {"s3:prefix": [f"{keys.MODELS}/*"]}},
            ),
            iam.PolicyStatement(
                actions=["s3:GetObject"],
                resources=[bucket.arn_for_objects(f"{keys.MODELS}/*")],
            ),
            *platform.statements("/aws/sagemaker/Endpoints/*", settings.image_repositories),
        ):
            role.add_to_policy(statement)
        model = sagemaker.CfnModel(
            self,
            "Model",
            execution_role_arn=role.role_arn,
            primary_container=sagemaker.CfnModel.ContainerDefinitionProperty(
                image=image,
                mode="MultiModel",
                # TargetModel is the key behind this prefix.
                model_data_url=f"s3://{bucket.bucket_name}/{keys.MODELS}/",
                multi_model_config=sagemaker.CfnModel.MultiModelConfigProperty(
                    model_cache_setting="Enabled"
                ),
            ),
        )
        # The role's rights must exist before SageMaker looks at the prefix.
        model.node.add_dependency(role)
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
            self, "Endpoint", endpoint_config_name=config.attr_endpoint_config_name
        )
        self.endpoint = EndpointRef(endpoint.attr_endpoint_name)
