"""SageMaker training on the laptop: real processes over the real container contract."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from limner.contracts.artifact import MEMBERS
from limner.contracts.training import METRIC_DEFINITIONS
from limner.local.trouble import Fault, FaultKind
from tests.support.laptop import (
    CLOCK_SCALE,
    ROLE,
    TEST_TRAINING,
    TestLaptop,
    no_retries,
    until,
)

BUCKET = "laptop-jobs"


@pytest.fixture
def bucket(laptop: TestLaptop) -> str:
    laptop.s3.create_bucket(Bucket=BUCKET)
    laptop.s3.put_object(Bucket=BUCKET, Key="uploads/alice/r1/a.png", Body=b"a")
    laptop.s3.put_object(Bucket=BUCKET, Key="uploads/alice/r1/b.png", Body=b"b")
    laptop.s3.put_object(Bucket=BUCKET, Key="base/tiny-1/unet/config.json", Body=b"{}")
    return BUCKET


def job_request(**changes: Any) -> dict[str, Any]:
    def channel(name: str, uri: str) -> dict[str, Any]:
        source = {
            "S3DataType": "S3Prefix",
            "S3Uri": uri,
            "S3DataDistributionType": "FullyReplicated",
        }
        return {"ChannelName": name, "DataSource": {"S3DataSource": source}}

    return {
        "TrainingJobName": f"job-{uuid.uuid4().hex[:10]}",
        "AlgorithmSpecification": {
            "TrainingImage": TEST_TRAINING,
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": n, "Regex": r} for n, r in METRIC_DEFINITIONS],
        },
        "RoleArn": ROLE,
        "InputDataConfig": [
            channel("photos", f"s3://{BUCKET}/uploads/alice/r1/"),
            channel("base", f"https://s3.us-east-1.amazonaws.com/{BUCKET}/base/tiny-1/"),
        ],
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/jobs"},
        "ResourceConfig": {
            "InstanceType": "ml.g5.xlarge",
            "InstanceCount": 1,
            "VolumeSizeInGB": 30,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        "HyperParameters": {},
        **changes,
    }


def create(laptop: TestLaptop, request: dict[str, Any]) -> str:
    laptop.sagemaker.create_training_job(**request)
    name: str = request["TrainingJobName"]
    return name


def finished(laptop: TestLaptop, name: str) -> dict[str, Any]:
    return until(
        lambda: laptop.sagemaker.describe_training_job(TrainingJobName=name),
        lambda job: job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped"),
    )


def reaches(laptop: TestLaptop, name: str, secondary: str) -> dict[str, Any]:
    return until(
        lambda: laptop.sagemaker.describe_training_job(TrainingJobName=name),
        lambda job: job["SecondaryStatus"] == secondary,
    )


def objects(laptop: TestLaptop, prefix: str) -> list[str]:
    listed = laptop.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [item["Key"] for item in listed.get("Contents", [])]


def test_a_job_runs_the_image_and_uploads_what_it_left(laptop: TestLaptop, bucket: str) -> None:
    request = job_request(HyperParameters={"steps": "3"}, Environment={"LIMNER_REQUEST_ID": "r1"})
    job = finished(laptop, create(laptop, request))

    assert job["TrainingJobStatus"] == "Completed"
    walked = [step["Status"] for step in job["SecondaryStatusTransitions"]]
    assert walked == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    ends = [step["EndTime"] for step in job["SecondaryStatusTransitions"]]
    starts = [step["StartTime"] for step in job["SecondaryStatusTransitions"]]
    assert starts == sorted(starts)
    assert ends[:-1] == starts[1:]
    assert job["CreationTime"] <= job["TrainingStartTime"] <= job["TrainingEndTime"]
    assert job["BillableTimeInSeconds"] == job["TrainingTimeInSeconds"] >= 1

    uri = job["ModelArtifacts"]["S3ModelArtifacts"]
    assert uri == f"s3://{bucket}/jobs/{job['TrainingJobName']}/output/model.tar.gz"
    body = laptop.s3.get_object(Bucket=bucket, Key=uri.removeprefix(f"s3://{bucket}/"))["Body"]
    with tarfile.open(fileobj=io.BytesIO(body.read())) as archive:
        assert sorted(archive.getnames()) == sorted(MEMBERS)
        manifest = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
    assert manifest["request_id"] == "r1"
    assert manifest["job"] == job["TrainingJobName"]
    assert manifest["arn"] == job["TrainingJobArn"]
    assert manifest["channels"] == ["base", "photos"]
    assert manifest["photos"] == ["a.png", "b.png"]
    assert manifest["hyperparameters"] == {"steps": "3"}
    assert int(manifest["threads"]) >= 1


def test_metrics_are_read_from_the_log(laptop: TestLaptop, bucket: str) -> None:
    job = finished(laptop, create(laptop, job_request()))
    metrics = {item["MetricName"]: item["Value"] for item in job["FinalMetricDataList"]}
    assert metrics == {"train:loss": 0.25, "train:step": 2, "train:images_per_second": 9}


def test_the_log_stays_and_the_work_folder_goes(laptop: TestLaptop, bucket: str) -> None:
    name = create(laptop, job_request())
    finished(laptop, name)
    (log,) = [Path(job.log) for job in laptop.control.jobs() if job.name == name]
    assert "step=2" in log.read_text()
    assert [path.name for path in log.parent.iterdir()] == ["log"]


def test_checkpoints_go_up_while_the_job_runs_and_come_down_before_it_starts(
    laptop: TestLaptop, bucket: str
) -> None:
    laptop.s3.put_object(Bucket=bucket, Key="previews/r7/before.txt", Body=b"old")
    request = job_request(
        HyperParameters={"behave": "hang"},
        CheckpointConfig={"S3Uri": f"s3://{bucket}/previews/r7/"},
    )
    name = create(laptop, request)
    until(lambda: objects(laptop, "previews/r7/started"), bool)
    laptop.sagemaker.stop_training_job(TrainingJobName=name)
    assert finished(laptop, name)["TrainingJobStatus"] == "Stopped"
    # The program numbers its preview by what it found: "before.txt" and "started".
    assert objects(laptop, "previews/r7/preview") == ["previews/r7/preview-2.txt"]


def test_a_failure_carries_the_programs_own_reason(laptop: TestLaptop, bucket: str) -> None:
    request = job_request(
        HyperParameters={"behave": "fail", "reason": "PHOTO_TOO_SMALL: a.png. " + "x" * 2000}
    )
    job = finished(laptop, create(laptop, request))
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"].startswith("AlgorithmError: PHOTO_TOO_SMALL: a.png. xx")
    assert len(job["FailureReason"]) <= 1024
    assert not objects(laptop, f"jobs/{job['TrainingJobName']}")


def test_a_crash_without_a_reason_says_its_exit_code(laptop: TestLaptop, bucket: str) -> None:
    job = finished(laptop, create(laptop, job_request(HyperParameters={"behave": "crash"})))
    assert job["FailureReason"] == "AlgorithmError: , exit code: 3"


def test_a_channel_without_objects_fails_the_job(laptop: TestLaptop, bucket: str) -> None:
    request = job_request()
    source = request["InputDataConfig"][0]["DataSource"]["S3DataSource"]
    source["S3Uri"] = f"s3://{bucket}/uploads/nobody/"
    job = finished(laptop, create(laptop, request))
    assert "ClientError: Data download failed: No S3 objects found" in job["FailureReason"]


def test_a_stopped_job_saves_its_model(laptop: TestLaptop, bucket: str) -> None:
    name = create(laptop, job_request(HyperParameters={"behave": "hang"}))
    reaches(laptop, name, "Training")
    until(lambda: log_of(laptop, name), lambda text: "step=1" in text)
    laptop.sagemaker.stop_training_job(TrainingJobName=name)
    job = finished(laptop, name)
    walked = [step["Status"] for step in job["SecondaryStatusTransitions"]]
    assert walked[-3:] == ["Stopping", "Uploading", "Stopped"]
    assert objects(laptop, f"jobs/{name}/output/model.tar.gz")
    with pytest.raises(ClientError, match="in status Stopped"):
        laptop.sagemaker.stop_training_job(TrainingJobName=name)


def log_of(laptop: TestLaptop, name: str) -> str:
    (log,) = [Path(job.log) for job in laptop.control.jobs() if job.name == name]
    return log.read_text() if log.exists() else ""


def test_who_ignores_sigterm_is_killed_after_120_s(laptop: TestLaptop, bucket: str) -> None:
    name = create(laptop, job_request(HyperParameters={"behave": "stubborn"}))
    until(lambda: log_of(laptop, name), lambda text: "step=1" in text)
    laptop.control.clock(CLOCK_SCALE, timeouts=0.005)  # 120 s become 0.6 s
    laptop.sagemaker.stop_training_job(TrainingJobName=name)
    job = finished(laptop, name)
    assert job["TrainingJobStatus"] == "Stopped"
    (stopping,) = [s for s in job["SecondaryStatusTransitions"] if s["Status"] == "Stopping"]
    assert (stopping["EndTime"] - stopping["StartTime"]).total_seconds() >= 0.6


def test_a_key_that_leads_out_of_the_channel_fails_the_job(laptop: TestLaptop, bucket: str) -> None:
    laptop.s3.put_object(Bucket=bucket, Key="uploads/eve/r1/../../../escape.png", Body=b"x")
    request = job_request()
    source = request["InputDataConfig"][0]["DataSource"]["S3DataSource"]
    source["S3Uri"] = f"s3://{bucket}/uploads/eve/r1/"
    job = finished(laptop, create(laptop, request))
    assert "cannot be a file name" in job["FailureReason"]


def test_max_runtime_ends_a_job(laptop: TestLaptop, bucket: str) -> None:
    laptop.control.clock(CLOCK_SCALE, timeouts=0.01)
    request = job_request(
        HyperParameters={"behave": "hang"}, StoppingCondition={"MaxRuntimeInSeconds": 60}
    )
    job = finished(laptop, create(laptop, request))
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")


def test_names_are_used_once(laptop: TestLaptop, bucket: str) -> None:
    request = job_request(HyperParameters={"behave": "crash"})
    name = create(laptop, request)
    with pytest.raises(laptop.sagemaker.exceptions.ResourceInUse, match="already exists"):
        laptop.sagemaker.create_training_job(**request)
    finished(laptop, name)
    folder = laptop.laptop.project / ".limner" / "jobs" / name
    assert list(folder.rglob("a.png")), "kept for who looks for the reason"
    laptop.sagemaker.delete_training_job(TrainingJobName=name)
    assert not folder.exists()
    with pytest.raises(ClientError, match="Requested resource not found"):
        laptop.sagemaker.describe_training_job(TrainingJobName=name)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"TrainingJobName": "no_underscores"}, "regular expression"),
        ({"TrainingJobName": "x" * 64}, "length less than or equal to 63"),
        ({"HyperParameters": {f"h{i}": "1" for i in range(101)}}, "less than or equal to 100"),
        ({"HyperParameters": {"h": "x" * 2501}}, "less than or equal to 2500"),
        ({"Environment": {"E": "x" * 513}}, "less than or equal to 512"),
        ({"OutputDataConfig": {"S3OutputPath": "ftp://x/y"}}, "regular expression|not valid"),
        (
            {"AlgorithmSpecification": {"TrainingImage": "a:b", "TrainingInputMode": "Pipe"}},
            "File mode only",
        ),
        (
            {"OutputDataConfig": {"S3OutputPath": "s3://b/k", "CompressionType": "NONE"}},
            r"model\.tar\.gz only",
        ),
        (
            {"AlgorithmSpecification": {"TrainingImage": "a:b", "TrainingInputMode": "File"}},
            "Cannot find repository",
        ),
    ],
)
def test_requests_are_checked(
    laptop: TestLaptop, bucket: str, change: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ClientError, match=fault) as caught:
        laptop.sagemaker.create_training_job(**job_request(**change))
    assert caught.value.response["Error"]["Code"] == "ValidationException"


def test_list_is_paged_and_filtered(laptop: TestLaptop, bucket: str) -> None:
    marker = uuid.uuid4().hex[:8]
    names = [create(laptop, job_request(TrainingJobName=f"list-{marker}-{i}")) for i in range(3)]
    for name in names:
        finished(laptop, name)
    pages = laptop.sagemaker.get_paginator("list_training_jobs").paginate(
        NameContains=marker,
        StatusEquals="Completed",
        SortBy="Name",
        PaginationConfig={"PageSize": 2},
    )
    sizes = [[job["TrainingJobName"] for job in page["TrainingJobSummaries"]] for page in pages]
    assert sizes == [names[:2], names[2:]]


def test_throttling_strikes_as_often_as_ordered(laptop: TestLaptop, bucket: str) -> None:
    laptop.control.trouble(throttle_next=2)
    client = laptop.client("sagemaker", config=no_retries())
    for _ in range(2):
        with pytest.raises(ClientError) as caught:
            client.create_training_job(**job_request())
        assert caught.value.response["Error"]["Code"] == "ThrottlingException"
    client.create_training_job(**job_request())
    assert laptop.control.trouble_left() == {"sagemaker:CreateTrainingJob": 0}


def test_the_quota_of_instances(laptop: TestLaptop, bucket: str) -> None:
    laptop.control.trouble(quota_full=True)
    with pytest.raises(laptop.sagemaker.exceptions.ResourceLimitExceeded, match="service limit"):
        laptop.sagemaker.create_training_job(**job_request())


def test_no_capacity_is_a_failed_job_not_an_api_error(laptop: TestLaptop, bucket: str) -> None:
    laptop.control.trouble(capacity_failures=1)
    job = finished(laptop, create(laptop, job_request()))
    assert job["FailureReason"].startswith("CapacityError: Unable to provision")
    assert "TrainingStartTime" not in job
    assert finished(laptop, create(laptop, job_request()))["TrainingJobStatus"] == "Completed"


def test_a_lost_reply_leaves_the_job_behind(laptop: TestLaptop, bucket: str) -> None:
    fault = Fault("sagemaker:CreateTrainingJob", FaultKind.LOST_REPLY)
    laptop.control.trouble(faults=[fault])
    request = job_request()
    with pytest.raises(ClientError, match="InternalServerError"):
        laptop.client("sagemaker", config=no_retries()).create_training_job(**request)
    assert finished(laptop, request["TrainingJobName"])["TrainingJobStatus"] == "Completed"


def test_state_changes_reach_eventbridge(laptop: TestLaptop, bucket: str) -> None:
    queue = laptop.client("sqs")
    url = queue.create_queue(QueueName="job-events")["QueueUrl"]
    events = laptop.client("events")
    request = job_request()
    detail = {
        "TrainingJobName": [request["TrainingJobName"]],
        "TrainingJobStatus": ["InProgress", "Completed"],
    }
    pattern = {"source": ["aws.sagemaker"], "detail": detail}
    events.put_rule(Name="job-events", EventPattern=json.dumps(pattern))
    target = {"Id": "q", "Arn": "arn:aws:sqs:us-east-1:000000000000:job-events"}
    events.put_targets(Rule="job-events", Targets=[target])
    create(laptop, request)
    found: dict[str, dict[str, Any]] = {}  # by message: who reads for long gets some again

    def receive() -> list[str]:
        messages = queue.receive_message(QueueUrl=url).get("Messages", [])
        found.update({each["MessageId"]: json.loads(each["Body"]) for each in messages})
        return [event["detail"]["SecondaryStatus"] for event in found.values()]

    steps = ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    until(receive, lambda seen: sorted(seen) == sorted(steps))
    assert {event["detail-type"] for event in found.values()} == {
        "SageMaker Training Job State Change"
    }
    events.remove_targets(Rule="job-events", Ids=["q"])
