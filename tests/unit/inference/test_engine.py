"""The engine draws what diffusers draws, and switching adapters leaves nothing behind."""

import functools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline

from inference.engine import engine as engine_module
from inference.engine.base import ResidentBase, load_base
from inference.engine.denoise import Artist, Drawing, Pass, latent_size
from inference.engine.engine import Engine, Generation
from limner.contracts import artifact
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest
from tests.support.artifacts import write_artifact
from tests.support.drawing import draw
from tests.support.pipelines import save_random_pipeline
from tests.unit.inference.stubs import take_all_memory

REQUEST = GenerateRequest(
    prompt="a photo of {token} on a {0} beach", negative_prompt="snow", steps=6, seed=5, images=3
)


@pytest.fixture
def engine(base: ResidentBase) -> Iterator[Engine]:
    engine = Engine(base, max_models=4, max_rank=64)
    yield engine
    engine.close()


@pytest.fixture
def scheduled(scheduled_folder: Path) -> Iterator[Engine]:
    engine = Engine(load_base(scheduled_folder), max_models=4, max_rank=64)
    yield engine
    engine.close()


def generate(engine: Engine, name: str, request: GenerateRequest = REQUEST) -> Generation:
    return engine.submit(name, request).result(timeout=60)


def largest_difference(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - two.astype(float)).max())


