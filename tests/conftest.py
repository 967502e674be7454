"""Fixtures of all tests, and the figures of the promises at the end of the report."""

from tests.support.faults.figures import pytest_terminal_summary
from tests.support.laptop import laptop, session_laptop
from tests.support.onboarding import session_stack, stack

__all__ = ["laptop", "pytest_terminal_summary", "session_laptop", "session_stack", "stack"]
