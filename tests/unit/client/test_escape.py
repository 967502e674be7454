"""No user id and no model id reaches outside its own prefix (promise P19)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limner.contracts import keys
from limner.contracts.errors import LimnerError
from tests.unit.client.world import World, photos, world

NASTY = st.text(st.sampled_from("abAZ09_-./\\%*?#:$~ \0\n\u0301\u2024\uff0f"), max_size=70)
IDS = st.one_of(NASTY, st.text(max_size=70), st.from_regex(r"[A-Za-z0-9_-]{1,66}"))


@settings(max_examples=1_000, deadline=None)
@given(user_id=IDS, model_id=IDS, version=st.integers(-3, 10**7))
@example("alice\n", "default", 1)
@example("alice", "default#v1", 1)
@example("..", "..", 1)
@example("%2e%2e", "default", 1)
def test_keys_stay_inside_their_prefix(user_id: str, model_id: str, version: int) -> None:
    try:
        target = keys.target_model(user_id, model_id, version)
        uploads = keys.uploads_prefix(user_id, "r1")
    except LimnerError as error:
        assert error.code == "INVALID_INPUT"
        return
    assert target.split("/") == [user_id, model_id, f"v{version}.tar.gz"]
    assert uploads == f"uploads/{user_id}/r1/"
    for key in (f"models/{target}", uploads.rstrip("/")):
        assert posixpath.normpath(key) == key
        assert key.isascii()


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[World, list[str]]]:
    """One world with one user, bob, and the TargetModels that its endpoint was asked for."""
    with world() as deployed:
        deployed.put_model("bob", live=1)
        asked: list[str] = []

        def refuse(params: dict[str, Any], **_: object) -> None:
            asked.append(params["TargetModel"])
            raise AssertionError(f"{params['TargetModel']} was asked for")

        deployed.clients.runtime.meta.events.register(
            "provide-client-params.sagemaker-runtime.InvokeEndpoint", refuse
        )
        yield deployed, asked


@settings(max_examples=150, deadline=None)
@given(user_id=IDS.filter(lambda user_id: user_id != "bob"), model_id=IDS)
@example("bob/default", "v1")
@example("x/../bob", "default")
@example("bob ", "default")
def test_nobody_else_reaches_bobs_model(
    shared: tuple[World, list[str]], user_id: str, model_id: str
) -> None:
    deployed, asked = shared
    with pytest.raises(LimnerError) as caught:
        deployed.limner.generate(user_id, "x", model_id=model_id)
    assert caught.value.code in {"INVALID_INPUT", "MODEL_NOT_FOUND"}
    assert asked == []


@settings(max_examples=40, deadline=None)
@given(user_id=NASTY, model_id=NASTY, token=st.text(max_size=30))
def test_uploads_stay_with_their_user(
    shared: tuple[World, list[str]], user_id: str, model_id: str, token: str
) -> None:
    deployed, _ = shared
    before = set(deployed.uploaded())
    try:
        deployed.limner.onboard(user_id, photos(), model_id=model_id, client_token=token)
    except LimnerError as error:
        assert error.code in {"INVALID_INPUT", "REQUEST_CONFLICT"}
        assert set(deployed.uploaded()) == before
    else:
        new = set(deployed.uploaded()) - before
        assert all(key.startswith(f"uploads/{user_id}/") for key in new)
