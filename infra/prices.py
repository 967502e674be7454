"""Prices, and what a stage can spend: the only place of infra that reads ``limner/prices.json``.

Upper bounds, from the dearest machine of the list and the longest that a job may run. They say how
much a loop can cost, not what a month will.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from workflows import retries

if TYPE_CHECKING:
    from infra.settings import StageSettings

_FILE: Final = "prices.json"
_PRICES: Final[dict[str, Any]] = json.loads(
    (resources.files("limner") / _FILE).read_text(encoding="utf-8")
)
AS_OF: Final[str] = _PRICES["as_of"]
CURRENCY: Final[str] = _PRICES["currency"]
_HOUR: Final[dict[str, float]] = _PRICES["instance_hour"]
HOURS_A_MONTH: Final = 730
# A stage whose training machines are busy for a tenth of the month is doing well; one that needs
# more has users to pay for it, and someone to raise the budget.
BUSY_SHARE: Final = 0.1


def unknown(instance_types: Iterable[str]) -> list[str]:
    """Those of the types that have no price."""
    return sorted({name for name in instance_types if name not in _HOUR})


def launch_at_most(settings: StageSettings) -> float:
    """What one launch can cost: a whole batch job on the dearest machines, to its last second.

    Restarts are in it, since MaxRuntimeInSeconds counts all attempts of a job; so is a warm pool
    that nobody uses afterwards. Spot machines cost less.
    """
    hours = max(
        retries.TRAINING_RUNTIME_S + settings.warm_pool_s,
        settings.batch_instances * (retries.BATCH_RUNTIME_S + settings.warm_pool_s),
    )
    return round(_dearest(settings) * hours / 3600, 2)


def day_at_most(settings: StageSettings) -> float:
    """What a day of training can cost: all machines of the concurrency budget, day and night."""
    return round(_dearest(settings) * settings.max_instances * 24, 2)


def budget(settings: StageSettings) -> int:
    """A month's budget: the endpoint at its smallest, and training machines busy for a tenth."""
    endpoint = _HOUR[settings.endpoint_instance_type] * settings.endpoint_instances
    training = _dearest(settings) * settings.max_instances * BUSY_SHARE
    return round((endpoint + training) * HOURS_A_MONTH)


def _dearest(settings: StageSettings) -> float:
    return max(_HOUR[name] for name in settings.training_instance_types)
