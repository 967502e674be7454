"""The door of ``base``: a Unix socket at which thin models ask to be loaded and unloaded.

Triton lets a model call another one (BLS) while it executes, but refuses it in ``initialize`` and
``finalize``, which is just when an adapter must be loaded and unloaded.

A thin model keeps one connection for as long as it lives; each order is a line of JSON, each answer
a line, empty or an error's text::

    thin model: connects ── load ── (serves) ── unload ── ends
                                       └─ end of file: its process has died
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from inference.bodies import parse_body
from inference.triton.desk import DoorOrder
from inference.triton.words import in_words
from limner.contracts.errors import LimnerError

_MAX_ORDER_BYTES: Final = 65_536


class Door:
    """Listens on a socket, on threads of its own, until it is closed.

    Args:
        path: The socket. A file that is there is taken for one of a predecessor that has died.
        carry_out: Does what an order says; called on several threads at once.
        bereaved: Called when the process of a loaded model has died.
    """

    def __init__(
        self,
        path: Path,
        carry_out: Callable[[DoorOrder], LimnerError | None],
        bereaved: Callable[[], None],
    ) -> None:
        self._closing = closing = threading.Event()

        class Visit(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                loaded = False
                with suppress(ConnectionError):  # as good as an end of file
                    while line := self.rfile.readline(_MAX_ORDER_BYTES):
                        operation, refusal = _obey(line, carry_out)
                        if operation == "unload":
                            # Goodbye, also where there was nothing to unload; but a model that
                            # could not leave would stay for ever.
                            loaded &= refusal is not None and refusal.code == "DEADLINE_EXCEEDED"
                        elif refusal is None:
                            loaded = True
                        self.wfile.write((in_words(refusal) if refusal else "").encode() + b"\n")
                if loaded and not closing.is_set():
                    bereaved()

        self._path = path
        path.unlink(missing_ok=True)
        self._server = _Server(str(path), Visit)
        path.chmod(0o600)
        self._thread = threading.Thread(target=self._server.serve_forever, name="door")
        self._thread.start()

    def close(self) -> None:
        """Takes no more visitors. Those who are inside may still say goodbye."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    # Many users may come at once after a restart.
    request_queue_size = 128
    # Visitors stay for as long as they live: nobody waits for their threads.
    daemon_threads = True
    block_on_close = False


def _obey(
    line: bytes, carry_out: Callable[[DoorOrder], LimnerError | None]
) -> tuple[str, LimnerError | None]:
    """An order's operation, empty if it is none, and what is wrong with it."""
    try:
        order = parse_body(line, DoorOrder)
    except LimnerError as error:
        return "", error
    return order.operation, carry_out(order)
