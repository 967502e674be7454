"""What SageMaker tells the container: three JSON files and two channels.

Source of names and forms: SageMaker developer guide, "How Amazon SageMaker AI Provides Training
Information".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError, model_validator

from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig, explain
from training.settings import Settings

PHOTOS_CHANNEL: Final = "photos"
BASE_CHANNEL: Final = "base"

_Form = TypeVar("_Form", bound=BaseModel)


class ResourceConfig(BaseModel):
    """resourceconfig.json: who this host is among the job's hosts.

    Host names may change from job to job; only the position in ``hosts`` has a meaning.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    current_host: str
    hosts: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _current_is_listed(self) -> ResourceConfig:
        if self.current_host not in self.hosts:
            raise ValueError("current_host is not one of hosts")
        return self

    @property
    def index(self) -> int:
        """Position of this host, from 0."""
        return self.hosts.index(self.current_host)


class Hyperparameters(RootModel[dict[str, str]]):
    """hyperparameters.json: a flat map of strings."""


class InputDataConfig(RootModel[dict[str, dict[str, object]]]):
    """inputdataconfig.json: the channels by name, each with its mode and distribution."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training job.

    Attributes:
        config: The choices of the fine-tune.
        resources: This host among the job's hosts.
        photos_dir: The channel of the photos.
        base_dir: The channel of the base.
    """

    config: TrainingConfig
    resources: ResourceConfig
    photos_dir: Path
    base_dir: Path


def _read(path: Path, form: type[_Form]) -> _Form:
    try:
        return form.model_validate_json(path.read_bytes())
    except OSError as error:
        raise LimnerError(
            "INVALID_INPUT", f"{path.name} cannot be read: {error.strerror}."
        ) from error
    except ValidationError as error:
        raise LimnerError("INVALID_INPUT", f"{path.name}: {explain(error)}.") from error


def read_job(settings: Settings) -> Job:
    """Reads and checks the container's config files.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming the file and the entry, or the missing channel.
    """
    hyperparameters = _read(settings.config_dir / "hyperparameters.json", Hyperparameters)
    channels = _read(settings.config_dir / "inputdataconfig.json", InputDataConfig)
    resources = _read(settings.config_dir / "resourceconfig.json", ResourceConfig)
    for name in (PHOTOS_CHANNEL, BASE_CHANNEL):
        if name not in channels.root:
            raise LimnerError("INVALID_INPUT", f"The job has no channel {name!r}.")
        if not (settings.data_dir / name).is_dir():
            raise LimnerError("INVALID_INPUT", f"The folder of the channel {name!r} is missing.")
    return Job(
        config=TrainingConfig.from_hyperparameters(hyperparameters.root),
        resources=resources,
        photos_dir=settings.data_dir / PHOTOS_CHANNEL,
        base_dir=settings.data_dir / BASE_CHANNEL,
    )
