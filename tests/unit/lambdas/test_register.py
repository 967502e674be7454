"""Registering and submitting: once, whatever breaks, is repeated or happens at the same time."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

import pytest

from lambdas.register.logic import FORM_S
from limner.contracts import keys
from limner.contracts.errors import LimnerError
from limner.contracts.onboarding import OnboardingInput
from limner.contracts.statuses import RequestStatus
from limner.contracts.training import TrainingConfig
from limner.registry import Request
from tests.unit.lambdas.register_world import Memory, asked, photo, promise, submitted

SEQUENCES = 5_000
CALLS = 12


def refused(memory: Memory, event: dict[str, Any]) -> LimnerError:
    with pytest.raises(LimnerError) as caught:
        memory.desk().answer(event)
    return caught.value


def test_registering_writes_the_row_and_the_config_and_gives_a_form_for_each_photo() -> None:
    memory = Memory()
    event = asked(count=4, model_id="dog", retrain=True, config={"steps": 7, "subject": "dog"})
    answer = memory.desk().answer(event)

    request = Request.model_validate(memory.rows[answer["request_id"]])
    assert (request.status, request.photos, request.steps, request.retrain) == (
        RequestStatus.REGISTERED,
        4,
        7,
        True,
    )
    assert request.open == request.shard == keys.shard_of("alice")
    assert request.queue is None
    assert request.expires_at == 1_700_000_000 + 400 * 86_400
    config = TrainingConfig.model_validate(memory.config_of(request.request_id))
    assert config == TrainingConfig(steps=7, subject="dog")

    assert (answer["status"], answer["expires_s"]) == ("REGISTERED", FORM_S)
    for number, post in enumerate(sorted(answer["posts"], key=lambda p: p["sha256"])):
        wanted = sorted(event["photos"], key=lambda p: p["sha256"])[number]
        name = f"{wanted['sha256'][:20]}.png"
        assert post["fields"] == {
            "key": f"uploads/alice/{request.request_id}/{name}",
            "Content-Type": "image/png",
            "x-amz-checksum-algorithm": "SHA256",
            "x-amz-checksum-sha256": base64.b64encode(bytes.fromhex(wanted["sha256"])).decode(),
        }
        assert memory.rows[request.request_id]["uploads"][name] == wanted


def test_the_row_is_as_the_app_s_own_and_so_is_the_digest() -> None:
    memory = Memory()
    answer = memory.desk().answer(asked())
    row = memory.rows[answer["request_id"]]
    own = Request.new(
        "r1", "alice", "default", retrain=False, steps=160, photos=3, input_digest="", queued=False
    )
    # What is left out reads as its default.
    left_out = {"already_ready", "cancel_requested"}
    assert set(own.model_dump(exclude_none=True)) - left_out == set(row) - {"uploads"}


def test_a_submitted_request_waits_in_the_queue() -> None:
    memory = Memory()
    answer = memory.desk().answer(asked())
    memory.arrive(answer, *(photo(number) for number in range(3)))
    done = memory.desk().answer(submitted(answer["request_id"]))
    assert done == {"request_id": answer["request_id"], "status": "QUEUED"}
    row = memory.rows[answer["request_id"]]
    assert row["queue"] == row["shard"]
    assert row["queued_at"] > row["created_at"]
    assert "uploads" not in row
    assert memory.events == []


def test_or_an_event_starts_it() -> None:
    memory = Memory()
    answer = memory.desk().answer(asked(retrain=True))
    memory.arrive(answer, *(photo(number) for number in range(3)))
    event = submitted(answer["request_id"], start="event")
    assert memory.desk().answer(event)["status"] == "QUEUED"
    (detail,) = memory.events
    wish = OnboardingInput.model_validate(detail)
    assert (wish.request_id, wish.user_id, wish.retrain) == (answer["request_id"], "alice", True)
    assert set(detail) == set(OnboardingInput.model_fields)
    assert "queue" not in memory.rows[answer["request_id"]]


def test_photos_that_have_not_arrived_are_named() -> None:
    memory = Memory()
    answer = memory.desk().answer(asked(count=9))
    memory.arrive(answer, photo(0), photo(1))
    error = refused(memory, submitted(answer["request_id"]))
    assert error.code == "UPLOAD_INCOMPLETE"
    assert error.message.count("has not arrived.") == 5
    assert error.message.endswith("And 2 more.")
    missing = [promise(photo(number))["sha256"][:12] for number in range(2, 9)]
    assert sum(digits in error.message for digits in missing) == 5
    assert memory.rows[answer["request_id"]]["status"] == "REGISTERED"


def test_nobody_submits_for_somebody_else() -> None:
    memory = Memory()
    answer = memory.desk().answer(asked("alice"))
    memory.arrive(answer, *(photo(number) for number in range(3)))
    for user_id, request_id in (("bob", answer["request_id"]), ("alice", "unknown")):
        error = refused(memory, submitted(request_id, user_id))
        assert error.code == "REQUEST_NOT_FOUND"
    assert memory.moves == []


def test_a_token_of_the_app_is_a_token_here() -> None:
    memory = Memory()
    answer = memory.desk().answer(asked(client_token="signup"))
    assert answer["request_id"] == keys.request_id_of_token("alice", "signup")


@pytest.mark.parametrize(
    "other",
    [{"count": 4}, {"first": 1}, {"retrain": True}, {"model_id": "cat"}, {"config": {"steps": 9}}],
    ids=lambda other: next(iter(other)),
)
def test_a_token_with_other_input_is_a_conflict_that_changes_nothing(other: Any) -> None:
    memory = Memory()
    answer = memory.desk().answer(asked(client_token="t"))
    before = dict(memory.rows[answer["request_id"]])
    assert refused(memory, asked(client_token="t", **other)).code == "REQUEST_CONFLICT"
    assert memory.rows[answer["request_id"]] == before
    assert memory.config_of(answer["request_id"])["steps"] == 160


def test_who_has_submitted_gets_no_more_forms() -> None:
    memory = Memory()
    answer = memory.desk().answer(asked(client_token="t"))
    memory.arrive(answer, *(photo(number) for number in range(3)))
    memory.desk().answer(submitted(answer["request_id"]))
    again = memory.desk().answer(asked(client_token="t"))
    assert (again["status"], again["posts"]) == ("QUEUED", [])


def test_an_event_that_was_lost_is_sent_again_and_the_queue_takes_what_nobody_started() -> None:
    memory = Memory()
    answer = memory.desk().answer(asked())
    memory.arrive(answer, *(photo(number) for number in range(3)))

    def crash(call: str) -> None:
        if call == "announce":
            raise InterruptedError

    memory.before = crash
    event = submitted(answer["request_id"], start="event")
    with pytest.raises(InterruptedError):
        memory.desk().answer(event)
    assert memory.rows[answer["request_id"]]["status"] == "QUEUED"
    memory.before = lambda _: None
    memory.desk().answer(event)
    assert len(memory.events) == 1
    memory.desk().answer(submitted(answer["request_id"]))
    assert "queue" in memory.rows[answer["request_id"]]
    memory.desk().answer(event)  # the queue has it now
    assert len(memory.events) == 1


def test_equal_photos_count_once() -> None:
    memory = Memory()
    event = asked(count=3)
    event["photos"] += event["photos"]
    assert len(memory.desk().answer(event)["posts"]) == 3


class Crash(BaseException):
    """The function dies here."""


class Sequence:
    """One random sequence of calls, with crashes and with calls in the middle of others.

    The same token and body give the same answer, other bodies a conflict, and what is written is
    always what the first body said (promise P6).
    """

    BODIES = ({}, {"config": {"steps": 9}}, {"first": 1}, {"retrain": True})
    TOKENS = ("t1", "t2")

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.memory = Memory(before=self.disturb, after=self.disturb)
        self.depth = 0
        self.bodies: dict[str, int] = {}
        self.answers: dict[str, Any] = {}
        self.calls = 0

    def disturb(self, _: str) -> None:
        chance = self.draw.random()
        if chance < 0.04:
            raise Crash
        if chance < 0.12 and self.depth < 2:
            self.step()

    def run(self) -> int:
        for _ in range(CALLS):
            self.step()
        return self.calls

    def step(self) -> None:
        self.depth += 1
        step = self.draw.choice(
            (self.register, self.register, self.register, self.submit, self.upload, self.others)
        )
        try:
            step()
        except Crash:
            pass
        finally:
            self.depth -= 1
        self.check()

    def event(self, token: str, body: int) -> dict[str, Any]:
        return asked(client_token=token, **self.BODIES[body])

    def register(self) -> None:
        self.calls += 1
        token, body = self.draw.choice(self.TOKENS), self.draw.randrange(len(self.BODIES))
        request_id = keys.request_id_of_token("alice", token)
        try:
            answer = self.memory.desk().answer(self.event(token, body))
        except LimnerError as error:
            assert error.code == "REQUEST_CONFLICT"
            assert self.first_body(request_id) != body
            return
        assert answer["request_id"] == request_id
        assert self.first_body(request_id) == body
        if answer["status"] == "REGISTERED":
            assert self.answers.setdefault(request_id, answer) == answer
            config = self.memory.config_of(request_id)
            assert config["steps"] == self.BODIES[body].get("config", {}).get("steps", 160)
        else:
            assert answer["posts"] == []

    def first_body(self, request_id: str) -> int:
        """Which body the row was made of; it never changes."""
        row = self.memory.rows[request_id]
        (body,) = (n for n in range(len(self.BODIES)) if DIGESTS[n] == row["input_digest"])
        assert self.bodies.setdefault(request_id, body) == body
        return body

    def submit(self) -> None:
        self.calls += 1
        request_id = keys.request_id_of_token("alice", self.draw.choice(self.TOKENS))
        start = self.draw.choice(("queue", "event"))
        try:
            answer = self.memory.desk().answer(submitted(request_id, start=start))
        except LimnerError as error:
            assert error.code in {"REQUEST_NOT_FOUND", "UPLOAD_INCOMPLETE"}
        else:
            assert answer["status"] != "REGISTERED"

    def upload(self) -> None:
        if self.answers:
            answer = self.draw.choice(list(self.answers.values()))
            for number in range(4):
                if self.draw.random() < 0.9:
                    data = photo(number)
                    known = {post["sha256"] for post in answer["posts"]}
                    if promise(data)["sha256"] in known:
                        self.memory.arrive(answer, data)

    def others(self) -> None:
        """An execution claims a request, or somebody cancels it."""
        for request_id, row in self.memory.rows.items():
            status = RequestStatus(row["status"])
            if status is RequestStatus.QUEUED and self.draw.random() < 0.3:
                self.memory.move(request_id, RequestStatus.TRAINING)
                row["owner"] = "arn"
                row.pop("queue", None)
            elif not status.is_terminal and self.draw.random() < 0.05:
                self.memory.move(request_id, RequestStatus.CANCELLED)
                row.pop("queue", None)

    def check(self) -> None:
        queued = [request for request, status in self.memory.moves if status == "QUEUED"]
        assert len(queued) == len(set(queued)), "queued twice"
        for request_id in queued:
            body = self.first_body(request_id)
            first = self.BODIES[body].get("first", 0)
            prefix = keys.uploads_prefix("alice", request_id)
            present = {key.removeprefix(prefix)[:20] for key in self.memory.objects}
            wanted = {promise(photo(first + n))["sha256"][:20] for n in range(3)}
            assert wanted <= present, "queued without its photos"
            steps = self.BODIES[body].get("config", {}).get("steps", 160)
            assert self.memory.config_of(request_id)["steps"] == steps
        assert {event["request_id"] for event in self.memory.events} <= set(queued)


def digest_of(body: int) -> str:
    memory = Memory()
    answer = memory.desk().answer(asked(client_token="x", **Sequence.BODIES[body]))
    return str(memory.rows[answer["request_id"]]["input_digest"])


DIGESTS = [digest_of(body) for body in range(len(Sequence.BODIES))]


def test_random_sequences_keep_the_promise(record_property: Callable[[str, object], None]) -> None:
    calls = queued = 0
    for seed in range(SEQUENCES):
        sequence = Sequence(seed)
        calls += sequence.run()
        queued += sum(status == "QUEUED" for _, status in sequence.memory.moves)
    assert queued > SEQUENCES / 10, "the sequences come far enough to mean something"
    line = f"P6: {SEQUENCES:,} sequences, {calls:,} calls, {queued:,} queued: 0 violations"
    record_property("figure", line)
