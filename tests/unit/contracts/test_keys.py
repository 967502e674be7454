"""Identifiers and keys: what is let in, and where it may end up."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.contracts import keys
from limner.contracts.errors import LimnerError

# SageMaker API reference, CreateTrainingJob.
TRAINING_JOB_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
REQUEST_IDS = st.from_regex(r"[a-z0-9](-?[a-z0-9]){0,39}", fullmatch=True)


@given(st.text(max_size=80))
def test_no_user_id_leaves_its_prefix(text: str) -> None:
    try:
        key = keys.artifact_key(text, "default", 1)
    except LimnerError as error:
        assert error.code == "INVALID_INPUT"
        return
    assert key.split("/") == ["models", text, "default", "v1.tar.gz"]
    assert ".." not in key
    assert not set(key) & set("*?%\\ \n")


@given(REQUEST_IDS, st.integers(min_value=1, max_value=99))
def test_job_and_execution_names_have_aws_s_grammar(request_id: str, attempt: int) -> None:
    assert TRAINING_JOB_NAME.fullmatch(keys.job_name(request_id, attempt))
    assert len(keys.execution_name(request_id, attempt)) <= 80


@pytest.mark.parametrize("value", ["", "../bob", "a/b", "a b", "-a", "a" * 65, "é", "a\n"])
def test_hostile_user_ids_are_refused(value: str) -> None:
    with pytest.raises(LimnerError, match="INVALID_INPUT"):
        keys.check_user_id(value)


def test_the_same_token_is_the_same_request_of_the_same_user() -> None:
    assert keys.request_id_of_token("alice", "t") == keys.request_id_of_token("alice", "t")
    assert keys.request_id_of_token("alice", "t") != keys.request_id_of_token("bob", "t")
    keys.check_request_id(keys.request_id_of_token("alice", "t"))
    keys.check_request_id(keys.new_request_id())


def test_versions_start_at_one() -> None:
    with pytest.raises(LimnerError, match="INVALID_INPUT"):
        keys.target_model("alice", "default", 0)


@pytest.mark.parametrize(
    "value",
    [
        *("", "alice/default/v1", "alice/default/v0.tar.gz", "alice/default/v01.tar.gz"),
        *("alice/v1.tar.gz", "../default/v1.tar.gz", "a/b/default/v1.tar.gz", "alice//v1.tar.gz"),
        *("alice/Default/v1.tar.gz", "alice/default/v1.tar.gz\n", "al*ce/default/v1.tar.gz"),
    ],
)
def test_another_form_is_no_target_model(value: str) -> None:
    assert keys.parts_of_target_model(value) is None


def test_a_target_model_tells_whose_it_is() -> None:
    target = keys.target_model("Alice_1", "dog", 12)
    assert keys.parts_of_target_model(target) == ("Alice_1", "dog", 12)


@pytest.mark.parametrize("date", ["", "2026-1-1", "2026-01-01/..", "2026-01-01\n"])
def test_a_generation_lies_below_its_user_and_day(date: str) -> None:
    assert keys.generation_prefix("alice", "2026-01-01", "g1") == "generations/alice/2026-01-01/g1/"
    with pytest.raises(LimnerError, match="INVALID_INPUT"):
        keys.generation_prefix("alice", date, "g1")
