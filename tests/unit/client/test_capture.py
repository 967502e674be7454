"""Capture by the client: the answer comes first, the bucket later, and never instead."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber

from limner.client import Clients, Counts, Limner
from limner.contracts.capture import CapturedGeneration
from limner.contracts.errors import LimnerError
from tests.unit.client.world import World, photo

PROMPT = "{token} paints a zebra"
LIMIT_S = 30


@pytest.fixture
def capturing(aws: World) -> Iterator[Limner]:
    aws.put_model("alice", live=2)
    with Limner(aws.clients, aws.deployment, capture="client") as limner:
        yield limner


def will_draw(stub: Stubber, seeds: list[int]) -> None:
    drawn = {
        "images": [
            {"png_base64": base64.b64encode(photo(seed)).decode(), "seed": seed} for seed in seeds
        ],
        "prompt": "sks dog paints a zebra",
        "base_id": "tiny-1",
        "adapter_sha256": "a" * 64,
        "denoise_ms": 12.5,
    }
    content = json.dumps(drawn).encode()
    body = StreamingBody(io.BytesIO(content), len(content))
    stub.add_response("invoke_endpoint", {"Body": body, "ContentType": "application/json"})


def test_what_was_drawn_lies_in_the_bucket(aws: World, capturing: Limner) -> None:
    with Stubber(aws.clients.runtime) as stub:
        will_draw(stub, [5, 6])
        capturing.generate("alice", PROMPT, images=2, seed=5)
    capturing.close(LIMIT_S)

    assert capturing.captured == Counts(written=1)
    first, second, last = aws.uploaded("generations/alice/")
    s3, bucket = aws.clients.s3, aws.deployment.bucket
    answer = s3.get_object(Bucket=bucket, Key=last)
    record = CapturedGeneration.model_validate_json(answer["Body"].read())
    assert [first, second, last] == [
        f"{record.prefix}{name}" for name in ("image-00.png", "image-01.png", "request.json")
    ]
    assert answer["ContentType"] == "application/json"
    assert (record.captured_by, record.model_id, record.version) == ("client", "default", 2)
    assert (record.request.prompt, record.request.seed) == (PROMPT, 5)
    assert record.prompt == "sks dog paints a zebra"
    image = s3.get_object(Bucket=bucket, Key=second)
    assert (image["Body"].read(), image["ContentType"]) == (photo(6), "image/png")


def test_an_answer_does_not_wait_for_a_bucket_that_hangs(
    aws: World, capturing: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = threading.Event()

    def hang(**_: Any) -> None:
        gate.wait(LIMIT_S)

    aws.clients.s3.meta.events.register("provide-client-params.s3.PutObject", hang)
    with Stubber(aws.clients.runtime) as stub:
        for _ in range(3):
            will_draw(stub, [0])
            # Would never come back if it waited: the gate opens after it.
            assert capturing.generate("alice", PROMPT).images
    assert capturing.captured == Counts()
    gate.set()
    capturing.close(LIMIT_S)
    assert capturing.captured == Counts(written=3)
    assert "zebra" not in "".join(capsys.readouterr())


def test_a_bucket_that_refuses_is_counted_and_told_to_nobody_else(
    aws: World, capturing: Limner, caplog: pytest.LogCaptureFixture
) -> None:
    with Stubber(aws.clients.runtime) as runtime, Stubber(aws.clients.s3) as s3:
        will_draw(runtime, [0])
        s3.add_client_error("put_object", "AccessDenied")
        assert capturing.generate("alice", PROMPT).images
        capturing.close(LIMIT_S)
    assert capturing.captured == Counts(failed=1, reason="AccessDenied")
    assert "zebra" not in caplog.text


def test_without_the_setting_nothing_is_captured(aws: World) -> None:
    aws.put_model("alice")
    with aws.limner, Stubber(aws.clients.runtime) as stub:
        will_draw(stub, [0])
        aws.limner.generate("alice", PROMPT)
    assert aws.limner.captured == Counts()
    assert aws.uploaded("generations/") == []


def test_what_failed_is_not_captured(aws: World, capturing: Limner) -> None:
    with Stubber(aws.clients.runtime) as stub:
        stub.add_client_error("invoke_endpoint", "ValidationError")
        with pytest.raises(LimnerError):
            capturing.generate("alice", PROMPT)
    capturing.close(LIMIT_S)
    assert capturing.captured == Counts()


@pytest.mark.parametrize(
    ("setting", "argument", "expected"),
    [
        (None, None, False),
        ("off", None, False),
        ("client", None, True),
        # The container does it then.
        ("endpoint", None, False),
        ("client", "off", False),
        (None, "client", True),
    ],
)
def test_connect_captures_as_the_setting_or_the_app_says(
    aws: World,
    monkeypatch: pytest.MonkeyPatch,
    setting: str | None,
    argument: Any,
    expected: bool,
) -> None:
    monkeypatch.setattr(Clients, "of", lambda *_, **__: aws.clients)
    if setting:
        monkeypatch.setenv("LIMNER_CAPTURE", setting)
    with Limner.connect(deployment=aws.deployment, capture=argument) as limner:
        assert (limner._capture is not None) == expected


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_CAPTURE", "everything")
    with pytest.raises(LimnerError, match="capture"):
        Limner.connect()


PROGRAM = """
import threading
from limner.client.capture import Capture
from limner.client.generation import Generation, Image
from limner.contracts.generation import GenerateRequest

started, ending = threading.Event(), threading.Event()


class Store:
    def put_object(self, Key, **_):
        started.set()
        ending.wait()  # until the program has come to its end
        print(Key.rpartition("/")[2])


drawn = Generation((Image(b"x", 0),), "alice", "default", 1, "t", "p", "b", "a", 1.0)
Capture(Store(), "bucket").offer(GenerateRequest(prompt="x"), drawn)
started.wait()
ending.set()
"""


def test_a_program_that_forgets_to_close_flushes_when_it_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["image-00.png", "request.json"]
    assert done.stderr == ""
