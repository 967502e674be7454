"""Running containers of both shells, as the platform talks to them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from limner.contracts import triton as wire
from limner.contracts.generation import JSON_TYPE, TARGET_HEADER
from limner.local.ports import free_port
from tests.support.held import GATE_VARIABLE, Gate
from tests.support.laptop import until

REPOSITORY = Path(__file__).parents[2]
SLOTS = 3
MAX_RANK = 8
PROMPT = "a photo of {token} with {braces} zebrapainting"
START_DEADLINE_S = 180
STOP_DEADLINE_S = 30

_started: list[subprocess.Popen[bytes]] = []

_UNPACKED = REPOSITORY / "build" / "triton"
_TRITON = _UNPACKED / "pytriton" / "tritonserver"
_SCARCE_MODEL = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
import tests.support.scarce
from inference.triton.resident import TritonPythonModel
"""


@dataclass(frozen=True)
class Answer:
    """What a container answered, without the wrapping of its shell."""

    status: int
    content: bytes
    media_type: str
    elapsed_s: float

    @property
    def text(self) -> str:
        return self.content.decode()

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and code of an error; no code where the words are Triton's own."""
        try:
            error = json.loads(self.text)["error"]
        except (ValueError, TypeError):
            return self.status, ""
        if isinstance(error, str):
            return self.status, ""
        assert set(error) == {"code", "message", "retryable", "fault", "fix"}
        return self.status, error["code"]


@dataclass
class Container:
    """A running container, its models root and its log; this one is of the ASGI shell."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    models: Path
    log: Path
    own_refusals: bool = field(default=True, init=False)
    """Whether 404 and 409 come with our words; Triton knows them by itself and says its own."""

    @classmethod
    def start(
        cls,
        base: Path,
        folder: Path,
        *,
        scarce: bool = False,
        extra: Mapping[str, str] | None = None,
    ) -> Container:
        """Starts one with no models.

        Args:
            base: Folder of the base.
            folder: For its models and its log.
            scarce: Whether it fails and waits at certain prompts (``tests.support.scarce``).
            extra: Other settings.
        """
        models, log = folder / "models", folder / "log.jsonl"
        models.mkdir(parents=True)
        module = "tests.support.scarce" if scarce else "inference.server"
        process = _spawn(
            [sys.executable, "-m", module],
            log,
            {**_environment(base, models), **_port("0"), **(extra or {})},
        )
        _wait_until_ready(process, log)
        port = _ready_line(log)["port"]
        http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        return cls(process, http, models, log)

    def lines(self) -> list[dict[str, object]]:
        return _json_lines(self.log)

    def target(self, name: str) -> str:
        """What the platform calls a model outside."""
        return f"zebrauser/{name}/v000001.tar.gz"

    def url(self, name: str) -> Path:
        """Where the platform says that it has unpacked a model."""
        return self.models / name / "model"

    def load(self, name: str, url: Path | None = None) -> Answer:
        body = {"model_name": name, "url": str(url or self.url(name))}
        return self._ask("POST", "/models", name, json=body)

    def unload(self, name: str) -> Answer:
        return self._ask("DELETE", f"/models/{name}", name)

    def get(self, path: str, **query: object) -> Answer:
        return self._answer(self.http.get(path, params={k: str(v) for k, v in query.items()}))

    def invoke(self, name: str, accept: str = JSON_TYPE, **body: object) -> Answer:
        content = json.dumps({"prompt": PROMPT, **body}).encode()
        return self.invoke_raw(name, content, accept)

    def invoke_raw(self, name: str, body: bytes, accept: str = JSON_TYPE) -> Answer:
        headers = {"Content-Type": wire.RAW_TYPE, "Accept": accept}
        return self._ask("POST", f"/models/{name}/invoke", name, content=body, headers=headers)

    def loaded(self) -> list[str]:
        names = sorted(path.name for path in self.models.iterdir())
        return [name for name in names if self.get(f"/models/{name}").status == 200]

    @property
    def gate(self) -> Gate:
        """Where a scarce container's drawings of ``HELD`` wait; closed at first."""
        return _gate(self.models)

    def drawing_pid(self) -> int:
        """The process that draws."""
        return self.process.pid

    def when_drawing(self) -> Callable[[], object]:
        """To be called before a drawing begins; what it returns waits until it has.

        That is when the drawing process, idle until now, has used 0.2 s of CPU time.
        """
        process = psutil.Process(self.drawing_pid())

        def used_s() -> float:
            times = process.cpu_times()
            return float(times.user + times.system)

        begun_s = used_s() + 0.2
        return lambda: until(used_s, lambda seconds: seconds >= begun_s)

    def stop(self) -> int:
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=STOP_DEADLINE_S)

    def _ask(self, method: str, path: str, name: str, **options: object) -> Answer:
        headers = {TARGET_HEADER: self.target(name), **options.pop("headers", {})}
        return self._answer(self.http.request(method, path, headers=headers, **options))

    def _answer(self, response: httpx.Response) -> Answer:
        media_type = response.headers.get("content-type", "")
        return Answer(
            response.status_code,
            response.content,
            media_type.split(";")[0],
            response.elapsed.total_seconds(),
        )


