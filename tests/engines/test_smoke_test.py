"""What the function behind SmokeTest makes of an endpoint that draws, and of one that does not."""

from __future__ import annotations

import pytest

from tests.support.endpoint import two_pixel_png
from tests.support.engines.moto_stack import moto_stack

SOUND = two_pixel_png()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        pytest.param(SOUND[:-1], "the PNG breaks off", id="cut off"),
        pytest.param(b"<html>", "the answer is not a PNG", id="no PNG at all"),
        pytest.param(
            SOUND.replace(b"IDAT", b"IDAX"), "a checksum of the PNG is wrong", id="damaged"
        ),
    ],
)
def test_a_broken_image_keeps_the_model_from_going_live(image: bytes, words: str) -> None:
    with moto_stack() as stack:
        stack.world.endpoint.image = image
        wish = stack.wish()
        execution = stack.onboard(wish)
        assert execution["error"] == "SMOKE_TEST_FAILED"
        assert words in execution["cause"]
        assert len(stack.world.endpoint.calls) == 1, "a verdict is not asked for twice"
        assert "live_version" not in (stack.model(wish) or {})
