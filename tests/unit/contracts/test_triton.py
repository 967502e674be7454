"""Bodies on their way through Triton's SageMaker routes."""

import json

import pytest

from limner.contracts import triton
from limner.contracts.errors import REGISTRY, LimnerError

PREFIX = triton.RAW_TYPE.removesuffix("0")


def test_an_answer_of_tritons_loses_its_header() -> None:
    header, body = b'{"outputs": []}', b"\x89PNG\n{}"
    assert triton.unwrap(header + body, f"{PREFIX}{len(header)}") == body
    assert triton.unwrap(body, triton.RAW_TYPE) == body


@pytest.mark.parametrize(
    "content_type", ["application/json", "image/png", "", PREFIX, f"{PREFIX}x"]
)
def test_any_other_answer_stays_as_it_is(content_type: str) -> None:
    assert triton.unwrap(b"{}", content_type) == b"{}"


def test_a_header_asks_for_another_media_type() -> None:
    content, content_type = triton.wrap(b'{"prompt": "x"}', "image/png")
    assert triton.unwrap(content, content_type) == b'{"prompt": "x"}'
    header = json.loads(content.removesuffix(b'{"prompt": "x"}'))
    assert header["parameters"] == {"accept": "image/png"}
    assert header["inputs"][0]["shape"] == [15]


@pytest.mark.parametrize("code", REGISTRY)
def test_our_error_is_found_in_tritons(code: str) -> None:
    error = LimnerError(code, 'a {"quoted"} detail').to_dict()
    said = f"load failed for model 'x': CUDA out of memory: {json.dumps(error)}\n\nAt:\n  {{}}"
    assert json.loads(triton.own_words(json.dumps({"error": said}))) == error
    ours = json.dumps(error)
    assert triton.own_words(ours) == ours


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", "{}", '{"error": "other"}', '{"error": "{\\"error\\": {"}']
)
def test_other_words_stay_as_they_are(text: str) -> None:
    assert triton.own_words(text) == text
