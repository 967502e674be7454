"""The roles of training jobs, and the right to run them."""

from __future__ import annotations

from typing import Final

from aws_cdk import aws_iam as iam
from constructs import Construct

from infra import findings, rights
from infra.access import Doors, Objects
from infra.data import QUEUE
from infra.parts import Store
from infra.platform import Platform
from limner.contracts import keys
from workflows.tasks import TrainingJobs

# Fixed by keys.JOB_NAME_TEMPLATE; what the rights of the machines end at.
JOB_NAME_PREFIX: Final = keys.JOB_NAME_TEMPLATE.partition("{")[0]
# What a job is given, and what it makes. Checkpoints are read again when a job starts anew.
_READS: Final = (keys.UPLOADS, keys.CONFIGS, keys.BASES, keys.BATCHES, keys.PREVIEWS)
_WRITES: Final = (keys.JOBS, keys.BATCHES, keys.PREVIEWS)
# What a worker fetches for itself, and where it leaves what it makes.
_WORKER_READS: Final = (keys.UPLOADS, keys.CONFIGS, keys.BASES)
_WORKER_WRITES: Final = (keys.JOBS, keys.BATCHES, keys.PREVIEWS)


class Training(Construct):
    """What training jobs may do, and what whoever runs them may do.

    One role for all users: a warm pool is matched by its role, and a role for each user would
    undo it. A job's input and output are named by the state machine, not by the job. Workers take
    requests from the queue themselves, so they have a role of their own, with the queue in it.

    Attributes:
        jobs: The jobs of this stage.
        workers: The jobs that are workers.
        run: Policy of whoever runs any of them, but for the role that they give to SageMaker.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        platform: Platform,
        doors: Doors,
        store: Store,
    ) -> None:
        super().__init__(scope, construct_id)
        self._platform = platform
        role = self._role("Role")
        doors.open(role, "Training", Objects(reads=_READS, writes=_WRITES))
        self.jobs = TrainingJobs(JOB_NAME_PREFIX, role)

        worker = self._role("WorkersRole")
        doors.open(worker, "Workers", Objects(reads=_WORKER_READS, writes=_WORKER_WRITES))
        worker.add_to_policy(rights.records(store.requests, "GetItem", "UpdateItem"))
        worker.add_to_policy(rights.query(store.requests, QUEUE))
        self.workers = TrainingJobs(JOB_NAME_PREFIX, worker)

        self.run = iam.ManagedPolicy(
            self,
            "Run",
            description="Run this stage's training jobs; for state machines only.",
            statements=self.jobs.follow_statements(),
        )
        findings.forced_wildcard(
            self.run,
            findings.arn("sagemaker", f"training-job/{JOB_NAME_PREFIX}*"),
            "A job is named after its request and attempt, which do not exist when the stack is"
            " deployed (limner.contracts.keys.job_name); the prefix is this product's.",
        )

    def _role(self, construct_id: str) -> iam.Role:
        return iam.Role(
            self,
            construct_id,
            assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"),
            managed_policies=[self._platform.policy],
        )
