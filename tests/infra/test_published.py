"""What is committed is what would be published now."""

import re

from infra.publish import TEMPLATE, Synthesis, render
from workflows import asl


def test_the_committed_machines_are_the_synthesized_ones(local: Synthesis) -> None:
    assert set(local.machines) == {"onboard", "onboard_batch", "worker"}
    for name, machine in local.machines.items():
        assert asl.path(name).read_text(encoding="utf-8") == render(machine), "make asl"


def test_the_committed_template_is_the_synthesized_one(local: Synthesis) -> None:
    assert TEMPLATE.read_text(encoding="utf-8") == render(local.template), "make asl"


def test_every_stage_runs_the_same_machines(local: Synthesis, cloud: Synthesis) -> None:
    assert local.machines == cloud.machines


def test_the_local_template_needs_no_bootstrap_and_holds_no_hash(local: Synthesis) -> None:
    assert "Rules" not in local.template
    assert "BootstrapVersion" not in local.template["Parameters"]
    text = render(local.template)
    assert "aws:asset" not in text
    assert not re.search(r"\b\d{12}\b", text)


def test_the_local_template_fits_through_create_stack(local: Synthesis) -> None:
    # From S3, as the laptop and the CDK CLI do it: 1 MB (CloudFormation quotas).
    assert len(render(local.template).encode()) < 1_000_000
