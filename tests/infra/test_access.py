"""P16: every role x action x resource, evaluated over the template of a stage on AWS.

The tables are the whole truth: what is not in them is denied.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.publish import Synthesis, synthesize
from infra.settings import StageSettings
from limner.contracts import keys
from tests.infra.iam import HERE, Account, Call, like, listed

FOLDERS = (
    *(keys.UPLOADS, keys.CONFIGS, keys.BASES, keys.PREVIEWS, keys.JOBS, keys.BATCHES, keys.MODELS),
    *(keys.GENERATIONS, ""),
)
ALL_BUT_MODELS = {keys.UPLOADS, keys.CONFIGS, keys.BASES, keys.PREVIEWS, keys.BATCHES}

# Role -> folders that it reads and writes.
OBJECTS: dict[str, tuple[set[str], set[str]]] = {
    "WorkersRole": (
        {keys.UPLOADS, keys.CONFIGS, keys.BASES},
        {keys.JOBS, keys.BATCHES, keys.PREVIEWS},
    ),
    "TrainingRole": (ALL_BUT_MODELS, {keys.JOBS, keys.BATCHES, keys.PREVIEWS}),
    "ServingRole": ({keys.MODELS}, set()),
    "OnboardRole": ({keys.JOBS}, {keys.MODELS}),
    "OnboardBatchRole": ({keys.BATCHES}, {keys.MODELS}),
    "RegisterRole": ({keys.UPLOADS}, {keys.UPLOADS, keys.CONFIGS}),
    "PackTasksRole": ({keys.UPLOADS, keys.CONFIGS, keys.BATCHES}, {keys.BATCHES}),
    "CollectResultsRole": ({keys.BATCHES}, set()),
    "InspectArtifactRole": ({keys.JOBS, keys.BATCHES}, set()),
    **{
        name: (set(), set())
        for name in (
            *("SmokeTestRole", "RecordFailureRole", "RecordProgressRole"),
            *("DispatchRole", "ReconcileRole", "EventsRole", "WorkerRole"),
        )
    },
}

# Role -> what it does with (models, requests, indexes of requests).
RECORDS: dict[str, tuple[set[str], set[str], set[str]]] = {
    "WorkersRole": (set(), {"GetItem", "UpdateItem"}, {"queue"}),
    "OnboardRole": ({"GetItem", "UpdateItem"}, {"GetItem", "UpdateItem"}, set()),
    "OnboardBatchRole": ({"GetItem", "UpdateItem"}, {"GetItem", "UpdateItem"}, set()),
    "RegisterRole": (set(), {"GetItem", "UpdateItem"}, {"by_user"}),
    "PackTasksRole": (set(), {"GetItem"}, set()),
    "CollectResultsRole": (set(), {"GetItem", "UpdateItem"}, set()),
    "RecordFailureRole": ({"UpdateItem"}, {"GetItem", "UpdateItem"}, set()),
    "RecordProgressRole": (set(), {"UpdateItem"}, set()),
    "DispatchRole": (set(), {"GetItem", "UpdateItem"}, {"queue"}),
    "ReconcileRole": ({"UpdateItem"}, {"GetItem", "UpdateItem"}, {"open"}),
}
INDEXES = ("by_user", "queue", "open")
ITEM_ACTIONS = (
    *("GetItem", "PutItem", "UpdateItem", "DeleteItem", "Query", "Scan", "BatchGetItem"),
    *("BatchWriteItem", "DeleteTable", "ExportTableToPointInTime"),
)


def role_of(account: Account, name: str) -> str:
    """Logical id of the role that ends with this name, but for CDK's hash."""
    found = [role for role in account.roles if re.search(rf"{name}[0-9A-F]{{8}}$", role)]
    if name == "OnboardRole":  # the rule's role hangs below the machine
        found = [role for role in found if "Events" not in role]
    assert len(found) == 1, (name, found, account.roles)
    return found[0]


def data_bucket(account: Account) -> str:
    (bucket,) = [name for name in account.names("AWS::S3::Bucket") if "AccessLog" not in name]
    return bucket


