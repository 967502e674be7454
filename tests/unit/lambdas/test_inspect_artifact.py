"""What may be published: archives that are whole, for this request, on this base, good enough."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from types import ModuleType
from typing import Any

import boto3
import pytest
from moto import mock_aws

from lambdas.inspect_artifact import archive, logic
from lambdas.record_failure.logic import explain
from lambdas.shared.settings import FIGURES, InspectArtifactSettings
from limner.contracts import artifact as form
from limner.contracts.errors import LimnerError
from tests.support.archives import MEMBERS, good_archive, manifest_of, packed

BASE = "tiny-1"
LEAST = {"similarity_gain": 0.2, "novelty": 0.3}


class Pipe:
    """A body of S3: it can be read, and nothing else."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def tar(*entries: tuple[str, bytes, bytes], size: int | None = None) -> bytes:
    """A .tar.gz of entries: name, kind, content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        for name, kind, content in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, len(content)
            made.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def whole(*more: tuple[str, bytes, bytes], prefix: str = "") -> bytes:
    shell = form.shell_files()
    members = [(f"{prefix}{name}", tarfile.REGTYPE, shell.get(name, b"{}")) for name in MEMBERS]
    return tar(*members, *more)


# -- The archive ----------------------------------------------------------------------------------


def test_the_copies_of_the_contract_are_equal() -> None:
    assert frozenset(form.MEMBERS) == archive.MEMBERS
    assert archive.MANIFEST == form.MANIFEST
    assert (archive.MAX_MEMBER_BYTES, archive.MAX_MANIFEST_BYTES) == (
        form.MAX_MEMBER_BYTES,
        form.MAX_MANIFEST_BYTES,
    )
    assert archive.SHELL_SHA256 == form.SHELL_SHA256
    schema = form.Manifest.model_fields["schema_version"]
    assert schema.default == logic.SCHEMA_VERSION
    assert set(FIGURES) == logic.WORDS.keys()


def test_the_manifest_streams_out() -> None:
    manifest = archive.read_manifest(Pipe(good_archive("r1")))
    assert json.loads(manifest)["request_id"] == "r1"


@pytest.mark.parametrize("name", sorted(form.SHELL_SHA256))
@pytest.mark.parametrize("edit", [b"\n", b" " * archive.MAX_SHELL_BYTES], ids=["edited", "huge"])
def test_code_that_is_not_ours_is_refused(name: str, edit: bytes) -> None:
    """Triton would run it, in the container that holds everybody's models."""
    contents = {**dict.fromkeys(MEMBERS, b"{}"), **form.shell_files()}
    contents[name] += edit
    content = tar(*((member, tarfile.REGTYPE, contents[member]) for member in MEMBERS))
    with pytest.raises(LimnerError, match=f"'{name}' is not Limner's own"):
        archive.read_manifest(Pipe(content))


def test_sagemakers_tar_has_folders_and_dots() -> None:
    folders = (("./", tarfile.DIRTYPE, b""), ("./1/", tarfile.DIRTYPE, b""))
    assert archive.read_manifest(Pipe(whole(*folders, prefix="./"))) == b"{}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "whole"),
        (b"no archive", "whole"),
        (good_archive("r1")[:-40], "whole"),
        (packed({}, MEMBERS[:-1]), "lacks manifest.json"),
        (packed({}, MEMBERS[1:]), "lacks config.pbtxt"),
        (whole(("weights.pkl", tarfile.REGTYPE, b"x")), "'weights.pkl' does not belong"),
        (whole(("../manifest.json", tarfile.REGTYPE, b"x")), "does not belong"),
        (whole(("manifest.json", tarfile.REGTYPE, b"x")), "does not belong"),
        (tar(("manifest.json", tarfile.SYMTYPE, b"")), "does not belong"),
        (tar(("2", tarfile.DIRTYPE, b"")), "does not belong"),
        (tar(("manifest.json", tarfile.REGTYPE, bytes(256_001))), "has 256001 bytes"),
    ],
    # Names of their own: gzip writes the second into the bytes, and pytest-xdist wants the same
    # names from each of its processes.
    ids=[
        *("empty", "no-archive", "truncated", "no-manifest", "no-config", "pickle"),
        *("path", "twice", "link", "folder", "large-manifest"),
    ],
)
def test_anything_else_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(LimnerError, match=words) as caught:
        archive.read_manifest(Pipe(content))
    assert caught.value.code == "ARTIFACT_INVALID"


