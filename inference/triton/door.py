"""The door of ``base``: a Unix socket at which thin models ask to be loaded and unloaded.

Triton lets a model call another one (BLS) while it executes, but refuses it in ``initialize`` and
``finalize``, which is just when an adapter must be loaded and unloaded.

One connection, one order: a line of JSON in, an error's text or nothing out.
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from inference.bodies import parse_body
from inference.triton.desk import Order
from inference.triton.words import in_words
from limner.contracts.errors import LimnerError

_MAX_ORDER_BYTES: Final = 65_536


class Door:
    """Listens on a socket, on threads of its own, until it is closed.

    Args:
        path: The socket. A file that is there is taken for one of a predecessor that has died.
        carry_out: Does what an order says; called on several threads at once.
    """

    def __init__(self, path: Path, carry_out: Callable[[Order], LimnerError | None]) -> None:
        class Visit(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline(_MAX_ORDER_BYTES)
                try:
                    refusal = carry_out(parse_body(line, Order))
                except LimnerError as error:
                    refusal = error
                if refusal:
                    self.wfile.write(in_words(refusal).encode())

        self._path = path
        path.unlink(missing_ok=True)
        self._server = _Server(str(path), Visit)
        path.chmod(0o600)
        self._thread = threading.Thread(target=self._server.serve_forever, name="door")
        self._thread.start()

    def close(self) -> None:
        """Takes no more visitors, and waits for those who are inside."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    # Many users may come at once after a restart.
    request_queue_size = 128
