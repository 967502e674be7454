from __future__ import annotations

import errno
import hashlib
import tarfile
from pathlib import Path

import pytest

from limner.contracts import artifact as form
from limner.contracts.tasks import TaskError, TaskResult
from training.archive import write_archive
from training.files import open_atomically, write_atomically
from training.results import finished, write_result
from training.settings import Settings

MEMBERS = {name: name.encode() * 1000 for name in form.MEMBERS}


def tree(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("parts", [None, "parts"])
def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, parts: str | None) -> None:
    path = tmp_path / "out" / "a"
    folder = tmp_path / parts if parts else None
    with open_atomically(path, parts=folder) as file:
        file.write(b"half")
        assert tree(tmp_path) == {"parts/.a.part" if parts else "out/.a.part"}
    assert tree(tmp_path) == {"out/a"}

    def interrupted() -> None:
        with open_atomically(path, parts=folder) as file:
            file.write(b"other")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert tree(tmp_path) == {"out/a"}
    assert path.read_bytes() == b"half"


@pytest.fixture
def two_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``parts/`` is a mount of its own; rename(2) does not leave it."""
    replace = Path.replace

    def refuse(source: Path, target: Path) -> Path:
        if source.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    return tmp_path


def test_two_volumes_are_no_obstacle(two_volumes: Path) -> None:
    write_atomically(two_volumes / "out/a", b"whole", parts=two_volumes / "parts")
    assert (two_volumes / "out/a").read_bytes() == b"whole"
    assert tree(two_volumes) == {"out/a"}


def test_equal_members_make_equal_archives(tmp_path: Path) -> None:
    digests = [
        write_archive(tmp_path / name / "model.tar.gz", members, parts=tmp_path / "parts")
        for name, members in (("a", MEMBERS), ("b", dict(reversed(MEMBERS.items()))))
    ]
    contents = [(tmp_path / name / "model.tar.gz").read_bytes() for name in "ab"]
    assert contents[0] == contents[1]
    assert digests == [hashlib.sha256(content).hexdigest() for content in contents]
    with tarfile.open(tmp_path / "a" / "model.tar.gz") as tar:
        entries = tar.getmembers()
        assert [entry.name for entry in entries] == list(form.MEMBERS)
        for entry in entries:
            assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) == (
                0,
                0,
                0,
                "",
                "",
            )
            assert (entry.isreg(), entry.mode) == (True, 0o644)
            content = tar.extractfile(entry)
            assert content is not None
            assert content.read() == MEMBERS[entry.name]
    assert contents[0][3:8] == bytes(5), "gzip: no file name, no time"


# -- Results that an earlier start left -----------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(base_dir=tmp_path)


def trained(settings: Settings) -> TaskResult:
    path = settings.task_dir("r1") / "model.tar.gz"
    digest = write_archive(path, MEMBERS, parts=settings.parts_dir)
    return TaskResult(request_id="r1", status="trained", seconds=1.5, artifact_sha256=digest)


def test_a_result_is_found_again(settings: Settings) -> None:
    assert finished(settings, "r1") is None
    result = trained(settings)
    assert finished(settings, "r1") is None, "an artifact without a result is not finished"
    write_result(settings, result)
    assert finished(settings, "r1") == result
    assert finished(settings, "r2") is None
    assert tree(settings.base_dir) == {
        f"checkpoints/r1/{n}" for n in ("model.tar.gz", "result.json")
    }


def test_a_failure_is_a_result(settings: Settings) -> None:
    error = TaskError(code="TOO_FEW_PHOTOS", message="There are 2 photos.")
    result = TaskResult(request_id="r1", status="failed", seconds=0.1, error=error)
    write_result(settings, result)
    assert finished(settings, "r1") == result


@pytest.mark.parametrize("damage", ["half a result", "another's result", "no artifact", "half"])
def test_a_damaged_result_is_done_again(settings: Settings, damage: str) -> None:
    result = trained(settings)
    write_result(settings, result)
    path = settings.task_dir("r1") / "result.json"
    artifact = settings.task_dir("r1") / "model.tar.gz"
    match damage:
        case "half a result":
            path.write_bytes(path.read_bytes()[:40])
        case "another's result":
            path.write_text(result.model_copy(update={"request_id": "r2"}).model_dump_json())
        case "no artifact":
            artifact.unlink()
        case _:
            artifact.write_bytes(artifact.read_bytes()[:-1])
    assert finished(settings, "r1") is None
