"""How ``serve`` learns that a model's process has died.

Triton does not tell, and starts none anew: the container would stay healthy and answer by 400, and
an unload of a dead model would not end. So ``base`` holds one end of a connection, which the kernel
closes when its process ends for whatever reason; and it lets go when a thin model has died.

The other way goes what Triton does not tell either: that the container is to end. Triton asks for
nothing while a request runs, and then kills.

    serve: listens ── starts Triton ── accepts ── calls time ── waits ── end of file: base has died
    base:                 …           connects, draws ── ends all ──── says goodbye, if it ends well
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_GOODBYE: Final = b"."
_TIME: Final = b"!"


def path_beside(door: Path) -> Path:
    """Where the lifeline is, next to the door of ``base``."""
    return door.with_name("lifeline.sock")


class Held:
    """The end that ``base`` holds. Without anybody at the other end it does nothing.

    Args:
        door: The door's socket.
    """

    def __init__(self, door: Path) -> None:
        self._connection: socket.socket | None = None
        path = path_beside(door)
        if path.exists():
            self._connection = socket.socket(socket.AF_UNIX)
            self._connection.connect(str(path))

    def when_time_is_called(self, end: Callable[[], None]) -> None:
        """Has something done when the container must end, on a thread of its own."""
        if self._connection:
            threading.Thread(
                target=_wait_for_time, args=(self._connection, end), name="lifeline", daemon=True
            ).start()

    def say_goodbye(self) -> None:
        """Ends it by intent."""
        connection, self._connection = self._connection, None
        if connection:
            with connection:
                connection.sendall(_GOODBYE)
                _hang_up(connection)

    def cut(self) -> None:
        """Has ``serve`` end the container."""
        connection, self._connection = self._connection, None
        if connection:
            with connection:
                _hang_up(connection)


class Watched:
    """The end that ``serve`` watches.

    Args:
        door: The door's socket.
    """

    def __init__(self, door: Path) -> None:
        self._path = path_beside(door)
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(1)
        self._held: socket.socket | None = None

    def wait(self) -> bool:
        """Returns when the lifeline has ended; says whether that was meant.

        Raises:
            OSError: If the wait was ended by ``close``.
        """
        self._held, _ = self._listener.accept()
        with self._held as connection:
            try:
                return connection.recv(1) == _GOODBYE
            except ConnectionError:  # it died before it had read that time was called
                return False

    def call_time(self) -> None:
        """Has ``base`` end what it does, and answer it; nothing where there is none."""
        if self._held:
            with suppress(OSError):  # it has just ended by itself
                self._held.sendall(_TIME)

    def close(self) -> None:
        """Ends the wait for a ``base`` that has never come."""
        _hang_up(self._listener)  # to close it alone does not end the wait
        self._listener.close()
        self._path.unlink(missing_ok=True)


def _hang_up(connection: socket.socket) -> None:
    """Ends a connection at both ends; to close it does not while a thread of ours reads."""
    with suppress(OSError):  # the other end has gone first
        connection.shutdown(socket.SHUT_RDWR)


def _wait_for_time(connection: socket.socket, end: Callable[[], None]) -> None:
    try:
        called = connection.recv(1) == _TIME
    except OSError:  # closed meanwhile
        return
    if called:
        end()
