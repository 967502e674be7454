"""The event "SageMaker Training Job State Change" on EventBridge.

SageMaker developer guide, "Automating Amazon SageMaker with Amazon EventBridge": source
``aws.sagemaker``, with the job's description as detail, at each change of its status.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from limner.local.sagemaker.records import with_millisecond_times
from limner.local.sagemaker.store import Record
from limner.local.seams import Module


def announcer(eventbridge: Module) -> Callable[[Record], None]:
    """What tells ministack's default bus of a job's new status.

    Args:
        eventbridge: ``ministack.services.eventbridge``.
    """

    def announce(record: Record) -> None:
        entry = {
            "Source": "aws.sagemaker",
            "DetailType": "SageMaker Training Job State Change",
            "Detail": json.dumps(with_millisecond_times(record)),
            "Resources": [record["TrainingJobArn"]],
        }
        eventbridge._put_events({"Entries": [entry]}, allow_aws_source=True)

    return announce