def tables(account: Account) -> tuple[str, str]:
    models, requests = sorted(account.names("AWS::DynamoDB::Table"))
    return account.arn(models), account.arn(requests)


def test_the_tables_know_every_role(account: Account) -> None:
    assert sorted(role_of(account, name) for name in OBJECTS) == sorted(account.roles)


def test_every_role_comes_to_its_objects_and_to_no_other(
    account: Account, record_property: Callable[[str, str], None]
) -> None:
    bucket = account.arn(data_bucket(account))
    calls = allowed = 0
    for (name, (reads, writes)), folder in itertools.product(OBJECTS.items(), FOLDERS):
        key = f"{folder}/alice/x" if folder else "x"
        expected = {
            "s3:GetObject": folder in reads,
            "s3:PutObject": folder in writes,
            "s3:AbortMultipartUpload": folder in writes,
            "s3:DeleteObject": False,
            "s3:GetObjectVersion": False,
            "s3:PutObjectAcl": False,
        }
        for action, good in expected.items():
            call = Call(role_of(account, name), action, f"{bucket}/{key}")
            assert account.allows(call) == good, call
            calls, allowed = calls + 1, allowed + good
        listing = Call(
            role_of(account, name), "s3:ListBucket", bucket, {"s3:prefix": f"{folder}/alice/"}
        )
        assert account.allows(listing) == (folder in reads), listing
        calls, allowed = calls + 1, allowed + (folder in reads)
    for name, action in itertools.product(OBJECTS, ("s3:PutBucketPolicy", "s3:DeleteBucket")):
        assert not account.allows(Call(role_of(account, name), action, bucket))
        calls += 1
    record_property(
        "figure", f"P16 objects: {calls} calls, {allowed} allowed, {calls - allowed} denied (100 %)"
    )


def test_no_policy_that_is_ever_attached_opens_another_folder(cloud: Synthesis) -> None:
    template = json.loads(json.dumps(cloud.template))
    account = Account(template)
    bucket = account.arn(data_bucket(account))
    template["Resources"]["Mistake"] = {
        "Type": "AWS::IAM::Policy",
        "Properties": {
            "PolicyDocument": {
                "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]
            },
            "Roles": [{"Ref": role} for role in account.roles],
        },
    }
    for name, (reads, writes) in OBJECTS.items():
        for folder in set(FOLDERS) - reads - writes if reads | writes else ():
            call = Call(role_of(account, name), "s3:GetObject", f"{bucket}/{folder}/x")
            assert not account.allows(call), call


def test_an_endpoint_that_captures_writes_generations_and_reads_none(
    account: Account, tmp_path: Path
) -> None:
    settings = StageSettings(
        stage="prod",
        capture="endpoint",
        generation_days=7,
        endpoint_environment={"LIMNER_ADAPTER_BYTES": "1"},
    )
    template = synthesize(settings, tmp_path).template
    capturing = Account(template)
    assert sorted(capturing.roles) == sorted(account.roles)
    name = data_bucket(capturing)
    bucket = capturing.arn(name)
    serving = role_of(capturing, "ServingRole")
    for role, folder in itertools.product(capturing.roles, FOLDERS):
        arn = f"{bucket}/{folder}/alice/x" if folder else f"{bucket}/x"
        for action in ("GetObject", "PutObject", "DeleteObject"):
            # Nothing but this one cell differs from the stage without capture.
            may = account.allows(Call(role, f"s3:{action}", arn)) or (
                (role, folder, action) == (serving, keys.GENERATIONS, "PutObject")
            )
            call = Call(role, f"s3:{action}", arn)
            assert capturing.allows(call) == may, call
    (model,) = [
        item["Properties"]["PrimaryContainer"]
        for item in template["Resources"].values()
        if item["Type"] == "AWS::SageMaker::Model"
    ]
    assert model["Environment"] == {
        "LIMNER_ADAPTER_BYTES": "1",
        "LIMNER_CAPTURE_BUCKET": {"Ref": name},
    }
    rules = template["Resources"][name]["Properties"]["LifecycleConfiguration"]["Rules"]
    (rule,) = [rule for rule in rules if rule.get("Prefix") == f"{keys.GENERATIONS}/"]
    assert rule["ExpirationInDays"] == 7


