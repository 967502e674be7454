"""Which AWS a command talks to, the laptop's commands, and the doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from botocore.stub import Stubber

from limner import local
from limner.cli import doctor, target
from limner.cli.doctor import Verdict
from limner.cli.options import Where
from limner.client import Limner
from limner.contracts.errors import LimnerError
from tests.unit.cli.conftest import Shell
from tests.unit.client.world import World


def laptop(folder: Path, port: int = 9) -> local.Laptop:
    return local.Laptop(
        endpoint_url=f"http://127.0.0.1:{port}", pid=7, log=folder / "log", project=folder
    )


def runs(monkeypatch: pytest.MonkeyPatch, found: local.Laptop | None) -> None:
    monkeypatch.setattr("limner.cli.target.running_laptop", lambda: found)
    monkeypatch.setattr("limner.cli.laptop.running_laptop", lambda: found)


def test_the_laptop_is_used_where_it_runs(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    here = laptop(shell.folder)
    runs(monkeypatch, here)
    assert target.find_laptop(None, None) == here
    assert target.find_laptop(None, "local") == here
    assert target.find_laptop(Where.LAPTOP, None) == here
    assert target.find_laptop(Where.AWS, None) is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    assert target.find_laptop(None, None) is None
    assert target.find_laptop(Where.LAPTOP, None) == here


def test_a_running_laptop_does_not_take_a_command_for_another_stage(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, laptop(shell.folder))
    assert target.find_laptop(None, "prod") is None
    with pytest.raises(LimnerError, match="leave out --stage prod") as refused:
        target.find_laptop(Where.LAPTOP, "prod")
    assert refused.value.code == "INVALID_INPUT"


def test_a_wrong_setting_is_no_bug_of_ours(shell: Shell) -> None:
    result = shell("status", "alice", LIMNER_STAGE="Prod!")
    assert result.exit_code == 2
    assert "INVALID_INPUT Settings: stage" in result.stderr


def test_the_laptop_is_reached_with_its_own_credentials_and_stage(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, aws: World
) -> None:
    seen: dict[str, Any] = {}

    def connect(stage: str, **options: Any) -> Limner:
        seen.update(options, stage=stage)
        return aws.limner

    runs(monkeypatch, laptop(shell.folder))
    monkeypatch.setattr(Limner, "connect", connect)
    assert target.connect(None, None) is aws.limner
    assert (seen["stage"], seen["endpoint_url"]) == ("local", "http://127.0.0.1:9")
    assert seen["session"].region_name == "us-east-1"
    assert seen["session"].get_credentials().access_key == "test"


def test_a_laptop_that_was_asked_for_but_does_not_run(shell: Shell) -> None:
    for words, env in (
        (("status", "alice", "--on", "laptop"), {}),
        (("status", "alice"), {"LIMNER_ON": "laptop"}),
    ):
        result = shell(*words, **env)
        assert result.exit_code == 3
        assert "LAPTOP_NOT_RUNNING" in result.stderr
        assert "Fix: Start it: limner up." in result.stderr


def test_neither_laptop_nor_account(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    result = shell("status", "alice")
    assert result.exit_code == 3
    assert "no AWS account is set up" in result.stderr
    asked_for = shell("status", "alice", "--on", "aws")
    assert asked_for.exit_code == 1
    assert "AWS_ERROR No AWS region is set" in asked_for.stderr


def test_an_unknown_place_is_wrong_usage(shell: Shell) -> None:
    assert shell("status", "alice", "--on", "mars").exit_code == 2


# up and down.


def test_up_starts_and_says_what_to_type_next(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, None)
    started = []

    def start(project: Path, *, port: int | None = None) -> local.Laptop:
        started.append((project, port))
        return laptop(project, port or 1)

    monkeypatch.setattr(local, "start", start)
    result = shell("up", "--port", "4566")
    assert result.exit_code == 0, result.stderr
    assert started == [(shell.folder, 4566)]
    assert "AWS on this laptop runs: http://127.0.0.1:4566" in result.stdout
    assert "export AWS_ENDPOINT_URL=http://127.0.0.1:4566 AWS_REGION=us-east-1" in result.stdout
    assert "Next: limner onboard alice photos/" in result.stderr


def test_up_again_starts_nothing(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, laptop(shell.folder))
    document = shell.json("up")
    assert (document["started"], document["endpoint_url"]) == (False, "http://127.0.0.1:9")


def test_up_without_its_packages(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, None)
    monkeypatch.setattr("limner.cli.laptop.find_spec", lambda _: None)
    result = shell("up")
    assert result.exit_code == 3
    assert "pip install 'limner[local]'" in result.stderr


def test_up_that_fails_tells_why(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(project: Path, **_: object) -> local.Laptop:
        raise LimnerError("LAPTOP_START_FAILED", "The port 80 is taken; see .limner/log.")

    runs(monkeypatch, None)
    monkeypatch.setattr(local, "start", start)
    result = shell("up")
    assert result.exit_code == 3
    assert "LAPTOP_START_FAILED The port 80 is taken" in result.stderr


@pytest.mark.parametrize("stopped", [True, False])
def test_down(shell: Shell, monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    monkeypatch.setattr(local, "stop", lambda _: stopped)
    result = shell("down")
    assert result.exit_code == 0
    assert ("has stopped" in result.stdout) is stopped
    assert shell.json("down") == {"stopped": stopped}


# doctor.


def test_doctor_names_what_does_not_run(shell: Shell) -> None:
    result = shell("doctor", "--on", "laptop")
    assert result.exit_code == 1
    assert "failed   laptop       LAPTOP_NOT_RUNNING" in result.stdout
    assert "Fix: Start it: limner up." in result.stdout
    document = shell.json("doctor", "--on", "laptop")
    assert document["ok"] is False
    assert [check["name"] for check in document["checks"]][-1] == "laptop"


def healthy(aws: World, monkeypatch: pytest.MonkeyPatch, status: str = "InService") -> Stubber:
    monkeypatch.setattr(target, "connect", lambda *_: aws.limner)
    stub = Stubber(aws.clients.sagemaker)
    answer = {
        "EndpointName": "limner-test",
        "EndpointArn": "arn:aws:sagemaker:us-east-1:123456789012:endpoint/limner-test",
        "EndpointStatus": status,
        "CreationTime": "2026-01-01T00:00:00Z",
        "LastModifiedTime": "2026-01-01T00:00:00Z",
    }
    stub.add_response("describe_endpoint", answer, {"EndpointName": "limner-test"})
    return stub


def test_doctor_finds_all_well(aws: World, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, laptop(shell.folder))
    aws.clients.s3.put_object(Bucket="limner-test", Key="base/tiny-1/model_index.json", Body=b"{}")
    with healthy(aws, monkeypatch):
        document = shell.json("doctor")
    verdicts = {check["name"]: check["verdict"] for check in document["checks"]}
    assert document["ok"] is True
    assert list(verdicts) == [
        "python",
        "extra local",
        "extra cdk",
        "disk",
        "laptop",
        "stack",
        "endpoint",
        "base",
    ]
    assert set(verdicts.values()) == {"ok"}


def test_doctor_finds_an_endpoint_that_is_not_in_service_and_no_base(
    aws: World, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with healthy(aws, monkeypatch, status="Failed"):
        result = shell("doctor")
    assert result.exit_code == 1
    assert "limner-test is Failed" in result.stdout
    assert "s3://limner-test/base/tiny-1/ is empty" in result.stdout
    assert "Fix: Upload the base: aws s3 sync BASE_FOLDER" in result.stdout
    assert "2 of 7 checks failed." in result.stdout


def test_doctor_only_warns_of_an_endpoint_that_comes_up(
    aws: World, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.clients.s3.put_object(Bucket="limner-test", Key="base/tiny-1/model_index.json", Body=b"{}")
    with healthy(aws, monkeypatch, status="Creating"):
        result = shell("doctor")
    assert result.exit_code == 0
    assert "warning  endpoint     limner-test is Creating" in result.stdout


def test_doctor_of_extras_disk_and_python(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda module: None if module == "torch" else module)
    local_extra, cdk = doctor.check_extras(Where.AWS)
    assert (local_extra.verdict, local_extra.detail) == (Verdict.WARNING, "missing: torch")
    assert local_extra.fix == "pip install 'limner[local]'"
    assert cdk.verdict is Verdict.OK
    assert next(iter(doctor.check_extras(Where.LAPTOP))).verdict is Verdict.FAILED

    monkeypatch.setattr(doctor, "_MIN_FREE_BYTES", 10**30)
    assert doctor.check_disk(shell.folder).verdict is Verdict.FAILED
    monkeypatch.setattr(doctor, "_PYTHON", (99, 0))
    assert doctor.check_python().fix == "Use Python 99.0 or newer."
