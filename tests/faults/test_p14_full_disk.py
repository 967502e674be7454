"""P14: a full disk is an error, not corruption, at whichever write it strikes.

A clean run counts the calls that take room on the disk; then each of them fails in its turn.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from limner.contracts.artifact import MEMBERS
from limner.contracts.errors import LimnerError
from limner.local.sagemaker.artifacts import unpack
from tests.workflows.test_laptop_endpoint import artifact
from training.archive import write_archive
from training.artifact import write_members


class Disk:
    """Counts the calls that take room; the n-th finds none."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls = 0
        self.fails_at = fails_at

    def step(self) -> None:
        self.calls += 1
        if self.calls == self.fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **options: Any) -> Any:
            self.step()
            return call(*args, **options)

        return stepped

    def open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            if "w" not in mode:
                return call(path, mode, *args, **options)
            self.step()
            return File(call(path, mode, *args, **options), self)

        return opened


class File:
    """A file whose writes, and the flush at its close, may find the disk full."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.disk.step()

    def write(self, data: bytes) -> int:
        # A full disk takes a part of what it is given.
        try:
            self.disk.step()
        except OSError:
            self.file.write(data[: len(data) // 2])
            raise
        return int(self.file.write(data))


@contextmanager
def on(disk: Disk) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", disk.wrap(Path.mkdir))
        patch.setattr(Path, "rename", disk.wrap(Path.rename))
        patch.setattr(Path, "replace", disk.wrap(Path.replace))
        patch.setattr(Path, "open", disk.open(Path.open))
        yield


def test_a_full_disk_leaves_no_partial_model(tmp_path: Path, record_property: Any) -> None:
    body = artifact(user="alice")
    clean = Disk()
    with on(clean):
        unpack(io.BytesIO(body), tmp_path / "clean" / "model")
    assert clean.calls >= 2 + 3 * len(MEMBERS)
    left = 0
    for site in range(1, clean.calls + 1):
        folder = tmp_path / str(site) / "model"
        with on(Disk(site)), pytest.raises(LimnerError) as error:
            unpack(io.BytesIO(body), folder)
        assert error.value.code == "OUT_OF_MEMORY"
        left += any(folder.parent.iterdir()) if folder.parent.exists() else 0
        unpack(io.BytesIO(body), folder)
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert found == set(MEMBERS)
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert left == 0
    record_property(
        "figure", f"P14: ENOSPC at each of {clean.calls} calls of a download: {left} partial models"
    )


def test_a_full_disk_leaves_no_partial_artifact_of_training(
    tmp_path: Path, record_property: Any
) -> None:
    members = {name: name.encode() * 5_000 for name in MEMBERS}

    def write(root: Path) -> None:
        write_members(root / "model", members)
        write_archive(root / "results" / "artifact.tar.gz", members, parts=root / "parts")

    def files(root: Path) -> set[str]:
        return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}

    clean = Disk()
    with on(clean):
        write(tmp_path / "clean")
    whole = files(tmp_path / "clean")
    assert whole == {*(f"model/{name}" for name in MEMBERS), "results/artifact.tar.gz"}
    left = 0
    for site in range(1, clean.calls + 1):
        root = tmp_path / str(site)
        with on(Disk(site)), pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            write(root)
        # All of the members or none, no archive, and no unfinished file.
        left += files(root) not in (set(), whole - {"results/artifact.tar.gz"})
        write(root)
        assert files(root) == whole
    assert left == 0
    record_property(
        "figure", f"P14: ENOSPC at each of {clean.calls} calls of training's output: {left} partial"
    )
