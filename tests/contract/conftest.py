"""What the tests of both containers share: a random base, and an end of all processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import ended
from tests.support.pipelines import save_random_pipeline


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True, scope="module")
def _modules_containers_ended() -> Iterator[None]:
    with ended():
        yield


@pytest.fixture(autouse=True)
def _tests_containers_ended(_modules_containers_ended: None) -> Iterator[None]:
    with ended():
        yield
