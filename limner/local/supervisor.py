"""Starts and stops the laptop's process, and finds the one that runs.

Standard library only, so that ``limner up`` and ``limner status`` begin at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from limner.contracts.errors import LimnerError
from limner.local import leftovers
from limner.local.control import Control
from limner.local.layout import REPOSITORY, Layout
from limner.local.ports import free_port, is_free
from limner.local.settings import DEFAULT_PORT, HOST, DaemonSettings, daemon_environment

_POLL_S = 0.02
_LOG_LINES = 5


@dataclass(frozen=True)
class Laptop:
    """A running laptop.

    Attributes:
        endpoint_url: For AWS_ENDPOINT_URL and ``endpoint_url=``.
        pid: Of its process.
        log: Its log file.
        project: Directory whose ``.limner`` holds its state.
    """

    endpoint_url: str
    pid: int
    log: Path
    project: Path


def start(
    project: Path,
    *,
    port: int | None = None,
    clock_scale: float = 1.0,
    deploy: bool = True,
    deadline_s: float = 90,
    jobs_at_once: int = 2,
    instance_quota: int = 20,
) -> Laptop:
    """Starts the laptop of a project and waits until it is healthy; one that runs is kept.

    Args:
        project: Directory whose ``.limner`` holds all state; it must exist.
        port: TCP port; 0 is any free one. Where absent, the port of the last start or 4566, and
            a free one if that is taken.
        clock_scale: Real seconds per second of Wait states and of Retry's back-off.
        deploy: Whether to deploy Limner's stack, base and Lambda functions; idempotent.
        deadline_s: Seconds until the laptop must be up and deployed.
        jobs_at_once: Training jobs that run side by side, whatever their InstanceCount.
        instance_quota: Training instances in use at once.

    Raises:
        LimnerError: ``LAPTOP_START_FAILED``, with the reason from the log.
    """
    deadline = time.monotonic() + deadline_s
    layout = Layout(project.resolve())
    laptop = running(layout.project)
    if laptop is None:
        settings = DaemonSettings(
            layout, _choose_port(layout, port), clock_scale, jobs_at_once, instance_quota
        )
        laptop = _launch(settings, deadline)
    if deploy:
        from limner.local.deploy import deploy_stack  # imports boto3

        deploy_stack(laptop.endpoint_url, deadline)
    return laptop


def stop(project: Path, deadline_s: float = 30) -> bool:
    """Stops the laptop of a project; its state is written first.

    Args:
        project: As in ``start``.
        deadline_s: Seconds until the process is killed, at the cost of what ministack had not
            written yet.

    Returns:
        Whether one ran.
    """
    laptop = running(project)
    if laptop is None:
        return False
    with contextlib.suppress(ProcessLookupError):  # somebody else has stopped it meanwhile
        os.kill(laptop.pid, signal.SIGTERM)
        if not _gone(laptop.pid, deadline_s):
            os.kill(laptop.pid, signal.SIGKILL)
            _gone(laptop.pid, deadline_s)
            leftovers.end(Layout(laptop.project))
    return True


def running(project: Path) -> Laptop | None:
    """The laptop of a project if it runs and answers, else None."""
    layout = Layout(project.resolve())
    noted = _noted(layout)
    if noted is None:
        return None
    endpoint_url = f"http://{HOST}:{noted['port']}"
    try:
        health = Control(endpoint_url).health()
    except LimnerError:
        return None
    # Another project's laptop, or another program, may have taken over the port.
    if health.get("project") != str(layout.project):
        return None
    return Laptop(endpoint_url, int(health["pid"]), layout.log, layout.project)


def _launch(settings: DaemonSettings, deadline: float) -> Laptop:
    layout = settings.layout
    layout.root.mkdir(parents=True, exist_ok=True)
    with layout.log.open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "limner.local.daemon",
                f"--project={layout.project}",
                f"--port={settings.port}",
                f"--clock-scale={settings.clock_scale}",
                f"--jobs-at-once={settings.jobs_at_once}",
                f"--instance-quota={settings.instance_quota}",
            ],
            cwd=REPOSITORY,
            env=daemon_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while time.monotonic() < deadline:
        laptop = running(layout.project)
        if laptop is not None:
            # The daemon is nobody's child from now on; init reaps it.
            process.returncode = 0
            return laptop
        if process.poll() is not None:
            raise LimnerError("LAPTOP_START_FAILED", _reason(layout))
        time.sleep(_POLL_S)
    process.kill()
    process.wait()
    raise LimnerError("LAPTOP_START_FAILED", f"It did not answer in time. {_reason(layout)}")


def _reason(layout: Layout) -> str:
    lines = layout.log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:]
    return f"Last lines of {layout.log}: " + " | ".join(lines)


def _noted(layout: Layout) -> dict[str, int] | None:
    try:
        noted: dict[str, int] = json.loads(layout.run_file.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return noted


def _choose_port(layout: Layout, wanted: int | None) -> int:
    if wanted:
        if not is_free(wanted):
            raise LimnerError("LAPTOP_START_FAILED", f"Port {wanted} is taken by a program.")
        return wanted
    last = (_noted(layout) or {}).get("port", DEFAULT_PORT)
    if wanted is None and is_free(last):
        return last
    return free_port()


def _gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if _ended(pid):
            return True
        time.sleep(_POLL_S)
    return False


def _ended(pid: int) -> bool:
    try:
        # Reaps it where it is our own child, as in a test that starts and stops.
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        pass  # somebody else's child
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        # A zombie, where process 1 reaps nobody: a Docker container without an init.
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False  # macOS, or it has ended just now and the next look sees it
    return status.rpartition(")")[2].split()[0] == "Z"