def test_a_member_that_claims_too_much_is_not_read() -> None:
    entry = tarfile.TarInfo("adapter.safetensors")
    entry.size = archive.MAX_MEMBER_BYTES + 1
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        made.fileobj.write(entry.tobuf())  # type: ignore[union-attr]
    with pytest.raises(LimnerError, match="2000000001 bytes"):
        archive.read_manifest(Pipe(buffer.getvalue()))


# -- The judgement --------------------------------------------------------------------------------


def judge(least: dict[str, float] = LEAST, **changes: Any) -> dict[str, float]:
    return logic.judge(json.dumps({**manifest_of("r1"), **changes}).encode(), "r1", BASE, least)


def test_a_good_model_passes_with_its_figures() -> None:
    assert judge()["similarity_gain"] == 0.7
    assert judge(least={}, metrics={}) == {}
    assert judge(metrics={"similarity_gain": 0.2, "novelty": 0.3})  # just so


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"similarity_gain": 0.1, "novelty": 1}, r"similarity_gain is 0.1, at least 0.2 is asked"),
        ({"similarity_gain": 0.9, "novelty": 0.1}, "copies of the photos"),
        ({"similarity_gain": 0.9}, "novelty is missing"),
        ({}, "missing.*missing"),
    ],
)
def test_a_poor_model_is_the_callers_matter(metrics: dict[str, float], words: str) -> None:
    with pytest.raises(LimnerError, match=words) as caught:
        judge(metrics=metrics)
    spec = caught.value.spec
    assert (spec.code, spec.fault, spec.retryable) == ("QUALITY_TOO_LOW", "caller", False)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"schema_version": 2}, "ARTIFACT_INVALID"),
        ({"request_id": "r2"}, "ARTIFACT_INVALID"),
        ({"base_id": "sd-1"}, "ARTIFACT_WRONG_BASE"),
        ({"metrics": None}, "ARTIFACT_INVALID"),
        ({"metrics": {"loss": "low"}}, "ARTIFACT_INVALID"),
        ({"metrics": {"loss": float("nan")}}, "ARTIFACT_INVALID"),
    ],
)
def test_a_manifest_of_something_else_is_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(LimnerError) as caught:
        judge(**changes)
    assert caught.value.code == code


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_json_object_is_refused(manifest: bytes) -> None:
    with pytest.raises(LimnerError, match="ARTIFACT_INVALID"):
        logic.judge(manifest, "r1", BASE, {})


# -- The function ---------------------------------------------------------------------------------


def test_each_threshold_may_be_off() -> None:
    environment = {"BASE_ID": BASE, "QUALITY_NOVELTY": "0.3", "QUALITY_DIVERSITY": ""}
    settings = InspectArtifactSettings.from_env(environment)
    assert settings.least == {"novelty": 0.3}
    with pytest.raises(LimnerError, match="QUALITY_NOVELTY must be a number"):
        InspectArtifactSettings.from_env({**environment, "QUALITY_NOVELTY": "high"})


def test_the_function_reads_the_archive_where_it_lies(
    cold_start: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUALITY_SIMILARITY_GAIN", "0.2")
    with mock_aws():
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="jobs/j/model.tar.gz", Body=good_archive("r1"))
        handle = cold_start("inspect_artifact").handle
        event = {"request_id": "r1", "artifact": "bucket/jobs/j/model.tar.gz"}
        assert handle(event, None)["metrics"]["similarity_gain"] == 0.7
        with pytest.raises(LimnerError, match="left no artifact") as caught:
            handle({**event, "artifact": "bucket/jobs/k/model.tar.gz"}, None)
    told = json.dumps({"errorType": "LimnerError", "errorMessage": str(caught.value)})
    assert explain("LimnerError", told).code == "ARTIFACT_INVALID"
