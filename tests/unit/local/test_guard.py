"""Which hosts are this machine."""

from __future__ import annotations

import pytest

from limner.local.guard import is_this_machine


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "bucket.localhost", "127.0.0.1", "127.8.8.8", "[::1]", "::1"]
)
def test_this_machine(host: str) -> None:
    assert is_this_machine(host)


@pytest.mark.parametrize(
    "host", ["", "example.com", "localhost.example.com", "127.0.0.1.nip.io", "8.8.8.8", "10.0.0.1"]
)
def test_other_machines(host: str) -> None:
    assert not is_this_machine(host)
