from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file, save

from limner.contracts import artifact as form
from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from training.artifact import layout_of, members_of, pack, write_members
from training.base import load_base
from training.cohort import Cohort, Shape, trained_alone
from training.job import Work
from training.recipe import add_noise, augment, draw_batch, learning_rate_share
from training.targets import TARGETS

CPU = torch.device("cpu")


def unheard(_line: str) -> None:
    """Takes the progress lines of a training whose progress is of no interest."""


def photos() -> list[Image.Image]:
    images = []
    for index in range(3):
        image = Image.new("RGB", (48, 40), "white")
        ImageDraw.Draw(image).ellipse((5 + index, 5, 30, 30), fill="green")
        images.append(image)
    return images


def trained(base_dir: Path, config: TrainingConfig) -> dict[str, torch.Tensor]:
    with trained_alone(config, load_base(base_dir, CPU), photos(), unheard) as (cohort, learner):
        return cohort.tensors(learner)


def test_the_same_seed_gives_the_same_bytes(base_dir: Path, config: TrainingConfig) -> None:
    first, second = (save(trained(base_dir, config)) for _ in range(2))
    assert first == second
    other = save(trained(base_dir, config.model_copy(update={"seed": 1})))
    assert other != first


def test_training_lowers_the_loss(base_dir: Path, config: TrainingConfig) -> None:
    lines: list[str] = []
    more = config.model_copy(update={"steps": 40, "batch_size": 8, "rank": 8})
    with trained_alone(more, load_base(base_dir, CPU), photos(), lines.append):
        pass
    losses = [float(line.split("loss=")[1].split()[0]) for line in lines]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("target", TARGETS)
def test_diffusers_loads_what_was_trained(
    base_dir: Path, tmp_path: Path, config: TrainingConfig, target: str
) -> None:
    base = load_base(base_dir, CPU)
    config = config.model_copy(update={"target": target, "learning_rate": 0.1})
    work = Work(request_id="r1", model_id="default", config=config, photos_dir=tmp_path)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, 6, 16, 16, generator=draw)
    arguments = (x, torch.tensor([10, 900]), torch.randn(2, 24, 16, generator=draw))
    with trained_alone(config, base, photos(), unheard) as (cohort, learner):
        tensors = cohort.tensors(learner)
        members = members_of(work, base, tensors, {"loss": learner.loss})
        with cohort.drawing_as(learner), torch.no_grad():
            ours = base.pipeline.unet(*arguments).sample
    write_members(tmp_path, members)
    manifest = form.Manifest.model_validate_json(members[form.MANIFEST])

    plain = StableDiffusionPipeline.from_pretrained(
        base_dir, use_safetensors=True, local_files_only=True
    )
    with torch.no_grad():
        untrained = plain.unet(*arguments).sample
        plain.load_lora_weights(str(tmp_path), weight_name=form.ADAPTER)
        loaded = plain.unet(*arguments).sample
    torch.testing.assert_close(loaded, ours, rtol=1e-4, atol=1e-5)
    assert (loaded - untrained).abs().max() > 1e-3
    assert manifest.target_modules == tuple(
        sorted({name.removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name})
    )
    convolutions = [name for name in manifest.target_modules if ".conv1" in name]
    assert bool(convolutions) == (target == "all")


def test_the_artifact_keeps_its_promises(
    base_dir: Path, tmp_path: Path, config: TrainingConfig
) -> None:
    base = load_base(base_dir, CPU)
    cohort = Cohort(base, Shape.of(config), rank=config.rank, slots=1, say=unheard)
    tensors = cohort.bank.tensors(0, config.rank)
    cohort.close()
    work = Work(request_id="r1", model_id="default", config=config, photos_dir=tmp_path)
    write_members(tmp_path, members_of(work, base, tensors, {"loss": 0.5}))

    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == set(form.MEMBERS)
    manifest = form.Manifest.model_validate_json((tmp_path / form.MANIFEST).read_bytes())
    assert (manifest.request_id, manifest.metrics) == ("r1", {"loss": 0.5})
    with safe_open(tmp_path / form.PACKED, "pt") as file:
        assert file.metadata()[form.PACKED_LAYOUT_KEY] == manifest.layout_sha256
        flat = file.get_tensor(form.PACKED_TENSOR)
    stored = load_file(tmp_path / form.ADAPTER)
    layout = layout_of(stored)
    assert layout.digest() == manifest.layout_sha256
    assert flat.shape == (layout.size,)
    for item in layout:
        assert torch.equal(flat[item.start : item.stop].reshape(item.shape), stored[item.name])


