"""Packs an artifact the way that SageMaker packs ``model/``: the members in a ``.tar.gz``."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from limner.contracts import artifact as form
from training.files import open_atomically

# Random floats hardly shrink; more effort would cost seconds and save nothing.
_COMPRESSION_LEVEL = 1


def write_archive(path: Path, members: Mapping[str, bytes], *, parts: Path) -> str:
    """Packs the members in the contract's order; equal members give equal bytes.

    Nothing of the moment or the machine goes in: no times, no owners, no file name.

    Args:
        path: Where to.
        members: Content of each member of the artifact.
        parts: Where the unfinished archive lies.

    Returns:
        The archive's SHA-256, as 64 hexadecimal digits.
    """
    with open_atomically(path, parts=parts) as file:
        with (
            gzip.GzipFile("", "wb", _COMPRESSION_LEVEL, file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name in form.MEMBERS:
                entry = tarfile.TarInfo(name)  # mode 0644, and 0 for every time and owner
                entry.size = len(members[name])
                tar.addfile(entry, io.BytesIO(members[name]))
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
