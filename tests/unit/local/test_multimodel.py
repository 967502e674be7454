"""One instance: slow models, names that lead nowhere, and a stop for good."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from limner.local.errors import ServiceError
from limner.local.objects import Location, Objects
from limner.local.sagemaker.hosting import ContainerDownError, InferenceContainer
from limner.local.sagemaker.multimodel import MultiModelInstance, check_target
from limner.local.settings import plain_environment
from tests.support.laptop import until
from tests.workflows.test_laptop_endpoint import artifact


class OneArtifact(Objects):
    """An S3 with one artifact at every key."""

    def __init__(self, body: bytes) -> None:
        super().__init__("http://127.0.0.1:1")
        self.body = body
        self.asked: list[str] = []

    @property
    def client(self) -> Any:  # type: ignore[override]
        def get_object(Key: str, **_: str) -> dict[str, Any]:  # noqa: N803  # boto3's name
            self.asked.append(Key)
            return {"Body": io.BytesIO(self.body)}

        return SimpleNamespace(get_object=get_object)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[InferenceContainer]:
    program = Path(__file__).parents[2] / "support" / "endpoint.py"
    environment = {**plain_environment(), "LIMNER_BIND_HOST": "127.0.0.1"}
    made = InferenceContainer([sys.executable, str(program)], environment, tmp_path / "log")
    made.ensure_running()
    yield made
    made.stop()


def test_model_not_ready_while_it_loads(tmp_path: Path, container: InferenceContainer) -> None:
    instance = MultiModelInstance(
        "ep",
        Location("b", "models/"),
        OneArtifact(artifact(load_s=3.0)),
        container,
        tmp_path / "models",
        answer_within_s=0.1,
    )
    refused = []

    def invoke() -> int:
        try:
            return instance.invoke("a/v1.tar.gz", b"{}", "application/json", "*/*").status
        except ServiceError as error:
            refused.append((error.code, error.status))
            return error.status

    assert invoke() == 429
    assert until(invoke, lambda status: status == 200) == 200
    assert set(refused) == {("ModelNotReadyException", 429)}
    answer = instance.invoke("a/v1.tar.gz", b"{}", "application/json", "*/*")
    assert b'"loads": 1' in answer.body


def test_names_that_lead_nowhere_do_not_pile_up(
    tmp_path: Path, container: InferenceContainer
) -> None:
    prefix, objects = Location("b", "models"), OneArtifact(b"noise")
    instance = MultiModelInstance("ep", prefix, objects, container, tmp_path / "models")
    for index in range(3):
        with pytest.raises(ServiceError, match="ARTIFACT_INVALID"):
            instance.invoke(f"user{index}/v1.tar.gz", b"{}", "application/json", "*/*")
    assert instance._models == {}
    # Without a slash at its end, ModelDataUrl is still a folder.
    assert objects.asked == [f"models/user{index}/v1.tar.gz" for index in range(3)]


def test_a_stop_also_ends_what_starts_behind_it(tmp_path: Path) -> None:
    container = InferenceContainer([sys.executable, "-c", "input()"], {}, tmp_path / "log")
    container.stop()
    with pytest.raises(ContainerDownError, match="was stopped"):
        container.ensure_running()
    assert not container.is_running()


@pytest.mark.parametrize("target", ["", "a/../b", "/a", "a/", "ä", "a\nb", "x" * 1025])
def test_targets_are_checked_before_anything_else(target: str) -> None:
    with pytest.raises(ServiceError, match="TargetModel"):
        check_target(target)