def test_what_the_app_captures_needs_nothing_of_the_stage(cloud: Synthesis, tmp_path: Path) -> None:
    theirs = synthesize(StageSettings(stage="prod", capture="client"), tmp_path)
    assert theirs.template == cloud.template


def test_nobody_comes_to_data_without_tls(account: Account) -> None:
    bucket = account.arn(data_bucket(account))
    context = {"aws:SecureTransport": "false"}
    for role in account.roles:
        for folder in FOLDERS:
            call = Call(role, "s3:GetObject", f"{bucket}/{folder}/x", context)
            assert not account.allows(call)


def test_every_role_works_with_its_records_and_with_no_other(
    account: Account, record_property: Callable[[str, str], None]
) -> None:
    models, requests = tables(account)
    calls = allowed = 0
    for name in OBJECTS:
        on_models, on_requests, indexes = RECORDS.get(name, (set(), set(), set()))
        cells = {
            **{(models, action): action in on_models for action in ITEM_ACTIONS},
            **{(requests, action): action in on_requests for action in ITEM_ACTIONS},
            **{(f"{requests}/index/{index}", "Query"): index in indexes for index in INDEXES},
            **{(f"{requests}/index/{index}", "Scan"): False for index in INDEXES},
            (f"{requests}/stream/2026", "GetRecords"): name == "DispatchRole",
            (f"{models}/stream/2026", "GetRecords"): False,
        }
        for (resource, action), good in cells.items():
            call = Call(role_of(account, name), f"dynamodb:{action}", resource)
            assert account.allows(call) == good, call
            calls, allowed = calls + 1, allowed + good
    record_property(
        "figure", f"P16 records: {calls} calls, {allowed} allowed, {calls - allowed} denied (100 %)"
    )


def test_how_long_fine_tunes_take_is_all_that_planning_knows_and_writes(account: Account) -> None:
    _, requests = tables(account)
    read, update = "dynamodb:GetItem", "dynamodb:UpdateItem"
    for row, is_pace in (("#pace#tiny-1#ml.g5.xlarge", True), ("r1", False), ("#gate", False)):
        leading = {"dynamodb:LeadingKeys": row}
        packs, collects = role_of(account, "PackTasksRole"), role_of(account, "CollectResultsRole")
        assert account.allows(Call(packs, read, requests, leading)) == is_pace
        assert account.allows(Call(collects, update, requests, leading)) == is_pace
        assert account.allows(Call(collects, read, requests, leading)), "who has cancelled"


# Of another account, another region, another stage, or of nobody at all.
FOREIGN = (
    "arn:aws:s3:::somebody-elses-bucket/uploads/alice/x",
    "arn:aws:s3:::somebody-elses-bucket",
    "arn:aws:dynamodb:eu-west-1:111122223333:table/another",
    "arn:aws:dynamodb:eu-west-1:111122223333:table/another/index/queue",
    "arn:aws:dynamodb:eu-west-1:999999999999:table/DataModels",
    f"arn:aws:lambda:{HERE}:function:another",
    f"arn:aws:sns:{HERE}:another",
    f"arn:aws:sqs:{HERE}:another",
    f"arn:aws:states:{HERE}:stateMachine:another",
    f"arn:aws:states:{HERE}:stateMachine:limner-dev-onboard",
    f"arn:aws:states:{HERE}:execution:limner-dev-onboard:r1-1",
    f"arn:aws:sagemaker:{HERE}:training-job/another-r1-1",
    f"arn:aws:sagemaker:{HERE}:endpoint/another",
    "arn:aws:sagemaker:us-east-1:111122223333:training-job/limner-r1-1",
    f"arn:aws:events:{HERE}:event-bus/default",
    f"arn:aws:events:{HERE}:rule/another",
    f"arn:aws:logs:{HERE}:log-group:/aws/lambda/another:log-stream:x",
    f"arn:aws:ecr:{HERE}:repository/another",
    f"arn:aws:kms:{HERE}:key/another",
    "arn:aws:iam::111122223333:role/Admin",
    "arn:aws:iam::111122223333:role/TrainingRole",
)


