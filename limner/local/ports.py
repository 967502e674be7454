"""TCP ports for programs that are told theirs when they start, and take it later."""

from __future__ import annotations

import itertools
import os
import socket
from typing import Final

from limner.contracts.errors import LimnerError
from limner.local.settings import HOST

# Linux gives away those from 32768 on by itself (ip_local_port_range), to whoever asks for any port
# or connects; and so also one that was chosen here, as long as its program is still starting.
_FIRST: Final = 22_000
_COUNT: Final = 10_000
# Each process begins at a place of its own, since others choose among the same ones.
_numbers: Final = itertools.count(os.getpid() * 97)


def is_free(port: int) -> bool:
    """Whether a program could listen on a port of this machine now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A free port that nobody is given by chance.

    Raises:
        LimnerError: ``LAPTOP_START_FAILED``, if all are taken.
    """
    for number in itertools.islice(_numbers, _COUNT):
        port = _FIRST + number % _COUNT
        if is_free(port):
            return port
    raise LimnerError("LAPTOP_START_FAILED", f"All ports from {_FIRST} on are taken.")
