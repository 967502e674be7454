"""``limner metrics``: the two places its lines come from, and what it prints."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.cli.conftest import Shell
from tests.unit.client.world import World
from tests.unit.test_metrics import drawn


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.fixture
def laptop_log(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Path:
    limner = SimpleNamespace(deployment=SimpleNamespace(endpoint_name="ep"))
    laptop = SimpleNamespace(project=shell.folder)
    monkeypatch.setattr("limner.cli.metrics.find_laptop", lambda *_: laptop)
    monkeypatch.setattr("limner.cli.metrics.connect_laptop", lambda _: limner)
    return shell.folder / ".limner" / "endpoints" / "ep" / "log"


def test_the_laptops_log(shell: Shell, laptop_log: Path) -> None:
    laptop_log.parent.mkdir(parents=True)
    laptop_log.write_text(f"{drawn('a', 30, at=now_ms())}\n{drawn('b', 10, at=5)}\n")
    header, row, total = shell("metrics").stdout.splitlines()
    assert header.split()[:3] == ["model", "generations", "hits"]
    assert row.split()[1:3] == ["1", "100%"]
    assert total.split()[:2] == ["total", "1"]
    assert [m["denoise_ms_p50"] for m in shell.json("metrics")["models"]] == [30]


def test_no_log_yet_says_what_to_do(shell: Shell, laptop_log: Path) -> None:
    result = shell("metrics")
    assert result.exit_code == 0
    assert "limner generate USER PROMPT" in result.stdout
    assert shell.json("metrics")["total"] is None


def test_a_model_needs_its_user(shell: Shell) -> None:
    assert shell("metrics", "--model", "dog").exit_code == 2


def test_the_log_group_on_aws(shell: Shell, aws: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def read(_: object, endpoint: str, since_ms: int, *, with_requests: bool) -> list[str]:
        asked.append((endpoint, with_requests))
        return [drawn("a", 30, at=now_ms())]

    monkeypatch.setattr("limner.client.metrics.logs_client", lambda: None)
    monkeypatch.setattr("limner.client.metrics.read", read)
    assert shell.json("metrics")["total"]["generations"] == 1
    assert asked == [(aws.deployment.endpoint_name, False)]
    assert shell("metrics", "--user", "nobody").exit_code == 4
