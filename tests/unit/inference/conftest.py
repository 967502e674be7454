"""What the tests of the engine share: one random base, loaded once."""

from pathlib import Path

import pytest
import torch

from inference.engine.base import ResidentBase, load_base
from tests.support.pipelines import SCHEDULERS, save_random_pipeline


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_pipeline(tmp_path_factory.mktemp("inference-base"))


@pytest.fixture(scope="session")
def base(base_folder: Path) -> ResidentBase:
    torch.set_num_threads(1)
    return load_base(base_folder)


@pytest.fixture(scope="session", params=SCHEDULERS)
def scheduled_folder(
    request: pytest.FixtureRequest, base_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A base for each scheduler that published ones have."""
    if request.param == "ddim":
        return base_folder
    folder = tmp_path_factory.mktemp(f"inference-base-{request.param}")
    return save_random_pipeline(folder, scheduler=request.param)
