"""Settings, the functions' code, where Node comes from, and what synthesis does not need."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra import cli, prices
from infra.bundle import ROOT
from infra.node import find_node
from infra.publish import Synthesis
from infra.settings import StageSettings, laptop
from limner.contracts.errors import LimnerError


def test_a_stage_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_STAGE", "prod")
    monkeypatch.setenv("LIMNER_ENDPOINT_INSTANCES", "3")
    monkeypatch.setenv("LIMNER_TRAINING_INSTANCE_TYPES", "ml.g5.xlarge, ml.g4dn.xlarge")
    monkeypatch.setenv("LIMNER_CORS_ORIGINS", "https://shop.example.com")
    settings = StageSettings()
    assert settings.stack_name == "limner-prod"
    assert settings.endpoint_instances == 3
    assert settings.training_instance_types == ("ml.g5.xlarge", "ml.g4dn.xlarge")
    assert settings.cors_origins == ("https://shop.example.com",)
    assert settings.capture == "off"
    assert settings.has_key
    assert not settings.is_local


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STAGE", "Prod!"),
        ("TRAINING_INSTANCE_TYPES", "g5"),
        ("BASE_ID", "../x"),
        ("IMAGE_REPOSITORIES", "limner/*"),
        ("CORS_ORIGINS", "*"),
        ("ALARM_EMAIL", "nobody"),
        ("ENDPOINT_ENVIRONMENT", '{"PATH": "/tmp"}'),
        ("ALARM_TOPIC_ARN", "my-topic"),
    ],
)
def test_a_bad_setting_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"LIMNER_{name}", value)
    with pytest.raises((ValidationError, LimnerError), match="match"):
        StageSettings()


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        ({"spot": True, "warm_pool_s": 600}, "LIMNER_WARM_POOL_S=0"),
        ({"endpoint_instances": 9}, "LIMNER_ENDPOINT_MAX_INSTANCES to 9"),
        ({"batch_instances": 9}, "LIMNER_BATCH_INSTANCES to 8"),
        ({"batch_from": 99}, "LIMNER_BATCH_FROM to 32"),
        ({"workers": 8}, "LIMNER_WORKERS to 7"),
        ({"workers": 5}, "LIMNER_BATCH_INSTANCES to 3"),
        ({"burst": 501}, "LIMNER_BURST to 500"),
        ({"monthly_budget_usd": 100}, "LIMNER_ALARM_EMAIL"),
        (
            {"training_instance_types": ("ml.g6.xlarge",)},
            "ml.g6.xlarge has no price: .*prices.json",
        ),
        ({"endpoint_instance_type": "ml.m7i.xlarge"}, "ml.m7i.xlarge has no price: .*prices.json"),
        ({"training_image": "limner/training:1"}, "set LIMNER_TRAINING_IMAGE to ACCOUNT"),
        ({"inference_image": "docker.io/limner/inference"}, "set LIMNER_INFERENCE_IMAGE to"),
    ],
)
def test_what_aws_would_refuse_is_refused_with_its_fix(wrong: dict[str, Any], fix: str) -> None:
    with pytest.raises(ValidationError, match=fix):
        StageSettings(stage="prod", **wrong)


def test_all_default_machines_have_a_price() -> None:
    for settings in (StageSettings(stage="prod"), laptop()):
        machines = (*settings.training_instance_types, settings.endpoint_instance_type)
        assert prices.unknown(machines) == []


def test_the_bounds_of_what_a_stage_spends_follow_its_settings() -> None:
    """4 machines x 4 hours, or 8 x 24, of the dearest type; one cheap endpoint beside a tenth."""
    settings = StageSettings(stage="prod", training_instance_types=("ml.g4dn.xlarge",))
    assert prices.launch_at_most(settings) == round(4 * 4 * 0.736, 2)
    assert prices.day_at_most(settings) == round(8 * 24 * 0.736, 2)
    assert prices.budget(settings) == round((0.23 + 0.1 * 8 * 0.736) * 730)
    warm = settings.model_copy(update={"warm_pool_s": 3600})
    assert prices.launch_at_most(warm) == round(4 * 5 * 0.736, 2)


def test_a_budget_comes_with_the_mail_address_and_can_be_chosen() -> None:
    told = StageSettings(stage="prod", alarm_email="oncall@example.com")
    assert told.budget_usd == prices.budget(told) > 0
    assert StageSettings(stage="prod").budget_usd == 0
    assert told.model_copy(update={"monthly_budget_usd": 7}).budget_usd == 7
    assert told.model_copy(update={"monthly_budget_usd": 0}).budget_usd == 0


def test_every_setting_is_described() -> None:
    described = StageSettings.__doc__ or ""
    for name in StageSettings.model_fields:
        assert f"        {name}: " in described, name


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


def test_every_function_of_the_template_has_its_handler(stage: Synthesis) -> None:
    for item in stage.template["Resources"].values():
        if item["Type"] == "AWS::Lambda::Function":
            module, _, _ = item["Properties"]["Handler"].rpartition(".")
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_synthesis_needs_no_credentials_network_or_cli(
    tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    """An empty environment: no account, no region, no HOME, no npm on the PATH."""
    node = shutil.which("node")
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "LIMNER_STAGE": "prod",
        "CDK_OUTDIR": str(tmp_path),
        # A proxy that nobody answers at: whatever went to the network would fail.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        **({"JSII_NODE": node} if node else {}),
    }
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "infra.app"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "limner-prod.template.json").is_file()
    record_property("figure", f"synth of a stage: {time.monotonic() - started:.1f} s")


def test_a_machine_without_node_gets_the_one_in_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JSII_NODE", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    find_node()
    node = Path(os.environ["JSII_NODE"])
    program, script, *_ = cli.command(["--version"])
    monkeypatch.delenv("JSII_NODE")
    assert node.is_file()
    assert os.access(node, os.X_OK)
    assert program == str(node)
    assert Path(script).is_file()


def test_a_system_node_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JSII_NODE", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/node")
    find_node()
    assert "JSII_NODE" not in os.environ


def test_the_cdk_cli_is_pinned_to_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert cli.command(["diff"]) == ["/usr/bin/npx", "--yes", "aws-cdk@2.1148.1", "diff"]
    pages = [ROOT / "Makefile", ROOT / "docs" / "deploy.md", ROOT / "cdk.json"]
    for page in pages:
        assert "aws-cdk@latest" not in page.read_text(encoding="utf-8")
