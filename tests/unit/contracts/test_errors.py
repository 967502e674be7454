"""The registry of errors, and the page made from it."""

import pickle
from pathlib import Path

import pytest

from limner.contracts.errors import REGISTRY, LimnerError, as_markdown

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("spec", REGISTRY.values(), ids=REGISTRY)
def test_every_error_says_what_happened_and_what_to_do(spec) -> None:
    assert spec.code == spec.code.upper()
    assert 400 <= spec.http_status < 600
    assert spec.summary.endswith(".")
    assert spec.fix.endswith(".")


def test_one_shape() -> None:
    error = LimnerError("TOO_FEW_PHOTOS", "2 photos; at least 3 are needed.")
    assert error.to_dict() == {
        "error": {
            "code": "TOO_FEW_PHOTOS",
            "message": "2 photos; at least 3 are needed.",
            "retryable": False,
            "fault": "caller",
            "fix": REGISTRY["TOO_FEW_PHOTOS"].fix,
        }
    }
    assert str(error).startswith("TOO_FEW_PHOTOS: 2 photos; at least 3 are needed. Fix: ")


def test_it_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(LimnerError("THROTTLED", "slowly")))  # noqa: S301
    assert (error.code, error.message) == ("THROTTLED", "slowly")


def test_an_unknown_code_is_a_bug() -> None:
    with pytest.raises(KeyError):
        LimnerError("NO_SUCH_CODE")


def test_the_page_is_made_from_the_registry() -> None:
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert page == as_markdown(), "run `make docs`"
