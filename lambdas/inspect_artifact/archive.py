"""Reads the manifest out of an artifact's .tar.gz as it streams by; nothing is extracted."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from typing import IO, Final, cast

from limner.contracts.errors import LimnerError

# Copied from limner.contracts.artifact, which needs pydantic; a test compares.
MANIFEST: Final = "manifest.json"
MEMBERS: Final = frozenset(
    {
        "config.pbtxt",
        "1/model.py",
        "adapter.safetensors",
        "adapter.packed.safetensors",
        MANIFEST,
    }
)
MAX_MEMBER_BYTES: Final = 2_000_000_000
MAX_MANIFEST_BYTES: Final = 256_000
_FOLDERS: Final = frozenset({"", ".", "1"})


def read_manifest(stream: object) -> bytes:
    """The manifest of an archive that holds the agreed members, each once, and no others.

    Args:
        stream: The .tar.gz; only its method ``read`` is used.

    Raises:
        LimnerError: ``ARTIFACT_INVALID``, if it is no such archive.
    """
    try:
        with (
            gzip.GzipFile(fileobj=cast(IO[bytes], stream)) as unpacked,
            tarfile.open(fileobj=unpacked, mode="r|") as tar,
        ):
            return _read(tar)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _invalid("it is no whole .tar.gz") from error


def _read(tar: tarfile.TarFile) -> bytes:
    seen: set[str] = set()
    manifest = b""
    for entry in tar:
        name = entry.name.removeprefix("./").rstrip("/")
        if entry.isdir() and name in _FOLDERS:
            continue
        if name not in MEMBERS or name in seen or not entry.isreg():
            raise _invalid(f"its entry {name[:80]!r} does not belong there")
        seen.add(name)
        if entry.size > (MAX_MANIFEST_BYTES if name == MANIFEST else MAX_MEMBER_BYTES):
            raise _invalid(f"its entry {name!r} has {entry.size} bytes")
        if name == MANIFEST and (file := tar.extractfile(entry)) is not None:
            manifest = file.read()
    if missing := MEMBERS - seen:
        raise _invalid(f"it lacks {', '.join(sorted(missing))}")
    return manifest


def _invalid(reason: str) -> LimnerError:
    return LimnerError("ARTIFACT_INVALID", f"The artifact cannot be used: {reason}.")
