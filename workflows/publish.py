"""From a trained artifact to a model that serves.

::

    RecordModel ─> InspectArtifact ─> PublishArtifact ─> SmokeTest ─┐
                           │                                        │
            no good: the request has failed                         │
                                                                    │
    (onboarded) <─ RecordReadyAnnouncement <─ NotifyReady <─ ActivateModel
                                                                  │
                                                     READY, unannounced, open

A READY request stays in the index of open requests, ``unannounced``, until the app was told: there
``reconcile`` finds it whatever has become of its execution, and tells it. At least once, that is.
"""

from __future__ import annotations

from aws_cdk import aws_stepfunctions as sfn

from limner.contracts import keys
from limner.contracts.onboarding import SCHEMA_VERSION, OnboardingReady
from limner.contracts.statuses import RequestStatus, VersionStatus
from limner.contracts.writes import NOT_CANCELLED
from workflows.rows import ME, MODEL_KEY, NOW, REQUEST_KEY, VERSION_KEY
from workflows.tasks import StepFactory, TaskState, Write, literal, number, text, truth
from workflows.uses import Uses


def publish(
    step: StepFactory,
    uses: Uses,
    *,
    source: str,
    source_folder: str,
    onboarded: sfn.IChainable,
) -> TaskState:
    """Makes the chain.

    Args:
        step: The machine's factory; its table says where failures lead.
        uses: The stage.
        source: Intrinsic that gives ``bucket/key`` of the trained artifact.
        source_folder: First part of that key; where the right to read ends.
        onboarded: Where the request leads when its model serves.

    Returns:
        The first state.
    """
    record_model = step.transaction(
        "RecordModel",
        "The version exists and the request says so: both or neither.",
        [
            Write(
                uses.models,
                VERSION_KEY,
                update=(
                    "SET #status = :trained, #version = :version, #request_id = :request,"
                    " #job_name = :job, #artifact_key = :artifact, #target_model = :target,"
                    " #created_at = if_not_exists(#created_at, :now), #updated_at = :now"
                ),
                condition="attribute_not_exists(#model_row) OR #request_id = :request",
                values={
                    ":trained": literal(VersionStatus.TRAINED),
                    ":version": number("$.version.number"),
                    ":request": text("$.request_id"),
                    ":job": text("$.job.name"),
                    ":artifact": text("$.version.artifact_key"),
                    ":target": text("$.version.target_model"),
                    ":now": NOW,
                },
            ),
            Write(
                uses.requests,
                REQUEST_KEY,
                # The version, for a request that an earlier job or a worker has trained: then no
                # job was recorded that could have told it.
                update="SET #status = :trained, #version = :version, #updated_at = :now",
                # A request of a batch cannot be cancelled by stopping the batch: it ends here.
                condition=(
                    "#owner = :me AND #status IN (:training, :waiting, :trained)"
                    f" AND {NOT_CANCELLED}"
                ),
                values={
                    ":false": truth(False),
                    ":version": number("$.version.number"),
                    ":training": literal(RequestStatus.TRAINING),
                    ":waiting": literal(RequestStatus.WAITING_FOR_CAPACITY),
                    ":trained": literal(RequestStatus.TRAINED),
                    ":me": ME,
                    ":now": NOW,
                },
            ),
        ],
    )
    inspect_artifact = step.invoke(
        "InspectArtifact",
        "Is it whole, on the right base, and good enough to be served?",
        uses.inspect_artifact,
        {"request_id.$": "$.request_id", "artifact.$": source},
    )
    publish_artifact = step.copy_object(
        "PublishArtifact",
        "Copy the artifact under the endpoint's prefix, to a key that is never written again.",
        uses.bucket,
        source=source,
        source_folder=source_folder,
        target="$.version.artifact_key",
        target_folder=keys.MODELS,
    )
    smoke_test = step.invoke(
        "SmokeTest",
        "The first inference: proves that the model draws, and warms it up.",
        uses.smoke_test,
        {
            "request_id.$": "$.request_id",
            "target_model.$": "$.version.target_model",
        },
    )
    activate_model = step.transaction(
        "ActivateModel",
        "The version goes live, the model is free again, the request is done: all or nothing.",
        [
            Write(
                uses.models,
                MODEL_KEY,
                update=(
                    "SET #live_version = :version, #target_model = :target,"
                    " #updated_at = :now REMOVE #active_request"
                ),
                condition=(
                    "#active_request = :request"
                    " OR (#live_version = :version AND attribute_not_exists(#active_request))"
                ),
                values={
                    ":request": text("$.request_id"),
                    ":version": number("$.version.number"),
                    ":target": text("$.version.target_model"),
                    ":now": NOW,
                },
            ),
            Write(
                uses.models,
                VERSION_KEY,
                update="SET #status = :ready, #updated_at = :now",
                condition="#request_id = :request",
                values={
                    ":request": text("$.request_id"),
                    ":ready": literal(VersionStatus.READY),
                    ":now": NOW,
                },
            ),
            Write(
                uses.requests,
                REQUEST_KEY,
                update=(
                    "SET #status = :ready, #unannounced = :true, #updated_at = :now REMOVE #queue"
                ),
                condition="#owner = :me AND #status IN (:trained, :ready)",
                values={
                    ":true": truth(True),
                    ":trained": literal(RequestStatus.TRAINED),
                    ":ready": literal(RequestStatus.READY),
                    ":me": ME,
                    ":now": NOW,
                },
            ),
        ],
    )
    ready_event = OnboardingReady.model_fields["type"].default
    notify_ready = step.publish(
        "NotifyReady",
        "Tell the app that the user's model serves.",
        uses.topic,
        ready_event,
        sfn.TaskInput.from_object(
            {
                "type": ready_event,
                "schema_version": SCHEMA_VERSION,
                "request_id.$": "$.request_id",
                "user_id.$": "$.user_id",
                "model_id.$": "$.model_id",
                "version.$": "$.version.number",
                "target_model.$": "$.version.target_model",
            }
        ),
    )
    announced = step.update_item(
        "RecordReadyAnnouncement",
        "The app was told: the request is done in every respect.",
        Write(
            uses.requests,
            REQUEST_KEY,
            update="REMOVE #unannounced, #open",
            condition="#owner = :me AND #status = :ready AND #unannounced = :true",
            values={":true": truth(True), ":ready": literal(RequestStatus.READY), ":me": ME},
        ),
    )
    record_model.next(inspect_artifact).next(publish_artifact).next(smoke_test).next(
        activate_model
    ).next(notify_ready).next(announced).next(onboarded)
    return record_model
