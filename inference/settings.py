"""The settings of the inference container; the only place that reads its environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What the container is told by SageMaker, by its image, or by the laptop.

    Attributes:
        port: TCP port; 0 lets the system choose (the log's ``ready`` line says which).
        host: Address to listen on. A container answers its platform from outside, so all
            interfaces; the laptop sets 127.0.0.1.
        base_dir: Folder of the base.
        models_root: Folder under which every model's ``url`` must lie. SageMaker unpacks to
            ``/opt/ml/models/<hash>/model``.
        max_models: Models in memory at once. A load beyond is answered by 507, upon which
            SageMaker unloads a model that is not used.
        adapter_bytes: Bytes of all adapters in the host's memory; also answered by 507.
        slot_bytes: Bytes of all slots on the device, from which adapters draw. Filled from the
            host's memory as they are needed, the one used longest ago leaving.
        max_rows: Rows of images that are drawn at the same time; a guided image takes two, and
            larger ones than the base's own count by their area. By the memory of a pass.
        max_queue: Requests that may wait, a quarter of them for one model; one more is answered by
            503. Also of what waits for the content check.
        max_request_rows: Rows of one request at most; one that has more is refused.
        safety: Content check, ``module:attribute`` (``inference.engine.safety``).
        max_rank: Highest rank of an adapter; training's own limit.
        device: Where the base runs; ``auto`` takes a GPU where there is one.
        grace_s: Seconds after SIGTERM in which requests may end by themselves, of the 30 s after
            which SageMaker sends SIGKILL. Then what is running is ended at its next denoising
            step, calls of the content check get 2 s, what is captured 5 s; Triton takes 3 s more.
        torch_threads: Threads of one CPU operation; 0 leaves it to torch.
        capture_bucket: Bucket that keeps what is drawn, below ``generations/``; empty for none.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    port: int = Field(default=8080, ge=0, le=65_535, validation_alias="SAGEMAKER_BIND_TO_PORT")
    host: str = Field(default="0.0.0.0", validation_alias="LIMNER_BIND_HOST")  # noqa: S104
    base_dir: Path = Field(default=Path("/opt/base"), validation_alias="LIMNER_BASE_DIR")
    models_root: Path = Field(default=Path("/opt/ml/models"), validation_alias="LIMNER_MODELS_ROOT")
    max_models: int = Field(default=10_000, ge=1, validation_alias="LIMNER_MAX_MODELS")
    adapter_bytes: int = Field(default=1 << 30, ge=1, validation_alias="LIMNER_ADAPTER_BYTES")
    slot_bytes: int = Field(default=256 << 20, ge=1, validation_alias="LIMNER_SLOT_BYTES")
    max_rows: int = Field(default=16, ge=1, le=4096, validation_alias="LIMNER_MAX_ROWS")
    max_queue: int = Field(default=64, ge=1, validation_alias="LIMNER_MAX_QUEUE")
    max_request_rows: int = Field(default=64, ge=1, validation_alias="LIMNER_MAX_REQUEST_ROWS")
    safety: str | None = Field(
        default=None, pattern=r"^[\w.]+:\w+$", validation_alias="LIMNER_SAFETY"
    )
    max_rank: int = Field(default=256, ge=1, validation_alias="LIMNER_MAX_RANK")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", validation_alias="LIMNER_DEVICE")
    torch_threads: int = Field(default=0, ge=0, validation_alias="LIMNER_TORCH_THREADS")
    grace_s: int = Field(default=16, ge=0, le=18, validation_alias="LIMNER_GRACE_S")
    capture_bucket: str = Field(
        default="",
        pattern=r"^([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?$",
        validation_alias="LIMNER_CAPTURE_BUCKET",
    )


class TritonSettings(BaseSettings):
    """How ``serve`` starts Triton.

    The names that begin with ``SAGEMAKER_`` are those that SageMaker's own Triton image reads.

    Attributes:
        port: TCP port of SageMaker's routes. Triton listens on all interfaces.
        safe_port_range: Ports that Triton may use besides, ``first-last``; it needs none.
        threads: Threads that answer HTTP. One is taken for as long as a model is loaded or
            unloaded, and whoever shares its connection's thread waits; so, many.
        shm_bytes: Shared memory between Triton and one model's process, at its start. Bodies and
            answers pass through it; it grows where they are larger.
        shm_growth_bytes: By how much it grows at a time.
        log_verbose: Triton's own verbosity.
        log_info: Whether Triton writes its informational lines. They hold each TargetModel, and so
            users' ids: off, unless one looks for a fault.
        log_warning: Whether Triton writes its warnings.
        log_error: Whether Triton writes its errors. Those of models hold the TargetModel: off;
            ``base`` writes lines of its own.
        program: ``tritonserver``.
        backends: Folder of Triton's backends.
        repository: Folder that holds the resident model ``base``.
        socket: Where ``base`` listens for load and unload.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    port: int = Field(default=8080, ge=1, le=65_535, validation_alias="SAGEMAKER_BIND_TO_PORT")
    safe_port_range: str = Field(
        default="", pattern=r"^(\d+-\d+)?$", validation_alias="SAGEMAKER_SAFE_PORT_RANGE"
    )
    threads: int = Field(
        default=64, ge=1, le=1024, validation_alias="SAGEMAKER_TRITON_THREAD_COUNT"
    )
    shm_bytes: int = Field(
        default=1_048_576, ge=65_536, validation_alias="SAGEMAKER_TRITON_SHM_DEFAULT_BYTE_SIZE"
    )
    shm_growth_bytes: int = Field(
        default=1_048_576, ge=65_536, validation_alias="SAGEMAKER_TRITON_SHM_GROWTH_BYTE_SIZE"
    )
    log_verbose: int = Field(default=0, ge=0, validation_alias="SAGEMAKER_TRITON_LOG_VERBOSE")
    log_info: bool = Field(default=False, validation_alias="SAGEMAKER_TRITON_LOG_INFO")
    log_warning: bool = Field(default=True, validation_alias="SAGEMAKER_TRITON_LOG_WARNING")
    log_error: bool = Field(default=False, validation_alias="SAGEMAKER_TRITON_LOG_ERROR")
    program: Path = Field(
        default=Path("/opt/tritonserver/bin/tritonserver"),
        validation_alias="LIMNER_TRITON_PROGRAM",
    )
    backends: Path = Field(
        default=Path("/opt/tritonserver/backends"), validation_alias="LIMNER_TRITON_BACKENDS"
    )
    repository: Path = Field(
        default=Path(__file__).parent / "triton" / "repository",
        validation_alias="LIMNER_TRITON_REPOSITORY",
    )
    socket: Path = Field(
        default=Path("/run/limner/base.sock"), validation_alias="LIMNER_TRITON_SOCKET"
    )

    def environment(self) -> dict[str, str]:
        """This process's environment, with what Triton and the models' processes read of it."""
        return {
            **os.environ,
            "SAGEMAKER_MULTI_MODEL": "true",
            # By default one model that could not be loaded makes /ping fail for good.
            "SAGEMAKER_TRITON_PING_MODE": "live",
            "LIMNER_TRITON_SOCKET": str(self.socket),
        }
