"""The sync between /opt/ml/checkpoints and CheckpointConfig.S3Uri.

SageMaker developer guide, "Use Checkpoints in Amazon SageMaker": existing objects are copied in
when the job starts; files are copied up as they appear or change; "deleting a file locally deletes
it in S3"; objects added to S3 later are not copied in. Several instances share the one S3Uri: each
deletes only what it has had itself.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from limner.local.objects import Location, Objects

_Seen = tuple[int, int]


class CheckpointSync:
    """Keeps S3 equal to a folder, one way; used by one thread.

    Args:
        objects: S3.
        folder: Stands for /opt/ml/checkpoints.
        target: CheckpointConfig.S3Uri.

    Attributes:
        has_uploaded: Whether anything has gone up since the start.
    """

    def __init__(self, objects: Objects, folder: Path, target: Location) -> None:
        self._objects = objects
        self._folder = folder
        self._target = Location(target.bucket, target.key.rstrip("/") + "/" if target.key else "")
        self._uploaded: dict[str, _Seen] = {}
        self.has_uploaded = False

    def restore(self) -> None:
        """Copies the existing objects in, before the program starts."""
        self._objects.download_prefix(self._target, self._folder)
        self._uploaded = self._look()

    def run(self) -> None:
        """Uploads what is new or changed, and deletes what was deleted."""
        now = self._look()
        for name, seen in now.items():
            if self._uploaded.get(name) != seen:
                try:
                    self._objects.upload(self._folder / name, self._target.below(name))
                except FileNotFoundError:
                    continue  # deleted or renamed since; the next look sees that
                self._uploaded[name] = seen
                self.has_uploaded = True
        for name in self._uploaded.keys() - now.keys():
            self._objects.delete(self._target.below(name))
            del self._uploaded[name]

    def _look(self) -> dict[str, _Seen]:
        """Size and time of each file; the program may rename and delete meanwhile."""
        found = {}
        for folder, _, names in os.walk(self._folder):
            for path in (Path(folder, name) for name in names):
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    name = path.relative_to(self._folder).as_posix()
                    found[name] = (status.st_size, status.st_mtime_ns)
        return found
