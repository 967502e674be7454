"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_atomically(path: Path, *, parts: Path | None = None) -> Iterator[io.BufferedRandom]:
    """Opens a file under another name and gives it its own when the block ends well.

    A reader never sees half a file under the final name, and an interruption leaves nothing.

    Args:
        path: The file's place; its folders are made.
        parts: Where the unfinished file lies; beside its place if that is not given. Files of
            ``checkpoints/`` need one: SageMaker's sync copies every file that it sees there, half
            or whole, hidden or not, and what vanishes there is deleted in S3.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = parts or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{path.name}.part"
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _move(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes, *, parts: Path | None = None) -> None:
    """Writes a whole file; see ``open_atomically``."""
    with open_atomically(path, parts=parts) as file:
        file.write(data)


def _move(part: Path, path: Path) -> None:
    try:
        part.replace(path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Another volume, or another mount of the same one: rename(2) refuses both. A copy beside
        # its place is the least that can be seen of it, and it never stands half under its name.
        beside = path.with_name(f".{path.name}.part")
        try:
            shutil.copyfile(part, beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
