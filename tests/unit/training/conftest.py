from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limner.contracts.training import TrainingConfig
from tests.support.pipelines import save_random_pipeline


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_pipeline(tmp_path_factory.mktemp("base"), latent_channels=6)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def config() -> TrainingConfig:
    """Three optimizer steps on two crops of each photo."""
    return TrainingConfig(
        steps=3,
        batch_size=3,
        rank=2,
        augmentations=2,
        preview_prompts=("a photo of {token}",),
        preview_steps=1,
    )
