"""Fixtures of all tests."""

from tests.support.laptop import laptop, session_laptop
from tests.support.onboarding import session_stack, stack

__all__ = ["laptop", "session_laptop", "session_stack", "stack"]
