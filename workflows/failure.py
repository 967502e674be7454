"""The end of a request that failed: recorded, told, and noted as told.

::

    (record) ─> (notify) ─> (announced) ─> (failed)

A crash between two of them loses nothing: the record says ``unannounced`` until the app was told,
and the rule on the execution's end tells what is still unannounced. At least once, that is.
"""

from __future__ import annotations

from aws_cdk import aws_stepfunctions as sfn

from limner.contracts.onboarding import OnboardingFailed
from workflows import retries
from workflows.retries import FailureNames
from workflows.rows import REQUEST_KEY
from workflows.tasks import StepFactory, TaskState, Write, truth
from workflows.uses import Uses


def failure(
    step: StepFactory, uses: Uses, names: FailureNames, *, failed: sfn.IChainable
) -> TaskState:
    """Makes the chain.

    Args:
        step: The machine's factory.
        uses: The stage.
        names: Names of the states.
        failed: Where it ends.

    Returns:
        The first state, which reads the failure at its usual path.
    """
    record = step.invoke(
        names.record,
        "Name the failure, end the request with it, and free the model.",
        uses.record_failure,
        {
            "request_id.$": "$.request_id",
            "owner.$": "$$.Execution.Id",
            "failure.$": retries.FAILURE_PATH,
        },
        result="$.failed",
    )
    notify = step.publish(
        names.notify,
        "Tell the app what failed, and what to do about it.",
        uses.topic,
        OnboardingFailed.model_fields["type"].default,
        sfn.TaskInput.from_json_path_at("$.failed.body"),
    )
    announced = step.update_item(
        names.announced,
        "The app was told: nobody else needs to.",
        Write(
            uses.requests,
            REQUEST_KEY,
            update="REMOVE #unannounced",
            condition="#unannounced = :true",
            values={":true": truth(True)},
        ),
    )
    record.next(notify).next(announced).next(failed)
    return record
