"""S3 URIs in all the forms that AWS's tools write."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.local.errors import ServiceError
from limner.local.objects import Location, inside


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b/k/x", Location("b", "k/x")),
        ("s3://b/k/", Location("b", "k/")),
        ("s3://b", Location("b", "")),
        ("https://s3.us-east-1.amazonaws.com/b/k/x", Location("b", "k/x")),
        ("https://s3.amazonaws.com/b/k", Location("b", "k")),
        ("https://my-b.s3.eu-west-1.amazonaws.com/k/x", Location("my-b", "k/x")),
    ],
)
def test_forms(uri: str, expected: Location) -> None:
    assert Location.parse(uri) == expected


@pytest.mark.parametrize("uri", ["", "ftp://b/k", "b/k", "https://example.com/b/k"])
def test_other_texts(uri: str) -> None:
    with pytest.raises(ServiceError, match="not valid"):
        Location.parse(uri)


def test_below_joins_with_one_slash() -> None:
    assert Location("b", "jobs").below("x").uri == "s3://b/jobs/x"
    assert Location("b", "jobs/").below("x").uri == "s3://b/jobs/x"
    assert Location("b", "").below("x").uri == "s3://b/x"


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/x", "..", "", "a\0b"])
def test_keys_that_lead_out_of_the_folder(key: str) -> None:
    with pytest.raises(ServiceError, match="cannot be a file name"):
        inside(Path("folder"), key)


def test_keys_that_only_look_odd() -> None:
    assert inside(Path("folder"), "a..b/.c") == Path("folder/a..b/.c")
