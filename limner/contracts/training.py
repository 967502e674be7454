"""What a training job is told: the frozen config, and its form as SageMaker hyperparameters."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

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
    far lower learning rate and a smaller rank.

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

    @property
    def subject_phrase(self) -> str:
        """The words that a prompt uses for the subject: token and, where given, its kind."""
        return f"{self.token} {self.subject}".strip()

    @property
    def instance_prompt(self) -> str:
        """The caption of every photo."""
        return f"a photo of {self.subject_phrase}"

    def digest(self) -> str:
        """SHA-256 of the config, as 64 hexadecimal digits."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
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
