"""A start on another ministack fails with a clear error."""

from __future__ import annotations

import pytest

from limner.contracts.errors import LimnerError
from limner.local import seams


def test_the_installed_ministack_fits() -> None:
    seams.check()


def test_another_version_is_refused() -> None:
    with pytest.raises(LimnerError, match=r"the laptop needs exactly 9\.9\.9") as error:
        seams.check(version="9.9.9")
    assert error.value.code == "LAPTOP_START_FAILED"


def test_a_missing_seam_is_named() -> None:
    with pytest.raises(LimnerError, match=r"lacks ministack\.core\.router\.gone"):
        seams.check({"ministack.core.router": ("SERVICE_PATTERNS", "gone")})
