"""What each command prints and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limner.cli.boundary import EXIT_CODES
from limner.cli.main import app
from limner.client import Generation, Image, Limner, Prefetched
from limner.contracts.errors import REGISTRY, LimnerError
from limner.registry import RequestFailure
from tests.unit.cli.conftest import Shell
from tests.unit.client.world import World, photo

COMMANDS = (
    *("up", "down", "onboard", "status", "cancel", "generate", "versions", "activate", "prefetch"),
    *("metrics", "train", "graph", "doctor"),
)


def test_help_lists_the_commands_and_exit_codes() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(f"\n  {command} " in result.stdout for command in COMMANDS)
    assert "Exit codes: 0 done; 1 the work failed" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Usage: limner {command}" in result.stdout or f" {command} [OPTIONS]" in result.stdout
    assert "--json" in result.stdout
    assert "--debug" in result.stdout
    assert "Exit codes:" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, limner.cli.main\n"
        "try: limner.cli.main.app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'boto3', 'botocore', 'pydantic', 'rich', 'limner.client', 'limner.local'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_wrong_usage_exits_with_2(shell: Shell) -> None:
    result = shell("onboard")
    assert result.exit_code == 2
    assert "Missing argument" in result.stderr
    assert result.stdout == ""


# Onboarding.


def test_onboard_without_waiting(aws: World, shell: Shell) -> None:
    shell.photos(4)
    result = shell("onboard", "alice", "photos", "--no-wait", "--steps", "5")
    assert result.exit_code == 0, result.stderr
    (name,) = aws.executions()
    request_id = name.removesuffix("-1")
    assert f"Request {request_id} for alice's model default is QUEUED." in result.stdout
    assert f"Next: limner status alice --request {request_id}" in result.stderr
    assert len(aws.uploaded()) == 4


def test_onboard_into_the_queue(aws: World, shell: Shell) -> None:
    shell.photos(3)
    document = shell.json("onboard", "alice", "photos", "--queue", "--no-wait")
    assert document["request"]["queue"] == document["request"]["shard"]
    assert aws.executions() == []
    request_id = document["request"]["request_id"]
    result = shell("status", "alice", "--request", request_id)
    assert f"request {request_id} is QUEUED, in the queue" in result.stdout


def test_onboard_as_json_prints_one_document(aws: World, shell: Shell) -> None:
    shell.photos(3)
    document = shell.json("onboard", "alice", "photos", "--no-wait", "--model", "dog")
    assert document["request"]["status"] == "QUEUED"
    assert document["request"]["model_id"] == "dog"
    assert document["next"].startswith("limner status alice --request ")


def test_onboard_waits_and_says_what_to_type_next(aws: World, shell: Shell) -> None:
    shell.photos(3)
    words = ("onboard", "alice", "photos", "--client-token", "t")
    request = aws.limner.request(shell.json(*words, "--no-wait")["request"]["request_id"])
    aws.move(request, status="READY", version=1)
    result = shell(*words)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "alice's model default is ready: version 1.\n"
    assert "A State" in result.stderr
    assert f"request {request.request_id} is READY" in result.stderr
    assert "Next: limner generate alice 'a photo of {token} on the beach'" in result.stderr


def test_onboard_tells_the_requests_own_error(aws: World, shell: Shell) -> None:
    shell.photos(3)
    words = ("onboard", "alice", "photos", "--client-token", "t")
    request = aws.limner.request(shell.json(*words, "--no-wait")["request"]["request_id"])
    failure = RequestFailure(code="TRAINING_DIVERGED", message="loss is nan at step 3")
    aws.move(request, status="FAILED", error=failure)

    result = shell(*words)
    assert result.exit_code == 1
    assert "TRAINING_DIVERGED loss is nan at step 3\n" in result.stderr
    assert f"Fix: {REGISTRY['TRAINING_DIVERGED'].fix}\n" in result.stderr
    assert shell.json(*words) == LimnerError("TRAINING_DIVERGED", failure.message).to_dict()


def test_onboard_of_a_ready_model_says_so(aws: World, shell: Shell) -> None:
    shell.photos(3)
    words = ("onboard", "alice", "photos", "--client-token", "t")
    request = aws.limner.request(shell.json(*words, "--no-wait")["request"]["request_id"])
    aws.move(request, status="READY", already_ready=True)
    assert "was ready already; --retrain" in shell(*words).stdout


def test_onboard_ends_at_its_timeout(aws: World, shell: Shell) -> None:
    shell.photos(3)
    result = shell("onboard", "alice", "photos", "--timeout", "0")
    assert result.exit_code == 5
    assert "DEADLINE_EXCEEDED Request" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("photos", "missing.png"), "INVALID_INPUT missing.png does not exist."),
        (("notes.txt", "photos"), "PHOTO_NOT_AN_IMAGE notes.txt is not a PNG"),
        (("photos/0.png",), "TOO_FEW_PHOTOS Got 1 photos; at least 3"),
        (("photos", "--steps", "0"), "INVALID_INPUT steps: Input should be greater"),
        (("photos", "--model", "A B"), "INVALID_INPUT model id 'A B' must match"),
    ],
)
def test_bad_input_exits_with_2_and_a_fix(
    aws: World, shell: Shell, words: tuple[str, ...], message: str
) -> None:
    shell.photos(3)
    Path("notes.txt").write_text("no photo")
    result = shell("onboard", "alice", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "\nFix: " in result.stderr
    assert aws.uploaded() == []
    document = shell.json("onboard", "alice", *words)
    assert set(document["error"]) == {"code", "message", "retryable", "fault", "fix"}


def test_a_folder_gives_its_photos_only(aws: World, shell: Shell) -> None:
    folder = shell.photos(3)
    (folder / "notes.txt").write_text("no photo")
    (folder / ".hidden.png").write_bytes(b"no photo")
    (folder / "UPPER.JPG").write_bytes(photo(8, "JPEG"))
    document = shell.json("onboard", "alice", "photos", "--no-wait")
    assert document["request"]["photos"] == 4


def test_cancel(aws: World, shell: Shell) -> None:
    aws.put_request(request_id="r1", user_id="alice", status="QUEUED")
    assert shell("cancel", "r1").stdout == "Request r1 is CANCELLED.\n"
    assert shell("cancel", "r2").exit_code == 4
    batch = "arn:aws:states:us-east-1:123456789012:execution:onboard_batch:b1"
    aws.put_request(request_id="r3", user_id="alice", status="TRAINING", owner=batch)
    assert "shares a job with others, which goes on" in shell("cancel", "r3").stdout


# Status.


def test_status_lists_models_and_requests(aws: World, shell: Shell) -> None:
    aws.put_model("alice", "cat", live=None)
    aws.put_model("alice", "dog", live=2)
    failure = RequestFailure(code="NO_CAPACITY", message="none left")
    for number in range(7):
        aws.put_request(
            request_id=f"r{number}",
            user_id="alice",
            status="FAILED",
            error=failure,
            created_at=f"2026-01-01T00:00:0{number}.000Z",
        )
    lines = shell("status", "alice").stdout.splitlines()
    assert lines[:2] == ["model cat: not ready yet", "model dog: version 2 serves"]
    assert [line.split()[1] for line in lines[2:]] == ["r6", "r5", "r4", "r3", "r2"]
    assert lines[2].endswith("FAILED  NO_CAPACITY: none left")

    document = shell.json("status", "alice", "--limit", "2", "--model", "default")
    assert document["models"] == []
    assert [request["request_id"] for request in document["requests"]] == ["r6", "r5"]


def test_status_of_nobody(aws: World, shell: Shell) -> None:
    result = shell("status", "nobody")
    assert result.exit_code == 4
    assert "MODEL_NOT_FOUND nobody has no models." in result.stderr


def test_status_of_one_request_shows_its_states(aws: World, shell: Shell) -> None:
    shell.photos(3)
    request = shell.json("onboard", "alice", "photos", "--no-wait")["request"]
    document = shell.json("status", "alice", "--request", request["request_id"])
    assert [state["name"] for state in document["states"]] == ["A State"]
    assert document["request"] == request
    assert document["next"] == f"limner graph {request['request_id']}"
    other = shell("status", "bob", "--request", request["request_id"])
    assert other.exit_code == 4
    assert "REQUEST_NOT_FOUND" in other.stderr


def test_status_of_a_failed_request_says_what_to_do(aws: World, shell: Shell) -> None:
    shell.photos(3)
    words = ("onboard", "alice", "photos", "--no-wait")
    request = aws.limner.request(shell.json(*words)["request"]["request_id"])
    failure = RequestFailure(code="TRAINING_DIVERGED", message="loss is nan at step 3")
    aws.move(request, status="FAILED", error=failure)
    result = shell("status", "alice", "--request", request.request_id)
    assert "TRAINING_DIVERGED loss is nan at step 3" in result.stdout
    assert "Fix: Lower the learning rate." in result.stdout


# Generating and drawing.


def test_generate_writes_pngs(aws: World, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def draw(self: Limner, user_id: str, prompt: str, **options: object) -> Generation:
        asked.update(options, user_id=user_id, prompt=prompt)
        images = (Image(photo(4), 4), Image(photo(5), 5))
        return Generation(images, user_id, "dog", 3, "t", "a dog", "tiny-1", "a" * 64, 1.5)

    monkeypatch.setattr(Limner, "generate", draw)
    words = ("generate", "alice", "{token} runs", "-n", "2", "--seed", "4", "--model", "dog")
    result = shell(*words, "--out", "new/folder")
    assert result.exit_code == 0, result.stderr
    paths = result.stdout.splitlines()
    assert [Path(path).read_bytes() for path in paths] == [photo(4), photo(5)]
    assert all(path.startswith("new/folder/alice-dog-v3-") for path in paths)
    assert (asked["images"], asked["seed"], asked["model_id"]) == (2, 4, "dog")
    assert (asked["version"], asked["prompt"]) == (None, "{token} runs")

    document = shell.json(*words)
    assert [image["seed"] for image in document["images"]] == [4, 5]

    Path("file").write_text("")
    assert shell(*words, "--out", "file").exit_code == 2


@pytest.mark.parametrize(
    ("user", "options", "exit_code", "code"),
    [
        ("nobody", (), 4, "MODEL_NOT_FOUND"),
        ("alice", (), 5, "MODEL_NOT_READY"),
        ("alice", ("-n", "9"), 2, "INVALID_INPUT"),
        ("a/b", (), 2, "INVALID_INPUT"),
    ],
)
def test_generate_errors(
    aws: World, shell: Shell, user: str, options: tuple[str, ...], exit_code: int, code: str
) -> None:
    aws.put_model("alice", live=None)
    result = shell("generate", user, "x", *options)
    assert (result.exit_code, result.stderr.split()[0]) == (exit_code, code)
    assert list(shell.folder.iterdir()) == []


def test_versions_and_which_one_serves(aws: World, shell: Shell) -> None:
    aws.put_model("alice", live=2)
    lines = shell("versions", "alice").stdout.splitlines()
    assert [line.split()[1:3] for line in lines] == [
        ["3", "FAILED"],
        ["2", "READY"],
        ["1", "READY"],
    ]
    assert [line.endswith("  serves") for line in lines] == [False, True, False]
    document = shell.json("versions", "alice")
    assert (document["live_version"], document["previous"]) == (2, 1)
    assert [version["version"] for version in document["versions"]] == [3, 2, 1]
    assert shell("versions", "bob").exit_code == 4


def test_activate_an_older_version(aws: World, shell: Shell) -> None:
    aws.put_model("alice", live=3)
    assert shell("activate", "alice", "1").stdout == "alice's model default: version 1 serves.\n"
    assert shell.json("activate", "alice", "3")["live_version"] == 3
    assert shell("activate", "alice", "previous").stdout.endswith("version 1 serves.\n")


@pytest.mark.parametrize(
    ("version", "code", "exit_code"),
    [
        ("4", "MODEL_NOT_READY", 5),
        ("9", "VERSION_NOT_FOUND", 4),
        ("0", "INVALID_INPUT", 2),
        ("v1", "INVALID_INPUT", 2),
        ("../2", "INVALID_INPUT", 2),
    ],
)
def test_activate_errors(aws: World, shell: Shell, version: str, code: str, exit_code: int) -> None:
    aws.put_model("alice", live=3)
    result = shell("activate", "alice", version)
    assert result.exit_code == exit_code
    assert result.stderr.startswith(f"{code} ")


def test_activate_says_what_is_being_trained(aws: World, shell: Shell) -> None:
    aws.put_model("alice", live=2)
    aws.clients.dynamodb.update_item(
        TableName="models",
        Key={"user_id": {"S": "alice"}, "model_row": {"S": "default"}},
        UpdateExpression="SET active_request = :r",
        ExpressionAttributeValues={":r": {"S": "r7"}},
    )
    assert "Request r7 trains a new version" in shell("activate", "alice", "1").stdout
    assert "request r7 trains a new version" in shell("versions", "alice").stdout


def test_prefetch(aws: World, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def fetch(_: Limner, user: str, model: str, **options: object) -> Prefetched:
        asked.append((user, model, options))
        return Prefetched(user, model, 2, f"{user}/{model}/v2.tar.gz", 1.25)

    monkeypatch.setattr(Limner, "prefetch", fetch)
    result = shell("prefetch", "alice", "--model", "dog", "--version", "2", "--timeout", "9")
    assert result.stdout == "alice/dog/v2.tar.gz is in memory (1.2 s).\n"
    assert asked == [("alice", "dog", {"version": 2, "deadline_s": 9})]
    assert shell.json("prefetch", "alice")["version"] == 2


def test_graph_writes_the_svg(aws: World, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    request = aws.put_request(request_id="r1", user_id="alice", status="QUEUED")
    arn = aws.limner.execution_arn(request)
    monkeypatch.setattr("limner.graph.draw_execution", lambda _, of: f"<svg>{of}</svg>")
    assert shell("graph", "r1").stdout == "r1.svg\n"
    assert Path("r1.svg").read_text() == f"<svg>{arn}</svg>"
    document = shell.json("graph", "r1", "--out", "new/g.svg")
    assert document == {"request_id": "r1", "execution_arn": arn, "path": "new/g.svg"}
    assert Path("new/g.svg").exists()
    assert shell("graph", "r2").exit_code == 4


# The boundary.


def test_a_bug_is_told_as_one(aws: World, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(Limner, "cancel", broken)
    result = shell("cancel", "r1")
    assert result.exit_code == 70
    assert "INTERNAL ZeroDivisionError: by zero (--debug shows where)." in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in shell("cancel", "r1", "--debug").stderr
    assert shell.json("cancel", "r1")["error"]["code"] == "INTERNAL"


def test_an_interrupt_leaves_the_onboarding_alone(
    aws: World, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    shell.photos(3)
    monkeypatch.setattr(Limner, "follow", interrupt)
    result = shell("onboard", "alice", "photos")
    assert result.exit_code == 130
    assert "The onboarding goes on. Stop it: limner cancel " in result.stderr


def test_every_error_exits_with_a_documented_code(
    aws: World, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Limner, code: str) -> None:
        raise LimnerError(code)

    monkeypatch.setattr(Limner, "cancel", fail)
    monkeypatch.setattr("limner.cli.onboard.connect", lambda *_: aws.limner)
    for code, spec in REGISTRY.items():
        result = shell("cancel", code, "--json")
        assert f" {result.exit_code} " in f" {EXIT_CODES}"
        assert result.exit_code != 0
        assert json.loads(result.stdout) == LimnerError(code).to_dict()
        assert result.stderr == f"{code} {spec.summary}\nFix: {spec.fix}\n"
