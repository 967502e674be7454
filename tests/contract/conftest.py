"""What the tests of both containers share: a random base."""

from pathlib import Path

import pytest

from tests.support.pipelines import save_random_pipeline


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_pipeline(tmp_path_factory.mktemp("base"))
