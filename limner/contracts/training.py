"""What a training job is told: the frozen config, and its form as SageMaker hyperparameters."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from limner.contracts.config_table import without_later
from limner.contracts.errors import LimnerError

# SageMaker runs these regular expressions over the job's log and makes metrics of the groups
# (SageMaker API reference, MetricDefinition). ``training`` prints lines of this form.
METRIC_DEFINITIONS: Final = (
    ("train:loss", r"loss=([0-9.eE+-]+)"),
    ("train:step", r"step=([0-9]+)"),
    ("train:images_per_second", r"images_per_second=([0-9.eE+-]+)"),
)

Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=400)]


class TrainingConfig(BaseModel):
    """Every choice of one fine-tune; hashed into the artifact's manifest.

    The defaults were chosen on the tiny base, whose layers are narrow; a base of real size wants a
    far lower learning rate and a smaller rank (docs/bases.md). All that costs memory or time
    beyond a plain step is off.

    Attributes:
        seed: Seed of every random draw; the same seed and photos give the same adapter on a CPU.
        steps: Optimizer steps.
        batch_size: Images a step.
        learning_rate: Peak learning rate of AdamW, after warm-up, before cosine decay.
        rank: Rank of the LoRA matrices; alpha equals the rank, so the scale is 1.
        target: Which layers get an adapter: ``attention``, ``transformer`` (attention,
            feed-forward and projections) or ``all`` (those and the convolutions).
        token: The word that stands for the subject in prompts.
        subject: What the subject is, in one or two words; empty where the base shall not be told.
        augmentations: Random crops of each photo that are encoded and cached.
        min_crop: Side of the smallest crop, as a share of the photo's shorter side.
        preview_prompts: Prompts rendered right after training; ``{token}`` is filled in.
        preview_steps: Denoising steps of a preview image.
        preview_guidance: Guidance scale of a preview image.
        snr_gamma: Gamma of min-SNR weighting (Hang et al., 2023), which counts errors at little
            noise less; 5 is the paper's choice, 0 is off. Costs nothing.
        prior_images: Images of the subject's class that the bare base draws before training starts,
            and that are seen beside the photos, so that a dog does not become every dog; 0 is off.
            Costs these images once (shared by a job's subjects of one class, drawn as previews
            are), and then twice the rows: half as many users in a pass, steps of twice the time.
        prior_weight: What an error on a class image counts, an error on a photo being 1.
        class_prompt: Caption of the class images; empty for "a photo of" the subject without its
            token. Without a subject that says too little: then write one.
        gradient_checkpointing: Whether activations are computed again in the backward pass and not
            kept. A row of SDXL at 1024 px then keeps 0.5 GB instead of 5.6, one of SD 1.5 at 512 px
            0.15 instead of 0.8; costs a second forward pass through the blocks, about a third more
            time a step. The same adapter.
        precision: Of the frozen base; the adapter is trained in float32 always. ``bfloat16`` halves
            the base's memory and a row's, and is many times as fast on an accelerator that has it,
            but slow on most CPUs; ``auto`` is ``bfloat16`` there and ``float32`` elsewhere. A job
            whose requests differ in it reads the base once for each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, lt=2**31)
    steps: int = Field(default=160, ge=1, le=20_000)
    batch_size: int = Field(default=8, ge=1, le=64)
    learning_rate: float = Field(default=5e-3, gt=0, le=1, allow_inf_nan=False)
    rank: int = Field(default=32, ge=1, le=256)
    target: Literal["attention", "transformer", "all"] = "all"
    token: Annotated[str, StringConstraints(pattern=r"^[a-z]{2,12}$")] = "sks"  # noqa: S105
    subject: Annotated[str, StringConstraints(pattern=r"^[a-z]*( [a-z]+)?$", max_length=40)] = ""
    augmentations: int = Field(default=16, ge=1, le=256)
    min_crop: float = Field(default=0.94, gt=0, le=1, allow_inf_nan=False)
    preview_prompts: tuple[Prompt, ...] = Field(
        default=("a photo of {token}", "a photo of {token} on a blue background"), max_length=8
    )
    preview_steps: int = Field(default=20, ge=1, le=100)
    preview_guidance: float = Field(default=3.0, ge=0, le=20)
    snr_gamma: float = Field(default=0.0, ge=0, le=100)
    prior_images: int = Field(default=0, ge=0, le=1_000)
    prior_weight: float = Field(default=1.0, ge=0, le=10)
    class_prompt: Annotated[str, StringConstraints(pattern=r"^[ -~]*$", max_length=400)] = ""
    gradient_checkpointing: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @property
    def subject_phrase(self) -> str:
        """The words that a prompt uses for the subject: token and, where given, its kind."""
        return f"{self.token} {self.subject}".strip()

    @property
    def instance_prompt(self) -> str:
        """The caption of every photo."""
        return f"a photo of {self.subject_phrase}"

    @property
    def class_caption(self) -> str:
        """The caption of every class image."""
        return self.class_prompt or f"a photo of {self.subject}".removesuffix(" of ")

    def digest(self) -> str:
        """SHA-256 of the config, as 64 hexadecimal digits."""
        canonical = json.dumps(without_later(self.model_dump(mode="json")), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_hyperparameters(self) -> dict[str, str]:
        """The config as SageMaker wants it: a flat map of strings.

        At most 100 entries of at most 2,500 characters (SageMaker API reference,
        CreateTrainingJob).
        """
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in self.model_dump(mode="json").items()
        }

    @classmethod
    def from_hyperparameters(cls, hyperparameters: dict[str, str]) -> TrainingConfig:
        """Reads the config back from hyperparameters.json.

        Args:
            hyperparameters: The flat map of strings. Names with the prefix ``sagemaker_`` belong
                to SageMaker's own toolkits and are passed over.

        Raises:
            LimnerError: ``INVALID_INPUT``, naming each wrong entry.
        """
        values: dict[str, object] = {}
        for name, text in hyperparameters.items():
            if name.startswith("sagemaker_"):
                continue
            field = cls.model_fields.get(name)
            is_text = field is not None and field.annotation is str
            try:
                values[name] = text if is_text else json.loads(text)
            except json.JSONDecodeError:
                values[name] = text
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise LimnerError("INVALID_INPUT", f"Hyperparameters: {explain(error)}.") from error


def explain(error: ValidationError) -> str:
    """The entries that pydantic refused, in one line, without their values."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'value'}: {item['msg']}"
        for item in error.errors(include_input=False, include_url=False)
    )
