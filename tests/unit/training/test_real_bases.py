"""The recipe on the layer graphs of Stable Diffusion 1.5 and SDXL, with every knob for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.models.attention_processor import Attention
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor

from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from tests.support.alone import train_alone_with_peft
from tests.support.real_shapes import RESOLUTION_PX, save_narrow_sd15, save_narrow_xl
from training.base import Base, dtype_of, load_base
from training.cohort import Cohort, Learner, Shape, trained_alone
from training.quality import measure
from training.recipe import add_noise, draw_class, min_snr, prepare, preview

CPU = torch.device("cpu")

# diffusers' EulerDiscreteScheduler, which SDXL has, makes NumPy's arrays of torch's tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def sd15_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_narrow_sd15(tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="module")
def xl_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_narrow_xl(tmp_path_factory.mktemp("sdxl"))


def in_double(folder: Path) -> Base:
    base = load_base(folder, CPU)
    base.pipeline.to(torch.float64)
    return base


def photos(user: int = 0) -> list[Image.Image]:
    images = []
    for index in range(3):
        image = Image.new("RGB", (48, 40), "white")
        ImageDraw.Draw(image).ellipse((5 + index, 5, 30, 30), fill=("green", "red")[user])
        images.append(image)
    return images


def config(user: int = 0, **changes: Any) -> TrainingConfig:
    fields = {
        "seed": user,
        "steps": 2 + user,
        "batch_size": 2,
        "rank": (3, 2)[user],
        "target": "all",
        "subject": "dog",
        "augmentations": 1,
        "learning_rate": 1e-2,
        "preview_steps": 2,
    }
    return TrainingConfig(**{**fields, **changes})


def unheard(_line: str) -> None:
    """Takes the progress lines."""


def opened(base: Base, wanted: list[TrainingConfig], lanes: int = 2) -> Cohort:
    rank = max(each.rank for each in wanted)
    cohort = Cohort(
        base, Shape.of(wanted[0]), rank=rank, slots=len(wanted), say=unheard, lanes=lanes
    )
    for user, each in enumerate(wanted):
        cohort.enter(Learner.of(each, base, photos(user), name=str(user)))
    return cohort


PRIOR: dict[str, Any] = {"prior_images": 3, "prior_weight": 0.7, "snr_gamma": 5.0}


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("sdxl", PRIOR),
        ("sdxl", {"gradient_checkpointing": True}),
        ("sd15", {**PRIOR, "gradient_checkpointing": True}),
        ("sd15", {"snr_gamma": 1.0}),
    ],
    ids=["sdxl-prior-snr", "sdxl-checkpointing", "sd15-all", "sd15-snr"],
)
def test_users_together_get_what_peft_trains_alone(
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    name: str,
    knobs: dict[str, Any],
) -> None:
    """In float64; the second user stays on alone, with his rows shared among two threads."""
    folder: Path = request.getfixturevalue("xl_dir" if name == "sdxl" else "sd15_dir")
    wanted = [config(user, **knobs) for user in range(2)]
    cohort = opened(in_double(folder), wanted)
    together: dict[int, dict[str, Tensor]] = {}
    while cohort.learners:
        for learner in cohort.step():
            slot = cohort.learners.index(learner)
            matrices = cohort.bank.matrices(slot, learner.config.rank)
            together[int(learner.name)] = {n.removeprefix("unet."): m.clone() for n, m in matrices}
            cohort.leave(learner)
    cohort.close()
    worst, change = 0.0, 1.0
    for user, each in enumerate(wanted):
        alone = train_alone_with_peft(in_double(folder), each, photos(user))
        ours = together[user]
        assert ours.keys() == alone.tensors.keys()
        worst = max(worst, *(float((ours[n] - alone.tensors[n]).abs().max()) for n in ours))
        change = min(change, alone.change)
    record_property(
        "figure",
        f"fused  2 users on a narrow {name}, {', '.join(knobs)}, float64: at most {worst:.1e} from "
        f"each trained alone with peft; training changes weights by {change:.0e}",
    )
    assert worst < 1e-12 < 1e-3 < change


@pytest.mark.parametrize("knobs", [{}, PRIOR], ids=["fixed captions", "two captions"])
def test_checkpointing_changes_time_and_not_gradients(xl_dir: Path, knobs: dict[str, Any]) -> None:
    found, passes = [], []
    base = load_base(xl_dir, CPU)
    resnet = base.pipeline.unet.up_blocks[0].resnets[0]
    called: list[int] = []
    resnet.norm2.register_forward_pre_hook(lambda *_: called.append(1))
    for is_checkpointed in (False, True):
        wanted = [config(user, gradient_checkpointing=is_checkpointed, **knobs) for user in (0, 1)]
        cohort = opened(base, wanted)
        called.clear()
        cohort.step()
        cohort.step()
        passes.append(len(called))
        found.append(cohort.bank.weights.clone())
        cohort.close()
        assert not base.pipeline.unet.is_gradient_checkpointing
    assert passes == [4, 8]  # 2 steps in 2 lanes
    assert torch.equal(*found)


def test_half_precision_is_the_frozen_weights_and_not_the_adapter(xl_dir: Path) -> None:
    base = load_base(xl_dir, CPU)
    single = {name: value.clone() for name, value in base.pipeline.unet.state_dict().items()}
    knobs = {"steps": 8, "batch_size": 3, **PRIOR}
    changes = []
    for precision in ("float32", "bfloat16"):
        wanted = [config(precision=precision, **knobs)]
        cohort = opened(base, wanted)
        before = cohort.bank.weights.clone()
        while not cohort.learners[0].has_ended:
            cohort.step()
        assert cohort.learners[0].material.latents.dtype == torch.float32
        assert cohort.bank.weights.dtype == torch.float32
        changes.append((cohort.bank.weights - before).flatten())
        if precision == "bfloat16":
            with cohort.drawing_as(cohort.learners[0]):
                assert preview(wanted[0], base, "{token}", 0).size == (RESOLUTION_PX,) * 2
        cohort.close()
    pipeline = base.pipeline
    parts = (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae)
    assert [part.dtype for part in parts] == [torch.bfloat16] * 3 + [torch.float32]
    assert torch.nn.functional.cosine_similarity(*changes, dim=0) > 0.9

    base.use("auto")  # on a CPU float32, with all its digits
    assert all(torch.equal(v, single[n]) for n, v in base.pipeline.unet.state_dict().items())


def test_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda native=native, **_: native)
        wanted = torch.bfloat16 if native else torch.float32
        assert dtype_of("auto", torch.device("cuda")) == wanted
        assert dtype_of("auto", CPU) == torch.float32
        assert dtype_of("bfloat16", CPU) == torch.bfloat16


def test_diffusers_loads_what_was_trained_into_sdxl(xl_dir: Path, tmp_path: Path) -> None:
    base = load_base(xl_dir, CPU)
    wanted = config(learning_rate=0.1)
    draw = torch.Generator().manual_seed(1)
    arguments = {
        "sample": torch.randn(2, 4, 8, 8, generator=draw),
        "timestep": torch.tensor([10, 900]),
        "encoder_hidden_states": torch.randn(2, 24, 40, generator=draw),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(2, 20, generator=draw),
            "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]]).expand(2, 6),
        },
    }
    with trained_alone(wanted, base, photos(), unheard) as (cohort, learner):
        save_file(cohort.tensors(learner), tmp_path / "adapter.safetensors")
        with cohort.drawing_as(learner), torch.no_grad():
            ours = base.pipeline.unet(**arguments).sample
            image = preview(wanted, base, "a photo of {token}", 3)
        assert {"similarity", "diversity"} <= measure(base, cohort, learner).keys()
    plain = StableDiffusionXLPipeline.from_pretrained(
        xl_dir, use_safetensors=True, local_files_only=True, add_watermarker=False
    )
    plain.set_progress_bar_config(disable=True)
    with torch.no_grad():
        untrained = plain.unet(**arguments).sample
        plain.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
        loaded = plain.unet(**arguments).sample
    torch.testing.assert_close(loaded, ours, rtol=1e-4, atol=1e-5)
    assert (loaded - untrained).abs().max() > 1e-3
    theirs = plain(
        "a photo of sks dog",
        num_inference_steps=wanted.preview_steps,
        guidance_scale=wanted.preview_guidance,
        height=RESOLUTION_PX,
        width=RESOLUTION_PX,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images[0]
    drawn = torch.tensor(list(image.tobytes())).view(RESOLUTION_PX, RESOLUTION_PX, 3)
    torch.testing.assert_close(drawn / 255, theirs.permute(1, 2, 0), rtol=0, atol=0.01)


def test_sdxl_learns_under_the_conditions_of_its_drawings(xl_dir: Path) -> None:
    base = load_base(xl_dir, CPU)
    material = prepare(config(), base, photos(), torch.Generator())
    text, _, pooled, _ = base.pipeline.encode_prompt("a photo of sks dog")
    assert torch.equal(material.text, text)
    assert torch.equal(material.added["text_embeds"], pooled)
    assert material.added["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("is_zero_terminal", [False, True], ids=["", "zero terminal snr"])
def test_min_snr_weighs_the_error_of_the_clean_image(
    base_dir: Path, kind: str, is_zero_terminal: bool
) -> None:
    """Whatever the UNet predicts: weight times its error is min(snr, gamma) times that error."""
    base = load_base(base_dir, CPU)
    base.noise_scheduler = base.noise_scheduler.from_config(
        base.noise_scheduler.config,
        prediction_type=kind,
        rescale_betas_zero_snr=is_zero_terminal,
    )
    weights = min_snr(base, 5.0)
    assert weights.isfinite().all()
    kept = base.noise_scheduler.alphas_cumprod.double()
    assert (kept[-1] == 0) == is_zero_terminal
    if is_zero_terminal:
        assert weights[-1] == (1 if kind == "epsilon" else 0)

    timesteps = torch.arange(0, 999, 37)
    draw = torch.Generator().manual_seed(0)
    clean, guess, noise = (
        torch.randn(len(timesteps), 2, 3, 3, dtype=torch.float64, generator=draw) for _ in range(3)
    )
    noisy, wanted = add_noise(base, clean, noise, timesteps)
    a, s = (x[timesteps].sqrt()[:, None, None, None] for x in (kept, 1 - kept))
    # What the UNet would have to say for its idea of the clean image to be ``guess``.
    said = {
        "epsilon": (noisy - a * guess) / s,
        "v_prediction": (a * noisy - guess) / s,
        "sample": guess,
    }[kind]
    snr = (kept / (1 - kept))[timesteps]
    expected = snr.clamp(max=5.0) * (guess - clean).square().mean((1, 2, 3))
    found = weights[timesteps] * (said - wanted).square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_without_gamma_all_errors_count_one(base_dir: Path) -> None:
    assert min_snr(load_base(base_dir, CPU), 0.0).eq(1).all()


def test_class_images_are_the_bare_bases_and_drawn_once(sd15_dir: Path) -> None:
    base = load_base(sd15_dir, CPU)
    wanted = [config(user, prior_images=9, rank=2) for user in (0, 1)]
    expected = base.pipeline(
        "a photo of dog",
        num_images_per_prompt=8,
        num_inference_steps=2,
        guidance_scale=wanted[0].preview_guidance,
        height=RESOLUTION_PX,
        width=RESOLUTION_PX,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    cohort = opened(base, wanted[:1])
    cohort.bank.weights.normal_()
    cohort.step()
    base.drawings.clear()
    drawn = draw_class(base, wanted[0])  # while others are in training
    cohort.close()
    assert drawn.shape == (9, 4, 8, 8)
    assert torch.equal(drawn[:8], expected)
    assert draw_class(base, wanted[1]) is drawn

    other = draw_class(base, config(prior_images=1, class_prompt="a dog in the snow"))
    assert not torch.equal(other, drawn[:1])
    for count in range(1, 12):
        draw_class(base, config(prior_images=count, preview_steps=1))
    assert len(base.drawings) == 8


def test_who_wants_other_rows_is_refused(sd15_dir: Path) -> None:
    base = load_base(sd15_dir, CPU)
    shape = Shape.of(config())
    assert Shape.of(config(prior_images=1)).rows == 2 * shape.rows == 4
    cohort = Cohort(base, shape, rank=3, slots=1, say=unheard)
    changes: list[dict[str, Any]] = [
        {"prior_images": 1},
        {"gradient_checkpointing": True},
        {"precision": "bfloat16"},
    ]
    for change in changes:
        with pytest.raises(ValueError, match="cannot enter"):
            cohort.enter(Learner.of(config(**change), base, photos()))
    cohort.enter(Learner.of(config(snr_gamma=5.0), base, photos()))
    cohort.close()


def test_the_attentions_of_sdxl_are_worked_on_together(xl_dir: Path) -> None:
    """All of them, or the fast paths are not what the tests above have tried."""
    base = load_base(xl_dir, CPU)
    cohort = opened(base, [config()])
    attentions = [m for m in base.pipeline.unet.modules() if isinstance(m, Attention)]
    assert all("forward" in vars(attention) for attention in attentions)
    cohort.close()


def _change(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLImg2ImgPipeline"},
            "is no StableDiffusionPipeline and no StableDiffusionXLPipeline",
        ),
        ("model_index.json", {"text_encoder": [None, None]}, "lacks one of SDXL's two"),
        ("unet/config.json", {"addition_time_embed_dim": 128}, "pooled embedding"),
        ("vae/config.json", {"latents_mean": [0, 0, 0, 0]}, "moves its latents"),
        ("limner-base.json", {"resolution_px": 60}, "no multiple of 8"),
    ],
)
def test_a_base_that_is_no_sdxl_is_refused(
    xl_dir: Path, tmp_path: Path, name: str, changes: dict[str, object], words: str
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(xl_dir, copy)
    _change(copy, name, **changes)
    with pytest.raises(LimnerError, match=words) as caught:
        load_base(copy, CPU)
    assert caught.value.code == "BASE_INVALID"


def test_a_unet_of_other_texts_is_refused(xl_dir: Path, sd15_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(sd15_dir, copy)
    shutil.rmtree(copy / "text_encoder")
    shutil.copytree(xl_dir / "text_encoder_2", copy / "text_encoder")
    with pytest.raises(LimnerError, match="takes text of 16 numbers, and gets 24"):
        load_base(copy, CPU)
