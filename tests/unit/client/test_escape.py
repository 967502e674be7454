"""No user id and no model id reaches outside its own prefix (promise P19)."""

from __future__ import annotations

import posixpath
import random
import string
from collections.abc import Callable, Iterator
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


# What path traversals, decoders, templates and normalisers have fallen for elsewhere.
TRICKS = (
    *(
        "..",
        "../",
        "..\\",
        "/",
        "//",
        "./",
        "\\",
        "....//",
        "..;/",
        "/etc/passwd",
        "C:\\",
        "file://",
    ),
    *("%2e%2e%2f", "%2e", "%2F", "%5c", "%00", "%252e", "%c0%ae", "%u002e", "+", "%20", "&#46;"),
    *("\0", "\n", "\r\n", "\t", " ", "\x7f", "\x1b[0m", "\u200b", "\u202e", "\ufeff", "\u0301"),
    *(
        "\uff0e\uff0e\uff0f",
        "\u2024",
        "\u2215",
        "\u2044",
        "\u0130",
        "\u212a",
        "\ud800",
        "\U0001f600",
    ),
    *("{}", "{0}", "$.x", "States.Format", "${X}", "*", "?", "#v1", ":", "~", "'", '"', "<", "bob"),
    *("bob/default/v1.tar.gz", "../bob/default", "models/", "v1.tar.gz", ".tar.gz", "x" * 900),
)
VALID = string.ascii_letters + string.digits + "_-"
FUZZED = 50_000


def fuzzed(random_: random.Random) -> str:
    """A string of one of five kinds: valid, tricks, valid with a trick inside, noise, both."""
    valid = "".join(random_.choices(VALID.lower(), k=random_.randint(0, 66)))
    trick = "".join(random_.choices(TRICKS, k=random_.randint(1, 4)))
    noise = "".join(chr(random_.randrange(0x2FFF)) for _ in range(random_.randint(0, 40)))
    cut = random_.randint(0, len(valid))
    kinds = (valid, trick, valid[:cut] + trick + valid[cut:], noise, trick + noise)
    return random_.choice(kinds)


def escapes(user_id: str, model_id: str, version: int) -> bool | None:
    """Whether the names lead anywhere but to this very version; None if they are refused."""
    try:
        target = keys.target_model(user_id, model_id, version)
        key = keys.artifact_key(user_id, model_id, version)
    except LimnerError as error:
        return None if error.code == "INVALID_INPUT" else True
    plain = set(VALID)
    return not (
        target == f"{user_id}/{model_id}/v{version}.tar.gz"
        and key == f"models/{target}"
        and set(user_id) <= plain
        and set(model_id) <= plain
        and 0 < len(user_id) <= 64
        and 0 < len(model_id) <= 32
        and version >= 1
        and posixpath.normpath(f"/{key}") == f"/{key}"
    )


def test_target_models_cannot_be_injected(record_property: Callable[[str, object], None]) -> None:
    """P19: each string as a user, as a model, and as both; seeded, the same every time."""
    random_ = random.Random(19)
    verdicts = []
    for _ in range(FUZZED):
        text, version = fuzzed(random_), random_.choice((1, 2, 10**6, 0, -1))
        verdicts += [
            escapes(text, "default", version),
            escapes("alice", text, version),
            escapes(text, text, version),
        ]
    refused, passed = verdicts.count(None), verdicts.count(False)
    assert verdicts.count(True) == 0
    assert min(refused, passed) > FUZZED // 10, "both ways are tried"
    record_property(
        "figure",
        f"P19  {FUZZED:,} fuzzed strings as user, as model and as both: 0 escapes; "
        f"{refused:,} refused, {passed:,} gave exactly their own key",
    )


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
    limner = deployed.limner
    calls: tuple[Callable[[], object], ...] = (
        lambda: limner.generate(user_id, "x", model_id=model_id),
        lambda: limner.prefetch(user_id, model_id),
        lambda: limner.versions(user_id, model_id),
        lambda: limner.activate(user_id, model_id, 1),
        lambda: limner.roll_back(user_id, model_id),
    )
    for call in calls:
        with pytest.raises(LimnerError) as caught:
            call()
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
