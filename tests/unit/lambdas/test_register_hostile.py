"""Hostile events and hostile files: refused, by their kind, and never a crash (promise P17)."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lambdas.register.logic import Arrival, problem_of
from lambdas.register.questions import Promise, read_submission, read_wish
from limner.contracts.errors import LimnerError
from limner.contracts.images import SUFFIX_OF
from limner.contracts.limits import MAX_PHOTO_BYTES
from tests.unit.lambdas.register_world import TYPES, Memory, asked, photo, promise, submitted

MUTATIONS = 10_000
SOUND = {kind: photo(3, kind) for kind in TYPES}


def judged(data: bytes, kind: str = "image/png") -> LimnerError | None:
    """What is said of a file that arrived as it was promised."""
    told = promise(data, kind)
    photo_ = Promise(told["sha256"], max(1, len(data)), kind)
    return problem_of(photo_, Arrival(max(1, len(data)), kind, told["sha256"], io.BytesIO(data)))


def png_of(width: int, height: int) -> bytes:
    data = bytearray(SOUND["PNG"])
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(SOUND["JPEG"])
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size


def other_formats() -> Iterator[tuple[str, bytes]]:
    image = Image.new("RGB", (64, 64), "red")
    for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "PDF", "ICNS"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        yield kind.lower(), buffer.getvalue()
    yield from {
        "empty": b"",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "html": b"<!doctype html><script>alert(1)</script>",
        "zip": b"PK\x03\x04" + bytes(60),
        "elf": b"\x7fELF" + bytes(60),
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "shell": b"#!/bin/sh\ntrue\n",
        "postscript": b"%!PS-Adobe-3.0\n",
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
        "avif": b"\0\0\0\x18ftypavif\0\0\0\0mif1heic" + bytes(64),
        "mpo with no frame": b"\xff\xd8\xff\xd9",
        "zeros": bytes(200),
        "png signature alone": b"\x89PNG\r\n\x1a\n",
        "jpeg signature alone": b"\xff\xd8\xff",
        "webp signature alone": b"RIFF\0\0\0\0WEBP",
        "png after a script": b"<?php system('x'); ?>" + SOUND["PNG"],
        "png with damaged header": SOUND["PNG"][:20] + b"\xff" + SOUND["PNG"][21:],
        "png with another first chunk": SOUND["PNG"][:12] + b"iCCP" + SOUND["PNG"][16:],
        "jpeg of segments without length": b"\xff\xd8\xff\xe0\0\0" + bytes(90),
        "jpeg of fill bytes": b"\xff\xd8" + b"\xff" * 30_000,
        "jpeg of 30,000 segments": b"\xff\xd8" + b"\xff\xe1\0\x02" * 30_000,
        "jpeg that skips behind its end": b"\xff\xd8\xff\xe1\xff\xff" + bytes(90),
        "jpeg with a scan first": b"\xff\xd8\xff\xda\0\x02" + bytes(40) + b"\xff\xd9",
        "jpeg with a short frame": b"\xff\xd8\xff\xc0\0\x03" + bytes(40),
        "webp of junk": b"RIFF" + struct.pack("<I", 60) + b"WEBPJUNK" + bytes(60),
        "webp with a broken key frame": b"RIFF" + struct.pack("<I", 60) + b"WEBPVP8 " + bytes(60),
    }.items()


def bombs() -> Iterator[tuple[str, bytes, str]]:
    sizes = ((100_000, 100_000), (2**31 - 1, 2**31 - 1), (40_000_001, 1), (6_400, 6_400))
    for width, height in (*sizes, (31, 64), (64, 31), (1, 1), (0, 64), (64, 0), (0, 0)):
        yield f"png {width} x {height}", png_of(width, height), "image/png"
    for width, height in ((65_535, 65_535), (7_000, 7_000), (31, 64), (1, 1), (0, 64), (64, 0)):
        yield f"jpeg {width} x {height}", jpeg_of(width, height), "image/jpeg"
    for width, height in ((2**24, 2**24), (16_384, 16_384), (31, 64), (1, 1)):
        yield f"webp {width} x {height}", webp_of(width, height), "image/webp"


def mislabelled() -> Iterator[tuple[str, bytes, str]]:
    for kind, data in SOUND.items():
        for wrong in sorted(set(SUFFIX_OF) - {TYPES[kind]}):
            yield f"{kind} as {wrong}", data, wrong


MALICIOUS = [
    *((f"{name} as png", data, "image/png") for name, data in other_formats()),
    *bombs(),
    *mislabelled(),
]


def test_sound_photos_pass() -> None:
    for kind, data in SOUND.items():
        assert judged(data, TYPES[kind]) is None
    large = io.BytesIO()
    Image.effect_noise((2_000, 1_500), 60).save(large, "JPEG")
    assert judged(large.getvalue(), "image/jpeg") is None


@pytest.mark.parametrize(("name", "data", "kind"), MALICIOUS, ids=[name for name, *_ in MALICIOUS])
def test_malicious_files_are_refused(name: str, data: bytes, kind: str) -> None:
    problem = judged(data, kind)
    assert problem is not None
    assert problem.code.startswith("PHOTO_")
    assert problem.message.startswith("Photo ")


def test_no_mutation_makes_it_crash(record_property: Callable[[str, object], None]) -> None:
    draw = random.Random(7)
    refused = 0
    for _ in range(MUTATIONS):
        kind = draw.choice(list(SOUND))
        data = bytearray(SOUND[kind])
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(min(len(data), 400))] = draw.randrange(256)
        del data[draw.randint(1, len(data)) if draw.random() < 0.3 else len(data) :]
        problem = judged(bytes(data), TYPES[kind])
        refused += problem is not None
        assert problem is None or problem.code.startswith("PHOTO_")
    line = (
        f"P17 (register): {len(MALICIOUS)} malicious files refused, {MUTATIONS:,} mutations:"
        f" {refused:,} refused, 0 crashes"
    )
    record_property("figure", line)
    assert len(MALICIOUS) >= 60


@pytest.mark.parametrize("change", ["bytes", "size", "type"])
def test_what_was_not_promised_is_not_taken(change: str) -> None:
    memory = Memory()
    answer = memory.desk().answer(asked())
    memory.arrive(answer, *(photo(number) for number in range(3)))
    place = answer["posts"][0]["fields"]["key"]
    kind, data = memory.objects[place]
    memory.objects[place] = {
        "bytes": (kind, data[:-1] + b"x"),
        "size": (kind, data + b"x"),
        "type": ("text/html", data),
    }[change]
    with pytest.raises(LimnerError, match="is not what was promised") as caught:
        memory.desk().answer(submitted(answer["request_id"]))
    assert caught.value.code == "UPLOAD_INCOMPLETE"
    assert memory.moves == []


def test_a_file_that_is_no_photo_is_named_although_it_was_promised() -> None:
    memory = Memory()
    script = b"<script>alert(1)</script>"
    event = asked(count=2)
    event["photos"].append(promise(script))
    answer = memory.desk().answer(event)
    memory.arrive(answer, photo(0), photo(1), script)
    with pytest.raises(LimnerError, match=promise(script)["sha256"][:12]) as caught:
        memory.desk().answer(submitted(answer["request_id"]))
    assert caught.value.code == "PHOTO_NOT_AN_IMAGE"


def photos_but(**change: Any) -> list[dict[str, Any]]:
    return [*asked(count=3)["photos"], {**promise(photo(9)), **change}]


WRONG = {
    "no action": ({"action": "erase"}, "INVALID_INPUT"),
    "no user": ({"user_id": None}, "INVALID_INPUT"),
    "user with a slash": ({"user_id": "a/b"}, "INVALID_INPUT"),
    "user that climbs": ({"user_id": "../bob"}, "INVALID_INPUT"),
    "user with a variable": ({"user_id": "${filename}"}, "INVALID_INPUT"),
    "model with a slash": ({"model_id": "a/b"}, "INVALID_INPUT"),
    "unknown field": ({"request_id": "r1"}, "INVALID_INPUT"),
    "token of another type": ({"client_token": 7}, "INVALID_INPUT"),
    "empty token": ({"client_token": ""}, "INVALID_INPUT"),
    "long token": ({"client_token": "x" * 257}, "INVALID_INPUT"),
    "half a character": ({"client_token": "\ud800"}, "INVALID_INPUT"),
    "retrain as a text": ({"retrain": "yes"}, "INVALID_INPUT"),
    "config as a list": ({"config": []}, "INVALID_INPUT"),
    "config out of bounds": ({"config": {"steps": 10**9}}, "INVALID_INPUT"),
    "no photos": ({"photos": None}, "INVALID_INPUT"),
    "photos as a text": ({"photos": "abc"}, "INVALID_INPUT"),
    "two photos": ({"photos": asked(count=2)["photos"]}, "TOO_FEW_PHOTOS"),
    "three equal photos": ({"photos": asked(count=1)["photos"] * 3}, "TOO_FEW_PHOTOS"),
    "51 photos": ({"photos": asked(count=51)["photos"]}, "TOO_MANY_PHOTOS"),
    "photo as a text": ({"photos": ["a", "b", "c"]}, "INVALID_INPUT"),
    "photo with a key": ({"photos": photos_but(key="models/bob/x")}, "INVALID_INPUT"),
    "short hash": ({"photos": photos_but(sha256="ab")}, "INVALID_INPUT"),
    "upper case hash": ({"photos": photos_but(sha256="A" * 64)}, "INVALID_INPUT"),
    "hash that climbs": ({"photos": photos_but(sha256="../" * 21 + "x")}, "INVALID_INPUT"),
    "size as a text": ({"photos": photos_but(size="1")}, "INVALID_INPUT"),
    "size as a truth": ({"photos": photos_but(size=True)}, "INVALID_INPUT"),
    "no bytes": ({"photos": photos_but(size=0)}, "INVALID_INPUT"),
    "too many bytes": ({"photos": photos_but(size=MAX_PHOTO_BYTES + 1)}, "PHOTO_TOO_LARGE"),
    "html": ({"photos": photos_but(type="text/html")}, "PHOTO_NOT_AN_IMAGE"),
    "svg": ({"photos": photos_but(type="image/svg+xml")}, "PHOTO_NOT_AN_IMAGE"),
    "two types": ({"photos": photos_but(type="image/png, text/html")}, "PHOTO_NOT_AN_IMAGE"),
    "type as a list": ({"photos": photos_but(type=["image/png"])}, "PHOTO_NOT_AN_IMAGE"),
    "one photo in two ways": (
        {"photos": [*asked()["photos"], {**asked()["photos"][0], "size": 5}]},
        "INVALID_INPUT",
    ),
    "hashes that nearly agree": (
        {"photos": photos_but(sha256=asked()["photos"][0]["sha256"][:40] + "0" * 24)},
        "INVALID_INPUT",
    ),
}


@pytest.mark.parametrize(("change", "code"), WRONG.values(), ids=WRONG)
def test_wrong_events_write_nothing(change: dict[str, Any], code: str) -> None:
    memory = Memory()
    with pytest.raises(LimnerError) as caught:
        memory.desk().answer({**asked(), **change})
    assert caught.value.code == code
    assert memory.rows == memory.configs == {}


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = ("action", "user_id", "model_id", "client_token", "retrain", "config", "photos", "start")


@settings(max_examples=250, deadline=None)
@given(st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=5)), JSON))
@example({"photos": {"a": 1}})
def test_no_event_makes_it_crash(event: dict[str, Any]) -> None:
    for read in (read_wish, read_submission):
        for full in (event, {**asked(), **event}, {**submitted("r1"), **event}):
            try:
                read(full)
            except LimnerError as error:
                assert error.spec.http_status == 400


NASTY = st.text(st.sampled_from("abAZ09_-./\\%*?#:${} \0\n\u0301\u2024\uff0f"), max_size=70)


@settings(max_examples=400, deadline=None)
@given(user_id=st.one_of(NASTY, st.from_regex(r"[A-Za-z0-9_-]{1,66}")), token=NASTY)
@example("alice\n", "t")
@example("${filename}", "t")
@example("..", "t")
def test_forms_stay_inside_the_user_s_own_prefix(user_id: str, token: str) -> None:
    memory = Memory()
    try:
        answer = memory.desk().answer(asked(user_id, client_token=token))
    except LimnerError as error:
        assert error.code == "INVALID_INPUT"
        assert memory.rows == {}
        return
    for post in answer["posts"]:
        top, user, request_id, name = post["fields"]["key"].split("/")
        assert (top, user, request_id) == ("uploads", user_id, answer["request_id"])
        assert not set(name) & set("$%{}\\ \n*")
