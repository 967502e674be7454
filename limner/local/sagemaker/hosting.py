"""One inference container: a process that serves HTTP on a loopback port.

SageMaker developer guide, "Use Your Own Inference Code with Hosting Services": requests come to
port SAGEMAKER_BIND_TO_PORT, GET /ping must answer 200, and "the container is stopped with SIGTERM,
then SIGKILL after 30 seconds".
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.local.layout import REPOSITORY
from limner.local.ports import free_port
from limner.local.settings import HOST

# "Your containers must respond to requests within 60 seconds" / ping within 2 s.
INVOKE_TIMEOUT_S = 60
PING_TIMEOUT_S = 2
LOAD_TIMEOUT_S = 360
STOP_GRACE_S = 30
# A health check fails a new container after this time.
START_TIMEOUT_S = 180
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Reply:
    """A container's answer.

    Attributes:
        status: HTTP status.
        content_type: Of the body.
        body: The bytes.
    """

    status: int
    content_type: str
    body: bytes

    @property
    def text(self) -> str:
        """The body as text, for error messages."""
        return self.body.decode(errors="replace")


class ContainerDownError(Exception):
    """The container does not run, or its connection broke."""


class InferenceContainer:
    """The process of one endpoint; thread-safe.

    Args:
        command: The image's command.
        environment: Its whole environment, but for the port.
        log: File that stdout and stderr go to.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._log = log
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._generation = 0
        self._stopped = False

    @property
    def generation(self) -> int:
        """Grows with each start; what was loaded in an earlier one is gone."""
        return self._generation

    def is_running(self) -> bool:
        """Whether there is a process; it may still be starting."""
        return self._process is not None and self._process.poll() is None

    def wait_for_end(self, timeout_s: float) -> None:
        """Waits for a process whose connection has broken: it is dying, or lives on."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)

    def ensure_running(self) -> None:
        """Starts the process if it does not run, and waits until /ping answers 200.

        Raises:
            ContainerDownError: If it ends before, or does not answer in time.
        """
        with self._starting:
            if self.is_running():
                return
            if self._stopped:
                raise ContainerDownError("the container was stopped")
            self._generation += 1
            self._port = free_port()
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=REPOSITORY,
                    env={**self._environment, "SAGEMAKER_BIND_TO_PORT": str(self._port)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            if self._stopped:
                self.stop(0)  # who stopped us meanwhile may not have seen this process
            self._wait_for_ping()

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = INVOKE_TIMEOUT_S,
    ) -> Reply:
        """Sends one request.

        Raises:
            ContainerDownError: If there is no connection or it breaks.
            TimeoutError: If there is no answer in time.
        """
        connection = http.client.HTTPConnection(HOST, self._port, timeout=timeout_s)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            content_type = answer.getheader("Content-Type", "application/octet-stream")
            return Reply(answer.status, content_type, answer.read())
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise ContainerDownError(f"no answer from the container: {error}") from error
        finally:
            connection.close()

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Stops the process for good: SIGTERM, and SIGKILL after the grace.

        Takes no lock, so that it also ends a process that is still starting.
        """
        self._stopped = True
        process = self._process
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kill below ends it
            process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):  # all of it has ended already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _wait_for_ping(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if not self.is_running():
                raise ContainerDownError(f"the container ended at its start; see {self._log}")
            try:
                if self.request("GET", "/ping", timeout_s=PING_TIMEOUT_S).status == 200:
                    return
            except (ContainerDownError, TimeoutError):
                pass  # not listening yet
            time.sleep(_POLL_S)
        raise ContainerDownError(f"no answer to /ping within {START_TIMEOUT_S} s; see {self._log}")
