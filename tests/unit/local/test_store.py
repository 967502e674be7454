"""Records survive, are copies, and are written whole; lists are paged."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.local.errors import ServiceError
from limner.local.sagemaker.pages import page
from limner.local.sagemaker.store import Store


def test_records_survive(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.add("a", {"n": 1})
    assert not store.add("a", {"n": 2})
    with store.change("a") as record:
        record["n"] = 3
    assert Store(tmp_path).get("a") == {"n": 3}
    assert store.remove("a")
    assert not store.remove("a")
    assert Store(tmp_path).all() == []


def test_what_is_handed_out_is_a_copy(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add("a", {"list": []})
    (copy,) = store.all()
    copy["list"].append(1)
    assert store.get("a") == {"list": []}


def test_a_change_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Store(tmp_path).change("absent"):
        pass


def test_pages_hold_everything_once() -> None:
    items, request, seen = list(range(7)), {"MaxResults": 3}, []
    while True:
        answer = page("Items", items, request)
        seen.append(answer["Items"])
        if "NextToken" not in answer:
            break
        request["NextToken"] = answer["NextToken"]
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("token", ["!", "bm8="])
def test_a_token_that_we_did_not_give_out(token: str) -> None:
    with pytest.raises(ServiceError, match="NextToken"):
        page("Items", [], {"NextToken": token})
