"""Training jobs on several instances, channels from manifests, spot instances and warm pools."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import textwrap
import uuid
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from limner.contracts.training import METRIC_DEFINITIONS
from tests.support.laptop import CLOCK_SCALE, ROLE, TestLaptop, until

BUCKET = "laptop-fleet"
IMAGE = "limner/training:fleet"

# What an instance does is the hyperparameter of its position, or "ok".
PROGRAM = textwrap.dedent(
    """
    import json, os, signal, sys, time
    from pathlib import Path

    root = Path(os.environ["SAGEMAKER_BASE_DIR"])
    config = json.loads((root / "input/config/resourceconfig.json").read_text())
    me = config["hosts"].index(config["current_host"])
    wishes = json.loads((root / "input/config/hyperparameters.json").read_text())
    wish = wishes.get(str(me), wishes.get("all", "ok"))
    found = sorted(p.name for p in (root / "checkpoints").rglob("*") if p.is_file())
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    # Nobody begins before everybody hears SIGTERM: the first files may bring an interruption.
    (root / "ready").touch()
    while len(list(root.parent.glob("*/ready"))) < len(config["hosts"]):
        time.sleep(0.02)
    print(f"step={me + 1} loss=0.{me + 1}", flush=True)
    (root / f"checkpoints/started-{me}").write_text(json.dumps(config))
    if wish == "fail":
        # Who is stopped before he has begun has nothing to save.
        while len(list(root.parent.glob("*/checkpoints/started-*"))) < len(config["hosts"]):
            time.sleep(0.02)
        (root / "output/failure").write_text(f"BROKEN: instance {me}")
        sys.exit(1)
    if wish == "delete":
        (root / "checkpoints/before.txt").unlink()
    if wish == "hang" or (wish == "once" and f"stopped-{me}" not in found):
        while not stopped:
            time.sleep(0.02)
        (root / f"checkpoints/stopped-{me}").write_text("saved")
    data = root / "input/data"
    files = {str(p.relative_to(data)): p.read_text() for p in data.rglob("*") if p.is_file()}
    report = {"config": config, "found": found, "files": files}
    (root / f"model/report-{me}.json").write_text(json.dumps(report))
    """
)


@pytest.fixture
def fleet(laptop: TestLaptop, tmp_path: Path) -> TestLaptop:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    laptop.control.register_image(IMAGE, [sys.executable, str(program)])
    laptop.s3.create_bucket(Bucket=BUCKET)
    return laptop


def request(count: int = 1, **changes: Any) -> dict[str, Any]:
    name = f"fleet-{uuid.uuid4().hex[:10]}"
    resources = changes.pop("resources", {})
    return {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": n, "Regex": r} for n, r in METRIC_DEFINITIONS],
        },
        "RoleArn": ROLE,
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/jobs"},
        "CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/out/{name}/"},
        "ResourceConfig": {
            "InstanceType": "ml.g5.xlarge",
            "InstanceCount": count,
            "VolumeSizeInGB": 30,
            **resources,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        "HyperParameters": {},
        **changes,
    }


def described(laptop: TestLaptop, name: str) -> dict[str, Any]:
    answer: dict[str, Any] = laptop.sagemaker.describe_training_job(TrainingJobName=name)
    return answer


def finished(laptop: TestLaptop, wanted: dict[str, Any]) -> dict[str, Any]:
    laptop.sagemaker.create_training_job(**wanted)
    return ended(laptop, wanted["TrainingJobName"])


def ended(laptop: TestLaptop, name: str) -> dict[str, Any]:
    return until(
        lambda: described(laptop, name),
        lambda job: job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped"),
    )


def keys(laptop: TestLaptop, prefix: str) -> list[str]:
    listed = laptop.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [item["Key"].removeprefix(prefix) for item in listed.get("Contents", [])]


def reports(laptop: TestLaptop, job: dict[str, Any]) -> list[dict[str, Any]]:
    key = f"jobs/{job['TrainingJobName']}/output/model.tar.gz"
    body = laptop.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        return [
            json.load(archive.extractfile(name))  # type: ignore[arg-type]
            for name in sorted(archive.getnames())
        ]


def started(laptop: TestLaptop, wanted: dict[str, Any]) -> str:
    """Creates a job and waits until each of its instances has uploaded its first checkpoint."""
    laptop.sagemaker.create_training_job(**wanted)
    name: str = wanted["TrainingJobName"]
    count = wanted["ResourceConfig"]["InstanceCount"]
    until(lambda: keys(laptop, f"out/{name}/started"), lambda found: len(found) == count)
    return name


# Several instances


def test_each_instance_knows_its_position_and_all_are_one_job(fleet: TestLaptop) -> None:
    job = finished(fleet, request(3))
    assert job["TrainingJobStatus"] == "Completed"
    seen = reports(fleet, job)
    hosts = ["algo-1", "algo-2", "algo-3"]
    assert [report["config"]["current_host"] for report in seen] == hosts
    assert [report["config"]["hosts"] for report in seen] == [hosts] * 3
    assert keys(fleet, f"out/{job['TrainingJobName']}/") == [f"started-{i}" for i in range(3)]
    metrics = {item["MetricName"]: item["Value"] for item in job["FinalMetricDataList"]}
    assert metrics["train:step"] in (1, 2, 3)


def test_all_instances_find_the_checkpoints_and_delete_only_their_own(fleet: TestLaptop) -> None:
    wanted = request(2, HyperParameters={"0": "delete", "1": "hang"})
    prefix = f"out/{wanted['TrainingJobName']}/"
    fleet.s3.put_object(Bucket=BUCKET, Key=f"{prefix}before.txt", Body=b"1")
    name = started(fleet, wanted)
    until(lambda: keys(fleet, prefix), lambda found: "before.txt" not in found)
    # Instance 1 never had started-0, and looks on while it hangs; instance 0 has ended.
    fleet.sagemaker.stop_training_job(TrainingJobName=name)
    job = ended(fleet, name)
    assert job["TrainingJobStatus"] == "Stopped"
    assert keys(fleet, prefix) == ["started-0", "started-1", "stopped-1"]
    assert [report["found"] for report in reports(fleet, job)] == [["before.txt"]] * 2


def test_one_instance_that_fails_fails_the_job_and_ends_the_others(fleet: TestLaptop) -> None:
    wanted = request(3, HyperParameters={"0": "hang", "1": "fail", "2": "hang"})
    job = finished(fleet, wanted)
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"] == "AlgorithmError: BROKEN: instance 1, exit code: 1"
    saved = keys(fleet, f"out/{wanted['TrainingJobName']}/")
    assert {"stopped-0", "stopped-2"} <= set(saved), "they had their 120 s"


def test_instances_count_in_the_quota_but_a_job_takes_one_slot(fleet: TestLaptop) -> None:
    fleet.control.trouble(instance_quota=8)
    first = started(fleet, request(5, HyperParameters={"all": "hang"}))
    with pytest.raises(fleet.sagemaker.exceptions.ResourceLimitExceeded, match="delta of 4"):
        fleet.sagemaker.create_training_job(**request(4))
    second = request(3)
    assert finished(fleet, second)["TrainingJobStatus"] == "Completed"
    fleet.sagemaker.stop_training_job(TrainingJobName=first)
    assert len(reports(fleet, ended(fleet, first))) == 5


def test_nine_instances_are_more_than_a_laptop_has(fleet: TestLaptop) -> None:
    with pytest.raises(ClientError, match="at most 8 instances"):
        fleet.sagemaker.create_training_job(**request(9))


# Channels


def channel(uri: str, kind: str = "ManifestFile") -> dict[str, Any]:
    source = {"S3DataType": kind, "S3Uri": uri}
    return {"ChannelName": "photos", "DataSource": {"S3DataSource": source}}


def manifest(laptop: TestLaptop, content: object) -> str:
    key = f"manifests/{uuid.uuid4().hex}"
    laptop.s3.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(content).encode())
    return f"s3://{BUCKET}/{key}"


def test_a_manifest_says_which_files_land_where(fleet: TestLaptop) -> None:
    for key in ("alice/r1/a.png", "bob/r2/a.png", "bob/r2/not-listed.png"):
        fleet.s3.put_object(Bucket=BUCKET, Key=f"uploads/{key}", Body=key.encode())
    listed = [{"prefix": f"s3://{BUCKET}/uploads/"}, "alice/r1/a.png", "bob/r2/a.png"]
    job = finished(fleet, request(2, InputDataConfig=[channel(manifest(fleet, listed))]))
    expected = {f"photos/{key}": key for key in listed[1:]}
    assert [report["files"] for report in reports(fleet, job)] == [expected] * 2


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([{"prefix": f"s3://{BUCKET}/uploads/"}, "absent.png"], "NoSuchKey (404)"),
        ([{"prefix": f"s3://{BUCKET}/uploads/"}], "No S3 objects found"),
        ([{"prefix": f"s3://{BUCKET}/"}, "../../escape.png"], "cannot be a file name"),
        ([{"prefix": f"s3://{BUCKET}/"}, "/etc/escape.png"], "cannot be a file name"),
        ({"prefix": "s3://x/"}, "A manifest is a list"),
    ],
)
def test_a_manifest_that_cannot_be_read_fails_the_job(
    fleet: TestLaptop, entries: object, reason: str
) -> None:
    job = finished(fleet, request(InputDataConfig=[channel(manifest(fleet, entries))]))
    assert job["FailureReason"].startswith("ClientError: ")
    assert reason in job["FailureReason"]


def test_a_manifest_that_does_not_exist_fails_the_job(fleet: TestLaptop) -> None:
    job = finished(fleet, request(InputDataConfig=[channel(f"s3://{BUCKET}/manifests/none")]))
    assert "NoSuchKey (404)" in job["FailureReason"]


# Spot instances


def spot(count: int = 1, **changes: Any) -> dict[str, Any]:
    limits = {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 1200}
    return request(
        count, **{"EnableManagedSpotTraining": True, "StoppingCondition": limits, **changes}
    )


def test_an_interrupted_job_starts_again_with_its_checkpoints(fleet: TestLaptop) -> None:
    fleet.control.trouble(spot_interruptions=1)
    job = finished(fleet, spot(2, HyperParameters={"all": "once"}))
    assert job["TrainingJobStatus"] == "Completed"
    walked = [step["Status"] for step in job["SecondaryStatusTransitions"]]
    life = ["Starting", "Downloading", "Training"]
    assert walked == [*life, "Interrupted", *life, "Uploading", "Completed"]
    found = [report["found"] for report in reports(fleet, job)]
    assert found == [["started-0", "started-1", "stopped-0", "stopped-1"]] * 2
    assert 0 < job["BillableTimeInSeconds"] <= job["TrainingTimeInSeconds"]


def test_on_demand_jobs_are_not_interrupted(fleet: TestLaptop) -> None:
    fleet.control.trouble(spot_interruptions=-1)
    assert finished(fleet, request())["TrainingJobStatus"] == "Completed"


def test_max_wait_time_ends_a_job_that_is_interrupted_again_and_again(fleet: TestLaptop) -> None:
    fleet.control.trouble(spot_interruptions=-1)
    limits = {"MaxRuntimeInSeconds": 1200, "MaxWaitTimeInSeconds": 1200}
    wanted = spot(HyperParameters={"all": "hang"}, StoppingCondition=limits)
    fleet.control.clock(CLOCK_SCALE, timeouts=1)
    fleet.sagemaker.create_training_job(**wanted)

    def walked() -> list[str]:
        job = described(fleet, wanted["TrainingJobName"])
        return [step["Status"] for step in job["SecondaryStatusTransitions"]]

    until(walked, lambda steps: "Interrupted" in steps)
    fleet.control.clock(CLOCK_SCALE, timeouts=0.001)
    job = ended(fleet, wanted["TrainingJobName"])
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxWaitTimeExceeded")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 600}}, "MaxWaitTimeInSeconds"),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 599}},
            "greater than or equal to MaxRuntimeInSeconds",
        ),
        ({"resources": {"KeepAlivePeriodInSeconds": 60}}, "cannot be used with"),
        (
            {
                "EnableManagedSpotTraining": False,
                "StoppingCondition": {"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 2},
            },
            "without EnableManagedSpotTraining",
        ),
    ],
)
def test_what_spot_does_not_go_with(fleet: TestLaptop, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ClientError, match=fault) as caught:
        fleet.sagemaker.create_training_job(**spot(**changes))
    assert caught.value.response["Error"]["Code"] == "ValidationException"


# Warm pools


def warm(count: int = 1, seconds: int = 3600, **changes: Any) -> dict[str, Any]:
    return request(count, resources={"KeepAlivePeriodInSeconds": seconds}, **changes)


def pool(laptop: TestLaptop, name: str) -> dict[str, Any]:
    found: dict[str, Any] = described(laptop, name)["WarmPoolStatus"]
    return found


def test_a_matching_job_takes_the_pool_over(fleet: TestLaptop) -> None:
    fleet.control.trouble(instance_quota=2)
    first = finished(fleet, warm(2))["TrainingJobName"]
    assert pool(fleet, first)["Status"] == "Available"
    with pytest.raises(fleet.sagemaker.exceptions.ResourceLimitExceeded):
        fleet.sagemaker.create_training_job(**request(1))  # the pool counts
    with pytest.raises(ClientError, match="warm pool"):
        fleet.sagemaker.delete_training_job(TrainingJobName=first)

    fleet.control.trouble(instance_quota=2, capacity_failures=1)
    running = started(fleet, warm(2, HyperParameters={"all": "hang"}))
    reused = pool(fleet, first)
    assert (reused["Status"], reused["ReusedByJob"]) == ("Reused", running)
    assert pool(fleet, running)["Status"] == "InUse"
    fleet.sagemaker.stop_training_job(TrainingJobName=running)
    ended(fleet, running)
    assert pool(fleet, running)["Status"] == "Available", "also after a stop"
    fleet.sagemaker.update_training_job(
        TrainingJobName=running, ResourceConfig={"KeepAlivePeriodInSeconds": 0}
    )
    assert pool(fleet, running)["Status"] == "Terminated"


@pytest.mark.parametrize(
    "changes", [{"RoleArn": f"{ROLE}-2"}, {"EnableNetworkIsolation": True}, {"count": 2}]
)
def test_another_job_does_not_match(fleet: TestLaptop, changes: dict[str, Any]) -> None:
    first = finished(fleet, warm())["TrainingJobName"]
    second = finished(fleet, warm(**changes))["TrainingJobName"]
    assert [pool(fleet, name)["Status"] for name in (first, second)] == ["Available"] * 2
    for name in (first, second):
        fleet.sagemaker.update_training_job(
            TrainingJobName=name, ResourceConfig={"KeepAlivePeriodInSeconds": 0}
        )


def test_a_pool_ends_with_its_period(fleet: TestLaptop) -> None:
    fleet.control.clock(CLOCK_SCALE, timeouts=0.001)
    name = finished(fleet, warm(seconds=100, StoppingCondition={"MaxRuntimeInSeconds": 86400}))
    status = until(
        lambda: pool(fleet, name["TrainingJobName"]), lambda it: it["Status"] == "Terminated"
    )
    assert status["ResourceRetainedBillableTimeInSeconds"] >= 0
