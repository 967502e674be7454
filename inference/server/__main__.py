"""``python -m inference.server``: loads the base, then listens, until SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
from types import FrameType
from typing import Final, NoReturn

from pydantic import ValidationError

from inference.logs import log, set_up
from inference.opening import open_engine
from inference.settings import Settings
from limner.contracts.errors import LimnerError
from limner.contracts.training import explain

# SageMaker sends SIGKILL 30 s after SIGTERM. Requests get 20 s to end by themselves; then the
# engine ends the running one at its next denoising step, calls of the content check get 2 s, and
# what is captured gets 5 s.
GRACE_S: Final = 20


def main() -> int:
    """Runs the server; returns the exit code."""
    set_up()
    try:
        serve(Settings())
    except ValidationError as error:
        log("not started", {"code": "INVALID_INPUT", "reason": explain(error)})
        return 1
    except LimnerError as error:
        log("not started", {"code": error.code, "reason": error.message})
        return 1
    except OSError as error:
        log("not started", {"code": "INVALID_INPUT", "reason": f"address: {error.strerror}"})
        return 1
    return 0


def serve(settings: Settings) -> None:
    """Loads the base and serves it.

    Args:
        settings: The container's settings.

    Raises:
        LimnerError: ``BASE_INVALID``; ``INVALID_INPUT``, if there is no such content check.
        OSError: If the address is taken.
    """
    opened = open_engine(settings)
    # After torch, and only where the base is sound: these take a second to import.
    import uvicorn

    from inference.capture import open_capture
    from inference.server.app import build_app

    bucket = settings.capture_bucket
    capture = open_capture(bucket, opened.engine.base.base_id) if bucket else None
    app = build_app(opened.engine, settings.models_root, capture)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    with socket.create_server((settings.host, settings.port), backlog=128) as listener:
        log("ready", {"port": listener.getsockname()[1], **opened.facts})
        # uvicorn raises the signal again after it has shut down; by then all work is done, and
        # the process should end by itself with code 0.
        signal.signal(signal.SIGTERM, _already_handled)
        signal.signal(signal.SIGINT, _already_handled)
        server.run(sockets=[listener])
    log("stopped", {})


def _already_handled(_signal: int, _frame: FrameType | None) -> None:
    """Does nothing."""


def leave(code: int) -> NoReturn:
    """Ends the process when all is answered and written (logs are, line by line).

    Whatever its threads do: at its own end the interpreter unwinds each thread that asks for it
    once more. In one that is in torch's C++, such as a content check that computes without end,
    that aborts the process, and a server that did all its work would seem to have crashed.

    Args:
        code: The exit code.
    """
    os._exit(code)


if __name__ == "__main__":
    leave(main())
