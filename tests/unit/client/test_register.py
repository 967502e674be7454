"""Photos that come another way, through the function itself, in this process."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from limner.client import Limner, PromisedPhoto, Registration, TrainingConfig
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.contracts.statuses import RequestStatus
from limner.photos import check_photos
from tests.unit.client.world import World, photo, photos


class Answer(io.BytesIO):
    """The body of an answer as urllib3 hands it on."""

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        yield self.read()


@pytest.fixture
def app(aws: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world whose stack has the function ``register``."""
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "BUCKET": aws.deployment.bucket,
        "REQUESTS_TABLE": aws.deployment.requests_table,
        "BUS_NAME": "default",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    sys.modules.pop("lambdas.register.handler", None)
    handler = importlib.import_module("lambdas.register.handler")

    def invoke(request: Any, **_: object) -> AWSResponse:
        answer = json.dumps(handler.handle(json.loads(request.body), None)).encode()
        return AWSResponse(request.url, 200, {"content-type": "application/json"}, Answer(answer))

    aws.clients.functions.meta.events.register_first("before-send.lambda.Invoke", invoke)
    deployment = replace(aws.deployment, register_function="register")
    aws.limner = Limner(aws.clients, deployment, clock=aws.clock.clock())
    yield aws
    sys.modules.pop("lambdas.register.handler", None)


class Forms(ThreadingHTTPServer):
    """A bucket that takes forms, after the checks that matter here."""

    def __init__(self, world: World, status: int = 204) -> None:
        super().__init__(("127.0.0.1", 0), Reception)
        self.world, self.status = world, status
        self.taken: list[str] = []

    def __enter__(self) -> Forms:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def here(self, registration: Registration) -> Registration:
        url = f"http://127.0.0.1:{self.server_address[1]}/bucket"
        posts = tuple(replace(post, url=url) for post in registration.posts)
        return replace(registration, posts=posts)


class Reception(BaseHTTPRequestHandler):
    server: Forms

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _, _, boundary = self.headers["Content-Type"].partition("boundary=")
        fields: dict[str, bytes] = {}
        for part in body.split(f"--{boundary}".encode())[1:-1]:
            head, _, value = part.partition(b"\r\n\r\n")
            name = head.split(b'name="')[1].split(b'"')[0].decode()
            fields[name] = value.removesuffix(b"\r\n")
        assert list(fields)[-1] == "file"
        digest = base64.b64encode(hashlib.sha256(fields["file"]).digest())
        assert fields["x-amz-checksum-sha256"] == digest
        if self.server.status == 204:
            self.server.world.clients.s3.put_object(
                Bucket="limner-test",
                Key=fields["key"].decode(),
                Body=fields["file"],
                ContentType=fields["Content-Type"].decode(),
                ChecksumSHA256=digest.decode(),
            )
            self.server.taken.append(fields["key"].decode())
        self.send_response(self.server.status)
        self.end_headers()
        if self.server.status != 204:
            self.wfile.write(b"<Error><Code>AccessDenied</Code></Error>")

    def log_message(self, *_: object) -> None:
        pass