class TritonContainer(Container):
    """A running container of the Triton shell: the real tritonserver, started by ``serve``."""

    @classmethod
    def start(
        cls,
        base: Path,
        folder: Path,
        *,
        scarce: bool = False,
        extra: Mapping[str, str] | None = None,
    ) -> TritonContainer:
        """Starts one with no models.

        Args:
            base: Folder of the base.
            folder: For its models, its log and its sockets; a short path.
            scarce: Whether it fails and waits at certain prompts (``tests.support.scarce``).
            extra: Other settings.
        """
        if not (_UNPACKED / ".done").exists():
            pytest.fail("tritonserver is missing: make build/triton/.done")
        models, log = folder / "models", folder / "log.jsonl"
        models.mkdir(parents=True)
        settings = dict(extra or {})
        if scarce:
            settings["LIMNER_TRITON_REPOSITORY"] = str(_scarce_repository(folder / "repository"))
        port = free_port()  # Triton cannot choose one by itself
        process = _spawn(
            [sys.executable, "-m", "inference.triton.serve"],
            log,
            {
                **_environment(base, models),
                **triton_environment(folder),
                **_port(str(port)),
                **settings,
            },
        )
        _wait_until_ready(process, log)
        container = cls(
            process, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60), models, log
        )
        container.own_refusals = False
        _wait_until_healthy(container)
        return container

    def url(self, name: str) -> Path:
        # Triton knows /opt/ml/models/<hash>/model by its letters. Below another root it takes the
        # one folder inside of the url; test_triton_container.py loads from the platform's own.
        return self.models / name

    def invoke_raw(self, name: str, body: bytes, accept: str = JSON_TYPE) -> Answer:
        if accept == JSON_TYPE:
            return super().invoke_raw(name, body)
        wrapped, content_type = wire.wrap(body, accept)
        headers = {"Content-Type": content_type}
        return self._ask("POST", f"/models/{name}/invoke", name, content=wrapped, headers=headers)

    def drawing_pid(self) -> int:
        return self._pid_of("/base/1/")

    def thin_pid(self, name: str) -> int:
        """The process of one user's thin model."""
        return self._pid_of(f"/{name}/model/1/")

    def _pid_of(self, model: str) -> int:
        """The process of a model, which has the path of its code among its arguments."""
        return next(
            process.pid
            for process in family(self.process.pid)
            if any(model in argument for argument in _arguments(process))
        )

    def _answer(self, response: httpx.Response) -> Answer:
        media_type = response.headers.get("content-type", "")
        if response.is_success:
            content = wire.unwrap(response.content, media_type)
        else:
            content = wire.own_words(response.text).encode()
        is_png = content.startswith(b"\x89PNG")
        return Answer(
            response.status_code,
            content,
            "image/png" if is_png else JSON_TYPE,
            response.elapsed.total_seconds(),
        )


SHELLS: dict[str, type[Container]] = {"asgi": Container, "triton": TritonContainer}


def triton_environment(folder: Path) -> dict[str, str]:
    """What ``serve`` is told in tests.

    Args:
        folder: For sockets; its path must be short.
    """
    libraries = (sysconfig.get_config_var("LIBDIR"), _UNPACKED / "nvidia_pytriton.libs")
    return {
        # The stub is an interpreter of its own; it finds its libraries by whose python is first.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # Our own interpreter's library before the system's: their patch releases may differ.
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "LIMNER_TRITON_PROGRAM": str(_TRITON / "bin" / "tritonserver"),
        "LIMNER_TRITON_BACKENDS": str(_TRITON / "backends"),
        "LIMNER_TRITON_SOCKET": str(folder / "run" / "base.sock"),
    }


def _scarce_repository(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")  # another process may be writing it
    shutil.copytree(REPOSITORY / "inference" / "triton" / "repository", folder, ignore=ignored)
    (folder / "base" / "1" / "model.py").write_text(_SCARCE_MODEL)
    return folder


def family(pid: int) -> list[psutil.Process]:
    """A process and all that come from it; none where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def ended() -> Iterator[None]:
    """Ends what was started within and runs on: a failed test's container must disturb no other."""
    before = len(_started)
    try:
        yield
    finally:
        for process in _started[before:]:
            with suppress(ProcessLookupError):  # all of its group have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        del _started[before:]


def _gate(models: Path) -> Gate:
    return Gate(models.parent / "gate")


def _environment(base: Path, models: Path) -> dict[str, str]:
    gate = _gate(models)
    gate.close()
    return {
        GATE_VARIABLE: str(gate.folder),
        "OMP_NUM_THREADS": "1",
        "LIMNER_BIND_HOST": "127.0.0.1",
        "LIMNER_BASE_DIR": str(base),
        "LIMNER_MODELS_ROOT": str(models),
        "LIMNER_MAX_MODELS": str(SLOTS),
        "LIMNER_MAX_RANK": str(MAX_RANK),
    }


def _port(port: str) -> dict[str, str]:
    return {"SAGEMAKER_BIND_TO_PORT": port}


def _spawn(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=REPOSITORY,
            start_new_session=True,
        )
    _started.append(process)
    return process


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while not _ready_line(log):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def _wait_until_healthy(container: Container) -> None:
    """Triton listens a little after `base` is ready."""
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        try:
            assert container.http.get("/ping").status_code == 200
        except httpx.TransportError:
            assert container.process.poll() is None, container.log.read_text()
            assert time.monotonic() < deadline, container.log.read_text()
            time.sleep(0.05)
        else:
            return


def _ready_line(log: Path) -> dict[str, object]:
    return next((line for line in _json_lines(log) if line["event"] == "ready"), {})


def _json_lines(log: Path) -> list[dict[str, object]]:
    """Our lines of a log; Triton's own are among them, and the last may be half written."""
    lines = log.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith('{"time"')]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        arguments: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        return []
    return arguments
