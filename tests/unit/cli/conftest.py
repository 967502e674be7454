"""A deployed stage on moto that commands find through the ``LIMNER_*`` settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from limner.cli.main import app
from tests.unit.client.world import World, photo, session, world


@dataclass
class Shell:
    """Runs commands in a directory of their own."""

    folder: Path

    def __call__(self, *words: str, **env: str) -> Result:
        return CliRunner().invoke(app, list(words), env=env, prog_name="limner")

    def json(self, *words: str) -> Any:
        """The one JSON document that a command prints with ``--json``."""
        return json.loads(self(*words, "--json").stdout)

    def photos(self, count: int = 3, folder: str = "photos") -> Path:
        target = self.folder / folder
        target.mkdir()
        for number in range(count):
            (target / f"{number}.png").write_bytes(photo(number))
        return target


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "LIMNER_ON", "LIMNER_STAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("limner.cli.target.running_laptop", lambda: None)
    return Shell(tmp_path)


@pytest.fixture
def aws(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with world() as deployed:
        for name, value in asdict(deployed.deployment).items():
            monkeypatch.setenv(f"LIMNER_{name.upper()}", value)
        # The standard settings' session, read once for all tests.
        monkeypatch.setattr("limner.client.aws.boto3", SimpleNamespace(Session=session))
        yield deployed