def test_register_upload_submit(app: World, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(photo(9, "JPEG"))
    mine = [*photos(3), path]
    config = TrainingConfig(steps=7, learning_rate=1, subject="dog")
    registration = app.limner.register("alice", mine, client_token="t", config=config)
    assert (registration.status, len(registration.posts)) == (RequestStatus.REGISTERED, 4)
    request = app.limner.request(registration.request_id)
    assert (request.status, request.steps, request.photos) == (RequestStatus.REGISTERED, 7, 4)
    assert app.config(request.request_id) == config
    assert app.executions() == []

    with pytest.raises(LimnerError) as caught:
        app.limner.submit(request.request_id)
    assert caught.value.code == "UPLOAD_INCOMPLETE"

    with Forms(app) as bucket:
        bucket.here(registration).upload(mine)
        assert (
            sorted(bucket.taken)
            == sorted(app.uploaded())
            == sorted(
                keys.uploads_prefix("alice", request.request_id) + p.key_name
                for p in check_photos(mine)
            )
        )
    submitted = app.limner.submit(request.request_id)
    assert (submitted.status, submitted.queue) == (RequestStatus.QUEUED, submitted.shard)
    assert app.limner.submit(request.request_id) == submitted

    again = app.limner.register("alice", mine, client_token="t", config=config)
    assert (again.status, again.posts) == (RequestStatus.QUEUED, ())
    again.upload(mine)  # there is nothing left to upload
    # The same wish by the other way is the same request, and it stays in the queue.
    assert app.limner.onboard("alice", mine, client_token="t", config=config) == submitted
    assert app.executions() == []


def test_promises_are_enough(app: World) -> None:
    promised = [
        PromisedPhoto(photo.sha256, photo.size_bytes, photo.header.content_type)
        for photo in check_photos(photos(3))
    ]
    first = app.limner.register("alice", promised, client_token="t")
    assert first.request_id == app.limner.register("alice", photos(3), client_token="t").request_id
    with pytest.raises(LimnerError, match="not both"):
        app.limner.register("alice", [*promised, photo(1)])  # type: ignore[list-item]


def test_onboard_finishes_a_registered_request_of_its_token(app: World) -> None:
    registration = app.limner.register("alice", photos(3), client_token="t")
    request = app.limner.onboard("alice", photos(3), client_token="t")
    assert (request.request_id, request.status) == (registration.request_id, RequestStatus.QUEUED)
    assert app.executions() == [f"{request.request_id}-1"]
    assert len(app.uploaded()) == 3


def test_errors_of_the_function_are_the_registry_s(app: World) -> None:
    app.limner.register("alice", photos(3), client_token="t")
    with pytest.raises(LimnerError) as caught:
        app.limner.register("alice", photos(4), client_token="t")
    assert caught.value.code == "REQUEST_CONFLICT"
    with pytest.raises(LimnerError, match="user id"):
        app.limner.register("../bob", photos(3))
    with pytest.raises(LimnerError) as caught:
        app.limner.submit("nobody")
    assert caught.value.code == "REQUEST_NOT_FOUND"


def test_a_form_that_s3_refuses(app: World) -> None:
    registration = app.limner.register("alice", photos(3))
    with Forms(app, status=403) as bucket:
        with pytest.raises(LimnerError, match=r"403: .*AccessDenied") as caught:
            bucket.here(registration).upload(photos(3))
        assert caught.value.code == "UPLOAD_INCOMPLETE"
        with pytest.raises(LimnerError, match="Photo 4 was not registered"):
            bucket.here(registration).upload(photos(4))


def test_a_bucket_that_does_not_answer(app: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limner.client.registration._RETRIES", False)
    registration = app.limner.register("alice", photos(3))
    with Forms(app) as bucket:
        gone = bucket.here(registration)
    with pytest.raises(LimnerError) as caught:
        gone.upload(photos(3))
    assert caught.value.code == "UPLOAD_INCOMPLETE"


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({"X-Amz-Function-Error": "Unhandled"}, {"errorType": "KeyError"}, "INTERNAL"),
        ({"X-Amz-Function-Error": "Unhandled"}, "text", "INTERNAL"),
        ({}, {"error": {"code": "FROM_THE_FUTURE", "message": "m"}}, "INTERNAL"),
        ({}, {"error": {"code": "THROTTLED", "message": "m"}}, "THROTTLED"),
    ],
)
def test_a_function_that_breaks_down(
    aws: World, headers: dict[str, str], body: Any, code: str
) -> None:
    def invoke(request: Any, **_: object) -> AWSResponse:
        return AWSResponse(request.url, 200, headers, Answer(json.dumps(body).encode()))

    aws.clients.functions.meta.events.register_first("before-send.lambda.Invoke", invoke)
    limner = Limner(aws.clients, replace(aws.deployment, register_function="register"))
    with pytest.raises(LimnerError) as caught:
        limner.register("alice", photos(3))
    assert caught.value.code == code


def test_an_older_stack_has_no_such_function(aws: World) -> None:
    assert aws.deployment.register_function == ""
    with pytest.raises(LimnerError, match="LIMNER_REGISTER_FUNCTION") as caught:
        aws.limner.register("alice", photos(3))
    assert caught.value.code == "NOT_DEPLOYED"
