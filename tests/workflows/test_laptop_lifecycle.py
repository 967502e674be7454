"""The laptop's life: start, deployment, stop, and what survives it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from limner import local
from limner.contracts.errors import LimnerError
from limner.local import deploy
from limner.local.settings import plain_environment
from tests.support.laptop import (
    CLOCK_SCALE,
    ROLE,
    TEST_INFERENCE,
    TestLaptop,
    register_test_images,
    until,
)
from tests.workflows.test_laptop_endpoint import Endpoint
from tests.workflows.test_laptop_jobs import BUCKET, job_request
from tests.workflows.test_laptop_semantics import machine, task

CREATE_JOB = "arn:aws:states:::sagemaker:createTrainingJob.sync"


def started(project: Path) -> TestLaptop:
    laptop = TestLaptop(local.start(project, port=0, clock_scale=CLOCK_SCALE, deploy=False))
    register_test_images(laptop.control)
    return laptop


def test_start_finds_the_laptop_that_runs(laptop: TestLaptop) -> None:
    project = laptop.laptop.project
    assert local.running(project) == laptop.laptop
    assert local.start(project, deploy=False) == laptop.laptop
    assert laptop.laptop.log.is_file()


def test_there_is_one_laptop_a_project(laptop: TestLaptop) -> None:
    second = subprocess.run(
        [
            sys.executable,
            "-m",
            "limner.local.daemon",
            f"--project={laptop.laptop.project}",
            "--port=1",
        ],
        capture_output=True,
        text=True,
        env=plain_environment(),
        timeout=120,
    )
    assert second.returncode == 1
    assert "LAPTOP_START_FAILED: A laptop already runs" in second.stderr


def test_nothing_runs_in_an_empty_project(tmp_path: Path) -> None:
    assert local.running(tmp_path) is None
    assert local.stop(tmp_path) is False


def test_a_port_that_is_taken_is_refused(laptop: TestLaptop, tmp_path: Path) -> None:
    port = int(laptop.laptop.endpoint_url.rpartition(":")[2])
    with pytest.raises(LimnerError, match=f"Port {port} is taken") as error:
        local.start(tmp_path, port=port, deploy=False)
    assert error.value.code == "LAPTOP_START_FAILED"


def listening_addresses(pid: int) -> set[str]:
    """Local addresses of the listening TCP sockets of a process, as the kernel writes them."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(entry.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].rpartition(":")[0])
    return found


def test_it_listens_on_loopback_only(laptop: TestLaptop) -> None:
    assert listening_addresses(laptop.laptop.pid) == {"0100007F"}


