"""Users that train together get what each of them would have got alone, from peft and torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from limner.contracts.training import TrainingConfig
from tests.support.alone import Trained, train_alone_with_peft
from training.base import Base, load_base
from training.cohort import Cohort, Learner, Shape
from training.targets import TARGETS

COLORS = ("green", "red", "blue", "black")


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    return lambda line: record_property("figure", line)


def load(base_dir: Path, dtype: torch.dtype = torch.float32) -> Base:
    base = load_base(base_dir, torch.device("cpu"))
    base.pipeline.to(dtype)
    return base


def photos(user: int) -> list[Image.Image]:
    """Three or four pictures, unlike another user's."""
    images = []
    for index in range(3 + user % 2):
        image = Image.new("RGB", (48, 40), "white")
        place = (5 + index, 5 + user, 30, 30)
        ImageDraw.Draw(image).ellipse(place, fill=COLORS[user % 4])
        images.append(image)
    return images


def configs(target: str, count: int = 4, **changes: Any) -> list[TrainingConfig]:
    """Users who differ in all that users of a cohort may differ in."""
    return [
        TrainingConfig(
            seed=user,
            steps=8 + 3 * user,
            batch_size=3,
            rank=(4, 2, 3, 4)[user % 4],
            target=target,
            augmentations=2,
            learning_rate=(1e-2, 5e-3)[user % 2],
            subject=("", "dog", "cat", "cup")[user % 4],
        ).model_copy(update=changes)
        for user in range(count)
    ]


def unheard(_line: str) -> None:
    """Takes the progress lines."""


def exact(cohort: Cohort, learner: Learner) -> dict[str, Tensor]:
    """The adapter in the precision of its training, by peft's names."""
    matrices = cohort.bank.matrices(cohort.learners.index(learner), learner.config.rank)
    return {name.removeprefix("unet."): matrix.clone() for name, matrix in matrices}


def train_together(
    base: Base, wanted: Sequence[TrainingConfig], *, slots: int, lanes: int
) -> dict[int, dict[str, Tensor]]:
    """Trains users in few slots, each entering as soon as there is room."""
    ranks = [config.rank for config in wanted]
    cohort = Cohort(
        base, Shape.of(wanted[0]), rank=max(ranks), slots=slots, say=unheard, lanes=lanes
    )
    waiting = [Learner.of(c, base, photos(n), name=str(n)) for n, c in enumerate(wanted)]
    done = {}
    while waiting or cohort.learners:
        while waiting and cohort.has_room:
            cohort.enter(waiting.pop(0))
        for learner in cohort.step():
            done[int(learner.name)] = exact(cohort, learner)
            cohort.leave(learner)
    cohort.close()
    return done


def difference(ours: dict[str, Tensor], alone: Trained) -> float:
    assert ours.keys() == alone.tensors.keys()
    return max(float((ours[name] - alone.tensors[name]).abs().max()) for name in ours)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
@pytest.mark.parametrize(("target", "lanes"), [("attention", 1), ("all", 2)])
def test_each_gets_the_adapter_that_peft_would_have_trained(
    base_dir: Path,
    figure: Callable[[str], None],
    dtype: torch.dtype,
    bound: float,
    target: str,
    lanes: int,
) -> None:
    """Peft's loop has no cache: it encodes and embeds anew in each step."""
    wanted = configs(target)
    together = train_together(load(base_dir, dtype), wanted, slots=3, lanes=lanes)
    worst, change = 0.0, 0.0
    for user, config in enumerate(wanted):
        alone = train_alone_with_peft(load(base_dir, dtype), config, photos(user))
        worst = max(worst, difference(together[user], alone))
        change = max(change, alone.change)
    figure(
        f"fused  4 users in 3 slots, {target} layers, {str(dtype)[6:]}: at most {worst:.1e} from "
        f"each trained alone with peft, uncached; training changes weights by {change:.0e}"
    )
    assert worst < bound < change


