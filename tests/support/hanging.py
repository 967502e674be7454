"""Content checks that compute without end at certain prompts.

In a server with ``CHECK`` answers are waited for 6 s; with ``PATIENT`` as long as ever.
"""

from __future__ import annotations

from typing import NoReturn

import torch

from inference.engine.denoise import Pixels
from inference.engine.engine import Engine
from inference.engine.safety import Verdict

PROMPT_HANGS = "a prompt without end"
IMAGES_HANG = "images without end"
ANSWER_S = 6.0


def _compute() -> NoReturn:
    """As a model that looks at an image: mostly inside of torch."""
    matrix = torch.eye(64)
    while True:
        matrix = matrix @ matrix


class Patient:
    """The check; images of ``IMAGES_HANG`` are known by the prompt before them."""

    hangs = False

    def check_prompt(self, prompt: str, _negative_prompt: str) -> Verdict:
        if prompt == PROMPT_HANGS:
            _compute()
        self.hangs = prompt == IMAGES_HANG
        return Verdict(True)

    def check_image(self, _pixels: Pixels) -> Verdict:
        if self.hangs:
            _compute()
        return Verdict(True)


PATIENT = Patient()


def __getattr__(name: str) -> Patient:
    """``CHECK``: the server asks for it before it makes its engine."""
    if name != "CHECK":
        raise AttributeError(name)
    defaults = Engine.__init__.__kwdefaults__
    assert defaults is not None
    defaults["answer_s"] = ANSWER_S
    return PATIENT
