"""The multi-model endpoint: the platform's half, against a real container process."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from limner.contracts.artifact import MEMBERS
from limner.contracts.generation import MAX_BODY_BYTES
from tests.support.laptop import ROLE, TEST_INFERENCE, TestLaptop, until

BUCKET = "laptop-endpoint"


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def artifact(**manifest: Any) -> bytes:
    content = dict.fromkeys(MEMBERS, b"x")
    content["manifest.json"] = json.dumps(manifest).encode()
    return archive(content)


class Endpoint:
    """One endpoint and its models."""

    def __init__(self, laptop: TestLaptop, **environment: str) -> None:
        self.laptop = laptop
        self.name = f"ep-{uuid.uuid4().hex[:8]}"
        sagemaker = laptop.sagemaker
        laptop.s3.create_bucket(Bucket=BUCKET)
        self.prefix = f"{self.name}/models/"
        sagemaker.create_model(
            ModelName=self.name,
            ExecutionRoleArn=ROLE,
            PrimaryContainer={
                "Image": TEST_INFERENCE,
                "Mode": "MultiModel",
                "ModelDataUrl": f"s3://{BUCKET}/{self.prefix}",
                "Environment": environment,
            },
        )
        variant = {
            "VariantName": "Everybody",
            "ModelName": self.name,
            "InstanceType": "ml.g5.xlarge",
            "InitialInstanceCount": 1,
        }
        sagemaker.create_endpoint_config(EndpointConfigName=self.name, ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName=self.name, EndpointConfigName=self.name)

    def put(self, target: str, body: bytes) -> str:
        self.laptop.s3.put_object(Bucket=BUCKET, Key=self.prefix + target, Body=body)
        return target

    def model(self, user: str, **manifest: Any) -> str:
        return self.put(f"{user}/default/v1.tar.gz", artifact(user=user, **manifest))

    def invoke(self, target: str, body: bytes = b"{}", **request: Any) -> dict[str, Any]:
        reply = self.laptop.runtime.invoke_endpoint(
            EndpointName=self.name,
            TargetModel=target,
            ContentType="application/json",
            Body=json.dumps(request) if request else body,
        )
        assert reply["ContentType"] == "application/json"
        assert reply["InvokedProductionVariant"] == "Everybody"
        answer: dict[str, Any] = json.loads(reply["Body"].read())
        return answer

    def status(self) -> str:
        found = self.laptop.sagemaker.describe_endpoint(EndpointName=self.name)
        return str(found["EndpointStatus"])

    def delete(self) -> None:
        self.laptop.sagemaker.delete_endpoint(EndpointName=self.name)
        self.laptop.sagemaker.delete_endpoint_config(EndpointConfigName=self.name)
        self.laptop.sagemaker.delete_model(ModelName=self.name)


@pytest.fixture
def endpoint(laptop: TestLaptop) -> Iterator[Endpoint]:
    made = Endpoint(laptop)
    yield made
    made.delete()


def code_of(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    response = error.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def test_creating_becomes_in_service(endpoint: Endpoint) -> None:
    until(endpoint.status, lambda status: status == "InService")


def test_the_first_call_loads_and_the_next_finds_it_loaded(endpoint: Endpoint) -> None:
    target = endpoint.model("alice")
    first, second = endpoint.invoke(target), endpoint.invoke(target)
    assert first["manifest"] == {"user": "alice"}
    assert first["target"] == target
    assert first["multi"] == "true"
    # An opaque name, not the TargetModel, and one load.
    assert "alice" not in first["model_name"]
    assert (first["loads"], second["loads"]) == (1, 1)


def test_a_full_memory_evicts_the_least_recently_used(endpoint: Endpoint) -> None:
    alice, bob, carol = (endpoint.model(user) for user in ("alice", "bob", "carol"))
    for target in (alice, bob, alice, carol):  # room for two
        endpoint.invoke(target)
    after = endpoint.invoke(alice)
    assert (after["loads"], after["unloads"]) == (3, 1)
    assert endpoint.invoke(bob)["loads"] == 4


def test_many_models_in_turn_all_answer(endpoint: Endpoint) -> None:
    targets = [endpoint.model(f"user{i}") for i in range(6)]
    for index, target in enumerate(targets * 2):
        assert endpoint.invoke(target)["manifest"]["user"] == f"user{index % 6}"


def test_a_newcomer_waits_until_somebody_is_idle(endpoint: Endpoint) -> None:
    targets = [endpoint.model(f"user{i}") for i in range(6)]
    answers: list[str] = []

    def call(target: str) -> None:
        answers.append(endpoint.invoke(target, sleep_s=0.2)["manifest"]["user"])

    threads = [threading.Thread(target=call, args=(target,)) for target in targets]  # room for two
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [f"user{i}" for i in range(6)]


def test_507_at_an_invocation_unloads_others_and_tries_again(endpoint: Endpoint) -> None:
    alice, bob = endpoint.model("alice"), endpoint.model("bob")
    endpoint.invoke(alice)
    assert endpoint.invoke(bob, oom=True)["unloads"] == 1


def test_507_with_nothing_to_unload_is_a_model_error(endpoint: Endpoint) -> None:
    with pytest.raises(ClientError) as error:
        endpoint.invoke(endpoint.model("alice"), oom=True)
    assert code_of(error) == ("ModelError", 424)
    assert error.value.response["OriginalStatusCode"] == 507  # type: ignore[typeddict-item]


def test_concurrent_calls_of_a_new_model_load_it_once(endpoint: Endpoint) -> None:
    target = endpoint.model("alice", load_s=0.3)
    answers: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(endpoint.invoke(target))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer["loads"] for answer in answers] == [1] * 6


def test_a_long_invocation_does_not_block_the_laptop(endpoint: Endpoint) -> None:
    target = endpoint.model("alice")
    endpoint.invoke(target)
    slow = threading.Thread(target=lambda: endpoint.invoke(target, sleep_s=6))
    slow.start()
    endpoint.laptop.s3.list_buckets()
    endpoint.laptop.control.health()
    assert slow.is_alive()
    slow.join()


def test_the_stale_key_trap_of_aws(endpoint: Endpoint) -> None:
    """An overwritten artifact keeps being served: from memory, and after an eviction from disk.

    Developer guide: "do not overwrite"; it is why Limner's keys are immutable.
    """
    target = endpoint.put("alice/default/v1.tar.gz", artifact(version="old"))
    endpoint.invoke(target)
    endpoint.put(target, artifact(version="new"))
    assert endpoint.invoke(target)["manifest"] == {"version": "old"}
    for user in ("bob", "carol"):  # alice is evicted
        endpoint.invoke(endpoint.model(user))
    again = endpoint.invoke(target)
    assert again["loads"] == 4
    assert again["manifest"] == {"version": "old"}
    assert endpoint.invoke(endpoint.put("alice/default/v2.tar.gz", artifact(version="new")))[
        "manifest"
    ] == {"version": "new"}


@pytest.mark.parametrize("target", ["../secret.tar.gz", "/etc/passwd", "a//b", "a/./b", "a\\b"])
def test_targets_that_are_no_paths_are_refused(endpoint: Endpoint, target: str) -> None:
    with pytest.raises(ClientError) as error:
        endpoint.invoke(target)
    assert code_of(error) == ("ValidationError", 400)


def test_a_missing_artifact(endpoint: Endpoint) -> None:
    with pytest.raises(ClientError, match="Failed to download model data") as error:
        endpoint.invoke("nobody/default/v1.tar.gz")
    assert code_of(error) == ("ValidationError", 400)
    # Once it is there, it is found.
    assert endpoint.invoke(endpoint.model("nobody"))["loads"] == 1


def test_a_body_that_is_too_large(endpoint: Endpoint) -> None:
    with pytest.raises(ClientError, match="must not exceed") as error:
        endpoint.invoke(endpoint.model("alice"), body=b"x" * (MAX_BODY_BYTES + 1))
    assert code_of(error) == ("ValidationError", 400)


@pytest.mark.parametrize("status", [400, 500, 503])
def test_the_containers_errors_are_model_errors(endpoint: Endpoint, status: int) -> None:
    with pytest.raises(ClientError, match=f"error \\({status}\\) from primary") as error:
        endpoint.invoke(endpoint.model("alice"), status=status)
    assert code_of(error) == ("ModelError", 424)
    response: Any = error.value.response
    assert response["OriginalStatusCode"] == status
    assert json.loads(response["OriginalMessage"])["error"]["message"] == "on demand"


def test_a_model_that_does_not_load_is_a_model_error(endpoint: Endpoint) -> None:
    with pytest.raises(ClientError, match="wrong rank") as error:
        endpoint.invoke(endpoint.model("alice", refuse="wrong rank"))
    assert code_of(error) == ("ModelError", 424)


@pytest.mark.parametrize(
    "body",
    [
        b"not an archive",
        archive({"manifest.json": b"{}"}),
        archive({**dict.fromkeys(MEMBERS, b"x"), "../evil.py": b"x"}),
        archive({**dict.fromkeys(MEMBERS, b"x"), "extra.bin": b"x"}),
        artifact()[:-20],
    ],
    ids=["noise", "incomplete", "escape", "extra", "truncated"],
)
def test_unsound_artifacts_are_refused(endpoint: Endpoint, body: bytes) -> None:
    with pytest.raises(ClientError, match="ARTIFACT_INVALID") as error:
        endpoint.invoke(endpoint.put("eve/default/v1.tar.gz", body))
    assert code_of(error) == ("ModelError", 424)


def test_a_crashed_container_is_started_again(endpoint: Endpoint) -> None:
    target = endpoint.model("alice")
    before = endpoint.invoke(target)["pid"]
    with pytest.raises(ClientError) as error:
        endpoint.invoke(target, exit=True)
    assert code_of(error) == ("ModelError", 424)
    after = endpoint.invoke(target)
    assert after["pid"] != before
    assert after["loads"] == 1


def test_who_does_not_exist_or_has_no_target(endpoint: Endpoint) -> None:
    runtime = endpoint.laptop.runtime
    with pytest.raises(ClientError, match="not found") as error:
        runtime.invoke_endpoint(EndpointName="absent", TargetModel="a", Body=b"{}")
    assert code_of(error) == ("ValidationError", 400)
    with pytest.raises(ClientError, match="TargetModel is required"):
        runtime.invoke_endpoint(EndpointName=endpoint.name, Body=b"{}")


def test_a_container_that_does_not_start_fails_the_endpoint(laptop: TestLaptop) -> None:
    import sys

    laptop.control.register_image("broken:test", [sys.executable, "-c", "raise SystemExit(4)"])
    sagemaker = laptop.sagemaker
    name = f"broken-{uuid.uuid4().hex[:8]}"
    container = {"Image": "broken:test", "Mode": "MultiModel", "ModelDataUrl": "s3://b/models/"}
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container)
    variant = {"VariantName": "v", "ModelName": name, "InstanceType": "ml.g5.xlarge"}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    failed = until(
        lambda: sagemaker.describe_endpoint(EndpointName=name),
        lambda found: found["EndpointStatus"] == "Failed",
    )
    assert "ping" in failed["FailureReason"]


def test_one_variant_an_endpoint(endpoint: Endpoint) -> None:
    variants = [
        {"VariantName": name, "ModelName": endpoint.name, "InstanceType": "ml.g5.xlarge"}
        for name in ("a", "b")
    ]
    with pytest.raises(ClientError, match="one variant"):
        endpoint.laptop.sagemaker.create_endpoint_config(
            EndpointConfigName="two", ProductionVariants=variants
        )


def test_the_disk_goes_with_the_endpoint(laptop: TestLaptop) -> None:
    endpoint = Endpoint(laptop)
    endpoint.invoke(endpoint.model("alice"))
    folder = laptop.laptop.project / ".limner" / "endpoints" / endpoint.name
    assert list(folder.rglob("manifest.json"))
    endpoint.delete()
    assert not list(folder.rglob("manifest.json"))


def test_cloudformation_makes_and_deletes_an_endpoint(laptop: TestLaptop) -> None:
    template = {
        "Resources": {
            "M": {
                "Type": "AWS::SageMaker::Model",
                "Properties": {
                    "ExecutionRoleArn": ROLE,
                    "PrimaryContainer": {
                        "Image": TEST_INFERENCE,
                        "Mode": "MultiModel",
                        "ModelDataUrl": f"s3://{BUCKET}/cfn/",
                    },
                },
            },
            "C": {
                "Type": "AWS::SageMaker::EndpointConfig",
                "Properties": {
                    "ProductionVariants": [
                        {
                            "VariantName": "v",
                            "ModelName": {"Fn::GetAtt": ["M", "ModelName"]},
                            "InstanceType": "ml.g5.xlarge",
                            "InitialInstanceCount": "1",
                            "InitialVariantWeight": 1,
                        }
                    ]
                },
            },
            "E": {
                "Type": "AWS::SageMaker::Endpoint",
                "Properties": {
                    "EndpointConfigName": {"Fn::GetAtt": ["C", "EndpointConfigName"]},
                    "RetainAllVariantProperties": True,
                },
            },
        },
        "Outputs": {
            "Name": {"Value": {"Fn::GetAtt": ["E", "EndpointName"]}},
            "Ref": {"Value": {"Ref": "E"}},
        },
    }
    client = laptop.client("cloudformation")
    stack = f"ep-{uuid.uuid4().hex[:6]}"
    client.create_stack(StackName=stack, TemplateBody=json.dumps(template))

    def look() -> dict[str, Any]:
        found: dict[str, Any] = client.describe_stacks(StackName=stack)["Stacks"][0]
        return found

    found = until(look, lambda it: not it["StackStatus"].endswith("PROGRESS"))
    outputs = {item["OutputKey"]: item["OutputValue"] for item in found["Outputs"]}
    name = outputs["Name"]
    described = laptop.sagemaker.describe_endpoint(EndpointName=name)
    assert outputs["Ref"] == described["EndpointArn"]
    client.delete_stack(StackName=stack)
    until(
        lambda: laptop.sagemaker.list_endpoints()["Endpoints"],
        lambda items: name not in [item["EndpointName"] for item in items],
    )
