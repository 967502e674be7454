"""A gate at which drawings wait, so that a test sees them run for as long as it likes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from tests.support.laptop import until

HELD: Final = "held at the gate"
GATE_VARIABLE: Final = "LIMNER_TEST_GATE"
_PATIENCE_S = 120


@dataclass(frozen=True)
class Gate:
    """Shared by a test and a container's process.

    Attributes:
        folder: Where they meet: a file for each request that has come, and one for each drawing
            that waits.
    """

    folder: Path

    # -- The container's part

    def come(self) -> None:
        """A request has been queued."""
        (self.folder / f"{uuid4()}.came").touch()

    def wait(self) -> None:
        """A drawing waits until the gate is opened."""
        (self.folder / f"{uuid4()}.waits").touch()
        deadline = time.monotonic() + _PATIENCE_S
        while not self._opened.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    # -- The test's part

    def close(self) -> None:
        """For all drawings to come."""
        self.folder.mkdir(exist_ok=True)
        for file in self.folder.iterdir():
            file.unlink()

    def open(self) -> None:
        """For those that wait, and all to come."""
        self._opened.touch()

    def wait_for(self, requests: int) -> None:
        """Returns when so many requests have come, and one of them is being drawn."""
        until(lambda: len(list(self.folder.glob("*.came"))), lambda came: came >= requests)
        until(lambda: len(list(self.folder.glob("*.waits"))), bool)

    @property
    def _opened(self) -> Path:
        return self.folder / "opened"
