"""Reading a published machine and filling in its placeholders."""

import json

import pytest

from limner.contracts.errors import LimnerError
from workflows import asl


@pytest.fixture
def values() -> dict[str, str]:
    return {name: f"value-of-{name}" for name in asl.placeholders("onboard")}


def test_load_fills_in_every_placeholder(values: dict[str, str]) -> None:
    text = asl.load("onboard", values)
    assert "${" not in text
    job = json.loads(text)["States"]["FineTune"]["Parameters"]
    assert job["RoleArn"] == "value-of-TrainingRoleArn"
    assert job["OutputDataConfig"] == {"S3OutputPath": "s3://value-of-BucketName/jobs"}


def test_values_are_text_not_json(values: dict[str, str]) -> None:
    values["TrainingImage"] = 'an "image" \\1 ${BucketName}'
    states = json.loads(asl.load("onboard", values))["States"]
    image = states["FineTune"]["Parameters"]["AlgorithmSpecification"]["TrainingImage"]
    assert image == values["TrainingImage"]


def test_a_missing_placeholder_is_named(values: dict[str, str]) -> None:
    del values["TopicArn"]
    with pytest.raises(LimnerError, match="INVALID_INPUT: onboard lacks values for TopicArn"):
        asl.load("onboard", values)


def test_an_unknown_placeholder_is_named(values: dict[str, str]) -> None:
    with pytest.raises(LimnerError, match="INVALID_INPUT: onboard has no placeholder Colour"):
        asl.load("onboard", {**values, "Colour": "blue"})
