"""cdk-nag's AwsSolutions over a stage on AWS (P21): what is acknowledged is counted."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from aws_cdk import Validations
from cdk_nag import AwsSolutionsChecks

from infra import findings
from infra.app import build
from infra.bundle import ROOT
from infra.settings import StageSettings

MOST_FINDINGS = 6


@pytest.fixture(scope="module")
def acknowledged(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, str]]:
    """Path of the construct, resource and evidence of each acknowledgment."""
    made: list[tuple[str, str, str]] = []
    plain = findings.forced_wildcard
    with pytest.MonkeyPatch.context() as patch:

        def note(policy: findings.IConstruct, resource: str, evidence: str) -> None:
            made.append((policy.node.path, resource, evidence))
            plain(policy, resource, evidence)

        patch.setattr(findings, "forced_wildcard", note)
        app, _ = build(StageSettings(stage="prod"), tmp_path_factory.mktemp("nag"))
        Validations.of(app).add_plugins(AwsSolutionsChecks(app))
        app.synth()  # raises with a finding that nobody has acknowledged
    return made


def test_nothing_is_left_unacknowledged(
    acknowledged: list[tuple[str, str, str]], record_property: Callable[[str, str], None]
) -> None:
    assert len(acknowledged) <= MOST_FINDINGS
    assert len({(path, resource) for path, resource, _ in acknowledged}) == len(acknowledged)
    record_property(
        "figure", f"P21 cdk-nag AwsSolutions: 0 unacknowledged, {len(acknowledged)} acknowledged"
    )


def test_each_acknowledgment_has_its_evidence_on_the_page(
    acknowledged: list[tuple[str, str, str]],
) -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    section = page.partition("\n## Findings of cdk-nag\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    on_page = {tuple(re.findall(r"`([^`]+)`", row)[:2]) for row in rows}
    assert on_page == {
        (path.removeprefix("limner-prod/"), resource.rpartition("<AWS::AccountId>:")[2])
        for path, resource, _ in acknowledged
    }
    for _, _, evidence in acknowledged:
        assert len(evidence) > 40


def test_a_new_wildcard_would_be_found(tmp_path: Path) -> None:
    from aws_cdk import aws_iam as iam

    app, stack = build(StageSettings(stage="prod"), tmp_path)
    iam.ManagedPolicy(
        stack,
        "Careless",
        statements=[iam.PolicyStatement(actions=["s3:*"], resources=["*"])],
    )
    Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    with pytest.raises(RuntimeError, match=r"Validation ?[Ff]ailed"):
        app.synth()
    report = json.loads((tmp_path / "validation-report.json").read_text(encoding="utf-8"))
    assert "Careless" in json.dumps(report)
