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


def only(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        add(tar, name, content, kind)
    return buffer.getvalue()


def test_a_sound_artifact_appears_as_a_whole(tmp_path: Path) -> None:
    unpack(io.BytesIO(build()), tmp_path / "model")
    found = {p.relative_to(tmp_path / "model").as_posix() for p in (tmp_path / "model").rglob("*")}
    assert found == {*MEMBERS, "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


TRICKS = {
    "dots": build(lambda tar: add(tar, "../escape")),
    "absolute": build(lambda tar: add(tar, "/etc/cron.d/x")),
    "extra": build(lambda tar: add(tar, "extra.pkl")),
    "twice": build(lambda tar: add(tar, MANIFEST)),
    "symlink": build(lambda tar: add(tar, "link", kind=tarfile.SYMTYPE)),
    "hard link": build(lambda tar: add(tar, "hard", kind=tarfile.LNKTYPE)),
    "device": build(lambda tar: add(tar, "device", kind=tarfile.CHRTYPE)),
    "fifo": build(lambda tar: add(tar, "fifo", kind=tarfile.FIFOTYPE)),
    "known name, symlink": only(MEMBERS[0], kind=tarfile.SYMTYPE),
    "known name, hard link": only(MEMBERS[0], kind=tarfile.LNKTYPE),
    "large manifest": only(MANIFEST, b" " * (MAX_MANIFEST_BYTES + 1)),
    "truncated": build()[:-30],
    "not gzip": build(mode="w"),
    "empty": b"",
    "noise": b"\x1f\x8b" + b"noise" * 50,
}


def test_no_trick_of_an_archive_is_accepted_or_leaves_anything(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """P18."""
    for number, (trick, body) in enumerate(TRICKS.items()):
        folder = tmp_path / str(number)
        with pytest.raises(LimnerError) as error:
            unpack(io.BytesIO(body), folder / "in" / "model")
        assert error.value.code == "ARTIFACT_INVALID", trick
        assert list((folder / "in").iterdir()) == [], trick
        assert [path.name for path in folder.iterdir()] == ["in"], trick
    record_property("figure", f"P18: {len(TRICKS)} tricks of archives: 0 accepted, nothing left")