def forced(account: Account, role: str) -> set[str]:
    """Actions that AWS knows no resource for: they are granted on "*" alone."""
    return {
        action
        for statement in account.statements_of(role)
        if statement["Effect"] == "Allow" and statement["Resource"] == ["*"]
        for action in listed(statement["Action"])
    }


def test_no_role_reaches_anything_foreign(
    account: Account, record_property: Callable[[str, str], None]
) -> None:
    actions = {
        action
        for role in account.roles
        for statement in account.statements_of(role)
        for action in listed(statement["Action"])
    } | {f"s3:{action}" for action in ("GetObject", "PutObject", "ListBucket", "DeleteObject")}
    context = {"iam:PassedToService": "sagemaker.amazonaws.com", "s3:prefix": "uploads/alice/"}
    calls = 0
    for role in account.roles:
        for action, resource in itertools.product(actions - forced(account, role), FOREIGN):
            assert not account.allows(Call(role, action, resource, context)), (role, action)
            calls += 1
    record_property(
        "figure", f"P16 foreign: {len(account.roles)} roles, {calls} calls, 100 % denied"
    )


def test_the_smoke_test_invokes_the_one_endpoint_by_the_arn_that_aws_gives_it(
    account: Account,
) -> None:
    """In lower case, whatever CloudFormation called it; IAM compares letter by letter."""
    (endpoint,) = account.names("AWS::SageMaker::Endpoint")
    arn = account.arn(endpoint)
    assert arn != f"arn:aws:sagemaker:{HERE}:endpoint/{endpoint}", "a test of nothing"
    for role in account.roles:
        may = role == role_of(account, "SmokeTestRole")
        assert account.allows(Call(role, "sagemaker:InvokeEndpoint", arn)) == may
    (resource,) = [
        statement["Resource"]
        for statement in account.statements_of(role_of(account, "SmokeTestRole"))
        if "sagemaker:InvokeEndpoint" in listed(statement["Action"])
    ]
    assert resource == [arn]


def test_the_roles_of_jobs_are_passed_to_sagemaker_alone(account: Account) -> None:
    passes = {
        "TrainingRole": ("OnboardRole", "OnboardBatchRole"),
        "WorkersRole": ("WorkerRole",),
    }
    arns = {account.arn(role_of(account, job)): who for job, who in passes.items()}
    for name, passed in itertools.product(OBJECTS, map(account.arn, account.roles)):
        role, may = role_of(account, name), name in arns.get(passed, ())
        to_sagemaker = {"iam:PassedToService": "sagemaker.amazonaws.com"}
        to_lambda = {"iam:PassedToService": "lambda.amazonaws.com"}
        assert account.allows(Call(role, "iam:PassRole", passed, to_sagemaker)) == may
        assert not account.allows(Call(role, "iam:PassRole", passed, to_lambda))


def test_dispatch_starts_and_looks_reconcile_ends(account: Account) -> None:
    machines = [account.arn(name) for name in account.names("AWS::StepFunctions::StateMachine")]
    execution = f"arn:aws:states:{HERE}:execution:limner-prod-onboard:r1-1"
    job = f"arn:aws:sagemaker:{HERE}:training-job/limner-r1-1"
    dispatch, reconcile = (role_of(account, f"{name}Role") for name in ("Dispatch", "Reconcile"))
    for machine in machines:
        assert account.allows(Call(dispatch, "states:StartExecution", machine))
        assert not account.allows(Call(reconcile, "states:StartExecution", machine))
    for role, stops in ((dispatch, False), (reconcile, True)):
        assert account.allows(Call(role, "states:DescribeExecution", execution))
        assert account.allows(Call(role, "states:StopExecution", execution)) == stops
        assert account.allows(Call(role, "sagemaker:StopTrainingJob", job)) == stops
        assert not account.allows(Call(role, "sagemaker:CreateTrainingJob", job))


# -- every task of the machines may do its work ------------------------------------------------


