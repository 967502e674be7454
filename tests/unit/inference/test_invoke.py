"""Invocations over the shell: formats, hostile bodies, full queues, and clients that go away."""

import asyncio
import base64
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from inference.engine import engine as engine_module
from inference.engine.base import ResidentBase
from inference.engine.engine import Engine
from inference.server.app import build_app
from limner.contracts.generation import GenerateResponse
from tests.support.artifacts import write_artifact
from tests.unit.inference.stubs import LAYER, Gate, Painter

CASES = 5_000


@pytest.fixture
def limits() -> dict[str, int]:
    return {}


@pytest.fixture
def engine(
    base: ResidentBase,
    base_folder: Path,
    tmp_path: Path,
    limits: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Engine]:
    monkeypatch.setattr(engine_module, "Artist", lambda _: Painter(LAYER))
    engine = Engine(base, max_models=2, max_rank=8, **limits)
    write_artifact(tmp_path / "a", base_folder)
    engine.load("a", tmp_path / "a")
    yield engine
    engine.close()


@pytest.fixture
def artist(engine: Engine) -> Painter:
    """Who draws for the engine."""
    found: Painter = engine._batcher._artist  # type: ignore[assignment]
    return found


@pytest.fixture
def gate(artist: Painter) -> Gate:
    """Holds the drawing before each step."""
    artist.turn = gate = Gate()
    return gate


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_images_come_in_the_format_that_is_asked_for(
    engine: Engine, tmp_path: Path, image_format: str
) -> None:
    with TestClient(build_app(engine, tmp_path)) as client:
        body = {"prompt": "x", "steps": 1, "images": 2, "format": image_format}
        answer = client.post("/models/a/invoke", json=body)
        response = GenerateResponse.model_validate_json(answer.content)
        files = [image.content for image in response.images]
        # What a client of before the formats reads.
        sent = answer.json()["images"][0]
        assert ("png_base64" in sent) == (image_format == "png")
        if image_format == "png":
            assert base64.b64decode(sent["png_base64"]) == files[0]
        accept = {"Accept": f"image/{image_format}"}
        alone = client.post("/models/a/invoke", json={"prompt": "x", "steps": 1}, headers=accept)
        assert alone.headers["content-type"] == f"image/{image_format}"
        two = client.post("/models/a/invoke", json=body, headers=accept)
        assert (two.status_code, two.json()["error"]["code"]) == (400, "INVALID_INPUT")
    for content in (*files, alone.content):
        image = Image.open(io.BytesIO(content))
        assert image.format == image_format.upper()
        assert np.abs(np.asarray(image).astype(int) - 99).max() <= 3


def body_of(draw: random.Random) -> bytes:
    """A body at, around and far beyond the bounds."""
    odd: list[object] = [None, True, -1, 0, 1, 2**31, 1e308, "", "x", "\0\ud7ff", [], {}, [1], "9"]
    fields: dict[str, list[object]] = {
        "prompt": ["a {token}", " x ", "x" * 400, "x" * 401, "{0}{x!r}", "\u202e\U0001f600", "%s"],
        "negative_prompt": ["", "y" * 400, "y" * 401],
        "steps": [1, 2, 100, 101],
        "guidance": [0, 1, 1.0001, 20, 20.1],
        "seed": [0, 2**31 - 1, 2**31],
        "images": [1, 8, 9],
        "height": [24, 32, 33, 64, 1024, 1032],
        "width": [32, 40, 1024, 2**40],
        "format": ["png", "jpeg", "webp", "gif", "PNG"],
        "unknown": [1],
    }
    body: dict[str, object] = {"prompt": "x"}
    for name, values in fields.items():
        if draw.random() < (0.02 if name == "unknown" else 0.3):
            body[name] = draw.choice(values if draw.random() < 0.85 else odd)
    content = json.dumps(body).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        cut = bytearray(content[: draw.randrange(len(content) + 1)])
        if cut:
            cut[draw.randrange(len(cut))] = draw.randrange(256)
        content = bytes(cut)
    return content


async def invoke(
    app: Starlette,
    gone: asyncio.Event,
    content: bytes = b'{"prompt": "x"}',
    accept: bytes = b"",
    received: bytearray | None = None,
) -> int:
    """One invocation by a client that closes its connection when ``gone`` is set; the status."""
    sent: list[dict[str, object]] = []
    body = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> dict[str, object]:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)
        if received is not None:
            received.extend(message.get("body", b""))  # type: ignore[arg-type]

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/models/a/invoke",
        "headers": [(b"accept", accept)],
        "query_string": b"",
    }
    await app(scope, receive, send)
    return int(str(sent[0]["status"]))


