"""What reaches the daemon's and the containers' environment, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.local.layout import Layout
from limner.local.settings import DaemonSettings, daemon_environment


def test_nothing_of_the_users_aws_settings_or_secrets_gets_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAREAL")
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    environment = daemon_environment(DaemonSettings(Layout(tmp_path), 4567))
    assert not {"AWS_PROFILE", "AWS_SESSION_TOKEN", "GITHUB_TOKEN"} & environment.keys()
    assert environment["AWS_ACCESS_KEY_ID"] == "test"
    assert environment["AWS_ENDPOINT_URL"] == "http://127.0.0.1:4567"
    assert environment["BIND_HOST"] == "127.0.0.1"


def test_all_files_are_below_the_projects_own_folder(tmp_path: Path) -> None:
    environment = daemon_environment(DaemonSettings(Layout(tmp_path), 4567))
    for name in ("STATE_DIR", "S3_DATA_DIR", "TMPDIR"):
        assert environment[name].startswith(str(tmp_path / ".limner"))


@pytest.mark.parametrize(
    ("jobs", "instances", "cores", "threads"),
    [(2, 1, 2, 1), (2, 1, 8, 4), (4, 1, 2, 1), (2, 2, 8, 2), (2, 8, 4, 1)],
)
def test_jobs_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    jobs: int,
    instances: int,
    cores: int,
    threads: int,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    settings = DaemonSettings(Layout(tmp_path), 1, jobs_at_once=jobs)
    assert settings.threads(instances) == threads
