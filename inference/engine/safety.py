"""Content safety: a check of one's own before and after drawing, and a line in the log for each.

The setting ``LIMNER_SAFETY`` names an object with the two methods of ``SafetyCheck``
(``module:attribute``). None is the default: which pictures are refused is the app's to decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from math import ceil
from typing import Final, Protocol, runtime_checkable

from inference.engine.checks import Checks, Done, Work
from inference.engine.crowd import crowded
from inference.engine.denoise import Pixels
from inference.logs import fingerprint, log
from limner.contracts.errors import LimnerError

# Calls at the same time. Images one after the other: a model that looks at them uses the cores that
# draw.
_PROMPTS: Final = 8
_IMAGES: Final = 1
# Of the queue: what is drawn faster than it is looked at is pixels in memory, and the last of many
# is looked at too late for anybody.
_IMAGES_SHARE: Final = 2
# For both kinds together, in a container's end (``Settings.grace_s``).
_CLOSE_S: Final = 2.0


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

    An exception refuses, too: the answer is then ``INTERNAL``. While one call takes longer than
    anybody waits for an answer, the container counts as broken, since nobody can end the call.
    Each image is a call of its own; where nobody waits for the answer any more, the request's
    other images are not looked at.
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
    """Asks a check, writes its decision down, and refuses; neither caller nor drawing waits for it.

    Args:
        check: The app's.
        answer_s: Seconds that one call of it may take before the container counts as broken.
        max_queue: Prompts that may wait, a quarter of them one model's; one more is
            ``ENDPOINT_BUSY``. While half as many requests wait for their images to be looked at,
            a quarter of these one model's, new ones are ``ENDPOINT_BUSY``, too.
    """

    def __init__(self, check: SafetyCheck, answer_s: float, max_queue: int) -> None:
        self._check = check
        self._answer_s = answer_s
        late = f"The endpoint's check, or others before it, took longer than {answer_s:g} s."
        self._prompts = Checks("prompts", _PROMPTS, late, max_queue)
        # What was drawn always has a place: it is at the door that one is turned away.
        self._images = Checks("images", _IMAGES, late)
        self._max_images = ceil(max_queue / _IMAGES_SHARE)

    @property
    def is_stuck(self) -> bool:
        """Whether a call has not returned for longer than anybody waits for an answer."""
        return max(self._prompts.longest_s, self._images.longest_s) > self._answer_s

    def see_prompt(
        self,
        model: str,
        prompt: str,
        negative_prompt: str,
        deadline: float,
        done: Done,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Has a prompt checked; returns at once.

        Args:
            model: The platform's name of it.
            prompt: With the token filled in.
            negative_prompt: As it was sent.
            deadline: ``perf_counter`` after which nobody waits any more.
            done: Called once, from any thread: with None, or with what refuses, such as
                ``CONTENT_REFUSED``, ``DEADLINE_EXCEEDED`` or ``ENDPOINT_BUSY``.
            is_wanted: Whether somebody still waits.
        """
        if busy := crowded(self._images.waiting, model, self._max_images):
            done(busy)
            return
        work = self._see_prompt(model, prompt, negative_prompt)
        self._prompts.run(model, work, deadline, done, is_wanted)

    def see_images(
        self,
        model: str,
        prompt: str,
        pixels: Pixels,
        deadline: float,
        done: Done,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Has images ``[images, height, width, 3]`` checked, as ``see_prompt``; one may refuse."""
        work = self._see_images(model, prompt, pixels)
        self._images.run(model, work, deadline, done, is_wanted)

    def close(self) -> None:
        """Gives up what has not ended within a moment."""
        until = time.perf_counter() + _CLOSE_S
        self._prompts.close(until)
        self._images.close(until)

    def _see_prompt(self, model: str, prompt: str, negative_prompt: str) -> Work:
        yield
        self._decide("prompt", model, prompt, [self._check.check_prompt(prompt, negative_prompt)])

    def _see_images(self, model: str, prompt: str, pixels: Pixels) -> Work:
        verdicts = []
        for one in pixels:
            yield
            verdicts.append(self._check.check_image(one))
        self._decide("images", model, prompt, verdicts)

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