def test_no_body_is_a_server_error(
    engine: Engine, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """P22. What draws is a stub; what a request may cost is bounded in ``test_batcher``."""
    app, draw = build_app(engine, tmp_path), random.Random(0)
    answers: Counter[int] = Counter()

    async def all_cases() -> None:
        stays = asyncio.Event()
        for _ in range(CASES):
            content = body_of(draw)
            accept = draw.choice([b"*/*", b"application/json", b"image/webp;q=1", b";;", b"\xff"])
            status = await invoke(app, stays, content, accept)
            answers[status] += 1
            assert status in {200, 400}, (status, content[:500])

    asyncio.run(all_cases())
    record_property("figure", f"P22: {CASES:,} generated bodies: {dict(answers)}, 0 of 5xx")
    assert min(answers[200], answers[400]) > CASES / 10


def events_of(text: str) -> list[tuple[str, dict[str, object]]]:
    found = []
    for event in text.split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_who_can_stream_is_told_of_each_step(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "limner.inference")
    with TestClient(build_app(engine, tmp_path)) as client:
        body = {"prompt": "x", "steps": 3, "seed": 7}
        plain = client.post("/models/a/invoke", json=body).json()
        streamed = client.post(
            "/models/a/invoke", json=body, headers={"Accept": "text/event-stream"}
        )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *steps, (last, answer) = events_of(streamed.text)
    assert steps == [("step", {"step": step, "steps": 3}) for step in (1, 2, 3)]
    assert last == "answer"
    assert answer["images"] == plain["images"]
    lines = [r.fields for r in caplog.records if r.message == "invoke"]  # type: ignore[attr-defined]
    assert [line["status"] for line in lines] == [200, 200]
    assert all({"steps", "queue_ms", "denoise_ms", "total_ms"} <= set(line) for line in lines)


def test_a_stream_ends_with_the_error_and_begins_with_none(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "limner.inference")
    accept = {"Accept": "text/event-stream"}
    with TestClient(build_app(engine, tmp_path)) as client:
        gone = client.post("/models/b/invoke", json={"prompt": "x"}, headers=accept)
        assert gone.status_code == 404
        engine._batcher._artist.fails[7] = KeyError("secret")  # type: ignore[attr-defined]
        broken = client.post("/models/a/invoke", json={"prompt": "x", "seed": 7}, headers=accept)
    ((name, error),) = events_of(broken.text)
    assert name == "error"
    assert "INTERNAL" in str(error)
    assert "secret" not in broken.text
    lines = [r.fields for r in caplog.records if r.message == "invoke"]  # type: ignore[attr-defined]
    assert [(line["status"], line["code"]) for line in lines] == [
        (404, "MODEL_NOT_LOADED"),
        (500, "INTERNAL"),
    ]
    engine.unload("a")


def test_ping_fails_when_nothing_can_be_drawn_any_more(engine: Engine, tmp_path: Path) -> None:
    with TestClient(build_app(engine, tmp_path)) as client:
        assert client.get("/ping").status_code == 200
        lost = torch.AcceleratorError("unspecified launch failure")
        engine._batcher._artist.fails[0] = lost  # type: ignore[attr-defined]
        # The one whose pass it was, and whoever comes after.
        assert client.post("/models/a/invoke", json={"prompt": "x"}).status_code == 500
        assert client.post("/models/a/invoke", json={"prompt": "x"}).status_code == 502
        assert client.get("/ping").status_code == 500


def test_a_name_that_no_model_has_is_404_and_not_logged(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with TestClient(build_app(engine, tmp_path)) as client:
        assert client.get("/models/alice@example.com").status_code == 404
    assert not any(
        "alice" in str(record.__dict__)
        for record in caplog.records
        if record.name == "limner.inference"
    )


@pytest.mark.parametrize("limits", [{"max_rows": 2, "max_queue": 1}])
def test_a_client_that_goes_away_makes_room(
    engine: Engine, gate: Gate, artist: Painter, tmp_path: Path
) -> None:
    app = build_app(engine, tmp_path)

    async def scenario() -> tuple[int, int, int]:
        leaves, stays = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(invoke(app, leaves))
        await asyncio.to_thread(gate.reached)
        second = asyncio.create_task(invoke(app, stays))
        while not engine._batcher._waiting:
            await asyncio.sleep(0)
        busy = await invoke(app, stays)
        leaves.set()
        gone = await first
        gate.open()
        return gone, await second, busy

    assert asyncio.run(scenario()) == (499, 200, 503)
    assert len(artist.passes) == 1 + 20  # the first left after the step that was under way


def test_a_client_that_goes_away_while_it_streams_makes_room(
    engine: Engine, gate: Gate, artist: Painter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "limner.inference")

    async def scenario() -> None:
        gone = asyncio.Event()
        stream = asyncio.create_task(
            invoke(build_app(engine, tmp_path), gone, accept=b"text/event-stream")
        )
        await asyncio.to_thread(gate.reached)
        gate.step()
        await asyncio.to_thread(gate.reached)
        gone.set()
        await stream
        gate.open()

    asyncio.run(scenario())
    engine.unload("a")  # waits for whoever is drawn
    assert len(artist.passes) == 2  # of 20: it left after the step that was under way
    (line,) = (r.fields for r in caplog.records if r.message == "invoke")  # type: ignore[attr-defined]
    assert (line["status"], line["code"]) == (499, "GENERATION_CANCELLED")


def test_a_stream_that_the_server_stops_ends_with_the_error(
    engine: Engine, gate: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "limner.inference")
    received = bytearray()

    async def scenario() -> int:
        app, stays = build_app(engine, tmp_path), asyncio.Event()
        stream = asyncio.create_task(
            invoke(app, stays, accept=b"text/event-stream", received=received)
        )
        await asyncio.to_thread(gate.reached)
        gate.step()
        async with asyncio.timeout(60):
            while not received:
                await asyncio.sleep(0)
        stream.cancel()  # as uvicorn does when the time of grace is over
        return await stream

    assert asyncio.run(scenario()) == 200
    gate.open()
    engine.unload("a")  # waits for whoever is drawn
    (first, _), (last, error) = events_of(received.decode())
    assert (first, last) == ("step", "error")
    assert error["error"]["code"] == "GENERATION_FAILED"  # type: ignore[index]
    (line,) = (r.fields for r in caplog.records if r.message == "invoke")  # type: ignore[attr-defined]
    assert (line["status"], line["code"]) == (502, "GENERATION_FAILED")
