"""The figures of a trained model: what each says in cases where the answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from limner.contracts.training import TrainingConfig
from training.base import Base, load_base
from training.cohort import Cohort, Learner, Shape, trained_alone
from training.quality import IMAGES, measure, novelty, response, similarity, spread
from training.recipe import draw_bare

CPU = torch.device("cpu")
NAMES = {"similarity", "similarity_gain", "prompt_response", "diversity", "novelty"}


@pytest.fixture(scope="module")
def base(base_dir: Path) -> Base:
    return load_base(base_dir, CPU)


def photos() -> list[Image.Image]:
    images = []
    for index in range(3):
        image = Image.new("RGB", (48, 40), "white")
        ImageDraw.Draw(image).ellipse((5 + 6 * index, 5, 20 + 6 * index, 30), fill="green")
        images.append(image)
    return images


def unheard(_line: str) -> None:
    """Takes the progress lines of a training whose progress is of no interest."""


def test_a_model_that_has_learnt_nothing_is_the_base(base: Base, config: TrainingConfig) -> None:
    cohort = Cohort(base, Shape.of(config), rank=config.rank, slots=1, say=unheard)
    learner = Learner.of(config, base, photos())
    cohort.enter(learner)
    figures = measure(base, cohort, learner)
    cohort.close()
    assert figures.keys() == NAMES
    assert figures["similarity_gain"] == pytest.approx(0, abs=2e-3)
    assert figures["prompt_response"] == pytest.approx(1, abs=2e-3)
    assert figures["diversity"] == pytest.approx(1, abs=2e-3)
    assert figures["novelty"] > 0


def test_the_figures_are_the_same_each_time_and_leave_no_trace(
    base: Base, config: TrainingConfig
) -> None:
    wild = config.model_copy(update={"learning_rate": 0.5, "steps": 5})
    untouched = draw_bare(wild, base, "a cat", 1)
    with trained_alone(wild, base, photos(), unheard) as (cohort, learner):
        pauses: list[None] = []
        first = measure(base, cohort, learner, lambda: pauses.append(None))
        base.drawings.clear()
        assert measure(base, cohort, learner) == first
        assert torch.equal(draw_bare(wild, base, "a cat", 1), untouched)
    assert len(pauses) == 2
    assert first["similarity_gain"] != 0
    assert len({tensor.shape for tensor in base.drawings.values()}) == 2
    assert IMAGES in {len(tensor) for tensor in base.drawings.values()}


def test_a_figure_that_is_no_number_is_left_out(base: Base, config: TrainingConfig) -> None:
    with trained_alone(config, base, photos(), unheard) as (cohort, learner):
        for key, drawn in base.drawings.items():
            base.drawings[key] = drawn[:1].expand_as(drawn)  # the base draws one image, ever
        figures = measure(base, cohort, learner)
    base.drawings.clear()
    assert "diversity" not in figures
    assert "novelty" in figures


def test_similarity_is_to_the_nearest_photo() -> None:
    known = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert similarity(torch.tensor([[3.0, 0.0], [0.0, 0.1]]), known) == pytest.approx(1)
    assert similarity(torch.tensor([[-1.0, -1.0]]), known) == pytest.approx(-(0.5**0.5))


def test_response_is_the_share_of_the_bases_way() -> None:
    way = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert response(way, way) == pytest.approx(1, rel=1e-5)
    assert response(0.25 * way, way) == pytest.approx(0.25, rel=1e-5)
    assert response(0 * way, way) == 0


def test_spread_is_zero_where_all_images_are_one() -> None:
    image = torch.ones(1, 2, 3, 3)
    assert spread(image.expand(3, -1, -1, -1)).item() == 0
    assert spread(torch.cat([image, -image])).item() == pytest.approx(2 * 18**0.5)


def test_novelty_tells_copies_from_new_images() -> None:
    # Two crops of each of three photos, at 0, 10 and 20.
    crops = torch.tensor([0.0, 1, 10, 11, 20, 21]).view(6, 1, 1, 1)
    assert novelty(torch.tensor([0.0, 11]).view(2, 1, 1, 1), crops, 2) == 0
    # The first crops lie 10, 9 and 9 from the nearest crop of another photo.
    assert novelty(torch.tensor([-28.0]).view(1, 1, 1, 1), crops, 2) == pytest.approx(28 * 3 / 28)
    assert torch.isnan(torch.tensor(novelty(crops[:1], crops[:2], 2)))
