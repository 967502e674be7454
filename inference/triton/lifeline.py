"""How ``serve`` learns that a model's process has died.

Triton does not tell, and starts none anew: the container would stay healthy and answer by 400, and
an unload of a dead model would not end. So ``base`` holds one end of a connection, which the kernel
closes when its process ends for whatever reason; and it lets go when a thin model has died.

    serve: listens ── starts Triton ── accepts ───────────── waits ── end of file: base has died
    base:                 …           connects, draws, draws, …  ── says goodbye, if it ends well
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

_GOODBYE: Final = b"."


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

    def say_goodbye(self) -> None:
        """Ends it by intent."""
        connection, self._connection = self._connection, None
        if connection:
            with connection:
                connection.sendall(_GOODBYE)

    def cut(self) -> None:
        """Has ``serve`` end the container."""
        connection, self._connection = self._connection, None
        if connection:
            connection.close()


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

    def wait(self) -> bool:
        """Returns when the lifeline has ended; says whether that was meant.

        Raises:
            OSError: If the wait was ended by ``close``.
        """
        connection, _ = self._listener.accept()
        with connection:
            return connection.recv(1) == _GOODBYE

    def close(self) -> None:
        """Ends the wait for a ``base`` that has never come."""
        self._listener.close()
        self._path.unlink(missing_ok=True)
