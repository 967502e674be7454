"""Presigned POST on the laptop: the policy and the checksum are enforced as on S3."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import uuid
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.laptop import TestLaptop

BUCKET = "laptop-uploads"
PHOTO = b"\x89PNG photo"
KEY = "uploads/alice/r1/a.png"


def sha256(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


@pytest.fixture
def bucket(laptop: TestLaptop) -> str:
    laptop.s3.create_bucket(Bucket=BUCKET)
    laptop.s3.delete_object(Bucket=BUCKET, Key=KEY)
    return BUCKET


def presigned(laptop: TestLaptop, expires_s: int = 600) -> dict[str, Any]:
    fields = {
        "Content-Type": "image/png",
        "x-amz-checksum-algorithm": "SHA256",
        "x-amz-checksum-sha256": sha256(PHOTO),
    }
    answer: dict[str, Any] = laptop.s3.generate_presigned_post(
        BUCKET,
        KEY,
        Fields=fields,
        Conditions=[
            *({name: value} for name, value in fields.items()),
            ["content-length-range", len(PHOTO), len(PHOTO)],
        ],
        ExpiresIn=expires_s,
    )
    return answer


def post(form: dict[str, Any], body: bytes = PHOTO, changes: dict[str, str] | None = None) -> str:
    """Posts a form as a browser does; returns S3's error code, or nothing."""
    boundary = uuid.uuid4().hex
    fields = {**form["fields"], **(changes or {})}
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    parts += [
        f"--{boundary}\r\n".encode(),
        b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n',
        body,
        f"\r\n--{boundary}--\r\n".encode(),
    ]
    url = urlsplit(form["url"])
    connection = http.client.HTTPConnection("127.0.0.1", url.port, timeout=30)
    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Host": url.netloc,
    }
    connection.request("POST", url.path or "/", b"".join(parts), headers)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    if reply.status == 204:
        return ""
    code = re.search("<Code>(.*)</Code>", text)
    assert code is not None, text
    return f"{reply.status} {code[1]}"


def stored(laptop: TestLaptop) -> list[str]:
    listed = laptop.s3.list_objects_v2(Bucket=BUCKET, Prefix="uploads/")
    return [item["Key"] for item in listed.get("Contents", [])]


def test_what_was_promised_is_stored_with_its_checksum(laptop: TestLaptop, bucket: str) -> None:
    assert post(presigned(laptop)) == ""
    head = laptop.s3.head_object(Bucket=bucket, Key=KEY, ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == sha256(PHOTO)
    assert (head["ContentLength"], head["ContentType"]) == (len(PHOTO), "image/png")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key": "uploads/bob/r1/a.png"}, "403 AccessDenied"),
        ({"Content-Type": "text/html"}, "403 AccessDenied"),
        ({"x-amz-checksum-sha256": sha256(b"other")}, "403 AccessDenied"),
        ({"x-amz-meta-extra": "1"}, "403 AccessDenied"),
    ],
)
def test_a_form_that_was_changed(
    laptop: TestLaptop, bucket: str, changes: dict[str, str], code: str
) -> None:
    assert post(presigned(laptop), changes=changes) == code
    assert stored(laptop) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (PHOTO + b"!", "400 EntityTooLarge"),
        (PHOTO[:-1], "400 EntityTooSmall"),
        (PHOTO[:-1] + b"!", "400 BadDigest"),
    ],
)
def test_a_file_that_was_not_promised(
    laptop: TestLaptop, bucket: str, body: bytes, code: str
) -> None:
    assert post(presigned(laptop), body) == code
    assert stored(laptop) == []


def test_a_policy_that_has_expired(laptop: TestLaptop, bucket: str) -> None:
    assert post(presigned(laptop, expires_s=-1)) == "403 AccessDenied"
    assert stored(laptop) == []
