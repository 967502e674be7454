"""What SageMaker tells the container: JSON files and channels.

A job is for one request, or, where it has a channel ``tasks``, a batch: then each host does its
share of the tasks. Source of names and forms: SageMaker developer guide, "How Amazon SageMaker AI
Provides Training Information".
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from limner.contracts.errors import LimnerError
from limner.contracts.keys import CONFIG_FILE
from limner.contracts.tasks import TASKS_CHANNEL, TASKS_FILE
from limner.contracts.training import TrainingConfig
from training.forms import read_form
from training.settings import Settings
from training.tasks import read_tasks

PHOTOS_CHANNEL: Final = "photos"
BASE_CHANNEL: Final = "base"
CONFIG_CHANNEL: Final = "config"


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
class Work:
    """One adapter that is to be made.

    Attributes:
        request_id: The wish that it fulfils.
        model_id: Which of the user's models it becomes.
        config: The choices of the fine-tune.
        photos_dir: The folder of the photos.
        predicted_s: Seconds that it was planned with; 0 where nothing was planned.
    """

    request_id: str
    model_id: str
    config: TrainingConfig
    photos_dir: Path
    predicted_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """One training job, as this host sees it.

    Attributes:
        resources: This host among the job's hosts.
        base_dir: The channel of the base.
        batch: Whether the job is a batch of tasks.
        share: What this host makes, in this order; empty where the others do it all.
        others: What the others make.
    """

    resources: ResourceConfig
    base_dir: Path
    batch: bool
    share: tuple[Work, ...]
    others: tuple[Work, ...] = ()


def read_job(settings: Settings) -> Job:
    """Reads and checks the container's config files.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming the file and the entry, or the missing channel.
    """
    channels = read_form(settings.config_dir / "inputdataconfig.json", InputDataConfig).root
    resources = read_form(settings.config_dir / "resourceconfig.json", ResourceConfig)
    photos_dir = _channel(settings, channels, PHOTOS_CHANNEL)
    base_dir = _channel(settings, channels, BASE_CHANNEL)
    batch = TASKS_CHANNEL in channels
    others: tuple[Work, ...] = ()
    if batch:
        share, others = _batch_shares(settings, channels, resources, photos_dir)
    else:
        share = _single_share(settings, channels, resources, photos_dir)
    return Job(resources=resources, base_dir=base_dir, batch=batch, share=share, others=others)


def read_base_dir(settings: Settings) -> Path:
    """The channel of the base: all that a worker is told by config files.

    Raises:
        LimnerError: ``INVALID_INPUT``, naming the file, or the missing channel.
    """
    channels = read_form(settings.config_dir / "inputdataconfig.json", InputDataConfig).root
    return _channel(settings, channels, BASE_CHANNEL)


def _channel(settings: Settings, channels: Collection[str], name: str) -> Path:
    if name not in channels:
        raise LimnerError("INVALID_INPUT", f"The job has no channel {name!r}.")
    folder = settings.data_dir / name
    if not folder.is_dir():
        raise LimnerError("INVALID_INPUT", f"The folder of the channel {name!r} is missing.")
    return folder


def _batch_shares(
    settings: Settings, channels: Collection[str], resources: ResourceConfig, photos_dir: Path
) -> tuple[tuple[Work, ...], tuple[Work, ...]]:
    """The tasks of this host, whose ``instance`` is its position, modulo all hosts; the others'.

    Modulo, because a job may get other machines than it was planned for, but no task may be left
    out or done twice.
    """
    tasks = read_tasks(_channel(settings, channels, TASKS_CHANNEL) / TASKS_FILE)
    share: list[Work] = []
    others: list[Work] = []
    for task in tasks:
        is_ours = task.instance % len(resources.hosts) == resources.index
        (share if is_ours else others).append(
            Work(
                request_id=task.request_id,
                model_id=task.model_id,
                config=task.config,
                photos_dir=photos_dir / task.photos,
                predicted_s=task.predicted_s,
            )
        )
    return tuple(share), tuple(others)


def _single_share(
    settings: Settings, channels: Collection[str], resources: ResourceConfig, photos_dir: Path
) -> tuple[Work, ...]:
    """The photos of one request are the work of one machine: the first of ``hosts``."""
    if settings.request_id is None:
        raise LimnerError("INVALID_INPUT", "Environment: LIMNER_REQUEST_ID: Field required.")
    if CONFIG_CHANNEL in channels:
        # The config holds prompts; a file in the bucket can be erased, a job's record cannot.
        config_dir = _channel(settings, channels, CONFIG_CHANNEL)
        config = read_form(config_dir / CONFIG_FILE, TrainingConfig)
    else:
        strings = read_form(settings.config_dir / "hyperparameters.json", Hyperparameters)
        config = TrainingConfig.from_hyperparameters(strings.root)
    if resources.index > 0:
        return ()
    return (
        Work(
            request_id=settings.request_id,
            model_id=settings.model_id,
            config=config,
            photos_dir=photos_dir,
        ),
    )
