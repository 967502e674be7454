"""Fixtures of all tests."""

from tests.support.laptop import laptop, session_laptop

__all__ = ["laptop", "session_laptop"]
