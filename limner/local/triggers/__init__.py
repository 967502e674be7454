"""Corrections of what starts things: streams, rules, schedules, asynchronous invocations.

As in ``semantics``, each module corrects one thing of ministack and quotes AWS.
"""

from __future__ import annotations

from limner.local.clock import Clock
from limner.local.seams import Module
from limner.local.triggers import invocations, rules, streams
from limner.local.triggers.schedules import Schedules
from limner.local.trouble import Trouble


def install(
    eventbridge: Module,
    functions: Module,
    engine: Module,
    queues: Module,
    tables: Module,
    responses: Module,
    clock: Clock,
    trouble: Trouble,
) -> Schedules:
    """Puts all corrections in place, once, before the first event.

    Args:
        eventbridge: ``ministack.services.eventbridge``.
        functions: ``ministack.services.lambda_svc``.
        engine: ``ministack.services.stepfunctions``.
        queues: ``ministack.services.sqs``.
        tables: ``ministack.services.dynamodb``.
        responses: ``ministack.core.responses``.
        clock: The clock of back-off and of schedules.
        trouble: Faults on what rules start.

    Returns:
        The schedules, for who wants to fire one now.
    """
    invocations.install(functions, clock)
    streams.install(functions, tables, responses, clock)
    rules.install(eventbridge, functions, engine, queues, clock, trouble)
    schedules = Schedules(eventbridge, responses, clock)
    schedules.install()
    return schedules
