"""The plain table of the training config says what ``TrainingConfig`` says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from limner.contracts.config_table import (
    RULES,
    Choice,
    Flag,
    Prompts,
    Real,
    Rule,
    Text,
    Whole,
    complete_config,
)
from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig

SCHEMA = TrainingConfig.model_json_schema()["properties"]


def as_schema(rule: Rule) -> dict[str, Any]:
    """A rule in the words of JSON schema."""
    match rule:
        case Whole(default, least, most):
            return {"default": default, "minimum": least, "maximum": most, "type": "integer"}
        case Real(default, least, most, above):
            lower = "exclusiveMinimum" if above else "minimum"
            return {"default": default, lower: least, "maximum": most, "type": "number"}
        case Text(default, pattern, max_chars):
            limit = {} if max_chars is None else {"maxLength": max_chars}
            return {"default": default, "pattern": pattern, "type": "string", **limit}
        case Flag(default):
            return {"default": default, "type": "boolean"}
        case Choice(default, words):
            return {"default": default, "enum": list(words), "type": "string"}
        case Prompts(default, max_items, max_chars):
            text = {"maxLength": max_chars, "minLength": 1, "type": "string"}
            return {
                "default": list(default),
                "items": text,
                "maxItems": max_items,
                "type": "array",
            }


@pytest.mark.parametrize("name", SCHEMA)
def test_each_rule_is_the_definition(name: str) -> None:
    wanted = {key: value for key, value in SCHEMA[name].items() if key != "title"}
    if "exclusiveMaximum" in wanted:  # of whole numbers alone
        wanted["maximum"] = wanted.pop("exclusiveMaximum") - 1
    assert as_schema(RULES[name]) == wanted


def test_there_is_a_rule_for_each_field_and_for_nothing_else() -> None:
    assert list(RULES) == list(TrainingConfig.model_fields)


NUMBERS = st.one_of(
    st.integers(-5, 30_000), st.integers(2**31 - 2, 2**31 + 1), st.floats(), st.just(10**400)
)
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["sks", "dog", "teddy bear", "dog\n", "", "a" * 41, "all", "attention"]),
    st.text(" \t\x1c\x85ax", max_size=5),
)
VALUES = st.one_of(
    NUMBERS, TEXTS, st.lists(st.one_of(TEXTS, st.just(" x " * 200), NUMBERS), max_size=9)
)
ANYTHING = st.one_of(VALUES, st.booleans(), st.none(), st.dictionaries(st.text(max_size=2), TEXTS))
DOCUMENTS = st.dictionaries(st.one_of(st.sampled_from(list(RULES)), st.just("other")), ANYTHING)
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        name: st.lists(TEXTS, max_size=9)
        if isinstance(rule, Prompts)
        else TEXTS
        if isinstance(rule, Text | Choice)
        else st.one_of(st.booleans(), NUMBERS)
        if isinstance(rule, Flag)
        else NUMBERS
        for name, rule in RULES.items()
    },
)


@settings(max_examples=1_000, deadline=None)
@given(st.one_of(DOCUMENTS, LIKELY))
def test_both_accept_the_same_documents(given_config: dict[str, Any]) -> None:
    """Strictly read: what pydantic would guess from another type is refused here."""
    text = json.dumps(given_config)
    try:
        wanted = TrainingConfig.model_validate_json(text, strict=True).model_dump(mode="json")
    except ValidationError:
        wanted = None
    try:
        found = complete_config(json.loads(text))
    except LimnerError as error:
        assert error.code == "INVALID_INPUT"
        found = None
    assert found == wanted
    if found is not None:
        assert json.dumps(found) == json.dumps(wanted)


def test_halves_of_characters_are_refused() -> None:
    half = json.loads('{"preview_prompts": ["\\ud800"]}')
    with pytest.raises(LimnerError, match="preview_prompts"):
        complete_config(half)


def test_a_message_names_the_fields_and_not_the_values() -> None:
    with pytest.raises(LimnerError) as caught:
        complete_config({"steps": 0, "subject": "Canary!", "preview_prompts": [""], "rnak": 3})
    text = str(caught.value)
    assert all(name in text for name in ("steps", "subject", "preview_prompts", "'rnak' is no"))
    assert "Canary" not in text