def drawn_by_diffusers(
    base: Path, adapter: Path | None, prompt: str, request: GenerateRequest
) -> np.ndarray:
    """The same request to a pipeline of its own, with the adapter as peft applies it."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if adapter is not None:
        pipeline.load_lora_weights(adapter, weight_name=artifact.ADAPTER)
    images = pipeline(
        prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        num_images_per_prompt=request.images,
        generator=[torch.Generator().manual_seed(request.seed + i) for i in range(request.images)],
        output_type="np",
    ).images
    return np.asarray(images * 255).round()


@pytest.mark.filterwarnings(
    # diffusers 0.42 and peft 0.21 warn of their own future; the engine uses neither for adapters.
    "ignore::FutureWarning:diffusers",
    "ignore::DeprecationWarning",
)
@pytest.mark.parametrize(("target", "rank"), [("attention", 4), ("transformer", 1), ("all", 16)])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_images_equal_those_of_diffusers_with_load_lora_weights(
    scheduled: Engine,
    scheduled_folder: Path,
    tmp_path: Path,
    target: str,
    rank: int,
    guidance: float,
) -> None:
    write_artifact(tmp_path / "a", scheduled_folder, target=target, rank=rank, strength=3)
    scheduled.load("a", tmp_path / "a")
    request = REQUEST.model_copy(update={"guidance": guidance})
    ours = generate(scheduled, "a", request)
    assert ours.prompt == "a photo of sks on a {0} beach"

    with_adapter = drawn_by_diffusers(scheduled_folder, tmp_path / "a", ours.prompt, request)
    without = drawn_by_diffusers(scheduled_folder, None, ours.prompt, request)
    difference = largest_difference(ours.pixels, with_adapter)
    change = float(np.abs(with_adapter - without).mean())
    sys.stdout.write(f"largest difference {difference} of 255; the adapter changes {change:.1f}\n")
    # One level for rounding; the adapter itself changes the images by far more.
    assert difference <= 1
    assert change > 3


EULER_WARNS = pytest.mark.filterwarnings(  # diffusers 0.42
    "ignore:__array__ implementation:DeprecationWarning"
)


@EULER_WARNS
def test_the_steps_that_are_told_are_those_that_are_taken(
    scheduled: Engine, scheduled_folder: Path, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "a", scheduled_folder)
    scheduled.load("a", tmp_path / "a")
    told: list[tuple[int, int]] = []
    scheduled.submit("a", REQUEST, lambda *now: told.append(now)).result(timeout=60)
    is_pndm = isinstance(scheduled.base.scheduler, PNDMScheduler)
    taken = REQUEST.steps + is_pndm
    assert told == [(step, taken) for step in range(1, taken + 1)]


@EULER_WARNS
def test_where_memory_ends_amid_the_schedulers_steps_images_are_those_drawn_alone(
    scheduled: Engine, scheduled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("abc"):
        write_artifact(tmp_path / name, scheduled_folder, seed=seed)
        scheduled.load(name, tmp_path / name)
    request = REQUEST.model_copy(update={"images": 1})
    alone = {name: generate(scheduled, name, request).pixels for name in "abc"}

    pass_step, scheduler = Artist.step, type(scheduled.base.scheduler)
    scheduler_step = scheduler.step
    all_wait, torn = threading.Event(), []
    drawings: list[Drawing] = []

    def gated(artist: Artist, batch: Pass) -> None:
        assert all_wait.wait(timeout=30)
        drawings[:] = batch.drawings
        pass_step(artist, batch)

    def short_once(self: object, *arguments: object, **named: object) -> object:
        stepped = scheduler_step(self, *arguments, **named)
        # Its own state has changed by now, and that of the first drawing, too.
        is_second = len(drawings) == 3 and self is drawings[1].scheduler
        if is_second and drawings[1].step == 2 and not torn:
            torn.append(self)
            take_all_memory()
        return stepped

    monkeypatch.setattr(Artist, "step", gated)
    monkeypatch.setattr(scheduler, "step", functools.wraps(scheduler_step)(short_once))
    futures = {name: scheduled.submit(name, request) for name in "abc"}
    all_wait.set()
    for name, future in futures.items():
        drawn = future.result(timeout=60).pixels
        assert largest_difference(drawn, alone[name]) <= 1, name
    assert torn


def test_an_image_is_the_same_alone_and_in_a_batch(
    engine: Engine, base_folder: Path, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "a", base_folder, target="all")
    engine.load("a", tmp_path / "a")
    batch = generate(engine, "a")
    assert batch.seeds == (5, 6, 7)
    for i, seed in enumerate(batch.seeds):
        alone = generate(engine, "a", REQUEST.model_copy(update={"images": 1, "seed": seed}))
        assert largest_difference(alone.pixels[0], batch.pixels[i]) <= 1


def test_adapters_of_other_rank_and_layers_take_turns(
    engine: Engine, base: ResidentBase, base_folder: Path, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "small", base_folder, target="attention", rank=2)
    write_artifact(tmp_path / "large", base_folder, target="all", rank=32, seed=1)
    engine.load("small", tmp_path / "small")
    bare = draw(base, "a photo", REQUEST)
    alone = generate(engine, "small").pixels
    engine.load("large", tmp_path / "large")
    large = generate(engine, "large").pixels
    assert np.array_equal(generate(engine, "small").pixels, alone)
    assert np.abs(large.astype(int) - alone).mean() > 3
    engine.unload("small")
    engine.unload("large")
    assert base.selection.shares == ()
    assert np.array_equal(draw(base, "a photo", REQUEST), bare)


def test_an_adapter_with_zero_b_changes_nothing(
    engine: Engine, base: ResidentBase, base_folder: Path, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "a", base_folder, target="all", strength=0)
    engine.load("a", tmp_path / "a")
    ours = generate(engine, "a")
    assert np.array_equal(ours.pixels, draw(base, ours.prompt, REQUEST))


def test_a_base_of_other_latent_channels_is_served(tmp_path: Path) -> None:
    folder = save_random_pipeline(tmp_path / "base", latent_channels=8)
    write_artifact(tmp_path / "a", folder)
    engine = Engine(load_base(folder), max_models=1, max_rank=64)
    engine.load("a", tmp_path / "a")
    assert generate(engine, "a").pixels.shape == (3, 32, 32, 3)
    engine.close()


def test_a_closing_engine_ends_the_running_generation_and_takes_no_more(
    base: ResidentBase, base_folder: Path, tmp_path: Path
) -> None:
    engine = Engine(base, max_models=1, max_rank=64)
    write_artifact(tmp_path / "a", base_folder)
    engine.load("a", tmp_path / "a")
    long = REQUEST.model_copy(update={"steps": 100, "images": 8})
    running = engine.submit("a", long)
    engine.close()
    with pytest.raises(LimnerError) as ended:
        running.result(timeout=1)
    assert ended.value.code == "GENERATION_FAILED"
    with pytest.raises(LimnerError) as refused:
        engine.submit("a", REQUEST)
    assert refused.value.code == "GENERATION_FAILED"
    # Neither of the two is counted as a user of the model any more.
    engine.unload("a")


def test_a_request_that_nobody_waits_for_is_not_drawn(
    base: ResidentBase, base_folder: Path, tmp_path: Path
) -> None:
    engine = Engine(base, max_models=1, max_rank=64, answer_s=-1)
    write_artifact(tmp_path / "a", base_folder)
    engine.load("a", tmp_path / "a")
    with pytest.raises(LimnerError) as late:
        generate(engine, "a")
    assert late.value.code == "DEADLINE_EXCEEDED"
    engine.unload("a")
    engine.close()


def test_running_out_of_memory_is_507_and_gives_the_room_back(
    engine: Engine, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_artifact(tmp_path / "a", base_folder)
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "read_adapter", take_all_memory)
        with pytest.raises(LimnerError) as loading:
            engine.load("a", tmp_path / "a")
    assert loading.value.spec.http_status == 507
    assert engine.resident_bytes == 0
    engine.load("a", tmp_path / "a")
    for work in ("begin", "assemble", "step", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(Artist, work, take_all_memory)
            with pytest.raises(LimnerError) as drawing:
                generate(engine, "a")
        assert drawing.value.spec.http_status == 507, work
    assert generate(engine, "a").pixels.shape[0] == REQUEST.images


def test_images_are_the_same_alone_and_in_a_crowd(
    engine: Engine, base_folder: Path, tmp_path: Path
) -> None:
    kinds = {"a": ("attention", 4), "b": ("all", 3), "c": ("transformer", 8), "d": ("attention", 4)}
    for seed, (name, (target, rank)) in enumerate(kinds.items()):
        write_artifact(tmp_path / name, base_folder, target=target, rank=rank, seed=seed)
        engine.load(name, tmp_path / name)
    requests = [
        (
            name,
            GenerateRequest(
                prompt=f"picture {index} of {{token}}",
                seed=index,
                steps=3 + index % 4,
                guidance=(3.0, 1.0, 7.0)[index % 3],
                images=1 + index % 2,
                height=(None, 40)[index % 5 == 0],
            ),
        )
        for index, name in enumerate("abcdabcdbbca")
    ]
    alone = [generate(engine, name, request).pixels for name, request in requests]
    crowd = [engine.submit(name, request) for name, request in requests]
    drawn = [future.result(timeout=60).pixels for future in crowd]
    worst = max(map(largest_difference, drawn, alone))
    sys.stdout.write(f"{len(requests)} requests in a crowd: {worst:.0f} of 255 from alone\n")
    assert worst <= 1


def test_a_decoder_that_is_short_of_memory_decodes_fewer_at_once(
    engine: Engine, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_artifact(tmp_path / "a", base_folder)
    engine.load("a", tmp_path / "a")
    request = REQUEST.model_copy(update={"images": 4, "steps": 1})
    expected = generate(engine, "a", request).pixels
    decode_part, sizes = Artist._decode_part, []

    def narrow(artist: Artist, latents: torch.Tensor) -> object:
        sizes.append(len(latents))
        return decode_part(artist, latents) if len(latents) == 1 else take_all_memory()

    monkeypatch.setattr(Artist, "_decode_part", narrow)
    drawn = generate(engine, "a", request).pixels
    assert sizes == [4, 4, 2, 1, 1, 1, 1]
    assert largest_difference(drawn, expected) <= 1


def test_an_image_that_the_decoder_cannot_make_is_no_image(
    engine: Engine, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_artifact(tmp_path / "a", base_folder)
    engine.load("a", tmp_path / "a")
    step = Artist.step

    def astray(artist: Artist, batch: Pass) -> None:
        step(artist, batch)
        for drawing in batch.drawings:
            drawing.latents = torch.full_like(drawing.latents, 1e30)  # finite

    monkeypatch.setattr(Artist, "step", astray)
    with pytest.raises(LimnerError) as refused:
        generate(engine, "a")
    assert refused.value.code == "ARTIFACT_INVALID"


def test_numbers_that_are_not_finite_are_one_users_trouble_only(
    engine: Engine, base_folder: Path, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "sound", base_folder)
    # Finite weights, as the check at loading wants them, whose products are not.
    write_artifact(tmp_path / "wild", base_folder, strength=1e30)
    engine.load("sound", tmp_path / "sound")
    engine.load("wild", tmp_path / "wild")
    alone = generate(engine, "sound").pixels
    futures = [engine.submit(name, REQUEST) for name in ("sound", "wild", "sound")]
    with pytest.raises(LimnerError) as wild:
        futures[1].result(timeout=60)
    assert wild.value.code == "ARTIFACT_INVALID"
    for future in (futures[0], futures[2]):
        assert largest_difference(future.result(timeout=60).pixels, alone) <= 1
    engine.unload("wild")


def test_a_size_that_the_base_cannot_make_is_refused(base: ResidentBase) -> None:
    # Any multiple of 8 passes the contract, but this VAE could be coarser.
    request = REQUEST.model_copy(update={"height": base.pixels_per_latent * 9 + 1})
    with pytest.raises(LimnerError) as refused:
        latent_size(base, request)
    assert refused.value.code == "INVALID_INPUT"


@pytest.mark.parametrize(
    "part", ["unet/config.json", "model_index.json", "vae", "limner-base.json"]
)
def test_a_base_with_a_missing_part_is_invalid(tmp_path: Path, part: str) -> None:
    folder = save_random_pipeline(tmp_path / "base")
    (folder / part).rename(tmp_path / "gone")
    with pytest.raises(LimnerError) as refused:
        load_base(folder)
    assert refused.value.code == "BASE_INVALID"


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("scheduler", '["os", "system"]'),
        ("scheduler", '["diffusers", "StableDiffusionPipeline"]'),
        ("unet", '["diffusers", "UNet1DModel"]'),
    ],
)
def test_a_base_cannot_name_any_class_it_likes(tmp_path: Path, part: str, named: str) -> None:
    folder = save_random_pipeline(tmp_path / "base")
    index = folder / "model_index.json"
    text = index.read_text()
    start = text.index("[", text.index(f'"{part}"'))
    index.write_text(text[:start] + named + text[text.index("]", start) + 1 :])
    with pytest.raises(LimnerError, match=part) as refused:
        load_base(folder)
    assert refused.value.code == "BASE_INVALID"
