"""A model that loads slowly: the call gives up, the loading goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from limner.local.errors import ServiceError
from limner.local.objects import Location, Objects
from limner.local.sagemaker.hosting import InferenceContainer
from limner.local.sagemaker.multimodel import MultiModelInstance
from limner.local.settings import plain_environment
from tests.support.laptop import until
from tests.workflows.test_laptop_endpoint import artifact


class OneArtifact(Objects):
    """An S3 with one artifact at every key."""

    def __init__(self, body: bytes) -> None:
        super().__init__("http://127.0.0.1:1")
        self.body = body

    @property
    def client(self) -> Any:  # type: ignore[override]
        import io
        from types import SimpleNamespace

        return SimpleNamespace(get_object=lambda **_: {"Body": io.BytesIO(self.body)})


def test_model_not_ready_while_it_loads(tmp_path: Path) -> None:
    program = Path(__file__).parents[2] / "support" / "endpoint.py"
    environment = {**plain_environment(), "LIMNER_BIND_HOST": "127.0.0.1"}
    container = InferenceContainer([sys.executable, str(program)], environment, tmp_path / "log")
    instance = MultiModelInstance(
        "ep",
        Location("b", "models/"),
        OneArtifact(artifact(load_s=1.0)),
        container,
        tmp_path / "models",
        answer_within_s=0.1,
    )
    try:
        container.ensure_running()
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
    finally:
        container.stop()


@pytest.mark.parametrize("target", ["", "a/../b", "/a", "a/", "ä", "a\nb", "x" * 1025])
def test_targets_are_checked_before_anything_else(target: str) -> None:
    from limner.local.sagemaker.multimodel import check_target

    with pytest.raises(ServiceError, match="TargetModel"):
        check_target(target)
