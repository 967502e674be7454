"""The outer form of an artifact, in a millisecond: agreed members, no weights, a sound manifest."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from functools import cache
from typing import Any, Final

from limner.contracts.artifact import shell_files
from limner.contracts.base import TINY_BASE_ID

MEMBERS: Final = (
    "config.pbtxt",
    "1/model.py",
    "adapter.safetensors",
    "adapter.packed.safetensors",
    "manifest.json",
)
GOOD: Final = {
    "similarity": 0.8,
    "similarity_gain": 0.7,
    "prompt_response": 0.5,
    "diversity": 1.0,
    "novelty": 0.8,
}


def manifest_of(request_id: str, **changes: Any) -> dict[str, Any]:
    """What the gate reads of a manifest, of a good model."""
    return {
        "schema_version": 1,
        "request_id": request_id,
        "base_id": TINY_BASE_ID,
        "metrics": GOOD,
        **changes,
    }


@cache
def good_archive(request_id: str, base_id: str = TINY_BASE_ID, job: str = "") -> bytes:
    """The .tar.gz of a good model."""
    return packed(manifest_of(request_id, base_id=base_id, job=job))


def packed(manifest: dict[str, Any], members: tuple[str, ...] = MEMBERS) -> bytes:
    """A .tar.gz of these members; equal manifests give equal bytes."""
    contents = {**shell_files(), "manifest.json": json.dumps(manifest).encode()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in members:
            content = contents.get(name, name.encode())
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0)
