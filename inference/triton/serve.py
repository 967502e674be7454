"""``serve``: what SageMaker starts. Checks the settings, starts Triton, and ends when it ends.

SageMaker's own ``serve`` starts with no model at all where it serves many. Ours loads ``base``
first, so that the container is not healthy before it can draw; and it ends when a model's process
has died, so that SageMaker starts the container anew.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Final

from pydantic import ValidationError

from inference.logs import log, set_up
from inference.settings import Settings, TritonSettings
from inference.triton.lifeline import Watched
from limner.contracts.base import read_card
from limner.contracts.errors import LimnerError
from limner.contracts.training import explain
from limner.contracts.triton import RESIDENT

# SageMaker sends SIGKILL 30 s after SIGTERM. Requests get 18 s to end by themselves; then the
# engine ends what is running at its next denoising step, calls of the content check get 2 s, and
# what is captured gets 5 s. Triton itself takes 2 s more, for it looks once a second at what is
# still there.
GRACE_S: Final = 18
# Triton unloads `base` only when nothing is running, and has ended all at this time whatever runs.
EXIT_S: Final = 29
# Linux keeps a socket's path in 108 bytes, with a zero at the end.
_MAX_SOCKET_PATH: Final = 107
# How Triton ends when it is told to: by itself, or by a signal that comes before it has begun.
_OBEYED: Final = (0, -signal.SIGTERM, -signal.SIGINT)


def main() -> int:
    """Runs Triton; returns the exit code."""
    set_up()
    try:
        read_card(Settings().base_dir)
        settings = TritonSettings()
        _check(settings)
        return run(settings)
    except ValidationError as error:
        log("not started", {"code": "INVALID_INPUT", "reason": explain(error)})
    except LimnerError as error:
        log("not started", {"code": error.code, "reason": error.message})
    except OSError as error:
        reason = f"{error.filename or 'tritonserver'}: {error.strerror}"
        log("not started", {"code": "TOOL_MISSING", "reason": reason})
    return 1


def run(settings: TritonSettings) -> int:
    """Runs Triton until it ends, a model's process dies, or a signal comes.

    Returns:
        0 if Triton has ended by itself or after a signal that it has obeyed. Its exit code else; 1
        where it has crashed, or a model's process has died.

    Raises:
        OSError: If a socket or the program cannot be used.
    """
    lifeline = Watched(settings.socket)
    triton = subprocess.Popen(command(settings), env=settings.environment())
    asked, died = threading.Event(), threading.Event()

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.set()
        triton.send_signal(number)
        timer = threading.Timer(GRACE_S, lifeline.call_time)
        timer.daemon = True  # Triton may end sooner, and so should we
        timer.start()

    def watch() -> None:
        try:
            meant = lifeline.wait()
        except OSError:  # Triton has ended before `base` ever began
            return
        # `base` also takes its leave where Triton has unloaded it, unasked.
        if not (meant and asked.is_set()):
            died.set()
            # At once: without `base` nothing that is still running can be answered, and Triton
            # would wait for it.
            triton.kill()

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    code = triton.wait()
    lifeline.close()
    if died.is_set():
        log("models can be served no more", {})
        return 1
    if code in _OBEYED:
        return 0
    log("triton has failed", {"exit_code": code})
    return max(code, 1)


def command(settings: TritonSettings) -> list[str]:
    """Triton's command line."""
    options: dict[str, object] = {
        "allow-sagemaker": True,
        "sagemaker-port": settings.port,
        "sagemaker-thread-count": settings.threads,
        "allow-http": False,
        "allow-grpc": False,
        "allow-metrics": False,
        "model-control-mode": "explicit",
        "model-repository": settings.repository,
        "load-model": RESIDENT,
        "backend-directory": settings.backends,
        # With namespaces Triton looks each name up in a map that loads and unloads replace at the
        # same time, without their lock (core, ModelRepositoryManager::FindModelIdentifier): some
        # requests are refused for models that are there. Nobody needs namespaces here, since the
        # SageMaker routes give each model the name of its TargetModel.
        "model-namespacing": False,
        "exit-timeout-secs": EXIT_S,
        "log-verbose": settings.log_verbose,
        "log-info": settings.log_info,
        "log-warning": settings.log_warning,
        "log-error": settings.log_error,
    }
    if settings.safe_port_range:
        options["sagemaker-safe-port-range"] = settings.safe_port_range
    python = {
        "shm-default-byte-size": settings.shm_bytes,
        "shm-growth-byte-size": settings.shm_growth_bytes,
    }
    return [
        str(settings.program),
        # Without it each load starts the model's process twice: 1.35 s instead of 0.13 s.
        "--disable-auto-complete-config",
        *(f"--{name}={_written(value)}" for name, value in options.items()),
        *(f"--backend-config=python,{name}={value}" for name, value in python.items()),
    ]


def _check(settings: TritonSettings) -> None:
    """What Triton would say with many words, or only at a user's first request."""
    if not os.access(settings.program, os.X_OK):
        raise LimnerError("TOOL_MISSING", f"{settings.program} is not a program.")
    if not (settings.backends / "python").is_dir():
        raise LimnerError("TOOL_MISSING", f"{settings.backends} has no python backend.")
    if not (settings.repository / RESIDENT / "config.pbtxt").is_file():
        raise LimnerError("INVALID_INPUT", f"{settings.repository} has no model {RESIDENT!r}.")
    if len(os.fsencode(settings.socket)) > _MAX_SOCKET_PATH:
        raise LimnerError("INVALID_INPUT", "LIMNER_TRITON_SOCKET is too long a path.")
    # Whoever can connect can load and unload.
    settings.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
