"""Capture at the shell: the answer never waits for S3, and a generation without a user is none."""

import io
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError
from starlette.testclient import TestClient

from inference import logs
from inference.answers import Answer
from inference.capture import Capture
from inference.engine import engine as engine_module
from inference.engine.base import ResidentBase
from inference.engine.engine import Engine
from inference.server.app import build_app
from inference.settings import Settings
from limner.contracts.capture import CapturedFile, CapturedGeneration
from limner.contracts.generation import SMALLEST, TARGET_HEADER, GenerateRequest
from tests.support.artifacts import write_artifact
from tests.unit.inference.stubs import LAYER, Painter

TARGET = "zebrauser/default/v1.tar.gz"
LIMIT_S = 30


class Store:
    """Keeps what is put, as soon as the gate is open."""

    def __init__(self) -> None:
        self.files: list[CapturedFile] = []
        self.gate = threading.Event()
        self.fails = False

    def put(self, file: CapturedFile) -> None:
        assert self.gate.wait(LIMIT_S)
        if self.fails:
            raise EndpointConnectionError(endpoint_url="http://zebra")
        self.files.append(file)


@pytest.fixture
def engine(
    base: ResidentBase, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    monkeypatch.setattr(engine_module, "Artist", lambda _: Painter(LAYER))
    engine = Engine(base, max_models=2, max_rank=8)
    write_artifact(tmp_path / "a", base_folder)
    engine.load("a", tmp_path / "a")
    yield engine
    engine.close()


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """The log."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    logger = logging.getLogger("limner.inference")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def last(written: io.StringIO, event: str, having: str = "event") -> dict[str, object]:
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    return [line for line in lines if line["event"] == event and having in line][-1]


def test_answers_come_while_s3_hangs_and_are_flushed_at_the_end(
    engine: Engine, tmp_path: Path, written: io.StringIO
) -> None:
    store = Store()
    app = build_app(engine, tmp_path, Capture(store.put, "tiny-1"))
    body = {"prompt": "a zebra", "steps": 1}
    with TestClient(app, headers={TARGET_HEADER: TARGET}) as client:
        # Would never come back if they waited: the gate opens after them.
        assert client.post("/models/a/invoke", json=body).status_code == 200
        accept = {"Accept": "image/webp"}
        alone = client.post("/models/a/invoke", json=body, headers=accept)
        assert store.files == []
        store.gate.set()
    first, _, third, fourth = store.files
    assert first.key.endswith("/image-00.png")
    assert (third.content, third.content_type) == (alone.content, "image/webp")
    record = CapturedGeneration.model_validate_json(fourth.content)
    assert (record.user_id, record.request.prompt) == ("zebrauser", "a zebra")
    assert third.key == f"{record.prefix}image-00.webp"
    assert last(written, "captured")["CapturesWritten"] == 2
    assert "zebra" not in written.getvalue()


@pytest.mark.parametrize("target", [None, "a", "../x/v1.tar.gz", "zebra/v1.tar.gz", "a/b/c/d"])
def test_without_a_user_nothing_is_captured(
    engine: Engine, tmp_path: Path, written: io.StringIO, target: str | None
) -> None:
    store = Store()
    store.gate.set()
    headers = {TARGET_HEADER: target} if target else {}
    with TestClient(build_app(engine, tmp_path, Capture(store.put, "tiny-1"))) as client:
        answer = client.post("/models/a/invoke", json={"prompt": "x", "steps": 1}, headers=headers)
    assert answer.status_code == 200
    assert store.files == []
    assert last(written, "captured")["CapturesUnnamed"] == 1
    assert last(written, "metrics", "CapturesUnnamed")["CapturesUnnamed"] == 1
    assert last(written, "invoke")["capture"] == "unnamed"


def test_what_s3_refuses_is_a_figure_and_no_text(
    engine: Engine, tmp_path: Path, written: io.StringIO
) -> None:
    store = Store()
    store.fails = True
    store.gate.set()
    app = build_app(engine, tmp_path, Capture(store.put, "tiny-1"))
    with TestClient(app, headers={TARGET_HEADER: TARGET}) as client:
        answer = client.post("/models/a/invoke", json={"prompt": "x", "steps": 1})
    assert answer.status_code == 200
    line = last(written, "captured")
    assert (line["CapturesFailed"], line["reason"]) == (1, "EndpointConnectionError")
    metrics = last(written, "metrics", "CapturesFailed")
    assert (metrics["CapturesFailed"], "Model" in metrics) == (1, False)
    assert "zebra" not in written.getvalue()


def test_errors_are_not_captured(engine: Engine, tmp_path: Path, written: io.StringIO) -> None:
    store = Store()
    store.gate.set()
    app = build_app(engine, tmp_path, Capture(store.put, "tiny-1"))
    with TestClient(app, headers={TARGET_HEADER: TARGET}) as client:
        assert client.post("/models/b/invoke", json={"prompt": "x"}).status_code == 404
        assert client.post("/models/a/invoke", json={}).status_code == 400
    assert store.files == []
    assert "capture" not in last(written, "invoke")


def test_a_prefetch_is_no_generation(engine: Engine, tmp_path: Path, written: io.StringIO) -> None:
    """The client's request is recognised as it comes over the wire, and its neighbour is not."""
    store = Store()
    store.gate.set()
    app = build_app(engine, tmp_path, Capture(store.put, "tiny-1"))
    prefetch = SMALLEST.model_dump(mode="json", exclude_none=True)
    with TestClient(app, headers={TARGET_HEADER: TARGET}) as client:
        assert client.post("/models/a/invoke", json=prefetch).status_code == 200
        assert last(written, "invoke")["capture"] == "prefetch"
        client.post("/models/a/invoke", json={**prefetch, "seed": 1})
    assert len(store.files) == 2
    assert last(written, "captured")["CapturesWritten"] == 1


def test_many_threads_tell_each_figure_once(written: io.StringIO) -> None:
    store = Store()
    store.gate.set()
    capture = Capture(store.put, "tiny-1")
    generation = engine_module.Generation((), (), "x", "tiny-1", "a" * 64, 1.0, 1.0)
    answer = Answer(b"", (b"x",), "png")
    request = GenerateRequest(prompt="x")

    def offer_all(thread: int) -> None:
        for number in range(100):
            capture.offer(TARGET if number % 2 else None, request, generation, answer)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(offer_all, range(8)))
    capture.close()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    told = [line for line in lines if line["event"] == "metrics"]
    sums = {name: sum(line[name] for line in told) for name in told[0] if name[:8] == "Captures"}
    assert sums["CapturesUnnamed"] == 400
    assert sums["CapturesWritten"] + sums["CapturesDropped"] == 400
    assert sums.items() <= lines[-1].items()


def test_capture_is_off_unless_a_bucket_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMNER_CAPTURE_BUCKET", raising=False)
    assert Settings().capture_bucket == ""
    monkeypatch.setenv("LIMNER_CAPTURE_BUCKET", "s3://bucket/x")
    with pytest.raises(ValueError, match="LIMNER_CAPTURE_BUCKET"):
        Settings()
