"""Fixtures of all tests, and the figures of the promises at the end of the report."""

import gc

from hypothesis import HealthCheck, settings

from tests.support.faults.figures import pytest_terminal_summary
from tests.support.laptop import laptop, session_laptop
from tests.support.onboarding import session_stack, stack

# The same examples in every run, however slow the machine: a failure is the change's that shows it.
settings.register_profile(
    "limner", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("limner")

__all__ = ["laptop", "pytest_terminal_summary", "session_laptop", "session_stack", "stack"]


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end, so no garbage collection need walk through them again.

    It takes a quarter of a second, and trainings that recover from a failure do it each time.
    """
    gc.collect()
    gc.freeze()
