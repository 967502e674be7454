"""A user's browser uploads, the queue starts: the whole way on the real laptop, with training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from limner import local
from limner.cli.target import connect_laptop
from limner.client import Limner, TrainingConfig
from limner.contracts.errors import LimnerError
from limner.contracts.statuses import RequestStatus

PHOTOS = sorted((Path(__file__).resolve().parents[2] / "examples" / "photos" / "mug").glob("*.png"))
CONFIG = TrainingConfig(steps=2)
DEADLINE_S = 400


@pytest.fixture(scope="module")
def limner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limner]:
    folder = tmp_path_factory.mktemp("project")
    yield connect_laptop(local.start(folder, port=0))
    local.stop(folder)


@pytest.mark.timeout(900)
def test_registered_photos_become_a_model_by_way_of_the_queue(limner: Limner) -> None:
    registration = limner.register("alice", PHOTOS, client_token="t", config=CONFIG)
    with pytest.raises(LimnerError) as caught:
        limner.submit(registration.request_id)
    assert caught.value.code == "UPLOAD_INCOMPLETE"

    # One photo by the form of another: S3 itself refuses.
    first, second, *rest = registration.posts
    crossed = (replace(second, sha256=first.sha256), replace(first, sha256=second.sha256), *rest)
    with pytest.raises(LimnerError, match=r": 40[03]: ") as caught:
        replace(registration, posts=crossed).upload(PHOTOS)
    assert caught.value.code == "UPLOAD_INCOMPLETE"

    registration.upload(PHOTOS)
    request = limner.submit(registration.request_id)
    assert (request.status, request.queue) == (RequestStatus.QUEUED, request.shard)
    ready = limner.wait(request.request_id, timeout_s=DEADLINE_S, poll_s=0.5)
    assert (ready.status, ready.version, ready.queue) == ("READY", 1, None)
    assert limner.generate("alice", "a photo of {token}", steps=2).images
