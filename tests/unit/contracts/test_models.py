"""The data models that cross a boundary."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from limner.contracts.artifact import MEMBERS, SHELL_SHA256, PackedLayout, shell_files
from limner.contracts.base import base_digest, read_card
from limner.contracts.digests import input_digest
from limner.contracts.errors import LimnerError
from limner.contracts.generation import GenerateRequest
from limner.contracts.onboarding import OnboardingInput
from limner.contracts.training import TrainingConfig

CONFIGS = st.builds(
    TrainingConfig,
    seed=st.integers(0, 2**31 - 1),
    steps=st.integers(1, 20_000),
    rank=st.integers(1, 256),
    subject=st.sampled_from(["", "dog", "teddy bear"]),
    token=st.sampled_from(["sks", "true", "null", "zwx"]),
    preview_prompts=st.lists(st.sampled_from(["a photo of {token}", "1", "null"]), max_size=8),
    class_prompt=st.sampled_from(["", "a photo of dog", "true", "1"]),
    gradient_checkpointing=st.booleans(),
    precision=st.sampled_from(["auto", "float32", "bfloat16"]),
)


# Of the first release.
OLD_DIGEST = "9c5533a223b5e67e143d8a0f41882d2d485cb6aad4fbb554265ace98fcbc4abe"
OLD_FIELDS = [
    "seed",
    "steps",
    "batch_size",
    "learning_rate",
    "rank",
    "target",
    "token",
    "subject",
    "augmentations",
    "min_crop",
    "preview_prompts",
    "preview_steps",
    "preview_guidance",
]


@given(CONFIGS)
def test_a_config_survives_its_way_through_hyperparameters(config: TrainingConfig) -> None:
    sent = config.to_hyperparameters()
    assert all(isinstance(value, str) and len(value) <= 2_500 for value in sent.values())
    assert TrainingConfig.from_hyperparameters(sent) == config
    assert TrainingConfig.from_hyperparameters(sent).digest() == config.digest()


def test_a_digest_knows_nothing_of_a_knob_that_is_off() -> None:
    """What was trained, or wished for, before there was the knob has the digest that it had."""
    config = TrainingConfig()
    assert config.digest() == OLD_DIGEST
    for change in ({"snr_gamma": 5.0}, {"prior_images": 8}, {"precision": "float32"}):
        assert config.model_copy(update=change).digest() != OLD_DIGEST
    new = config.model_dump(mode="json")
    old = {name: value for name, value in new.items() if name in OLD_FIELDS}
    assert len(old) == len(OLD_FIELDS) < len(new)
    wishes = [input_digest("alice", "m", False, each, ["0" * 64]) for each in (old, new)]
    assert wishes[0] == wishes[1]


def test_class_images_have_a_caption() -> None:
    assert TrainingConfig(subject="dog").class_caption == "a photo of dog"
    assert TrainingConfig().class_caption == "a photo"
    config = TrainingConfig(subject="dog", class_prompt="a dog in a street")
    assert config.class_caption == "a dog in a street"


def test_a_wrong_hyperparameter_is_named() -> None:
    with pytest.raises(LimnerError, match="steps") as caught:
        TrainingConfig.from_hyperparameters({"steps": "many", "sagemaker_program": "x"})
    assert caught.value.code == "INVALID_INPUT"


def test_an_unknown_hyperparameter_is_refused() -> None:
    with pytest.raises(LimnerError, match="learning_rat"):
        TrainingConfig.from_hyperparameters({"learning_rat": "0.1"})


def test_hostile_ids_do_not_enter_a_workflow() -> None:
    with pytest.raises(LimnerError):
        OnboardingInput(request_id="r1", user_id="../bob")


@pytest.mark.parametrize(
    "change",
    [{"prompt": " "}, {"steps": 0}, {"images": 9}, {"guidance": float("nan")}, {"width": 100}],
)
def test_generation_is_bounded(change: dict) -> None:
    with pytest.raises(ValidationError):
        GenerateRequest.model_validate({"prompt": "a photo", **change})


def test_the_layout_does_not_depend_on_the_order_of_its_tensors() -> None:
    shapes = [("unet.b.lora_A.weight", (2, 3)), ("unet.a.lora_B.weight", (4, 2, 1, 1))]
    layout = PackedLayout.of(shapes)
    assert layout.digest() == PackedLayout.of(reversed(shapes)).digest()
    assert [item.name for item in layout] == ["unet.a.lora_B.weight", "unet.b.lora_A.weight"]
    assert [(item.start, item.stop) for item in layout] == [(0, 8), (8, 14)]
    assert layout.size == 14


def test_the_shell_is_a_part_of_every_artifact() -> None:
    files = shell_files()
    assert set(files) < set(MEMBERS)
    # A changed file has its hash added behind those of earlier releases.
    for name, content in files.items():
        assert hashlib.sha256(content).hexdigest() == SHELL_SHA256[name][-1], name


def test_a_base_changes_its_digest_with_any_byte(tmp_path) -> None:
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "model.safetensors"
    weights.write_bytes(b"a")
    before = base_digest(tmp_path)
    weights.write_bytes(b"b")
    assert base_digest(tmp_path) != before


def test_a_folder_without_a_card_is_no_base(tmp_path) -> None:
    with pytest.raises(LimnerError, match="BASE_INVALID"):
        read_card(tmp_path)
