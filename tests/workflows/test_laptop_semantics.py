"""Step Functions on the laptop behaves as AWS documents it (docs/parity.md names the sentences)."""

from __future__ import annotations

import io
import json
import time
import uuid
import zipfile
from typing import Any

import pytest
from botocore.exceptions import ClientError

from limner.local.trouble import Fault, FaultKind
from tests.support.laptop import CLOCK_SCALE, ROLE, TestLaptop, until
from tests.workflows.test_laptop_jobs import BUCKET, job_request, objects

CREATE_JOB = "arn:aws:states:::sagemaker:createTrainingJob"


def machine(*states: tuple[str, dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """A definition of states in a row."""
    names = [name for name, _ in states] + [None]
    chain = {}
    for (name, state), following in zip(states, names[1:], strict=True):
        ends = state["Type"] in ("Succeed", "Fail", "Choice")
        link = {} if ends else ({"Next": following} if following else {"End": True})
        chain[name] = {**link, **state}
    return {"StartAt": names[0], "States": chain, **fields}


def task(resource: str, parameters: dict[str, Any], **fields: Any) -> tuple[str, dict[str, Any]]:
    return "Task", {"Type": "Task", "Resource": resource, "Parameters": parameters, **fields}


def caught_by(*errors: str) -> dict[str, Any]:
    """A Catch for these errors that ends the execution well."""
    return {"Catch": [{"ErrorEquals": list(errors), "Next": "Caught", "ResultPath": "$.error"}]}


CAUGHT = ("Caught", {"Type": "Pass", "End": True})


def output(execution: dict[str, Any]) -> Any:
    assert execution["status"] == "SUCCEEDED", execution
    return json.loads(execution["output"])


def history(laptop: TestLaptop, execution: str) -> list[dict[str, Any]]:
    pages = laptop.states.get_paginator("get_execution_history").paginate(executionArn=execution)
    return [event for page in pages for event in page["events"]]


@pytest.fixture
def bucket(laptop: TestLaptop) -> str:
    laptop.s3.create_bucket(Bucket=BUCKET)
    laptop.s3.put_object(Bucket=BUCKET, Key="uploads/alice/r1/a.png", Body=b"a")
    laptop.s3.put_object(Bucket=BUCKET, Key="base/tiny-1/x", Body=b"b")
    return BUCKET


@pytest.fixture
def table(laptop: TestLaptop) -> str:
    client = laptop.client("dynamodb")
    name = f"t-{uuid.uuid4().hex[:8]}"
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return name


@pytest.fixture(scope="module")
def function(session_laptop: TestLaptop) -> str:
    code = (
        "import time\n"
        "class PhotoError(Exception):\n    pass\n"
        "def handler(event, context):\n"
        "    if event.get('fail'):\n        raise PhotoError(event['fail'])\n"
        "    time.sleep(event.get('sleep_s', 0))\n"
        "    return {'seen': event, 'blob': 'x' * event.get('blob', 0)}\n"
    )
    return str(create_function(session_laptop, code)["FunctionName"])


def create_function(laptop: TestLaptop, code: str) -> Any:
    """A Lambda function of one module with a ``handler``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("app.py", code)
    return laptop.client("lambda").create_function(
        FunctionName=f"fn-{uuid.uuid4().hex[:8]}",
        Runtime="python3.11",
        Role=ROLE,
        Handler="app.handler",
        Code={"ZipFile": buffer.getvalue()},
        Timeout=60,
    )


# sagemaker:createTrainingJob.sync


def test_sync_waits_and_returns_the_description_with_times_in_milliseconds(
    laptop: TestLaptop, bucket: str
) -> None:
    request, before = job_request(), time.time()
    result = output(laptop.run(machine(task(f"{CREATE_JOB}.sync", request))))
    assert result["TrainingJobStatus"] == "Completed"
    assert before - 1 <= result["CreationTime"] / 1000 <= time.time() + 1
    assert isinstance(result["SecondaryStatusTransitions"][0]["StartTime"], int)
    assert objects(laptop, f"jobs/{request['TrainingJobName']}/output/")


def test_without_sync_only_the_arn_comes_back(laptop: TestLaptop, bucket: str) -> None:
    result = output(laptop.run(machine(task(CREATE_JOB, job_request()))))
    assert list(result) == ["TrainingJobArn"]


def test_a_failed_job_is_states_task_failed_with_the_description(
    laptop: TestLaptop, bucket: str
) -> None:
    request = job_request(HyperParameters={"behave": "fail"})
    ended = laptop.run(
        machine(task(f"{CREATE_JOB}.sync", request, **caught_by("States.TaskFailed")), CAUGHT)
    )
    job = json.loads(output(ended)["error"]["Cause"])
    assert job["FailureReason"].startswith("AlgorithmError: PHOTO_TOO_SMALL")
    assert job["TrainingJobStatus"] == "Failed"


@pytest.mark.parametrize(
    ("trouble", "name", "code"),
    [
        ({"throttle_next": "forever"}, "AmazonSageMakerException", "ThrottlingException"),
        ({"quota_full": True}, "ResourceLimitExceededException", "ResourceLimitExceeded"),
    ],
)
def test_api_errors_have_the_names_of_aws(
    laptop: TestLaptop, bucket: str, trouble: dict[str, Any], name: str, code: str
) -> None:
    laptop.control.trouble(**trouble)
    ended = laptop.run(machine(task(f"{CREATE_JOB}.sync", job_request())))
    assert ended["status"] == "FAILED"
    assert ended["error"] == f"SageMaker.{name}"
    assert f"Error Code: {code}" in ended["cause"]


def test_a_name_in_use_and_a_bad_request(laptop: TestLaptop, bucket: str) -> None:
    request = job_request()
    laptop.sagemaker.create_training_job(**request)
    ended = laptop.run(machine(task(f"{CREATE_JOB}.sync", request)))
    assert ended["error"] == "SageMaker.ResourceInUseException"
    ended = laptop.run(machine(task(f"{CREATE_JOB}.sync", job_request(TrainingJobName="_"))))
    assert ended["error"] == "SageMaker.AmazonSageMakerException"
    assert "Error Code: ValidationException" in ended["cause"]


def test_throttled_twice_then_done(laptop: TestLaptop, bucket: str) -> None:
    laptop.control.trouble(throttle_next=2)
    retry = [{"ErrorEquals": ["SageMaker.AmazonSageMakerException"], "MaxAttempts": 3}]
    execution = laptop.begin(machine(task(f"{CREATE_JOB}.sync", job_request(), Retry=retry)))
    output(laptop.finish(execution))
    kinds = [event["type"] for event in history(laptop, execution)]
    assert kinds.count("TaskFailed") == 2
    assert kinds.count("TaskSucceeded") == 1


def test_stopping_the_execution_stops_the_job(laptop: TestLaptop, bucket: str) -> None:
    request = job_request(HyperParameters={"behave": "hang"})
    execution = laptop.begin(machine(task(f"{CREATE_JOB}.sync", request)))
    wait_for_job(laptop, request, "Training")
    laptop.states.stop_execution(executionArn=execution, error="Why", cause="because")
    assert wait_for_job(laptop, request, "Stopped")["TrainingJobStatus"] == "Stopped"
    assert laptop.finish(execution)["status"] == "ABORTED"
    assert history(laptop, execution)[-1]["type"] == "ExecutionAborted"


def test_a_task_timeout_stops_the_job(laptop: TestLaptop, bucket: str) -> None:
    laptop.control.clock(CLOCK_SCALE, timeouts=0.01)
    request = job_request(HyperParameters={"behave": "hang"})
    limited = task(f"{CREATE_JOB}.sync", request, TimeoutSeconds=100, **caught_by("States.Timeout"))
    assert output(laptop.run(machine(limited, CAUGHT)))["error"]["Error"] == "States.Timeout"
    wait_for_job(laptop, request, "Stopped")


def wait_for_job(laptop: TestLaptop, request: dict[str, Any], secondary: str) -> dict[str, Any]:
    def look() -> dict[str, Any]:
        try:
            found: dict[str, Any] = laptop.sagemaker.describe_training_job(
                TrainingJobName=request["TrainingJobName"]
            )
        except ClientError:
            return {"SecondaryStatus": ""}
        return found

    return until(look, lambda job: job["SecondaryStatus"] == secondary)


# aws-sdk integrations that Limner's machines use


def test_describe_training_job_by_aws_sdk(laptop: TestLaptop, bucket: str) -> None:
    request = job_request()
    laptop.sagemaker.create_training_job(**request)
    wait_for_job(laptop, request, "Completed")
    describe = "arn:aws:states:::aws-sdk:sagemaker:describeTrainingJob"
    by_name = {"TrainingJobName": request["TrainingJobName"]}
    result = output(laptop.run(machine(task(describe, by_name))))
    assert result["TrainingJobStatus"] == "Completed"
    assert result["ModelArtifacts"]["S3ModelArtifacts"].endswith("/output/model.tar.gz")
    assert result["CreationTime"].endswith("Z")
    ended = laptop.run(machine(task(describe, {"TrainingJobName": "none"})))
    assert ended["error"] == "SageMaker.SageMakerException"


def test_copy_object_by_aws_sdk(laptop: TestLaptop, bucket: str) -> None:
    copy = "arn:aws:states:::aws-sdk:s3:copyObject"
    laptop.s3.put_object(Bucket=bucket, Key="jobs/j/output/model.tar.gz", Body=b"model")
    parameters = {
        "Bucket": bucket,
        "CopySource": f"{bucket}/jobs/j/output/model.tar.gz",
        "Key": "models/alice/default/v1.tar.gz",
    }
    result = output(laptop.run(machine(task(copy, parameters))))
    assert result["CopyObjectResult"]["ETag"]
    body = laptop.s3.get_object(Bucket=bucket, Key=parameters["Key"])["Body"].read()
    assert body == b"model"
    missing = {**parameters, "CopySource": f"{bucket}/jobs/none"}
    assert laptop.run(machine(task(copy, missing)))["error"] == "S3.NoSuchKeyException"


def test_transact_write_items_by_aws_sdk(laptop: TestLaptop, table: str) -> None:
    transact = "arn:aws:states:::aws-sdk:dynamodb:transactWriteItems"

    def write(condition: str) -> dict[str, Any]:
        key = {"pk": {"S": "alice"}}
        put = {"TableName": table, "Item": key, "ConditionExpression": condition}
        update = {
            "TableName": table,
            "Key": {"pk": {"S.$": "$.other"}},
            "UpdateExpression": "SET #n = :one REMOVE gone",
            "ExpressionAttributeNames": {"#n": "n"},
            "ExpressionAttributeValues": {":one": {"N": "1"}},
        }
        return {"TransactItems": [{"Put": put}, {"Update": update}]}

    first = laptop.run(machine(task(transact, write("attribute_not_exists(pk)"))), {"other": "bob"})
    output(first)
    item = laptop.client("dynamodb").get_item(TableName=table, Key={"pk": {"S": "bob"}})["Item"]
    assert item["n"] == {"N": "1"}
    again = laptop.run(machine(task(transact, write("attribute_not_exists(pk)"))), {"other": "c"})
    assert again["error"] == "DynamoDb.TransactionCanceledException"
    assert "ConditionalCheckFailed" in again["cause"]


def test_conditional_update_by_the_optimized_integration(laptop: TestLaptop, table: str) -> None:
    update = "arn:aws:states:::dynamodb:updateItem"
    parameters = {
        "TableName": table,
        "Key": {"pk": {"S": "alice"}},
        "UpdateExpression": "ADD version :one",
        "ConditionExpression": "attribute_not_exists(taken)",
        "ExpressionAttributeValues": {":one": {"N": "1"}},
        "ReturnValues": "ALL_NEW",
    }
    result = output(laptop.run(machine(task(update, parameters))))
    assert result["Attributes"]["version"] == {"N": "1"}
    parameters["ConditionExpression"] = "attribute_exists(taken)"
    ended = laptop.run(machine(task(update, parameters)))
    assert ended["error"] == "DynamoDB.ConditionalCheckFailedException"


def test_get_item_that_finds_nothing_has_no_item(laptop: TestLaptop, table: str) -> None:
    get = "arn:aws:states:::dynamodb:getItem"
    parameters = {"TableName": table, "Key": {"pk": {"S": "nobody"}}}
    choice = {
        "Type": "Choice",
        "Choices": [{"Variable": "$.model.Item", "IsPresent": True, "Next": "Wrong"}],
        "Default": "Right",
    }
    ends = (("Right", {"Type": "Succeed"}), ("Wrong", {"Type": "Fail"}))
    definition = machine(task(get, parameters, ResultPath="$.model"), ("Choose", choice), *ends)
    output(laptop.run(definition))


def test_a_write_whose_reply_is_lost_has_happened(laptop: TestLaptop, table: str) -> None:
    fault = Fault("dynamodb:UpdateItem", FaultKind.LOST_REPLY)
    laptop.control.trouble(faults=[fault])
    parameters = {
        "TableName": table,
        "Key": {"pk": {"S": "alice"}},
        "UpdateExpression": "ADD n :one",
        "ExpressionAttributeValues": {":one": {"N": "1"}},
    }
    retry = [{"ErrorEquals": ["DynamoDB.InternalServerErrorException"], "MaxAttempts": 1}]
    update = task("arn:aws:states:::dynamodb:updateItem", parameters, Retry=retry)
    output(laptop.run(machine(update)))
    item = laptop.client("dynamodb").get_item(TableName=table, Key={"pk": {"S": "alice"}})["Item"]
    assert item["n"] == {"N": "2"}


# Retry, clock, timeouts


def test_max_delay_bounds_the_back_off(laptop: TestLaptop, bucket: str) -> None:
    laptop.control.trouble(throttle_next=4)
    retry = [
        {
            "ErrorEquals": ["States.ALL"],
            "IntervalSeconds": 10,
            "BackoffRate": 10.0,
            "MaxDelaySeconds": 20,
            "MaxAttempts": 4,
        }
    ]
    began = time.monotonic()
    output(laptop.run(machine(task(CREATE_JOB, job_request(), Retry=retry))))
    # 10 + 20 + 20 + 20 s at one hundredth; without the bound it would be 111 s at least.
    assert 0.7 <= time.monotonic() - began < 60


def test_the_clock_can_be_turned_while_an_execution_waits(laptop: TestLaptop) -> None:
    laptop.control.clock(1.0)
    execution = laptop.begin(machine(("Wait", {"Type": "Wait", "Seconds": 3600})))
    until(lambda: history(laptop, execution), lambda events: len(events) > 1)
    laptop.control.clock(0.0)
    output(laptop.finish(execution))


def test_a_machine_times_out(laptop: TestLaptop) -> None:
    laptop.control.clock(1.0, timeouts=0.01)
    wait = ("Wait", {"Type": "Wait", "Seconds": 60})
    execution = laptop.begin(machine(wait, TimeoutSeconds=50))
    assert laptop.finish(execution)["status"] == "TIMED_OUT"
    assert history(laptop, execution)[-1]["type"] == "ExecutionTimedOut"


def test_a_function_meets_its_tasks_timeout(laptop: TestLaptop, function: str) -> None:
    invoke = {"FunctionName": function, "Payload": {"sleep_s": 8}}
    laptop.control.clock(CLOCK_SCALE, timeouts=0.001)
    lambda_task = task("arn:aws:states:::lambda:invoke", invoke, TimeoutSeconds=1)
    began = time.monotonic()
    assert laptop.run(machine(lambda_task))["error"] == "States.Timeout"
    assert time.monotonic() - began >= 1
    # The dial is for jobs: a call keeps its time.
    invoke = {"FunctionName": function, "Payload": {}}
    output(laptop.run(machine(task("arn:aws:states:::lambda:invoke", invoke, TimeoutSeconds=60))))


def test_nothing_is_retried_after_the_end(laptop: TestLaptop, bucket: str) -> None:
    laptop.control.trouble(throttle_next="forever")
    laptop.control.clock(1.0)
    retry = [{"ErrorEquals": ["States.ALL"], "IntervalSeconds": 1000, "MaxAttempts": 9}]
    request = job_request()
    execution = laptop.begin(machine(task(CREATE_JOB, request, Retry=retry)))
    until(lambda: history(laptop, execution), lambda events: events[-1]["type"] == "TaskFailed")
    laptop.states.stop_execution(executionArn=execution)
    laptop.control.trouble()
    laptop.control.clock(0.0)
    time.sleep(0.3)
    assert history(laptop, execution)[-1]["type"] == "ExecutionAborted"
    with pytest.raises(ClientError, match="not found"):
        laptop.sagemaker.describe_training_job(TrainingJobName=request["TrainingJobName"])


def test_the_context_object(laptop: TestLaptop, bucket: str) -> None:
    laptop.control.trouble(throttle_next=1)
    request = job_request()
    request["TrainingJobName.$"] = (
        "States.Format('try-{}-{}', $$.Execution.Name, $$.State.RetryCount)"
    )
    del request["TrainingJobName"]
    retry = [{"ErrorEquals": ["States.ALL"], "MaxAttempts": 1}]
    name = uuid.uuid4().hex[:12]
    result = output(laptop.run(machine(task(CREATE_JOB, request, Retry=retry)), name=name))
    assert result["TrainingJobArn"].endswith(f"training-job/try-{name}-1")
    seen = machine(
        (
            "Look",
            {
                "Type": "Pass",
                "Parameters": {"id.$": "$$.Execution.Id", "state.$": "$$.State.Name"},
            },
        )
    )
    execution = laptop.begin(seen)
    assert output(laptop.finish(execution)) == {"id": execution, "state": "Look"}


# Paths


@pytest.mark.parametrize(
    "state",
    [
        {"Type": "Pass", "Parameters": {"a": {"b.$": "$.absent"}}},
        {"Type": "Pass", "Parameters": {"a.$": "States.Format('{}', $.absent)"}},
        {"Type": "Pass", "InputPath": "$.absent"},
        {"Type": "Pass", "OutputPath": "$.list[3]"},
        {"Type": "Pass", "Parameters": {"a.$": "$$.Execution.Absent"}},
    ],
)
def test_a_path_that_selects_nothing_is_states_runtime(
    laptop: TestLaptop, state: dict[str, Any]
) -> None:
    ended = laptop.run(machine(("Pass", state)), {"list": [1]})
    assert (ended["status"], ended["error"]) == ("FAILED", "States.Runtime")
    assert "could not be found in the input" in ended["cause"]


def test_a_choice_on_a_missing_path_is_states_runtime(laptop: TestLaptop) -> None:
    rule = {"Variable": "$.absent", "BooleanEquals": True, "Next": "End"}
    choice = ("Choose", {"Type": "Choice", "Choices": [rule], "Default": "End"})
    definition = machine(choice, ("End", {"Type": "Succeed"}))
    assert laptop.run(definition)["error"] == "States.Runtime"
    guarded = {"And": [{"Variable": "$.absent", "IsPresent": True}, rule], "Next": "End"}
    guarded["And"][1] = {k: v for k, v in rule.items() if k != "Next"}  # type: ignore[index]
    definition["States"]["Choose"]["Choices"] = [guarded]
    output(laptop.run(definition))


def test_states_runtime_is_caught_by_nobody(laptop: TestLaptop, function: str) -> None:
    invoke = {"FunctionName": function, "Payload": {"a.$": "$.absent"}}
    retry = [{"ErrorEquals": ["States.ALL"], "MaxAttempts": 5}]
    state = task("arn:aws:states:::lambda:invoke", invoke, Retry=retry, **caught_by("States.ALL"))
    assert laptop.run(machine(state, CAUGHT))["error"] == "States.Runtime"


def test_a_failing_intrinsic_has_its_own_name(laptop: TestLaptop) -> None:
    state = {"Type": "Pass", "Parameters": {"a.$": "States.StringToJson($.text)"}}
    ended = laptop.run(machine(("Pass", state)), {"text": "{no json"})
    assert ended["error"] == "States.IntrinsicFailure"


# Limits and names


def test_256_kib_is_the_end(laptop: TestLaptop, function: str) -> None:
    invoke = {"FunctionName": function, "Payload": {"blob": 270_000}}
    state = task("arn:aws:states:::lambda:invoke", invoke, **caught_by("States.ALL"))
    assert laptop.run(machine(state, CAUGHT))["error"] == "States.DataLimitExceeded"
    with pytest.raises(ClientError, match="less than or equal to 262144"):
        laptop.begin(machine(("Pass", {"Type": "Pass"})), {"a": "x" * 270_000})


def test_lambda_errors_carry_the_exceptions_class(laptop: TestLaptop, function: str) -> None:
    invoke = {"FunctionName": function, "Payload": {"fail": "a.png is broken"}}
    state = task("arn:aws:states:::lambda:invoke", invoke, **caught_by("PhotoError"))
    error = output(laptop.run(machine(state, CAUGHT)))["error"]
    assert error["Error"] == "PhotoError"
    assert json.loads(error["Cause"])["errorMessage"] == "a.png is broken"


def test_lambda_trouble(laptop: TestLaptop, function: str) -> None:
    fault = Fault("lambda:Invoke", code="TooManyRequestsException", message="Rate Exceeded.")
    laptop.control.trouble(faults=[fault])
    invoke = {"FunctionName": function, "Payload": {}}
    ended = laptop.run(machine(task("arn:aws:states:::lambda:invoke", invoke)))
    assert ended["error"] == "Lambda.TooManyRequestsException"


def test_sns_errors(laptop: TestLaptop) -> None:
    absent = "arn:aws:sns:us-east-1:000000000000:absent"
    publish = task("arn:aws:states:::sns:publish", {"TopicArn": absent, "Message": "m"})
    assert laptop.run(machine(publish))["error"] == "SNS.NotFoundException"


# StartExecution, and the events of executions


def test_start_execution_is_idempotent_while_it_runs(laptop: TestLaptop) -> None:
    laptop.control.clock(1.0)
    created = laptop.states.create_state_machine(
        name=f"idem-{uuid.uuid4().hex[:8]}",
        definition=json.dumps(machine(("Wait", {"Type": "Wait", "Seconds": 1000}))),
        roleArn=ROLE,
    )
    start = {"stateMachineArn": created["stateMachineArn"], "name": "once", "input": '{"a": 1}'}
    first = laptop.states.start_execution(**start)
    again = laptop.states.start_execution(**start)
    assert again["executionArn"] == first["executionArn"]
    assert again["startDate"] == first["startDate"]
    exists = laptop.states.exceptions.ExecutionAlreadyExists
    with pytest.raises(exists):
        laptop.states.start_execution(**{**start, "input": "{}"})
    laptop.states.stop_execution(executionArn=first["executionArn"])
    with pytest.raises(exists):
        laptop.states.start_execution(**start)


def test_status_changes_start_a_function(laptop: TestLaptop, table: str) -> None:
    """A rule on ABORTED, TIMED_OUT, FAILED reaches a Lambda function with AWS's event."""
    code = (
        "import boto3, json\n"
        "def handler(event, context):\n"
        f"    boto3.client('dynamodb').put_item(TableName='{table}', Item={{\n"
        "        'pk': {'S': event['detail']['executionArn']},\n"
        "        'event': {'S': json.dumps(event)}})\n"
    )
    function = create_function(laptop, code)
    events, scan = laptop.client("events"), laptop.client("dynamodb").scan
    pattern = {
        "source": ["aws.states"],
        "detail-type": ["Step Functions Execution Status Change"],
        "detail": {"status": ["ABORTED", "TIMED_OUT", "FAILED"]},
    }
    events.put_rule(Name=table, EventPattern=json.dumps(pattern))
    events.put_targets(Rule=table, Targets=[{"Id": "f", "Arn": function["FunctionArn"]}])

    laptop.control.clock(1.0, timeouts=0.01)
    wait = ("Wait", {"Type": "Wait", "Seconds": 1000})
    stopped = laptop.begin(machine(wait), {"request_id": "r1"})
    late = laptop.begin(machine(wait, TimeoutSeconds=10))
    failed = laptop.begin(machine(("Fail", {"Type": "Fail", "Error": "E", "Cause": "c"})))
    laptop.states.stop_execution(executionArn=stopped, error="Why", cause="because")
    ours = {stopped, late, failed}  # the rule hears of others, too
    found = until(
        lambda: [item for item in scan(TableName=table)["Items"] if item["pk"]["S"] in ours],
        lambda items: len(items) == len(ours),
    )
    seen = {item["pk"]["S"]: json.loads(item["event"]["S"]) for item in found}
    statuses = {arn: event["detail"]["status"] for arn, event in seen.items()}
    assert statuses == {stopped: "ABORTED", late: "TIMED_OUT", failed: "FAILED"}
    event = seen[stopped]
    assert event["source"] == "aws.states"
    assert json.loads(event["detail"]["input"]) == {"request_id": "r1"}
    assert event["detail"]["stopDate"] >= event["detail"]["startDate"] > 1e12
    events.remove_targets(Rule=table, Ids=["f"])