def test_containers_listen_on_loopback_only(laptop: TestLaptop) -> None:
    endpoint = Endpoint(laptop, LIMNER_BIND_HOST="0.0.0.0")  # noqa: S104  # must be without effect
    container = endpoint.invoke(endpoint.model("alice"))["pid"]
    assert listening_addresses(container) == {"0100007F"}
    endpoint.delete()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:8000"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        # An image or a link on a page carries no Origin.
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8000"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_web_pages_are_kept_out(laptop: TestLaptop, headers: dict[str, str], status: int) -> None:
    address = urlsplit(laptop.laptop.endpoint_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    connection.request("POST", "/", "{}", {"X-Amz-Target": "LimnerLocal.Health", **headers})
    assert connection.getresponse().status == status
    connection.close()


def test_the_aws_cli_works(laptop: TestLaptop) -> None:
    aws = Path(sys.executable).with_name("aws")
    environment = {
        **plain_environment(),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    listed = subprocess.run(
        [aws, "--endpoint-url", laptop.laptop.endpoint_url, "sagemaker", "list-training-jobs"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=180,
        check=True,
    )
    assert "TrainingJobSummaries" in json.loads(listed.stdout)


def test_controls_refuse_nonsense(laptop: TestLaptop) -> None:
    with pytest.raises(LimnerError, match="waits must be"):
        laptop.control.clock(-1)
    with pytest.raises(LimnerError, match="command"):
        laptop.control.register_image("x:y", [])


def test_state_survives_a_restart_and_what_ran_fails_honestly(tmp_path: Path) -> None:
    before = started(tmp_path)
    try:
        before.s3.create_bucket(Bucket=BUCKET)
        for key in ("uploads/alice/r1/a.png", "base/tiny-1/x"):
            before.s3.put_object(Bucket=BUCKET, Key=key, Body=b"kept")
        make_table(before)
        events, queue = rule_on_failures(before)
        finished = before.begin(machine(task(CREATE_JOB, job_request())))
        assert before.finish(finished)["status"] == "SUCCEEDED"
        endpoint = Endpoint(before)
        target = endpoint.model("alice")
        pid = endpoint.invoke(target)["pid"]
        request = job_request(HyperParameters={"behave": "hang"})
        interrupted = before.begin(machine(task(CREATE_JOB, request)), {"request_id": "r9"})
        name = request["TrainingJobName"]
        until(lambda: job_log(before, name), lambda text: "step=1" in text)
    finally:
        began = time.monotonic()
        assert local.stop(tmp_path, deadline_s=120)
        assert time.monotonic() - began < 100, "it was killed"
    assert not Path(f"/proc/{pid}").exists()
    until(lambda: processes_with(str(tmp_path)), lambda left: not left)
    assert local.running(tmp_path) is None

    after = started(tmp_path)
    try:
        body = after.s3.get_object(Bucket=BUCKET, Key="uploads/alice/r1/a.png")["Body"].read()
        assert body == b"kept"
        item = after.client("dynamodb").get_item(TableName="kept", Key={"pk": {"S": "alice"}})
        assert item["Item"]["n"] == {"N": "7"}
        described = after.states.describe_execution(executionArn=finished)
        assert described["status"] == "SUCCEEDED"
        job = after.sagemaker.describe_training_job(TrainingJobName=name)
        assert job["TrainingJobStatus"] == "Failed"
        assert "stopped while the job ran" in job["FailureReason"]
        # The execution has failed, and the rule hears of it.
        assert after.states.describe_execution(executionArn=interrupted)["status"] == "FAILED"
        url = after.client("sqs").get_queue_url(QueueName=queue)["QueueUrl"]
        message = until(
            lambda: after.client("sqs").receive_message(QueueUrl=url).get("Messages"),
            lambda messages: messages is not None,
        )
        detail = json.loads(message[0]["Body"])["detail"]  # type: ignore[index]
        assert detail["executionArn"] == interrupted
        # The endpoint is there; its container starts with the first call.
        endpoint.laptop = after
        assert endpoint.status() == "InService"
        assert endpoint.invoke(target)["manifest"] == {"user": "alice"}
        assert [rule["Name"] for rule in after.client("events").list_rules()["Rules"]] == [events]
    finally:
        local.stop(tmp_path)


def test_a_stop_does_not_wait_for_an_endpoint_that_starts(tmp_path: Path) -> None:
    before = started(tmp_path)
    try:
        forever = "import time; print('starting', flush=True); time.sleep(600)"
        before.control.register_image(TEST_INFERENCE, [sys.executable, "-c", forever])
        endpoint = Endpoint(before)
        log = tmp_path / ".limner/endpoints" / endpoint.name / "log"
        until(lambda: log.exists() and "starting" in log.read_text(), bool)
    finally:
        began = time.monotonic()
        local.stop(tmp_path, deadline_s=120)
    assert time.monotonic() - began < 100, "it was killed"
    until(lambda: processes_with(str(tmp_path)), lambda left: not left)
    after = started(tmp_path)
    try:
        endpoint.laptop = after
        assert endpoint.status() == "InService"
        assert endpoint.invoke(endpoint.model("alice"))["loads"] == 1
    finally:
        local.stop(tmp_path)


def test_a_start_ends_what_a_killed_laptop_left_running(tmp_path: Path) -> None:
    before = started(tmp_path)
    killed = before.laptop.pid
    try:
        before.s3.create_bucket(Bucket=BUCKET)
        for key in ("uploads/alice/r1/a.png", "base/tiny-1/x"):
            before.s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
        endpoint = Endpoint(before)
        serving = endpoint.invoke(endpoint.model("alice"))["pid"]
        request = job_request(HyperParameters={"behave": "stubborn"})
        before.sagemaker.create_training_job(**request)
        until(lambda: job_log(before, request["TrainingJobName"]), lambda text: "step=1" in text)
        trainers = [line for line in processes_with(str(tmp_path)) if "trainer.py" in line]
        assert len(trainers) == 1
    finally:
        os.kill(killed, signal.SIGKILL)
        os.waitpid(killed, 0)
    assert local.running(tmp_path) is None
    assert Path(f"/proc/{serving}").exists()
    started(tmp_path)
    try:
        left = lambda: [  # noqa: E731
            line for line in processes_with(str(tmp_path)) if "limner.local.daemon" not in line
        ]
        until(left, lambda lines: not lines)
    finally:
        local.stop(tmp_path)


def processes_with(text: str) -> list[str]:
    """Command lines of the processes whose environment contains a text."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if text in (process / "environ").read_text(errors="replace"):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue  # it has ended meanwhile
    return found


def job_log(laptop: TestLaptop, name: str) -> str:
    logs = [Path(job.log) for job in laptop.control.jobs() if job.name == name]
    return logs[0].read_text() if logs and logs[0].exists() else ""


def make_table(laptop: TestLaptop) -> None:
    dynamodb = laptop.client("dynamodb")
    dynamodb.create_table(
        TableName="kept",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    dynamodb.put_item(TableName="kept", Item={"pk": {"S": "alice"}, "n": {"N": "7"}})


def rule_on_failures(laptop: TestLaptop) -> tuple[str, str]:
    laptop.client("sqs").create_queue(QueueName="failures")
    events = laptop.client("events")
    pattern = {"source": ["aws.states"], "detail": {"status": ["FAILED"]}}
    events.put_rule(Name="failures", EventPattern=json.dumps(pattern))
    target = {"Id": "q", "Arn": "arn:aws:sqs:us-east-1:000000000000:failures"}
    events.put_targets(Rule="failures", Targets=[target])
    return "failures", "failures"


# Deployment


def template(reply: str) -> dict[str, Any]:
    """A bucket, a function whose code comes by the parameters, and the agreed outputs."""
    return {
        "Parameters": {
            "AssetsBucketName": {"Type": "String"},
            "LambdaCodeKey": {"Type": "String"},
            "BaseId": {"Type": "String", "Default": "tiny-9"},
        },
        "Resources": {
            "Bucket": {"Type": "AWS::S3::Bucket"},
            "Function": {
                "Type": "AWS::Lambda::Function",
                "Properties": {
                    "Runtime": "python3.13",
                    "Handler": "lambdas.hello.handler.handler",
                    "Role": ROLE,
                    "Code": {
                        "S3Bucket": {"Ref": "AssetsBucketName"},
                        "S3Key": {"Ref": "LambdaCodeKey"},
                    },
                    "Environment": {"Variables": {"REPLY": reply}},
                },
            },
        },
        "Outputs": {
            "BucketName": {"Value": {"Ref": "Bucket"}},
            "BaseId": {"Value": {"Ref": "BaseId"}},
            "FunctionName": {"Value": {"Ref": "Function"}},
        },
    }


def put_sources(folder: Path, word: str) -> None:
    code = (
        "import os\n"
        "from limner.contracts import keys\n"
        "def handler(event, context):\n"
        f"    return ['{word}', os.environ['REPLY'], keys.base_prefix('b')]\n"
    )
    (folder / "lambdas/hello").mkdir(parents=True, exist_ok=True)
    (folder / "lambdas/hello/handler.py").write_text(code)
    for name in ("lambdas/__init__.py", "lambdas/hello/__init__.py"):
        (folder / name).write_text("")


def test_deployment_is_idempotent_and_follows_changes(laptop: TestLaptop, tmp_path: Path) -> None:
    base, sources, path = tmp_path / "base", tmp_path / "sources", tmp_path / "template.json"
    (base / "unet").mkdir(parents=True)
    (base / "unet/config.json").write_text("{}")
    (base / "gone.json").write_text("{}")

    def put(word: str, reply: str) -> tuple[dict[str, str], Any]:
        put_sources(sources, word)
        path.write_text(json.dumps(template(reply)))
        outputs = deploy.deploy_stack(
            laptop.laptop.endpoint_url,
            time.monotonic() + 30,
            template=path,
            stack="deploy-test",
            base=base,
            sources=sources,
        )
        answer = laptop.client("lambda").invoke(FunctionName=outputs["FunctionName"])
        return outputs, json.loads(answer["Payload"].read())

    first, said = put("one", "a")
    assert said == ["one", "a", "base/b/"]
    listed = laptop.s3.list_objects_v2(Bucket=first["BucketName"])["Contents"]
    assert [item["Key"] for item in listed] == [
        "base/tiny-9/gone.json",
        "base/tiny-9/unet/config.json",
    ]
    stamps = [item["LastModified"] for item in listed]
    assert put("one", "a") == (first, said)
    listed = laptop.s3.list_objects_v2(Bucket=first["BucketName"])["Contents"]
    assert [item["LastModified"] for item in listed] == stamps

    (base / "gone.json").unlink()
    second, said = put("two", "b")
    assert second == first
    assert said == ["two", "b", "base/b/"]
    listed = laptop.s3.list_objects_v2(Bucket=first["BucketName"])["Contents"]
    assert [item["Key"] for item in listed] == ["base/tiny-9/unet/config.json"]


def test_a_stack_that_fails_says_why(laptop: TestLaptop, tmp_path: Path) -> None:
    path = tmp_path / "template.json"
    path.write_text(json.dumps({"Resources": {"X": {"Type": "AWS::No::Such"}}}))
    with pytest.raises(LimnerError) as error:
        deploy.deploy_stack(
            laptop.laptop.endpoint_url,
            time.monotonic() + 30,
            template=path,
            stack="fails",
            sources=tmp_path,
        )
    assert error.value.code == "LAPTOP_START_FAILED"
    assert "AWS::No::Such" in str(error.value)


def test_a_template_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(LimnerError, match="make asl"):
        deploy.deploy_stack("http://127.0.0.1:1", 0, template=tmp_path / "none.json")


def test_the_same_code_gives_the_same_archive(tmp_path: Path) -> None:
    put_sources(tmp_path, "same")
    first = deploy.zip_sources(tmp_path)
    os.utime(tmp_path / "lambdas/hello/handler.py", (0, 0))
    (tmp_path / "lambdas/__pycache__").mkdir()
    (tmp_path / "lambdas/__pycache__/x.pyc").write_bytes(b"x")
    assert deploy.zip_sources(tmp_path) == first
