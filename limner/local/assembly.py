"""Puts our layer into ministack: the one place that knows all parts of the laptop.

Importing this module imports ministack, which reads its settings from the environment.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from ministack import app
from ministack.core import lambda_runtime, responses, router
from ministack.services import dynamodb, eventbridge, lambda_svc, s3, sqs, stepfunctions
from ministack.services.cloudformation import provisioners

from limner.local import inert, semantics, triggers, uploads
from limner.local.backstage import TARGET_PREFIX, Backstage
from limner.local.clock import Clock
from limner.local.guard import Application, guarded
from limner.local.images import Images
from limner.local.objects import Objects
from limner.local.sagemaker import cloudformation, integration
from limner.local.sagemaker.api import SageMakerApi
from limner.local.sagemaker.endpoints import Endpoints
from limner.local.sagemaker.events import announcer
from limner.local.sagemaker.jobs import TrainingJobs
from limner.local.sagemaker.lifecycle import Platform
from limner.local.sagemaker.pools import WarmPools
from limner.local.sagemaker.store import Store
from limner.local.semantics import restarts
from limner.local.settings import DaemonSettings
from limner.local.trouble import Trouble

_log = logging.getLogger("limner.local")


@dataclass(frozen=True)
class Assembled:
    """A laptop that is ready to be served.

    Attributes:
        application: The ASGI application.
        jobs: Training jobs.
        endpoints: Models and endpoints.
    """

    application: Application
    jobs: TrainingJobs
    endpoints: Endpoints

    def announce_interrupted(self) -> None:
        """Tells EventBridge of the executions that the last stop has interrupted."""
        count = restarts.announce_interrupted(stepfunctions)
        if count:
            _log.warning("%d executions were interrupted by the last stop and have failed", count)

    def close(self) -> None:
        """Ends all containers."""
        self.jobs.close()
        self.endpoints.close()


def assemble(settings: DaemonSettings) -> Assembled:
    """Makes the parts, and registers them with ministack."""
    clock, trouble, images = Clock(settings.clock_scale), Trouble(), Images()
    objects = Objects(settings.endpoint_url)
    records = Store(settings.layout.sagemaker / "training-jobs")
    jobs = TrainingJobs(
        Platform(
            settings=settings,
            store=records,
            objects=objects,
            images=images,
            trouble=trouble,
            clock=clock,
            pools=WarmPools(records, clock),
            slots=threading.Semaphore(settings.jobs_at_once),
            closing=threading.Event(),
            announce=announcer(eventbridge),
        )
    )
    endpoints = Endpoints(settings, objects, images)
    api = SageMakerApi(jobs, endpoints, trouble)

    semantics.install(stepfunctions, lambda_runtime, lambda_svc, clock, trouble)
    schedules = triggers.install(
        eventbridge, lambda_svc, stepfunctions, sqs, dynamodb, responses, clock, trouble
    )
    uploads.install(s3)
    backstage = Backstage(settings, clock, trouble, images, records, schedules)
    integration.install(stepfunctions, api, jobs)
    cloudformation.install(provisioners, endpoints)
    inert.install(provisioners)
    router.SERVICE_PATTERNS["sagemaker"] = {"target_prefixes": ["SageMaker."]}
    router.SERVICE_PATTERNS["limner-local"] = {"target_prefixes": [TARGET_PREFIX]}
    app.SERVICE_HANDLERS["sagemaker"] = api.handle
    app.SERVICE_HANDLERS["limner-local"] = backstage.handle
    return Assembled(guarded(app.app), jobs, endpoints)
