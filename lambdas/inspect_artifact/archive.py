"""Reads the manifest out of an artifact's .tar.gz as it streams by; nothing is extracted.

What the endpoint would run must be ours: the thin model and its configuration, by their hashes.
"""

from __future__ import annotations

import gzip
import hashlib
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
# Triton runs these two, so they must be Limner's own, of any release.
SHELL_SHA256: Final = {
    "config.pbtxt": (
        "b4019f54150694fc92a6970b113e820d27ef80fc5bc27507337e05df6078da97",
        "b28d43a142280dcba01e89d76a214f3e4a89ac8c02360d59c26feee6f6e13d3e",
    ),
    "1/model.py": (
        "95d293ea84d9a08e90cee49b02b4fa492cc0c22f03a8eb414df39f66ecabcbee",
        "176b8a7814a71875926f87f43fc70651676fc594c50f37d4de8c411d8fb4f556",
    ),
}
MAX_SHELL_BYTES: Final = 65_536
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
        if name == MANIFEST:
            manifest = _content(tar, entry)
        if name in SHELL_SHA256 and not (
            entry.size <= MAX_SHELL_BYTES
            and hashlib.sha256(_content(tar, entry)).hexdigest() in SHELL_SHA256[name]
        ):
            raise _invalid(f"its entry {name!r} is not Limner's own")
    if missing := MEMBERS - seen:
        raise _invalid(f"it lacks {', '.join(sorted(missing))}")
    return manifest


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(entry)
    return file.read() if file else b""


def _invalid(reason: str) -> LimnerError:
    return LimnerError("ARTIFACT_INVALID", f"The artifact cannot be used: {reason}.")
