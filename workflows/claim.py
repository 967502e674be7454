"""From a request to a plan: is there anything to do, and may this execution do it?

::

    CheckModelStatus ─ IsModelReady ─ yes ─> RecordAlreadyReady ─> (already ready)
                            │ no
    ClaimRequest ─> ReserveVersion ─> ReadReservation ─> IsReservationOurs ─ no ─> ModelBusy
         │ no: (not claimed)                                    │ yes                 │
                                                          PlanTraining             (failed)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aws_cdk import aws_stepfunctions as sfn

from limner.contracts import keys
from limner.contracts.errors import REGISTRY
from limner.contracts.statuses import RequestStatus
from limner.contracts.writes import NOT_CANCELLED
from workflows import retries
from workflows.rows import ME, MODEL_KEY, NOW, REQUEST_KEY, fill
from workflows.tasks import StepFactory, Value, Write, literal, number, text, truth
from workflows.uses import Uses

# An input is what somebody has sent; the row is what was asked for. One that speaks of another
# user's model than the row must not train, nor end, anything.
_AS_TOLD: Final = "#user_id = :user AND #model_id = :model"
_TOLD: Final = {":user": text("$.user_id"), ":model": text("$.model_id")}


@dataclass(frozen=True)
class Claim:
    """The chain.

    Attributes:
        start: Its first state.
        plan_training: Its last state, whose output is the plan.
    """

    start: sfn.TaskStateBase
    plan_training: sfn.Pass


def plan_version() -> dict[str, object]:
    """All names of the reserved version."""
    version = "$.reservation.Item.last_version.N"
    target = ("$.user_id", "$.model_id", version)
    return {
        "number.$": f"States.StringToJson({version})",
        "row.$": fill(keys.VERSION_ROW_TEMPLATE, "$.model_id", version),
        "target_model.$": fill(keys.TARGET_MODEL_TEMPLATE, *target),
        "artifact_key.$": fill(f"{keys.MODELS}/{keys.TARGET_MODEL_TEMPLATE}", *target),
    }


def claim(
    step: StepFactory,
    uses: Uses,
    *,
    plan: Mapping[str, object],
    already_ready: sfn.IChainable,
    failed: sfn.IChainable,
) -> Claim:
    """Makes the chain.

    Args:
        step: The machine's factory; its table says where a request leads that is not ours.
        uses: The stage.
        plan: What flows on from here, as ASL parameters.
        already_ready: Where a request leads whose model serves already.
        failed: Where a request leads whose model is busy, with the failure at its usual path.
    """
    check_model_status = step.get_item(
        "CheckModelStatus",
        "Does the user have a model that serves already?",
        uses.models,
        MODEL_KEY,
        result="$.model",
    )
    is_model_ready = sfn.Choice(
        step.scope,
        "IsModelReady",
        comment="A live version, and nobody asked for a new one: nothing to train.",
    )
    model_is_ready = sfn.Condition.and_(
        sfn.Condition.is_present("$.model.Item.live_version.N"),
        sfn.Condition.boolean_equals("$.retrain", False),
    )
    record_already_ready = step.update_item(
        "RecordAlreadyReady",
        "The request ends well without training.",
        Write(
            uses.requests,
            REQUEST_KEY,
            update=(
                "SET #status = :ready, #owner = :me, #already_ready = :true,"
                " #version = :version, #updated_at = :now REMOVE #open, #queue, #lease_until"
            ),
            condition=(
                f"{_AS_TOLD} AND ((#status = :queued AND attribute_not_exists(#owner))"
                " OR (#status = :ready AND #owner = :me))"
            ),
            values={
                **_TOLD,
                ":queued": literal(RequestStatus.QUEUED),
                ":ready": literal(RequestStatus.READY),
                ":true": truth(True),
                ":version": Value.number_from_string(
                    sfn.JsonPath.string_at("$.model.Item.live_version.N")
                ),
                ":me": ME,
                ":now": NOW,
            },
        ),
    )
    claim_request = step.update_item(
        "ClaimRequest",
        "From here on this execution owns the request; a second one finds it taken.",
        Write(
            uses.requests,
            REQUEST_KEY,
            update=(
                "SET #status = :training, #owner = :me, #attempt = :attempt, #updated_at = :now"
                " REMOVE #queue, #lease_until"
            ),
            # The last line recognises our own write when its reply was lost.
            condition=(
                f"{_AS_TOLD} AND ((#status IN (:queued, :waiting) AND attribute_not_exists(#owner)"
                f" AND {NOT_CANCELLED})"
                " OR (#status = :training AND #owner = :me))"
            ),
            values={
                **_TOLD,
                ":false": truth(False),
                ":queued": literal(RequestStatus.QUEUED),
                ":waiting": literal(RequestStatus.WAITING_FOR_CAPACITY),
                ":training": literal(RequestStatus.TRAINING),
                ":attempt": number("$.attempt"),
                ":me": ME,
                ":now": NOW,
            },
        ),
    )
    reserve_version = step.update_item(
        "ReserveVersion",
        "Take the next version number; one request at a time trains a model.",
        Write(
            uses.models,
            MODEL_KEY,
            update="SET #active_request = :request, #updated_at = :now ADD #last_version :one",
            condition="attribute_not_exists(#active_request)",
            values={":request": text("$.request_id"), ":one": Value.from_number(1), ":now": NOW},
        ),
    )
    read_reservation = step.get_item(
        "ReadReservation",
        "Who holds the model, and with which version? Also right after a lost reply.",
        uses.models,
        MODEL_KEY,
        result="$.reservation",
    )
    is_reservation_ours = sfn.Choice(
        step.scope, "IsReservationOurs", comment="Only the holder may train a new version."
    )
    reservation_is_ours = sfn.Condition.and_(
        sfn.Condition.is_present("$.reservation.Item.active_request.S"),
        sfn.Condition.string_equals_json_path(
            "$.reservation.Item.active_request.S", "$.request_id"
        ),
        # Another request may have gone live since CheckModelStatus looked; nobody wants to pay for
        # a second training. Who holds the model sees its last state.
        sfn.Condition.or_(
            sfn.Condition.is_not_present("$.reservation.Item.live_version.N"),
            sfn.Condition.boolean_equals("$.retrain", True),
        ),
    )
    model_busy = sfn.Pass(
        step.scope,
        "ModelBusy",
        comment="Another request of the same model is in progress, or has just made it ready.",
        result=sfn.Result.from_object(
            {"Error": "MODEL_BUSY", "Cause": REGISTRY["MODEL_BUSY"].summary}
        ),
        result_path=retries.FAILURE_PATH,
    )
    plan_training = sfn.Pass(
        step.scope,
        "PlanTraining",
        comment="All names that the rest needs, put together once.",
        parameters=dict(plan),
    )

    check_model_status.next(
        is_model_ready.when(model_is_ready, record_already_ready.next(already_ready)).otherwise(
            claim_request
        )
    )
    claim_request.next(reserve_version).next(read_reservation).next(
        is_reservation_ours.when(reservation_is_ours, plan_training).otherwise(model_busy)
    )
    model_busy.next(failed)
    return Claim(check_model_status, plan_training)
