"""Models on the disk of the serving benchmarks: many users with few files, and the page cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from limner.contracts import artifact
from limner.contracts.artifact import Manifest

# What the engine reads of an artifact; the standard adapter beside it is for other tools.
READ_BY_US: Final = tuple(name for name in artifact.MEMBERS if name != artifact.ADAPTER)
READ_BY_PEERS: Final = (artifact.ADAPTER,)


def digest_of(user: int) -> str:
    """What the manifest of a registered user gives as the digest of his adapter."""
    return hashlib.sha256(f"u{user}".encode()).hexdigest()


def register(source: Path, target: Path, user: int) -> None:
    """The same artifact as another user's, without its bytes once more.

    The large members are hard links, so 10,000 users have the weights of as many as there are
    sources, and equal wishes of two who share one give equal images. The manifest is his own, with
    a digest that is nobody else's (``digest_of``): an answer tells whose model it was drawn with.
    It is not that of the linked adapter, which the engine does not read.
    """
    for member in artifact.MEMBERS:
        (target / member).parent.mkdir(parents=True, exist_ok=True)
        if member != artifact.MANIFEST:
            os.link(source / member, target / member)
    manifest = Manifest.model_validate_json((source / artifact.MANIFEST).read_bytes())
    own = manifest.model_copy(update={"adapter_sha256": digest_of(user)})
    (target / artifact.MANIFEST).write_text(own.model_dump_json(indent=2))


def written() -> None:
    """Waits until everything is on the disk; before that, no cache can be told to drop it."""
    os.sync()


def drop(file: Path, *, cold: bool = True) -> None:
    """Drops a file from the system's page cache; warm: does the same without dropping it.

    Who is to be found warm is prepared by the same calls, so that names and inodes are equally
    fresh in the CPU's caches. A page that somebody has mapped stays.
    """
    handle = os.open(file, os.O_RDONLY)
    try:
        advice = os.POSIX_FADV_DONTNEED if cold else os.POSIX_FADV_NORMAL
        os.posix_fadvise(handle, 0, 0, advice)
    finally:
        os.close(handle)


def can_be_cold(file: Path) -> bool:
    """Whether a file, once written to the disk, leaves the cache when told to; not so on tmpfs."""
    drop(file)
    handle = os.open(file, os.O_RDONLY)
    try:
        # Fails where it would have to wait for the disk.
        os.preadv(handle, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)
        file.read_bytes()  # warm again, as it was


def drop_model(folder: Path) -> None:
    """Drops what the engine reads of a model from the page cache."""
    for member in READ_BY_US:
        drop(folder / member)