def test_an_artifact_is_whole_or_not_there(tmp_path: Path) -> None:
    members = dict.fromkeys(form.MEMBERS[:-1], b"x")
    with pytest.raises(KeyError):
        write_members(tmp_path, members)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_packing_follows_the_sorted_names() -> None:
    tensors = {"b": torch.tensor([[3.0, 4.0]]), "a": torch.tensor([1.0, 2.0])}
    assert pack(tensors).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_loss_that_is_no_number_ends_the_training(base_dir: Path, config: TrainingConfig) -> None:
    base = load_base(base_dir, CPU)
    base.pipeline.unet.conv_in.weight.data.fill_(float("nan"))
    with (
        pytest.raises(LimnerError) as caught,
        trained_alone(config, base, photos(), unheard),
    ):
        pass
    assert caught.value.code == "TRAINING_DIVERGED"


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_what_to_predict_is_the_bases_choice(base_dir: Path, kind: str) -> None:
    base = load_base(base_dir, CPU)
    base.noise_scheduler.register_to_config(prediction_type=kind)
    latents = torch.full((1, 6, 4, 4), 2.0)
    clean, drawn, timesteps = draw_batch(base, latents, 5, torch.Generator().manual_seed(0))
    noisy, wanted = add_noise(base, clean, drawn, timesteps)
    kept = base.noise_scheduler.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
    added = (1 - kept**2).sqrt()
    noise = (noisy - kept * 2.0) / added
    expected = {
        "epsilon": noise,
        "v_prediction": kept * noise - added * 2.0,
        "sample": latents.expand(5, -1, -1, -1),
    }[kind]
    torch.testing.assert_close(wanted, expected, rtol=1e-3, atol=1e-4)


def test_crops_are_squares_of_the_bases_size() -> None:
    config = TrainingConfig(augmentations=5)
    images = augment(photos(), config, 32, torch.Generator().manual_seed(0))
    assert [image.size for image in images] == [(32, 32)] * 15
    assert len({image.tobytes() for image in images}) == 15


def test_the_learning_rate_warms_up_and_decays() -> None:
    shares = [learning_rate_share(step, 300) for step in range(300)]
    assert shares[0] == pytest.approx(0.05, rel=0.01)
    assert max(shares) == pytest.approx(1.0, abs=0.02)
    assert shares[-1] == pytest.approx(0.1, abs=0.01)


def _without(base: Path, name: str) -> None:
    (base / name).unlink()


def _config(base: Path, name: str, **changes: object) -> None:
    path = base / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: _without(b, "limner-base.json"), "no readable limner-base.json"),
        (lambda b: _without(b, "model_index.json"), "does not load"),
        (lambda b: _without(b, "unet/diffusion_pytorch_model.safetensors"), "does not load"),
        (lambda b: _without(b, "unet/config.json"), "does not load"),
        (
            lambda b: (b / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"cut off"),
            "does not load",
        ),
        (
            lambda b: _config(b, "scheduler/scheduler_config.json", prediction_type="flow"),
            "predicts 'flow'",
        ),
        (lambda b: _config(b, "limner-base.json", resolution_px=33), "no multiple of 8"),
        (lambda b: _config(b, "unet/config.json", in_channels=9), "does not load"),
    ],
)
def test_a_spoiled_base_is_refused(
    base_dir: Path, tmp_path: Path, spoil: object, words: str
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(base_dir, copy)
    spoil(copy)  # type: ignore[operator]
    with pytest.raises(LimnerError, match=words) as caught:
        load_base(copy, CPU)
    assert caught.value.code == "BASE_INVALID"