def tasks(states: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, state in states.items():
        if state["Type"] == "Task":
            yield name, state
        inner = state.get("ItemProcessor") or state.get("Iterator")
        for branch in [inner, *state.get("Branches", [])]:
            if branch:
                yield from tasks(branch["States"])


def calls_of(account: Account, role: str, folder: str, state: Mapping[str, Any]) -> Iterator[Call]:
    """What a task state calls: AWS's name of the integration, and what it is about."""
    parameters = state["Parameters"]
    bucket = account.arn(data_bucket(account))
    job = f"arn:aws:sagemaker:{HERE}:training-job/limner-r1-1"
    table_arn = f"arn:aws:dynamodb:{HERE}:table/"
    match state["Resource"].removeprefix("arn:aws:states:::"):
        case "dynamodb:getItem":
            yield Call(role, "dynamodb:GetItem", table_arn + parameters["TableName"])
        case "dynamodb:updateItem":
            yield Call(role, "dynamodb:UpdateItem", table_arn + parameters["TableName"])
        case "aws-sdk:dynamodb:transactWriteItems":
            for member in parameters["TransactItems"]:
                (write,) = member.values()
                yield Call(role, "dynamodb:UpdateItem", table_arn + write["TableName"])
        case "aws-sdk:s3:copyObject":
            yield Call(role, "s3:GetObject", f"{bucket}/{folder}/x")
            yield Call(role, "s3:PutObject", f"{bucket}/{keys.MODELS}/alice/default/v1.tar.gz")
        case "lambda:invoke":
            yield Call(role, "lambda:InvokeFunction", parameters["FunctionName"])
        case "sns:publish":
            yield Call(role, "sns:Publish", parameters["TopicArn"])
        case "sagemaker:createTrainingJob.sync":
            for action in ("Create", "Describe", "Stop"):
                yield Call(role, f"sagemaker:{action}TrainingJob", job)
            yield Call(role, "sagemaker:AddTags", job)
            rule = "StepFunctionsGetEventsForSageMakerTrainingJobsRule"
            for action in ("PutTargets", "PutRule", "DescribeRule"):
                yield Call(role, f"events:{action}", f"arn:aws:events:{HERE}:rule/{rule}")
            yield Call(
                role,
                "iam:PassRole",
                parameters["RoleArn"],
                {"iam:PassedToService": "sagemaker.amazonaws.com"},
            )
        case "aws-sdk:sagemaker:describeTrainingJob":
            yield Call(role, "sagemaker:DescribeTrainingJob", job)
        case "aws-sdk:sagemaker:stopTrainingJob":
            yield Call(role, "sagemaker:StopTrainingJob", job)
        case other:
            raise AssertionError(f"a new integration: say here what it needs: {other}")


@pytest.mark.parametrize(
    ("machine", "folder"),
    [("Onboard", keys.JOBS), ("OnboardBatch", keys.BATCHES), ("Worker", keys.BATCHES)],
)
def test_every_task_may_do_its_work(
    cloud: Synthesis, account: Account, machine: str, folder: str
) -> None:
    role = role_of(account, f"{machine}Role")
    (resource,) = [
        item
        for item in cloud.template["Resources"].values()
        if item["Type"] == "AWS::StepFunctions::StateMachine"
        and item["Properties"]["RoleArn"] == {"Fn::GetAtt": [role, "Arn"]}
    ]
    definition = json.loads(account.text(resource["Properties"]["DefinitionString"]))
    found = list(tasks(definition["States"]))
    assert len(found) > (2 if machine == "Worker" else 10)
    for name, state in found:
        for call in calls_of(account, role, folder, state):
            assert account.allows(call), (name, call)


# -- the evaluator itself --------------------------------------------------------------------------


def test_the_evaluator_knows_wildcards() -> None:
    assert like("arn:aws:s3:::b/uploads/*", "arn:aws:s3:::b/uploads/a/b")
    assert not like("arn:aws:s3:::b/uploads/*", "arn:aws:s3:::b/models/uploads/")
    assert like("v?", "v1")
    assert not like("v?", "v12")
    assert like("S3:getobject", "s3:GetObject", ignore_case=True)
