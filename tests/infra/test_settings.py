"""Settings, the functions' code, and where Node comes from."""

import os
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from infra.bundle import ROOT
from infra.node import find_node
from infra.publish import Synthesis
from infra.settings import StageSettings, laptop
from limner.contracts.errors import LimnerError


def test_a_stage_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_STAGE", "prod")
    monkeypatch.setenv("LIMNER_ENDPOINT_INSTANCES", "3")
    settings = StageSettings()
    assert settings.stack_name == "limner-prod"
    assert settings.endpoint_instances == 3
    assert not settings.is_local


@pytest.mark.parametrize(
    ("name", "value"),
    [("STAGE", "Prod!"), ("TRAINING_INSTANCE_TYPE", "g5"), ("BASE_ID", "../x")],
)
def test_a_bad_setting_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"LIMNER_{name}", value)
    with pytest.raises((ValidationError, LimnerError), match="match"):
        StageSettings()


def test_the_committed_template_does_not_depend_on_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = laptop()
    for name in StageSettings.model_fields:
        monkeypatch.setenv(f"LIMNER_{name.upper()}", "1")
    assert laptop() == before


def test_the_functions_bundle_holds_their_code_and_no_more(
    cloud: Synthesis, cloud_assembly: Path
) -> None:
    (asset,) = cloud_assembly.glob("asset.*")
    found = {path.relative_to(asset).as_posix() for path in asset.rglob("*") if path.is_file()}
    sources = [*(ROOT / "lambdas").rglob("*"), *(ROOT / "limner" / "contracts").rglob("*")]
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in sources
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == expected | {"limner/__init__.py"}


def test_a_machine_without_node_gets_the_one_in_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JSII_NODE", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    find_node()
    node = Path(os.environ["JSII_NODE"])
    monkeypatch.delenv("JSII_NODE")
    assert node.is_file()
    assert os.access(node, os.X_OK)


def test_a_system_node_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JSII_NODE", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/node")
    find_node()
    assert "JSII_NODE" not in os.environ
