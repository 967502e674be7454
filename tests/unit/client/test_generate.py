"""Generating: whose artifact is asked for, what is retried, and what an error says."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError
from botocore.response import StreamingBody
from botocore.stub import ANY, Stubber

from limner.client.generation import LOADING_DEADLINE_S
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest
from limner.contracts.triton import RAW_TYPE
from tests.unit.client.world import World, photo


def body(data: bytes) -> StreamingBody:
    return StreamingBody(io.BytesIO(data), len(data))


def answer(seeds: list[int], **values: Any) -> dict[str, Any]:
    drawn = {
        "images": [
            {"png_base64": base64.b64encode(photo(seed)).decode(), "seed": seed} for seed in seeds
        ],
        "prompt": "a photo of sks dog",
        "base_id": "tiny-1",
        "adapter_sha256": "a" * 64,
        "denoise_ms": 12.5,
        **values,
    }
    return {"Body": body(json.dumps(drawn).encode()), "ContentType": "application/json"}


@dataclass
class Endpoint:
    stub: Stubber
    asked: list[dict[str, Any]] = field(default_factory=list)

    def will_draw(self, target_model: str, seeds: list[int], **values: Any) -> None:
        expected = {
            "EndpointName": "limner-test",
            "TargetModel": target_model,
            "ContentType": RAW_TYPE,
            "Accept": "application/json",
            "Body": ANY,
        }
        self.stub.add_response("invoke_endpoint", answer(seeds, **values), expected)

    def will_fail(self, code: str, message: str = "", **members: Any) -> None:
        self.stub.add_client_error(
            "invoke_endpoint", code, message, response_meta=None, modeled_fields=members or None
        )


@pytest.fixture
def endpoint(aws: World) -> Iterator[Endpoint]:
    with Stubber(aws.clients.runtime) as stub:
        found = Endpoint(stub)
        aws.clients.runtime.meta.events.register(
            "provide-client-params.sagemaker-runtime.InvokeEndpoint",
            lambda params, **_: found.asked.append(params),
        )
        yield found
        stub.assert_no_pending_responses()


def test_generate_asks_for_the_live_version(aws: World, endpoint: Endpoint, tmp_path: Path) -> None:
    aws.put_model("alice", "dog", live=3)
    endpoint.will_draw("alice/dog/v3.tar.gz", [5, 6])

    drawn = aws.limner.generate("alice", "{token} runs", model_id="dog", images=2, seed=5)

    assert (drawn.version, drawn.target_model) == (3, "alice/dog/v3.tar.gz")
    assert [image.content for image in drawn.images] == [photo(5), photo(6)]
    assert GenerateRequest.model_validate_json(endpoint.asked[0]["Body"]) == GenerateRequest(
        prompt="{token} runs", images=2, seed=5
    )
    paths = drawn.save(tmp_path / "new" / "folder")
    words = hashlib.sha256(b"a photo of sks dog").hexdigest()[:6]
    assert [path.name for path in paths] == [f"alice-dog-v3-{words}-s{seed}.png" for seed in (5, 6)]
    assert paths[1].read_bytes() == photo(6)


def test_generate_with_an_older_version(aws: World, endpoint: Endpoint) -> None:
    aws.put_model("alice", live=3)
    endpoint.will_draw("alice/default/v2.tar.gz", [0])
    assert aws.limner.generate("alice", "x", version=2).version == 2


@pytest.mark.parametrize(
    ("user_id", "options", "code"),
    [
        ("nobody", {}, "MODEL_NOT_FOUND"),
        ("alice", {"model_id": "cat"}, "MODEL_NOT_READY"),
        ("alice", {"version": 9}, "VERSION_NOT_FOUND"),
        ("alice", {"version": 2}, "MODEL_NOT_READY"),
        ("alice", {"version": 0}, "INVALID_INPUT"),
        ("al/ice", {}, "INVALID_INPUT"),
        ("alice", {"model_id": "../bob"}, "INVALID_INPUT"),
        ("alice", {"steps": 0}, "INVALID_INPUT"),
        ("alice", {"images": 9}, "INVALID_INPUT"),
        ("alice", {"height": 33}, "INVALID_INPUT"),
    ],
)
def test_what_cannot_be_drawn_never_reaches_the_endpoint(
    aws: World, endpoint: Endpoint, user_id: str, options: dict[str, Any], code: str
) -> None:
    aws.put_model("alice", live=1)
    aws.put_model("alice", "cat", live=None)
    with pytest.raises(LimnerError) as caught:
        aws.limner.generate(user_id, "x", **options)
    assert caught.value.code == code
    assert endpoint.asked == []


def test_a_model_that_is_asked_for_but_not_there_yet_is_not_ready(
    aws: World, endpoint: Endpoint
) -> None:
    aws.put_request(request_id="r1", user_id="alice", status="QUEUED")
    with pytest.raises(LimnerError) as caught:
        aws.limner.generate("alice", "x")
    assert caught.value.code == "MODEL_NOT_READY"


def test_an_error_never_repeats_the_prompt(aws: World) -> None:
    with pytest.raises(LimnerError) as caught:
        aws.limner.generate("alice", "canary" * 100)
    assert "canary" not in str(caught.value)


def test_a_cold_model_is_waited_for(aws: World, endpoint: Endpoint) -> None:
    aws.put_model("alice")
    for code in ("ModelNotReadyException", "ThrottlingException", "ServiceUnavailable"):
        endpoint.will_fail(code)
    endpoint.will_draw("alice/default/v1.tar.gz", [0])
    assert len(aws.limner.generate("alice", "x").images) == 1
    assert len(aws.clock.sleeps) == 3
    assert all(0 < seconds <= 8 for seconds in aws.clock.sleeps)


def test_a_busy_endpoint_is_asked_again(aws: World, endpoint: Endpoint) -> None:
    aws.put_model("alice")
    body = json.dumps(LimnerError("ENDPOINT_BUSY").to_dict())
    endpoint.will_fail("ModelError", OriginalStatusCode=503, OriginalMessage=body)
    endpoint.will_draw("alice/default/v1.tar.gz", [0])
    assert len(aws.limner.generate("alice", "x").images) == 1
    assert len(aws.clock.sleeps) == 1


def test_other_formats_are_asked_for_and_saved(
    aws: World, endpoint: Endpoint, tmp_path: Path
) -> None:
    aws.put_model("alice")
    images = [{"format": "webp", "data_base64": base64.b64encode(b"RIFF").decode(), "seed": 0}]
    endpoint.will_draw("alice/default/v1.tar.gz", [], images=images)
    drawn = aws.limner.generate("alice", "x", image_format="webp")
    assert json.loads(endpoint.asked[0]["Body"]) == {"prompt": "x", "format": "webp"}
    (path,) = drawn.save(tmp_path)
    assert path.suffix == ".webp"
    assert path.read_bytes() == b"RIFF"


@pytest.mark.parametrize(
    ("passing", "code"),
    [
        ("ModelNotReadyException", "MODEL_LOADING"),
        ("ThrottlingException", "THROTTLED"),
        ("ServiceUnavailable", "GENERATION_FAILED"),
    ],
)
def test_waiting_for_a_cold_model_ends_at_the_deadline(
    aws: World, endpoint: Endpoint, passing: str, code: str
) -> None:
    aws.put_model("alice")
    for _ in range(400):
        endpoint.will_fail(passing)
    with pytest.raises(LimnerError) as caught:
        aws.limner.generate("alice", "x")
    assert caught.value.code == code
    waited_s = sum(aws.clock.sleeps)
    assert LOADING_DEADLINE_S - 8 <= waited_s <= LOADING_DEADLINE_S
    endpoint.stub._queue.clear()


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (LimnerError("INVALID_INPUT", "height").to_dict(), "INVALID_INPUT", "height"),
        (LimnerError("ARTIFACT_WRONG_BASE").to_dict(), "ARTIFACT_WRONG_BASE", "another base"),
        (LimnerError("CONTENT_REFUSED", "no").to_dict(), "CONTENT_REFUSED", "no"),
        (LimnerError("OUT_OF_MEMORY").to_dict(), "GENERATION_FAILED", "OUT_OF_MEMORY: There is no"),
        ({"error": {"code": "NEW", "message": "m"}}, "GENERATION_FAILED", "NEW: m"),
        ({"error": "text"}, "GENERATION_FAILED", '{"error": "text"}'),
        (["list"], "GENERATION_FAILED", "list"),
    ],
)
def test_the_containers_own_reason_is_passed_on(
    aws: World, endpoint: Endpoint, text: object, code: str, message: str
) -> None:
    aws.put_model("alice")
    endpoint.will_fail("ModelError", OriginalMessage=json.dumps(text), OriginalStatusCode=400)
    with pytest.raises(LimnerError) as caught:
        aws.limner.generate("alice", "x")
    assert caught.value.code == code
    assert message in caught.value.message
    assert aws.clock.sleeps == []


@pytest.mark.parametrize(
    ("aws_code", "message", "code"),
    [
        ("ValidationError", "Endpoint limner-test of account 1 not found.", "NOT_DEPLOYED"),
        ("ValidationError", "Could not find endpoint limner-test", "NOT_DEPLOYED"),
        ("ValidationError", "Failed to download model data", "GENERATION_FAILED"),
        ("InternalFailure", "x", "GENERATION_FAILED"),
        ("AccessDeniedException", "not authorized", "AWS_ERROR"),
    ],
)
def test_errors_of_the_endpoint(
    aws: World, endpoint: Endpoint, aws_code: str, message: str, code: str
) -> None:
    aws.put_model("alice")
    endpoint.will_fail(aws_code, message)
    with pytest.raises(LimnerError) as caught:
        aws.limner.generate("alice", "x")
    assert caught.value.code == code


@pytest.mark.parametrize(
    "broken",
    [
        {"Body": body(b"<html>"), "ContentType": "text/html"},
        {"Body": body(b'{"images": []}'), "ContentType": "application/json"},
        answer([0], images=[{"png_base64": "%%%", "seed": 0}]),
        answer([0], images=[{"seed": 0}]),
        answer([0], images=[{"format": "webp", "png_base64": "eA==", "seed": 0}]),
    ],
    ids=["no json", "fields missing", "no base64", "no image", "no PNG"],
)
def test_a_broken_answer(aws: World, endpoint: Endpoint, broken: dict[str, Any]) -> None:
    aws.put_model("alice")
    endpoint.stub.add_response("invoke_endpoint", broken)
    with pytest.raises(LimnerError) as caught:
        aws.limner.generate("alice", "x")
    assert caught.value.code == "GENERATION_FAILED"


def test_an_endpoint_that_does_not_answer(aws: World) -> None:
    aws.put_model("alice")
    tries = []

    def silence(request: Any, **_: object) -> None:
        tries.append(request.url)
        raise ReadTimeoutError(endpoint_url=request.url)

    aws.clients.runtime.meta.events.register_first(
        "before-send.sagemaker-runtime.InvokeEndpoint", silence
    )
    with pytest.raises(LimnerError, match="did not answer in time") as caught:
        aws.limner.generate("alice", "x")
    assert caught.value.code == "GENERATION_FAILED"
    assert len(tries) == 1  # the SDK's own retries would break the deadline
