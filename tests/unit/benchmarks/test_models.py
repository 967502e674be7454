"""Many users with few files."""

from pathlib import Path

import pytest

from benchmarks.models import digest_of, drop, drop_model, register
from limner.contracts import artifact
from limner.contracts.artifact import Manifest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    found = tmp_path / "source"
    (found / artifact.TRITON_SHELL).parent.mkdir(parents=True)
    for member in artifact.MEMBERS:
        (found / member).write_bytes(member.encode())
    manifest = Manifest(
        request_id="r",
        base_id="b",
        base_sha256="0" * 64,
        rank=4,
        token="sks",
        subject_phrase="sks person",
        target_modules=("unet.a",),
        layout_sha256="0" * 64,
        config_sha256="0" * 64,
        adapter_sha256="0" * 64,
        packed_sha256="0" * 64,
        metrics={},
    )
    (found / artifact.MANIFEST).write_text(manifest.model_dump_json())
    return found


def test_users_share_weights_and_no_digest(source: Path, tmp_path: Path) -> None:
    for user in (0, 16):
        register(source, tmp_path / str(user), user)
    shared = [member for member in artifact.MEMBERS if member != artifact.MANIFEST]
    for member in shared:
        assert (tmp_path / "0" / member).samefile(tmp_path / "16" / member)
    digests = [
        Manifest.model_validate_json(
            (tmp_path / str(user) / artifact.MANIFEST).read_bytes()
        ).adapter_sha256
        for user in (0, 16)
    ]
    assert digests == [digest_of(0), digest_of(16)]
    assert digests[0] != digests[1]


def test_what_is_dropped_from_the_cache_is_still_there(source: Path) -> None:
    drop_model(source)
    drop(source / artifact.ADAPTER, cold=False)
    for member in artifact.MEMBERS:
        if member != artifact.MANIFEST:
            assert (source / member).read_bytes() == member.encode()


def test_a_model_that_is_not_there_cannot_be_dropped(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        drop_model(tmp_path)
