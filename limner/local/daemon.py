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
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limner.contracts.errors import LimnerError
from limner.local import seams
from limner.local.guard import guarded
from limner.local.layout import Layout
from limner.local.seams import Module
from limner.local.settings import HOST, DaemonSettings

_log = logging.getLogger("limner.local")
# Connections that are still open get this long at a stop.
_GRACEFUL_S = 1.0
_ANNOUNCE_AFTER_S = 0.3


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


class Daemon:
    """ministack with our layer in it.

    Args:
        settings: How to run.

    Raises:
        LimnerError: ``LAPTOP_START_FAILED``, if ministack is not the one we know.
    """

    def __init__(self, settings: DaemonSettings) -> None:
        seams.check()
        # Only now: ministack reads its settings when it is imported, and the check comes first.
        from ministack import app
        from ministack.core import lambda_runtime, router
        from ministack.services import eventbridge, lambda_svc, stepfunctions
        from ministack.services.cloudformation import provisioners

        from limner.local import semantics
        from limner.local.backstage import TARGET_PREFIX, Backstage
        from limner.local.clock import Clock
        from limner.local.images import Images
        from limner.local.objects import Objects
        from limner.local.sagemaker import cloudformation, events, integration
        from limner.local.sagemaker.api import SageMakerApi
        from limner.local.sagemaker.endpoints import Endpoints
        from limner.local.sagemaker.jobs import TrainingJobs
        from limner.local.sagemaker.lifecycle import Platform
        from limner.local.sagemaker.store import Store
        from limner.local.trouble import Trouble

        self.settings = settings
        self._app = app
        self._engine: Module = stepfunctions
        clock, trouble, images = Clock(settings.clock_scale), Trouble(), Images()
        objects = Objects(settings.endpoint_url)
        records = Store(settings.layout.sagemaker / "training-jobs")
        self._jobs = jobs = TrainingJobs(
            Platform(
                settings=settings,
                store=records,
                objects=objects,
                images=images,
                trouble=trouble,
                clock=clock,
                slots=threading.Semaphore(settings.jobs_at_once),
                closing=threading.Event(),
                announce=events.announcer(eventbridge),
            )
        )
        self._endpoints = Endpoints(settings, objects, images)
        api = SageMakerApi(jobs, self._endpoints, trouble)
        backstage = Backstage(settings, clock, trouble, images, records)
        semantics.install(stepfunctions, lambda_runtime, lambda_svc, clock, trouble)
        integration.install(stepfunctions, api, jobs)
        cloudformation.install(provisioners, self._endpoints)
        router.SERVICE_PATTERNS["sagemaker"] = {"target_prefixes": ["SageMaker."]}
        router.SERVICE_PATTERNS["limner-local"] = {"target_prefixes": [TARGET_PREFIX]}
        app.SERVICE_HANDLERS["sagemaker"] = api.handle
        app.SERVICE_HANDLERS["limner-local"] = backstage.handle

    async def serve(self) -> None:
        """Serves until SIGTERM or SIGINT."""
        from hypercorn.asyncio import serve
        from hypercorn.config import Config

        config = Config()
        config.bind = [f"{HOST}:{self.settings.port}"]
        config.keep_alive_timeout = 75
        config.graceful_timeout = _GRACEFUL_S
        config.loglevel = "WARNING"
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.call_later(_ANNOUNCE_AFTER_S, self._announce_interrupted)

        async def stopped() -> None:
            await stop.wait()
            await asyncio.to_thread(self.close)

        # hypercorn's type lists every message that there is; ours says what ASGI says.
        application: Any = guarded(self._app.app)
        await serve(application, config, shutdown_trigger=stopped)

    def close(self) -> None:
        """Ends all containers."""
        self._jobs.close()
        self._endpoints.close()

    def _announce_interrupted(self) -> None:
        from limner.local.semantics import restarts

        count = restarts.announce_interrupted(self._engine)
        if count:
            _log.warning("%d executions were interrupted by the last stop and have failed", count)


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
            shutil.rmtree(layout.scratch, ignore_errors=True)
            for folder in (layout.state, layout.objects, layout.jobs, layout.scratch):
                folder.mkdir(parents=True, exist_ok=True)
            daemon = Daemon(settings)
            run: dict[str, Any] = {"pid": os.getpid(), "port": settings.port}
            layout.run_file.write_text(json.dumps(run))
            _log.info("laptop of %s on %s", layout.project, settings.endpoint_url)
            asyncio.run(daemon.serve())
            _log.info("stopped")
    except LimnerError as error:
        _log.error("%s", error)  # the trace says nothing more
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