def test_gradients_are_clipped_for_each_user_by_himself(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bound so low that it always strikes."""
    for module in ("training.cohort", "tests.support.alone"):
        monkeypatch.setattr(f"{module}.MAX_GRADIENT_NORM", 1e-4)
    wanted = configs("attention", 2)
    together = train_together(load(base_dir, torch.float64), wanted, slots=2, lanes=1)
    for user, config in enumerate(wanted):
        alone = train_alone_with_peft(load(base_dir, torch.float64), config, photos(user))
        assert difference(together[user], alone) < 1e-12


def test_a_user_whose_numbers_go_bad_leaves_the_others_untouched(base_dir: Path) -> None:
    wanted = configs("all", 3)
    base = load(base_dir)
    expected = train_together(base, wanted, slots=3, lanes=2)

    cohort = Cohort(base, Shape.of(wanted[0]), rank=4, slots=3, say=unheard, lanes=2)
    learners = [Learner.of(c, base, photos(n), name=str(n)) for n, c in enumerate(wanted)]
    learners[1].material.latents[0, 0, 0, 0] = float("nan")
    for learner in learners:
        cohort.enter(learner)
    found = {}
    while cohort.learners:
        for learner in cohort.step():
            if learner.error is None:
                found[int(learner.name)] = exact(cohort, learner)
            cohort.leave(learner)
    cohort.close()
    assert learners[1].error is not None
    assert learners[1].error.code == "TRAINING_DIVERGED"
    assert found.keys() == {0, 2}
    for user, tensors in found.items():
        gap = max(float((tensors[n] - expected[user][n]).abs().max()) for n in tensors)
        assert gap < 1e-5


@pytest.mark.parametrize("target", TARGETS)
def test_a_removed_bank_leaves_the_fresh_unet(base_dir: Path, target: str) -> None:
    base = load(base_dir)
    unet = base.pipeline.unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    arguments = (torch.randn(2, 6, 16, 16), torch.tensor([10, 900]), torch.randn(2, 24, 16))
    with torch.no_grad():
        expected = unet(*arguments).sample
    (config,) = configs(target, 1, learning_rate=0.1)
    train_together(base, [config], slots=1, lanes=1)
    assert not any("forward" in vars(module) for module in unet.modules())
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    assert not any(module.training for module in unet.modules())
    after = unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(unet(*arguments).sample, expected)


def test_outside_of_a_pass_a_bank_is_not_there(base_dir: Path) -> None:
    base = load(base_dir)
    (config,) = configs("all", 1)
    arguments = (torch.randn(2, 6, 16, 16), torch.tensor([10, 900]), torch.randn(2, 24, 16))
    with torch.no_grad():
        expected = base.pipeline.unet(*arguments).sample
        cohort = Cohort(base, Shape.of(config), rank=2, slots=2, say=unheard)
        cohort.bank.weights.normal_()
        assert torch.equal(base.pipeline.unet(*arguments).sample, expected)
        cohort.close()


@pytest.fixture
def small(base_dir: Path) -> Iterator[tuple[Base, Cohort]]:
    base = load(base_dir)
    cohort = Cohort(base, Shape(3, "attention"), rank=3, slots=1, say=unheard)
    yield base, cohort
    cohort.close()


@pytest.mark.parametrize(
    "changes", [{"rank": 4}, {"batch_size": 2}, {"target": "all"}], ids=["rank", "batch", "layers"]
)
def test_who_does_not_fit_is_refused(small: tuple[Base, Cohort], changes: dict[str, Any]) -> None:
    base, cohort = small
    config = configs("attention", 1)[0].model_copy(update={"rank": 3, **changes})
    with pytest.raises(ValueError, match="this"):
        cohort.enter(Learner.of(config, base, photos(0)))


def test_a_full_cohort_has_no_room(small: tuple[Base, Cohort]) -> None:
    base, cohort = small
    (config,) = configs("attention", 1, rank=2)
    cohort.enter(Learner.of(config, base, photos(0)))
    with pytest.raises(ValueError, match="cannot enter"):
        cohort.enter(Learner.of(config, base, photos(0)))


def test_half_precision_keeps_its_sums_in_float32(base_dir: Path) -> None:
    """As on an accelerator: bfloat16 passes, float32 weights, and almost the same adapter."""
    (config,) = configs("all", 1, steps=30, batch_size=8)
    changes = []
    for dtype in (torch.float32, torch.bfloat16):
        base = load(base_dir, dtype)
        cohort = Cohort(base, Shape.of(config), rank=4, slots=1, say=unheard, lanes=1)
        learner = Learner.of(config, base, photos(0))
        cohort.enter(learner)
        assert cohort.bank.weights.dtype == torch.float32
        before = cohort.bank.weights.clone()
        while not learner.has_ended:
            cohort.step()
        changes.append((cohort.bank.weights - before).flatten())
        cohort.close()
    assert torch.nn.functional.cosine_similarity(*changes, dim=0) > 0.9
