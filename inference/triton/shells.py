"""Which thin models ``base`` works for: those whose code this project has published."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from limner.contracts.artifact import SHELL_SHA256, TRITON_SHELL
from limner.contracts.errors import LimnerError


def remove_bytecode(folder: Path) -> None:
    """Removes ``1/__pycache__``, which is Triton's doing and no member of an artifact.

    Triton's stub has imported the thin model by now, and ignores ``PYTHONDONTWRITEBYTECODE``.
    """
    cache = (folder / TRITON_SHELL).parent / "__pycache__"
    if cache.is_dir() and not cache.is_symlink() and not cache.parent.is_symlink():
        shutil.rmtree(cache)


def check_shell(folder: Path) -> None:
    """Compares the code in an artifact with what this project has published.

    It is no guard against malice: by now Triton has begun to run that code. Whoever may write
    below the endpoint's prefix in S3 is trusted; a Lambda function compares the same hashes before
    anything is copied there. This finds archives that were edited, mixed or cut.

    Raises:
        LimnerError: ``ARTIFACT_INVALID``.
    """
    for name, published in SHELL_SHA256.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() not in published:
            raise LimnerError(
                "ARTIFACT_INVALID", f"The artifact cannot be served: {name} is not Limner's own."
            )
