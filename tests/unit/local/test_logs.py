"""Metrics of a growing log, and the one-way sync of checkpoints."""

from __future__ import annotations

from pathlib import Path

from limner.local.objects import Location, Objects
from limner.local.sagemaker.checkpoints import CheckpointSync
from limner.local.sagemaker.metrics import LogMetrics

LOSS = [{"Name": "loss", "Regex": r"loss=([0-9.]+|nan|-)"}]


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"loss=0.5\nloss=0.2")
    metrics = LogMetrics(log, LOSS)
    assert [item["Value"] for item in metrics.update()] == [0.5]
    with log.open("ab") as file:
        file.write(b"5\nno metric \xff\nloss=-\n")
    assert [item["Value"] for item in metrics.update()] == [0.25]


class Recorded(Objects):
    """Notes what would go over the wire; downloads give the files that it was told of."""

    def __init__(self, there: dict[str, str]) -> None:
        super().__init__("http://127.0.0.1:1")
        self.there = there
        self.done: list[str] = []

    def download_prefix(self, prefix: Location, folder: Path) -> int:
        assert prefix == Location("b", "previews/r1/")
        for name, text in self.there.items():
            (folder / name).write_text(text)
        return len(self.there)

    def upload(self, path: Path, target: Location) -> None:
        self.done.append(f"+{target.key}={path.read_text()}")

    def delete(self, target: Location) -> None:
        self.done.append(f"-{target.key}")


def test_only_what_changed_goes_up_and_what_is_deleted_goes(tmp_path: Path) -> None:
    objects = Recorded({"old": "1"})
    sync = CheckpointSync(objects, tmp_path, Location("b", "previews/r1"))
    sync.restore()
    sync.run()
    assert objects.done == []
    (tmp_path / "new").write_text("2")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/er").write_text("3")
    sync.run()
    assert sorted(objects.done) == ["+previews/r1/deep/er=3", "+previews/r1/new=2"]
    objects.done.clear()
    (tmp_path / "new").write_text("22")
    (tmp_path / "old").unlink()
    sync.run()
    assert sorted(objects.done) == ["+previews/r1/new=22", "-previews/r1/old"]


class Renaming(Recorded):
    """A program renames its file between the look and the upload."""

    def upload(self, path: Path, target: Location) -> None:
        if path.name == "half":
            path.rename(path.with_name("whole"))
        super().upload(path, target)


def test_a_file_that_goes_while_it_is_looked_at_is_no_failure(tmp_path: Path) -> None:
    objects = Renaming({})
    sync = CheckpointSync(objects, tmp_path, Location("b", "previews/r1"))
    sync.restore()
    (tmp_path / "half").write_text("1")
    (tmp_path / "link").symlink_to("/etc/passwd")
    sync.run()
    sync.run()
    assert objects.done == ["+previews/r1/whole=1"]
