"""The stores of ``register`` on a small AWS, and the forms against S3's own rules for them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from moto import mock_aws
from PIL import Image

from lambdas.register.logic import Form
from lambdas.register.stores import BY_USER, RangedFile
from lambdas.shared.log import JsonLines
from limner.contracts import keys
from limner.contracts.images import read_header
from limner.contracts.limits import MAX_OPEN_REQUESTS
from limner.registry import BY_USER as BY_USER_OF_THE_CLIENT
from tests.unit.lambdas.register_world import asked, photo, submitted

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def aws(environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("BUCKET", "bucket")
    monkeypatch.setenv("BUS_NAME", "bus")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="bucket")
        boto3.client("events").create_event_bus(Name="bus")
        boto3.client("dynamodb").create_table(
            TableName="requests",
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[
                {"AttributeName": name, "AttributeType": "S"}
                for name in ("request_id", "user_id", "created_at")
            ],
            KeySchema=[{"AttributeName": "request_id", "KeyType": "HASH"}],
            GlobalSecondaryIndexes=[
                {
                    "IndexName": BY_USER,
                    "KeySchema": [
                        {"AttributeName": "user_id", "KeyType": "HASH"},
                        {"AttributeName": "created_at", "KeyType": "RANGE"},
                    ],
                    "Projection": {"ProjectionType": "ALL"},
                }
            ],
        )
        yield


@pytest.fixture
def handler(aws: None, cold_start: Callable[[str], ModuleType]) -> ModuleType:
    return cold_start("register")


def policy_of(post: dict[str, Any]) -> list[Any]:
    """The conditions that S3 enforces, without those that name the signer."""
    conditions = json.loads(base64.b64decode(post["fields"]["policy"]))["conditions"]
    signer = {"x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-security-token"}
    return [c for c in conditions if not (isinstance(c, dict) and set(c) <= signer)]


def s3_takes(post: dict[str, Any], data: bytes, **changed: str) -> bool:
    """Whether S3 would take a form (Amazon S3 user guide, "POST policy"), and the upload if so."""
    fields = {**post["fields"], **changed}
    checked = {"policy", "x-amz-signature"}
    for condition in json.loads(base64.b64decode(fields["policy"]))["conditions"]:
        match condition:
            case ["content-length-range", least, most]:
                if not least <= len(data) <= most:
                    return False
            case ["eq", name, value]:
                checked.add(name[1:])
                if fields.get(name[1:]) != value:
                    return False
            case dict():
                ((name, value),) = condition.items()
                checked.add(name)
                if name != "bucket" and fields.get(name) != value:
                    return False
    if set(fields) - checked:
        return False  # a field that no condition speaks of
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    if fields["x-amz-checksum-sha256"] != digest:
        return False
    boto3.client("s3").put_object(
        Bucket="bucket",
        Key=fields["key"],
        Body=data,
        ContentType=fields["Content-Type"],
        ChecksumSHA256=digest,
    )
    return True


def send_all(answer: dict[str, Any], count: int = 3) -> None:
    forms = {post["sha256"]: post for post in answer["posts"]}
    for number in range(count):
        data = photo(number)
        assert s3_takes(forms[hashlib.sha256(data).hexdigest()], data)


def row(request_id: str) -> dict[str, Any] | None:
    return (
        boto3.client("dynamodb")
        .get_item(TableName="requests", Key={"request_id": {"S": request_id}})
        .get("Item")
    )


@pytest.mark.parametrize("region", ["us-east-1", "eu-south-1"])
def test_forms_go_to_the_bucket_s_own_region(
    aws: None,
    cold_start: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    region: str,
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    bucket = cold_start("register").DESK.bucket
    form = Form("uploads/alice/r1/1.png", {}, ())
    host = "s3" if region == "us-east-1" else f"s3.{region}"
    assert bucket.post(form, 900)["url"] == f"https://bucket.{host}.amazonaws.com/"


def test_at_an_address_forms_have_the_bucket_in_their_path(
    aws: None, cold_start: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:4566")
    form = Form("uploads/alice/r1/1.png", {}, ())
    bucket = cold_start("register").DESK.bucket
    assert bucket.post(form, 900)["url"] == "http://127.0.0.1:4566/bucket"


def test_a_user_has_so_many_open_requests_and_no_more(handler: ModuleType) -> None:
    assert BY_USER == BY_USER_OF_THE_CLIENT
    first = handler.handle(asked(client_token="0"), None)
    for number in range(1, MAX_OPEN_REQUESTS):
        handler.DESK.book.create(
            {
                "request_id": f"r{number}",
                "user_id": "alice",
                "created_at": f"2020-01-01T00:00:00.{number:03}Z",
                "status": "QUEUED",
                "open": "0",
            }
        )
    error = handler.handle(asked(client_token="more"), None)["error"]
    assert (error["code"], error["retryable"]) == ("TOO_MANY_REQUESTS", True)
    assert row(keys.request_id_of_token("alice", "more")) is None
    again = handler.handle(asked(client_token="0"), None)
    assert again["request_id"] == first["request_id"], "a repetition is none too many"
    assert "error" not in handler.handle(asked("bob"), None)
    boto3.client("dynamodb").update_item(
        TableName="requests",
        Key={"request_id": {"S": "r1"}},
        UpdateExpression="REMOVE #open",
        ExpressionAttributeNames={"#open": "open"},
    )
    assert "error" not in handler.handle(asked(client_token="more"), None)


def test_an_answer_that_never_comes_is_told_as_such(
    handler: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(**_: Any) -> None:
        raise ReadTimeoutError(endpoint_url="https://dynamodb")

    monkeypatch.setattr(handler.DESK.book._table._client, "update_item", lose)
    error = handler.handle(asked(), None)["error"]
    assert (error["code"], error["message"]) == ("AWS_ERROR", "ReadTimeoutError.")


def test_from_registering_to_the_queue(handler: ModuleType) -> None:
    answer = handler.handle(asked(client_token="t"), None)
    assert json.loads(json.dumps(answer)) == answer
    assert handler.handle(submitted(answer["request_id"]), None)["error"]["code"] == (
        "UPLOAD_INCOMPLETE"
    )
    send_all(answer)
    again = handler.handle(asked(client_token="t"), None)
    assert [post["fields"]["key"] for post in again["posts"]] == [
        post["fields"]["key"] for post in answer["posts"]
    ]
    done = handler.handle(submitted(answer["request_id"]), None)
    assert done == {"request_id": answer["request_id"], "status": "QUEUED"}
    written = row(answer["request_id"])
    assert written is not None
    assert written["queue"] == written["shard"] == written["open"]
    assert "uploads" not in written
    assert handler.handle(submitted(answer["request_id"]), None) == done
    assert row(answer["request_id"]) == written
    other = handler.handle(asked(client_token="t", retrain=True), None)
    assert other["error"]["code"] == "REQUEST_CONFLICT"
    config = boto3.client("s3").get_object(
        Bucket="bucket", Key=f"configs/{answer['request_id']}/config.json"
    )
    assert json.loads(config["Body"].read())["steps"] == 160


def test_an_event_goes_over_the_bus(handler: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = handler.handle(asked(), None)
    send_all(answer)
    sent = []
    events = handler.DESK.bus._events
    put = events.put_events
    monkeypatch.setattr(
        events,
        "put_events",
        lambda Entries: sent.extend(Entries) or put(Entries=Entries),  # noqa: N803
    )
    event = submitted(answer["request_id"], start="event")
    assert handler.handle(event, None)["status"] == "QUEUED"
    (entry,) = sent
    assert (entry["Source"], entry["DetailType"]) == ("limner", "limner.onboarding.requested")
    assert json.loads(entry["Detail"])["request_id"] == answer["request_id"]

    failed = {"FailedEntryCount": 1, "Entries": [{"ErrorCode": "InternalFailure"}]}
    monkeypatch.setattr(events, "put_events", lambda **_: failed)
    error = handler.handle(event, None)["error"]
    assert (error["code"], "InternalFailure" in error["message"]) == ("AWS_ERROR", True)


def test_a_form_takes_the_promised_bytes_and_nothing_else(handler: ModuleType) -> None:
    answer = handler.handle(asked(), None)
    form = next(
        post for post in answer["posts"] if post["sha256"] == hashlib.sha256(photo(0)).hexdigest()
    )
    assert len(policy_of(form)) == 6  # bucket, key, three fields, size
    key = form["fields"]["key"]
    good = photo(0)
    other = good[:-1] + bytes([good[-1] ^ 1])
    assert not s3_takes(form, other)
    assert not s3_takes(form, good + b"x")
    assert not s3_takes(form, good, **{"Content-Type": "text/html"})
    assert not s3_takes(form, good, **{"x-amz-checksum-algorithm": "CRC32"})
    assert not s3_takes(
        form, other, **{"x-amz-checksum-sha256": base64.b64encode(bytes(32)).decode()}
    )
    assert not s3_takes(form, good, key=key.replace("alice", "bob"))
    assert not s3_takes(form, good, key=key + "x")
    assert not s3_takes(form, good, **{"x-amz-meta-note": "more"})
    assert not s3_takes(form, good, acl="public-read")
    assert s3_takes(form, good)


def test_what_came_by_another_way_is_hashed(handler: ModuleType) -> None:
    answer = handler.handle(asked(), None)
    s3 = boto3.client("s3")
    for number in range(3):
        form = next(
            post
            for post in answer["posts"]
            if post["sha256"] == hashlib.sha256(photo(number)).hexdigest()
        )
        s3.put_object(
            Bucket="bucket", Key=form["fields"]["key"], Body=photo(number), ContentType="image/png"
        )
    assert handler.handle(submitted(answer["request_id"]), None)["status"] == "QUEUED"


def test_a_role_that_may_not_list_hears_403_for_what_is_missing(
    handler: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = handler.handle(asked(), None)

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadObject")

    monkeypatch.setattr(handler.DESK.bucket._s3, "head_object", refuse)
    error = handler.handle(submitted(answer["request_id"]), None)["error"]
    assert error["code"] == "UPLOAD_INCOMPLETE"


@pytest.mark.parametrize(
    ("code", "wanted"),
    [("ThrottlingException", "THROTTLED"), ("SlowDown", "THROTTLED"), ("Broken", "AWS_ERROR")],
)
def test_aws_s_own_refusals_are_told_as_such(
    handler: ModuleType, monkeypatch: pytest.MonkeyPatch, code: str, wanted: str
) -> None:
    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": code, "Message": "canary"}}, "UpdateItem")

    monkeypatch.setattr(handler.DESK.book._table._client, "update_item", refuse)
    error = handler.handle(asked(), None)["error"]
    assert (error["code"], error["message"]) == (wanted, f"UpdateItem: {code}.")


def test_the_log_holds_no_text_of_a_user(
    handler: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    for event in (
        asked(client_token="canary", config={"preview_prompts": ["canary"], "subject": "canary"}),
        asked(user_id="canary/"),
        {**asked(), "canary": 1},
        {"action": "canary"},
    ):
        handler.handle(event, None)
    lines = [JsonLines().format(record) for record in caplog.records]
    assert len(lines) == 4
    assert "canary" not in "".join(lines)


@pytest.mark.usefixtures("aws")
def test_a_header_takes_few_requests_and_few_bytes() -> None:
    s3 = boto3.client("s3")
    buffer = io.BytesIO()
    # 3 MB of segments before the picture, as phones write them with depth maps.
    Image.effect_noise((640, 480), 60).save(buffer, "JPEG")
    segment = b"\xff\xe1\xff\xff" + bytes(0xFFFD)
    data = buffer.getvalue()[:2] + segment * 46 + buffer.getvalue()[2:]
    s3.put_object(Bucket="bucket", Key="k", Body=data)
    ranges: list[str] = []
    s3.meta.events.register(
        "before-send.s3.GetObject", lambda request, **_: ranges.append(request.headers["Range"])
    )
    header = read_header(RangedFile(s3, "bucket", "k", len(data)), whole=False)
    assert (header.width_px, header.height_px) == (640, 480)
    assert len(ranges) <= 6
    ranges.clear()
    small = photo(1)
    s3.put_object(Bucket="bucket", Key="k", Body=small)
    read_header(RangedFile(s3, "bucket", "k", len(small)), whole=False)
    assert len(ranges) == 1


@pytest.mark.usefixtures("aws")
def test_a_ranged_file_reads_what_a_file_reads() -> None:
    s3 = boto3.client("s3")
    data = bytes(range(256)) * 700
    s3.put_object(Bucket="bucket", Key="k", Body=data)
    mine, theirs = RangedFile(s3, "bucket", "k", len(data)), io.BytesIO(data)
    for offset, whence, size in (
        (0, 0, 10),
        (65_530, 0, 20),
        (-5, 2, 20),
        (3, 0, 0),
        (-10, 1, 5),
        (10**6, 0, 4),
        (100, 0, -1),
    ):
        assert mine.seek(offset, whence) == theirs.seek(offset, whence)
        assert mine.read(size) == theirs.read(size)
        assert mine.tell() == theirs.tell()


def test_it_is_imported_where_lambda_has_boto3_alone() -> None:
    program = """
import sys
class NoPydantic:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "pydantic_settings", "PIL", "typer", "rich"}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, NoPydantic())
import lambdas.register.handler
assert "limner.registry" not in sys.modules
"""
    environment = {
        "AWS_DEFAULT_REGION": "us-east-1",
        **dict.fromkeys(("BUCKET", "REQUESTS_TABLE", "BUS_NAME"), "x"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
