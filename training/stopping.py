"""What SIGTERM means: the end at once where nothing is lost by it, else at the next good moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final


class StoppedError(BaseException):
    """SIGTERM came. No Exception, so that no library takes it for an error of its own."""


class Stop:
    """The wish that the program ends; told by a signal handler, between any two bytecodes.

    Attributes:
        is_asked: Whether the wish is there.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._is_patient = False

    def ask(self) -> None:
        """Ends what goes on, unless it has asked for patience.

        Raises:
            StoppedError: Unless inside of ``patience``.
        """
        self.is_asked = True
        if not self._is_patient:
            self.obey()

    def obey(self) -> None:
        """Ends what goes on, if that was asked for.

        Raises:
            StoppedError: If it was.
        """
        if self.is_asked:
            raise StoppedError

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Inside, ``ask`` waits for whoever calls ``obey``.

        What ends meanwhile without having called it needs no stop any more: it is done.
        """
        self._is_patient = True
        try:
            yield
        finally:
            self._is_patient = False


# A process has one SIGTERM.
STOP: Final = Stop()
