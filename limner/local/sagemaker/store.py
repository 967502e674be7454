"""Records that survive a restart: one JSON file each, written at once."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Store:
    """Records of one kind by name; thread-safe.

    What it hands out are copies: change a record only through ``change``.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._records: dict[str, Record] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            self._records[path.stem] = json.loads(path.read_text())

    def get(self, name: str) -> Record | None:
        """The record of a name, or None."""
        with self._lock:
            return copy.deepcopy(self._records.get(name))

    def all(self) -> list[Record]:
        """All records."""
        with self._lock:
            return copy.deepcopy(list(self._records.values()))

    def add(self, name: str, record: Record) -> bool:
        """Adds a record, unless the name is taken.

        Returns:
            Whether it was added.
        """
        with self._lock:
            if name in self._records:
                return False
            self._records[name] = record
            self._write(name)
            return True

    @contextmanager
    def change(self, name: str) -> Iterator[Record]:
        """Gives the record itself to the block, alone, and writes it afterwards.

        Raises:
            KeyError: If there is no such record.
        """
        with self._lock:
            yield self._records[name]
            self._write(name)

    def remove(self, name: str) -> bool:
        """Removes a record; returns whether there was one."""
        with self._lock:
            found = self._records.pop(name, None) is not None
            self._path(name).unlink(missing_ok=True)
            return found

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _write(self, name: str) -> None:
        path = self._path(name)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self._records[name]))
        partial.replace(path)
