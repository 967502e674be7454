"""An image is the same alone and in company, whoever joins and leaves meanwhile."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from inference.engine.bank import Residency, Seat, shares_of
from inference.engine.base import ResidentBase, load_base
from inference.engine.denoise import Artist, Drawing, is_guided
from inference.engine.reader import Adapter, check_artifact, read_adapter
from limner.contracts.generation import GenerateRequest
from tests.support.artifacts import write_artifact

# Latents are of size 1; the largest difference between alone and in company.
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-4}


@dataclass(frozen=True)
class Wish:
    """Who draws what, and at which round he comes."""

    user: str
    request: GenerateRequest
    joins: int


def wish(user: str, joins: int, **values: object) -> Wish:
    return Wish(user, GenerateRequest.model_validate({"prompt": "a photo", **values}), joins)


# Other ranks, layers, guidance, steps, numbers of images, prompts; the same user twice.
WISHES = (
    wish("small", 0, steps=9, seed=1, guidance=3),
    wish("all", 0, steps=6, seed=2, guidance=5, images=2, negative_prompt="snow"),
    wish("odd", 1, steps=4, seed=3, guidance=1, images=3),
    wish("small", 1, steps=7, seed=4, guidance=3, prompt="another photo"),
    wish("twin", 2, steps=5, seed=1, guidance=3),
    wish("large", 4, steps=6, seed=6, guidance=0, prompt="late"),
)
USERS = {
    "small": {"rank": 4},
    "twin": {"rank": 4, "seed": 1},
    "odd": {"rank": 3, "seed": 2},
    "all": {"rank": 2, "target": "all", "seed": 3},
    "large": {"rank": 16, "target": "transformer", "seed": 4},
}


@pytest.fixture(scope="module")
def artifacts(scheduled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("artifacts")
    for name, values in USERS.items():
        # Not stronger: a wild network of random weights blows rounding up by a million.
        write_artifact(root / name, scheduled_folder, strength=0.5, **values)
    return root


def base_of(folder: Path, dtype: torch.dtype) -> ResidentBase:
    base = load_base(folder)
    for part in (base.unet, base.vae, base.text_encoder):
        part.to(dtype)
    return dataclasses.replace(base, dtype=dtype)


def run(
    base: ResidentBase, adapters: dict[str, Adapter], wishes: Sequence[Wish]
) -> tuple[list[Drawing], int]:
    """Draws wishes together; also the largest number of rows in a pass."""
    artist = Artist(base)
    residency = Residency(1 << 24, 8, base.device, base.dtype)
    drawings: dict[int, Drawing] = {}
    seats: dict[int, Seat] = {}
    ended: dict[int, Drawing] = {}
    widest = 0
    for now in range(100):
        for index, one in enumerate(wishes):
            if one.joins == now:
                (drawings[index],) = artist.begin([(one.request.prompt, one.request)])
                seat = residency.pin(adapters[one.user])
                assert seat is not None
                seats[index] = seat
        order = sorted(drawings, key=lambda i: (id(seats[i].bank), seats[i].slot))
        if order:
            shares = shares_of([(seats[i], drawings[i].rows) for i in order])
            work = artist.assemble([drawings[i] for i in order], shares)
            widest = max(widest, len(work.context))
            artist.step(work)
        for index in order:
            if drawings[index].is_done:
                ended[index] = drawings.pop(index)
                residency.unpin(seats.pop(index))
        if len(ended) == len(wishes):
            break
    return [ended[index] for index in range(len(wishes))], widest


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers 0.42
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_latents_are_the_same_alone_and_in_company(
    scheduled_folder: Path,
    artifacts: Path,
    dtype: torch.dtype,
    record_property: Callable[[str, object], None],
) -> None:
    torch.set_num_threads(1)
    base = base_of(scheduled_folder, dtype)
    adapters = {
        name: read_adapter(check_artifact(artifacts / name, base, 64), base) for name in USERS
    }
    together, widest = run(base, adapters, WISHES)
    worst, change = 0.0, float("inf")
    for one, drawing in zip(WISHES, together, strict=True):
        assert drawing.latents.dtype == dtype
        assert is_guided(one.request) == drawing.guided
        alone = run(base, adapters, [dataclasses.replace(one, joins=0)])[0][0]
        worst = max(worst, float((drawing.latents - alone.latents).abs().max()))
        other = dataclasses.replace(one, user="small" if one.user != "small" else "twin", joins=0)
        wrong = run(base, adapters, [other])[0][0]
        change = min(change, float((wrong.latents - alone.latents).abs().max()))
    record_property(
        "figure",
        f"mixed batch, {type(base.scheduler).__name__}, {dtype}: {len(WISHES)} requests, up to"
        f" {widest} rows a pass, {worst:.1e} from alone at most; another user's adapter"
        f" changes latents by {change:.1e} at least",
    )
    assert worst < BOUNDS[dtype]
    assert change > 1e-2
