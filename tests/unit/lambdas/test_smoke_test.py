"""The first inference: what counts as an answer, and what happens to refusals."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError
from botocore.response import StreamingBody
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lambdas.smoke_test.logic import (
    REQUEST,
    ModelNotReadyError,
    Report,
    check_answer,
    refusal,
)
from lambdas.smoke_test.png import Png, PngError
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GeneratedImage, GenerateRequest, GenerateResponse
from limner.contracts.triton import RAW_TYPE

ADAPTER = "a1" * 32


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def gradient(width: int = 16, height: int = 8, mode: str = "RGB") -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    data = bytes(
        (x * 7 + y * y * 3 + c * 31) % 256
        for y in range(height)
        for x in range(width)
        for c in range(bands)
    )
    return Image.frombytes(mode, (width, height), data)


def answer(image: bytes, **changes: Any) -> bytes:
    body = GenerateResponse(
        images=[GeneratedImage(png_base64=base64.b64encode(image).decode(), seed=0)],
        prompt="a photo of sks",
        base_id="tiny-1",
        adapter_sha256=ADAPTER,
        denoise_ms=12.5,
    ).model_dump()
    return json.dumps({**body, **changes}).encode()


def test_the_request_is_one_of_the_contract() -> None:
    request = GenerateRequest.model_validate(REQUEST)
    assert request.images == 1
    assert "{token}" in request.prompt


def test_a_sound_answer() -> None:
    report = check_answer(answer(png(gradient())), "tiny-1")
    assert report == Report(ADAPTER, 16, 8, 12.5)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_rows_are_the_ones_that_pillow_wrote(mode: str) -> None:
    image = gradient(37, 19, mode)
    read = Png.read(png(image))
    assert b"".join(read.rows()) == image.tobytes()
    assert not read.is_constant()


def filtered(rows: list[bytes], kind: int, step: int) -> bytes:
    """A PNG of RGB rows that all use one filter; the inverse of what is tested, from the spec."""
    out, above = b"", bytes(len(rows[0]))
    for row in rows:
        line = bytearray()
        for i, x in enumerate(row):
            a = row[i - step] if i >= step else 0
            b, c = above[i], above[i - step] if i >= step else 0
            p = a + b - c
            nearest = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            line.append((x - (0, a, b, (a + b) // 2, nearest)[kind]) % 256)
        out, above = out + bytes([kind]) + bytes(line), row
    header = struct.pack(">IIBBBBB", len(rows[0]) // step, len(rows), 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(out)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


@given(
    kind=st.integers(0, 4),
    rows=st.lists(st.binary(min_size=12, max_size=12), min_size=1, max_size=4),
)
def test_every_filter_is_undone(kind: int, rows: list[bytes]) -> None:
    assert list(Png.read(filtered(rows, kind, 3)).rows()) == rows


@pytest.mark.parametrize("kind", range(5))
def test_one_colour_is_seen_through_every_filter(kind: int) -> None:
    assert Png.read(filtered([b"\x10\x20\x30" * 8] * 5, kind, 3)).is_constant()
    last_row_differs = [b"\x10\x20\x30" * 8] * 4 + [b"\x10\x20\x31" * 8]
    assert not Png.read(filtered(last_row_differs, kind, 3)).is_constant()


SOUND = png(gradient())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a PNG"),
        (b"GIF89a", "not a PNG"),
        (SOUND[:8], "no header"),
        (SOUND[:-12], "no end"),
        (SOUND[:40], "breaks off"),
        (SOUND[:50] + b"\x00\x01" + SOUND[52:], "checksum"),
        (png(gradient().convert("P")), "kind"),
        (png(Image.new("1", (8, 8))), "kind"),
    ],
)
def test_damaged_images_are_told(data: bytes, reason: str) -> None:
    with pytest.raises(PngError, match=reason):
        list(Png.read(data).rows())


def test_a_bomb_of_pixels_is_not_unpacked() -> None:
    bomb = bytearray(filtered([bytes(24)], 0, 3))
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    with pytest.raises(PngError, match="60000 x 60000"):
        Png.read(bytes(bomb))


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (b"<html>", "ARTIFACT_WRONG_BASE", "None, not tiny-1"),
        (answer(SOUND, base_id="other"), "ARTIFACT_WRONG_BASE", "other, not tiny-1"),
        (answer(SOUND, adapter_sha256=""), "SMOKE_TEST_FAILED", "adapter"),
        (answer(SOUND, images=[]), "SMOKE_TEST_FAILED", "one image"),
        (answer(SOUND, images=[{"png_base64": "*"}]), "SMOKE_TEST_FAILED", "base64"),
        (answer(b"abc"), "SMOKE_TEST_FAILED", "not a PNG"),
        (answer(png(Image.new("RGB", (8, 8), "red"))), "SMOKE_TEST_FAILED", "one colour"),
    ],
)
def test_unsound_answers(body: bytes, code: str, reason: str) -> None:
    with pytest.raises(LimnerError, match=reason) as caught:
        check_answer(body, "tiny-1")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("code", "container", "expected", "passes"),
    [
        ("ModelNotReadyException", "", "MODEL_LOADING", True),
        ("ThrottlingException", "", "MODEL_LOADING", True),
        ("ServiceUnavailable", "", "MODEL_LOADING", True),
        ("ModelError", LimnerError("OUT_OF_MEMORY").to_dict(), "MODEL_LOADING", True),
        ("ModelError", LimnerError("ARTIFACT_INVALID").to_dict(), "ARTIFACT_INVALID", False),
        ("ModelError", "Traceback", "SMOKE_TEST_FAILED", False),
        ("ModelError", {"error": {"code": "NO_SUCH"}}, "SMOKE_TEST_FAILED", False),
        ("ValidationError", "", "SMOKE_TEST_FAILED", False),
    ],
)
def test_refusals(code: str, container: object, expected: str, passes: bool) -> None:
    body = container if isinstance(container, str) else json.dumps(container)
    error = refusal(code, "told", body)
    assert error.code == expected
    assert isinstance(error, ModelNotReadyError) == passes


@pytest.fixture
def handler(cold_start: Callable[[str], ModuleType]) -> ModuleType:
    return cold_start("smoke_test")


EVENT = {"request_id": "r1", "target_model": "ada/default/v1.tar.gz"}
CALL = {
    "EndpointName": "endpoint",
    "TargetModel": "ada/default/v1.tar.gz",
    "ContentType": RAW_TYPE,
    "Accept": "application/json",
    "Body": json.dumps(REQUEST).encode(),
}


def test_the_handler_asks_for_the_exact_model(handler: ModuleType) -> None:
    body = answer(SOUND)
    with Stubber(handler._RUNTIME) as stub:
        stub.add_response(
            "invoke_endpoint", {"Body": StreamingBody(io.BytesIO(body), len(body))}, CALL
        )
        assert handler.handle(EVENT, None)["adapter_sha256"] == ADAPTER
        stub.assert_no_pending_responses()


def test_the_handler_passes_a_refusal_on(handler: ModuleType) -> None:
    with Stubber(handler._RUNTIME) as stub:
        stub.add_client_error("invoke_endpoint", "ModelNotReadyException", "still loading")
        with pytest.raises(ModelNotReadyError, match="still loading"):
            handler.handle(EVENT, None)
        stub.add_client_error(
            "invoke_endpoint",
            "ModelError",
            "Received client error (400)",
            modeled_fields={
                "OriginalStatusCode": 400,
                "OriginalMessage": json.dumps(LimnerError("ARTIFACT_WRONG_BASE").to_dict()),
            },
        )
        with pytest.raises(LimnerError, match="ARTIFACT_WRONG_BASE"):
            handler.handle(EVENT, None)


def test_no_answer_in_time_is_not_ready(
    handler: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(**_: object) -> None:
        raise ReadTimeoutError(endpoint_url="http://endpoint")

    monkeypatch.setattr(handler._RUNTIME, "invoke_endpoint", too_late)
    with pytest.raises(ModelNotReadyError, match="ReadTimeoutError"):
        handler.handle(EVENT, None)
