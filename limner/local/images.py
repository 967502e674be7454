"""Which command stands for a container image on the laptop."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

from limner.local.errors import validation

TRAINING_IMAGE = "limner/training:local"
INFERENCE_IMAGE = "limner/inference:local"


class Images:
    """Image names and their commands; thread-safe. Limner's own two images are known."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commands: dict[str, tuple[str, ...]] = {
            TRAINING_IMAGE: (sys.executable, "-m", "training"),
            INFERENCE_IMAGE: (sys.executable, "-m", "inference.server"),
        }

    def register(self, image: str, command: Sequence[str]) -> None:
        """Makes ``command`` stand for ``image``, in place of an earlier one."""
        if not image or not command or not all(isinstance(part, str) for part in command):
            raise validation("An image needs a name and a command of one or more strings.")
        with self._lock:
            self._commands[image] = tuple(command)

    def command(self, image: str) -> tuple[str, ...]:
        """The command of an image.

        Raises:
            ServiceError: ``ValidationException``, in the words of SageMaker for an image that
                it cannot pull.
        """
        with self._lock:
            try:
                return self._commands[image]
            except KeyError:
                raise validation(
                    f"Cannot find repository: {image} in registry. The laptop runs images by "
                    "command; register it with limner.local.control.Control.register_image."
                ) from None
