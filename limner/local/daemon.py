"""The laptop's process: ``python -m limner.local.daemon --project P --port N …``.

Started by ``supervisor.start`` with the environment of ``settings.daemon_environment``. It puts our
layer into ministack, serves on the loopback interface, and on SIGTERM ends all containers and
writes ministack's state.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.contracts.errors import LimnerError
from limner.local import leftovers, seams
from limner.local.layout import Layout
from limner.local.settings import HOST, DaemonSettings

if TYPE_CHECKING:
    from limner.local.assembly import Assembled

_log = logging.getLogger("limner.local")
# Connections that are still open get this long at a stop.
_GRACEFUL_S = 1.0


def parse(arguments: list[str]) -> DaemonSettings:
    """The daemon's command line."""
    parser = argparse.ArgumentParser(prog="limner.local.daemon")
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clock-scale", type=float, default=1.0)
    parser.add_argument("--jobs-at-once", type=int, default=2)
    parser.add_argument("--instance-quota", type=int, default=20)
    options = parser.parse_args(arguments)
    return DaemonSettings(
        layout=Layout(options.project),
        port=options.port,
        clock_scale=options.clock_scale,
        jobs_at_once=options.jobs_at_once,
        instance_quota=options.instance_quota,
    )


async def serve(laptop: Assembled, port: int) -> None:
    """Serves until SIGTERM or SIGINT, then ends all containers; ministack writes its state."""
    from hypercorn.asyncio import serve as serve_asgi  # after the check, as all of ministack
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"{HOST}:{port}"]
    config.keep_alive_timeout = 75
    config.graceful_timeout = _GRACEFUL_S
    config.loglevel = "WARNING"
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    async def stopped() -> None:
        # hypercorn awaits this once it serves; ministack has loaded its state by then.
        laptop.announce_interrupted()
        await stop.wait()
        await asyncio.to_thread(laptop.close)

    # hypercorn's type lists every message that there is; ours says what ASGI says.
    application: Any = laptop.application
    await serve_asgi(application, config, shutdown_trigger=stopped)


def assembled(settings: DaemonSettings) -> Assembled:
    """Ministack with our layer in it.

    Raises:
        LimnerError: ``LAPTOP_START_FAILED``, if ministack is not the one we know.
    """
    seams.check()
    # Imports ministack, so only after the check.
    from limner.local.assembly import assemble

    return assemble(settings)


@contextlib.contextmanager
def only_one(layout: Layout) -> Iterator[None]:
    """Holds the project's lock.

    Raises:
        LimnerError: ``LAPTOP_START_FAILED``, if another daemon of this project runs.
    """
    with layout.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LimnerError(
                "LAPTOP_START_FAILED", f"A laptop already runs for {layout.project}."
            ) from error
        yield


def main(arguments: list[str]) -> int:
    """Runs the daemon; returns the exit code."""
    settings = parse(arguments)
    layout = settings.layout
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s [%(name)s] %(message)s",
    )
    _log.setLevel(logging.INFO)
    try:
        with only_one(layout):
            killed = leftovers.end(layout)
            if killed:
                _log.warning("ended %d containers of a daemon that was killed", killed)
            shutil.rmtree(layout.scratch, ignore_errors=True)
            for folder in (layout.state, layout.objects, layout.jobs, layout.scratch):
                folder.mkdir(parents=True, exist_ok=True)
            laptop = assembled(settings)
            run: dict[str, Any] = {"pid": os.getpid(), "port": settings.port}
            layout.run_file.write_text(json.dumps(run))
            _log.info("laptop of %s on %s", layout.project, settings.endpoint_url)
            asyncio.run(serve(laptop, settings.port))
            _log.info("stopped")
    except LimnerError as error:
        _log.error("%s", error)  # the trace says nothing more
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
