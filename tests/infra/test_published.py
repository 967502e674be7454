"""What is committed is what would be published now."""

import re

from cfnlint import api
from cfnlint.config import ManualArgs

from infra.publish import TEMPLATE, Synthesis, render
from workflows import asl


def test_the_committed_machine_is_the_synthesized_one(local: Synthesis) -> None:
    assert asl.path("onboard").read_text(encoding="utf-8") == render(local.machine), "make asl"


def test_the_committed_template_is_the_synthesized_one(local: Synthesis) -> None:
    assert TEMPLATE.read_text(encoding="utf-8") == render(local.template), "make asl"


def test_every_stage_runs_the_same_machine(local: Synthesis, cloud: Synthesis) -> None:
    assert local.machine == cloud.machine


def test_the_local_template_needs_no_bootstrap_and_holds_no_hash(local: Synthesis) -> None:
    assert "Rules" not in local.template
    assert "BootstrapVersion" not in local.template["Parameters"]
    text = render(local.template)
    assert "aws:asset" not in text
    assert not re.search(r"\b\d{12}\b", text)


def test_the_local_template_fits_through_create_stack(local: Synthesis) -> None:
    # From S3, as the laptop and the CDK CLI do it: 1 MB (CloudFormation quotas).
    assert len(render(local.template).encode()) < 1_000_000


def test_cfn_lint_has_nothing_to_say() -> None:
    # W3005: CDK writes DependsOn for a role next to its GetAtt, to wait for the role's policy.
    config = ManualArgs(regions=["us-east-1"], ignore_checks=["W3005"])
    assert [str(match) for match in api.lint(TEMPLATE.read_text(), config=config)] == []
