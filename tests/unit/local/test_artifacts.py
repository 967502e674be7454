"""Artifacts are streamed by an allow-list; nothing of an unsound one stays."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from limner.contracts.artifact import MANIFEST, MAX_MANIFEST_BYTES, MEMBERS
from limner.contracts.errors import LimnerError
from limner.local.sagemaker.artifacts import unpack


def build(change: Callable[[tarfile.TarFile], None] = lambda _: None, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name in MEMBERS:
            add(tar, name)
        change(tar)
    return buffer.getvalue()


def add(
    tar: tarfile.TarFile, name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE
) -> None:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    tar.addfile(info, io.BytesIO(content))


def test_a_sound_artifact_appears_as_a_whole(tmp_path: Path) -> None:
    unpack(io.BytesIO(build()), tmp_path / "model")
    found = {p.relative_to(tmp_path / "model").as_posix() for p in (tmp_path / "model").rglob("*")}
    assert found == {*MEMBERS, "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "body",
    [
        build(lambda tar: add(tar, "../escape")),
        build(lambda tar: add(tar, "/etc/cron.d/x")),
        build(lambda tar: add(tar, "extra.pkl")),
        build(lambda tar: add(tar, MANIFEST)),
        build(lambda tar: add(tar, "link", kind=tarfile.SYMTYPE)),
        build(lambda tar: add(tar, "hard", kind=tarfile.LNKTYPE)),
        build(lambda tar: add(tar, "device", kind=tarfile.CHRTYPE)),
        build(lambda tar: add(tar, "fifo", kind=tarfile.FIFOTYPE)),
        build()[:-30],
        build(mode="w"),
        b"",
        b"\x1f\x8b" + b"noise" * 50,
    ],
    ids=[
        "dots", "absolute", "extra", "twice", "symlink", "hardlink", "device", "fifo",
        "truncated", "not-gzip", "empty", "noise",
    ],
)  # fmt: skip
def test_unsound_artifacts_leave_nothing(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(LimnerError) as error:
        unpack(io.BytesIO(body), tmp_path / "in" / "model")
    assert error.value.code == "ARTIFACT_INVALID"
    assert list((tmp_path / "in").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_known_name_that_is_a_link_is_refused(tmp_path: Path, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        add(tar, MEMBERS[0], kind=kind)
    buffer.seek(0)
    with pytest.raises(LimnerError, match="unexpected member"):
        unpack(buffer, tmp_path / "model")


def test_a_manifest_that_is_too_large(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        add(tar, MANIFEST, b" " * (MAX_MANIFEST_BYTES + 1))
    buffer.seek(0)
    with pytest.raises(LimnerError, match="unexpected member"):
        unpack(buffer, tmp_path / "model")
