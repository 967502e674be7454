"""Content safety: a check of one's own before and after drawing, and a line in the log for each.

The setting ``LIMNER_SAFETY`` names an object with the two methods of ``SafetyCheck``
(``module:attribute``). None is the default: which pictures are refused is the app's to decide.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, runtime_checkable

from inference.engine.denoise import Pixels
from inference.logs import fingerprint, log
from limner.contracts.errors import LimnerError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says.

    Attributes:
        allowed: Whether to go on.
        category: One word for the log and the answer, such as ``violence``; never the prompt, nor
            a part of it.
    """

    allowed: bool
    category: str = ""


@runtime_checkable
class SafetyCheck(Protocol):
    """What an app provides; called from several threads at once.

    An exception refuses, too: the answer is then ``INTERNAL``. One call that takes longer than
    anybody waits for an answer ends the container, since nobody can end the call.
    """

    def check_prompt(self, prompt: str, negative_prompt: str) -> Verdict:
        """Before drawing.

        Args:
            prompt: As it would be drawn, with the token filled in.
            negative_prompt: As it was sent.
        """
        ...

    def check_image(self, pixels: Pixels) -> Verdict:
        """After drawing.

        Args:
            pixels: One image, ``[height, width, 3]``, 0 to 255.
        """
        ...


class Guard:
    """Asks a check, writes its decision down, and refuses.

    Args:
        check: The app's.
    """

    def __init__(self, check: SafetyCheck) -> None:
        self._check = check
        self._lock = threading.Lock()
        # When each call began that is running, by its thread.
        self._begun: dict[int, float] = {}

    @property
    def longest_s(self) -> float:
        """Seconds that the longest of the calls has run which are running now; 0 without any."""
        with self._lock:
            return time.perf_counter() - min(self._begun.values()) if self._begun else 0.0

    def see_prompt(self, model: str, prompt: str, negative_prompt: str) -> None:
        """Refuses a prompt that the check refuses.

        Raises:
            LimnerError: ``CONTENT_REFUSED``.
        """
        with self._timed():
            verdict = self._check.check_prompt(prompt, negative_prompt)
        self._decide("prompt", model, prompt, [verdict])

    def see_images(self, model: str, prompt: str, pixels: Pixels) -> None:
        """Refuses images ``[images, height, width, 3]``, if the check refuses one of them.

        Raises:
            LimnerError: ``CONTENT_REFUSED``.
        """
        verdicts = []
        for one in pixels:
            with self._timed():
                verdicts.append(self._check.check_image(one))
        self._decide("images", model, prompt, verdicts)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._lock:
            self._begun[me] = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                del self._begun[me]

    def _decide(self, what: str, model: str, prompt: str, verdicts: list[Verdict]) -> None:
        refused = [verdict for verdict in verdicts if not verdict.allowed]
        category = refused[0].category if refused else ""
        log(
            "content",
            {
                "checked": what,
                "allowed": not refused,
                "category": category,
                "model": fingerprint(model),
                "prompt": fingerprint(prompt),
            },
        )
        if refused:
            reason = f" ({category})" if category else ""
            raise LimnerError("CONTENT_REFUSED", f"The {what} did not pass the check{reason}.")


def load_check(path: str) -> SafetyCheck:
    """The object that ``module:attribute`` names.

    Args:
        path: From the settings, so as trusted as the image of the container.

    Raises:
        LimnerError: ``INVALID_INPUT``, if there is no such object or it lacks a method.
    """
    module, _, attribute = path.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise LimnerError("INVALID_INPUT", f"LIMNER_SAFETY: there is no {path}.") from error
    if not isinstance(found, SafetyCheck):
        raise LimnerError("INVALID_INPUT", f"LIMNER_SAFETY: {path} is no SafetyCheck.")
    return found
