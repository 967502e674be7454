"""Each shell's container writes what it answers to S3: real processes, and the laptop's S3."""

import base64
import io
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

from limner import local
from limner.contracts.capture import CapturedGeneration
from limner.contracts.generation import SMALLEST, GenerateResponse
from tests.support.artifacts import write_artifact
from tests.support.containers import PROMPT, SHELLS, STOP_DEADLINE_S, Answer, Container
from tests.support.laptop import until

# Of the second one nobody could tell whose it is.
TARGETS = {"known": "zebrauser/dog/v3.tar.gz", "unknown": "zebrauser.tar.gz"}
AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "LIMNER_CAPTURE_BUCKET": "captured",
}


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """The laptop's S3."""
    project = tmp_path / "project"
    project.mkdir()
    yield local.start(project, port=0, deploy=False).endpoint_url
    local.stop(project)


@pytest.fixture
def dead_end() -> Iterator[str]:
    """An S3 that takes every call and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def images(answer: Answer) -> list[np.ndarray]:
    drawn = GenerateResponse.model_validate_json(answer.content).images
    return [pixels(base64.b64decode(image.png_base64 or "")) for image in drawn]


def started(shell: str, base: Path, folder: Path, endpoint_url: str) -> Container:
    # So that one test can ask for more than any machine draws in the time that it has.
    extra = {
        **AWS,
        "AWS_ENDPOINT_URL": endpoint_url,
        "LIMNER_MAX_REQUEST_ROWS": "4096",
        "LIMNER_GRACE_S": "3",
    }
    server = SHELLS[shell].start(base, folder / "c", extra=extra)
    server.target = TARGETS.__getitem__
    for name in TARGETS:
        write_artifact(server.models / name / "model", base)
        assert server.load(name).status == 200
    return server


def figures(server: Container) -> dict[str, int]:
    (line,) = [line for line in server.lines() if line["event"] == "captured"]
    return {
        name: int(str(line[f"Captures{name.title()}"])) for name in ("written", "dropped", "failed")
    }


@pytest.mark.parametrize("shell", SHELLS)
def test_answers_lie_in_the_bucket_after_sigterm(
    shell: str, base: Path, tmp_path: Path, endpoint: str
) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    s3.create_bucket(Bucket="captured")
    server = started(shell, base, tmp_path, endpoint)
    two = images(server.invoke("known", steps=2, images=2, seed=7))
    assert server.invoke("known", steps=2, format="webp").status == 200
    assert server.invoke("unknown", steps=2).status == 200
    prefetch = SMALLEST.model_dump_json(exclude_none=True).encode()
    assert server.invoke_raw("known", prefetch).status == 200
    # That they come in the time after SIGTERM is a promise for an S3 that answers fast.
    until(lambda: s3.list_objects_v2(Bucket="captured").get("KeyCount"), lambda n: n == 5)
    assert server.stop() == 0

    found: dict[str, Any] = {
        entry["Key"]: s3.get_object(Bucket="captured", Key=entry["Key"])
        for entry in s3.list_objects_v2(Bucket="captured")["Contents"]
    }
    bodies = {key: answer["Body"].read() for key, answer in found.items()}
    records = {
        record.request.format: record
        for key, body in bodies.items()
        if key.endswith("/request.json")
        for record in [CapturedGeneration.model_validate_json(body)]
    }
    png, webp = records["png"], records["webp"]
    assert set(bodies) == {
        *(f"{png.prefix}{name}" for name in ("image-00.png", "image-01.png", "request.json")),
        *(f"{webp.prefix}{name}" for name in ("image-00.webp", "request.json")),
    }
    assert all(key.startswith("generations/zebrauser/") for key in bodies)
    assert (png.user_id, png.model_id, png.version) == ("zebrauser", "dog", 3)
    assert (png.captured_by, png.request.prompt, png.request.seed) == ("endpoint", PROMPT, 7)
    for number, image in enumerate(two):
        key = f"{png.prefix}image-{number:02d}.png"
        assert np.array_equal(pixels(bodies[key]), image)
        assert found[key]["ContentType"] == "image/png"

    assert figures(server) == {"written": 2, "dropped": 0, "failed": 0}
    fates = [line.get("capture") for line in server.lines() if line["event"] == "invoke"]
    # Who was answered by another thread may be written down first.
    assert sorted(map(str, fates)) == ["prefetch", "taken", "taken", "unnamed"]
    metrics = [line for line in server.lines() if "CapturesWritten" in line and "Base" in line]
    assert sum(int(str(line["CapturesWritten"])) for line in metrics) == 2
    assert sum(int(str(line["CapturesUnnamed"])) for line in metrics) == 1
    assert "zebra" not in server.log.read_text()


@pytest.mark.parametrize("shell", SHELLS)
def test_an_s3_that_never_answers_costs_the_record_and_nothing_else(
    shell: str, base: Path, tmp_path: Path, dead_end: str
) -> None:
    server = started(shell, base, tmp_path, dead_end)
    for _ in range(3):
        assert server.invoke("known", steps=2).status == 200
    assert server.stop() == 0, "it ends before SIGKILL"
    lost = figures(server)
    assert (lost["written"], lost["dropped"] + lost["failed"]) == (0, 3)
    assert "zebra" not in server.log.read_text()


def test_a_request_that_outlasts_triton_s_end_costs_no_capture(
    base: Path, tmp_path: Path, dead_end: str
) -> None:
    """Triton asks `base` to end when nothing is running, and kills it at a fixed time."""
    server = started("triton", base, tmp_path, dead_end)
    assert server.invoke("known", steps=1).status == 200
    wish = {"steps": 100, "images": 3, "height": 192, "width": 192}
    with ThreadPoolExecutor(4) as pool:
        # One after the other, for they are of one user: far more than the grace of them.
        begins = server.when_drawing()
        running = [pool.submit(server.invoke, "known", **wish) for _ in range(4)]
        begins()
        server.process.terminate()
        assert server.process.wait(STOP_DEADLINE_S) == 0, "it ends before SIGKILL"
        answers = [one.result() for one in running]
    server.http.close()
    refused = [answer.refusal for answer in answers if answer.status != 200]
    assert (400, "GENERATION_FAILED") in refused
    lost = figures(server)
    drawn = 1 + len(answers) - len(refused)
    assert (lost["written"], lost["dropped"] + lost["failed"]) == (0, drawn)
