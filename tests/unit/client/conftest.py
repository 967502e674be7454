"""Fixtures of the client's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.client.world import World, world


@pytest.fixture
def aws() -> Iterator[World]:
    with world() as deployed:
        yield deployed
