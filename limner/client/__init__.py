"""The app's side of Limner: onboard users, follow their requests, generate with their models."""

from limner.capture import Counts
from limner.client.aws import Clients
from limner.client.facade import Limner, ModelStatus
from limner.client.generation import Generation, Image
from limner.client.polling import Clock
from limner.client.prefetching import Prefetched
from limner.client.progress import JobProgress, Progress, StateVisit
from limner.client.registration import Post, PromisedPhoto, Registration
from limner.client.versions import ModelVersions
from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from limner.registry import Model, Request, Version
from limner.settings import Deployment

__all__ = [
    "Clients",
    "Clock",
    "Counts",
    "Deployment",
    "Generation",
    "Image",
    "JobProgress",
    "Limner",
    "LimnerError",
    "Model",
    "ModelStatus",
    "ModelVersions",
    "Post",
    "Prefetched",
    "Progress",
    "PromisedPhoto",
    "Registration",
    "Request",
    "StateVisit",
    "TrainingConfig",
    "Version",
]
