"""From an artifact in S3 to the folder that a container loads: streamed, by an allow-list.

An archive comes from a training container and is not trusted: nothing is ever extracted by the
names it carries. Only the members that Limner's artifacts have are copied, to paths that we choose.
"""

from __future__ import annotations

import errno
import shutil
import tarfile
from pathlib import Path
from typing import IO

from limner.contracts.artifact import MANIFEST, MAX_MANIFEST_BYTES, MAX_MEMBER_BYTES, MEMBERS
from limner.contracts.errors import LimnerError

_CHUNK_BYTES = 1 << 20
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


def unpack(archive: IO[bytes], folder: Path) -> None:
    """Copies the agreed members of a .tar.gz into a folder that does not exist yet.

    The folder appears as a whole or not at all.

    Args:
        archive: The bytes; read once, forwards.
        folder: Where the members go.

    Raises:
        LimnerError: ``ARTIFACT_INVALID``, if a member is missing, unknown, twice there, too large
            or no plain file, or if the archive is damaged; ``OUT_OF_MEMORY``, if the disk is full.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        found = _copy_members(archive, partial)
        missing = [name for name in MEMBERS if name not in found]
        if missing:
            raise LimnerError("ARTIFACT_INVALID", f"The archive lacks {', '.join(missing)}.")
        partial.rename(folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        # Not the archive's fault: to train again would not help.
        if isinstance(error, OSError) and error.errno in _DISK_IS_FULL:
            detail = "The disk has no room for another model."
            raise LimnerError("OUT_OF_MEMORY", detail) from error
        raise LimnerError("ARTIFACT_INVALID", f"The archive cannot be read: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_members(archive: IO[bytes], folder: Path) -> set[str]:
    found: set[str] = set()
    with tarfile.open(fileobj=archive, mode="r|gz") as tar:
        for member in tar:
            if member.isdir():
                continue
            name = member.name.removeprefix("./")
            limit = MAX_MANIFEST_BYTES if name == MANIFEST else MAX_MEMBER_BYTES
            if name not in MEMBERS or name in found or not member.isreg() or member.size > limit:
                raise LimnerError(
                    "ARTIFACT_INVALID", f"The archive has an unexpected member {name[:80]!r}."
                )
            source = tar.extractfile(member)
            if source is None:
                raise LimnerError("ARTIFACT_INVALID", f"{name} has no content.")
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
            found.add(name)
    return found
