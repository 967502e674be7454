"""Corrections that make ministack's Step Functions behave as AWS documents it.

Each module corrects one thing, quotes the sentence of AWS behind it, and replaces module-level
functions of ministack's engine by wrappers. ``docs/parity.md`` is the table of them all.
"""

from __future__ import annotations

from limner.local.clock import Clock
from limner.local.seams import Module
from limner.local.semantics import (
    branches,
    errors,
    executions,
    limits,
    names,
    paths,
    restarts,
    retries,
    shapes,
    tasks,
)
from limner.local.trouble import Trouble


def install(
    engine: Module, runtime: Module, functions: Module, clock: Clock, trouble: Trouble
) -> None:
    """Puts all corrections in place, once, before the first execution.

    Args:
        engine: ``ministack.services.stepfunctions``.
        runtime: ``ministack.core.lambda_runtime``.
        functions: ``ministack.services.lambda_svc``.
        clock: The clock of waits and limits.
        trouble: Faults on the calls of task states.
    """
    executions.install(engine, clock)
    errors.install(engine)
    retries.install(engine, clock)
    tasks.install(engine, clock, trouble)
    paths.install(engine)
    limits.install(engine)
    branches.install(engine)
    names.install(engine, runtime, functions)
    shapes.install(engine)
    restarts.install(engine)
