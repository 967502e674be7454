"""The SVG itself: well-formed, the same every time, and unharmed by hostile text."""

import itertools
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import boto3
import pytest
from botocore.stub import Stubber

from limner.graph import draw, draw_execution, theme
from limner.graph.text import duration, fit, width_of, wrap

HERE = Path(__file__).parent
DEFINITION = json.loads((HERE / "onboard_like.asl.json").read_text())
HISTORIES = sorted(path.stem for path in (HERE / "histories").glob("*.json"))
SVG = "{http://www.w3.org/2000/svg}"


def recorded(name):
    return json.loads((HERE / "histories" / f"{name}.json").read_text())


def parse(svg):
    return ET.fromstring(svg)  # noqa: S314 - our own output


def drawn(name):
    history = recorded(name)
    return draw(DEFINITION, history["execution"], history["events"])


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


@pytest.fixture(params=HISTORIES)
def root(request):
    return parse(drawn(request.param))


def test_every_state_is_drawn_with_its_name(root):
    states = [g.get("data-state") for g in root.iter(f"{SVG}g") if g.get("data-state")]
    assert states == list(DEFINITION["States"])
    assert set(states) <= set(texts(root))


def test_it_is_self_contained(root):
    allowed = {"svg", "title", "g", "rect", "circle", "path", "text"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= allowed
    for element in root.iter():
        assert not any("href" in key or key.startswith("on") for key in element.attrib)


def test_it_fits_a_screen(root):
    assert 860 <= float(root.get("width")) <= 1100


def test_text_stays_inside_its_card(root):
    for card in (g for g in root.iter(f"{SVG}g") if g.get("data-state")):
        frame = card.find(f"{SVG}rect")
        width, height = float(frame.get("width")), float(frame.get("height"))
        for text in card.iter(f"{SVG}text"):
            x, size = float(text.get("x")), float(text.get("font-size"))
            long = width_of(text.text, size, bold="font-weight" in text.attrib)
            left = {"start": x, "middle": x - long / 2, "end": x - long}[
                text.get("text-anchor", "start")
            ]
            assert left >= 0
            assert left + long <= width
            assert size <= float(text.get("y")) <= height - 3


def test_lines_of_text_in_a_card_do_not_overlap(root):
    for card in (g for g in root.iter(f"{SVG}g") if g.get("data-state")):
        rows = sorted({float(text.get("y")) for text in card.iter(f"{SVG}text")})
        assert all(below - above >= 12 for above, below in itertools.pairwise(rows))


@pytest.mark.parametrize("name", HISTORIES)
def test_the_same_text_every_time(name):
    assert drawn(name) == drawn(name)


def test_retries_duration_and_error_are_written():
    words = texts(parse(drawn("throttled")))
    assert "2 retries" in words
    assert "47.0 s" in words
    assert "Succeeded" in words
    assert any("started 2025-11-22 08:26:40 UTC" in word for word in words)


def test_the_containers_reason_is_written():
    joined = " ".join(texts(parse(drawn("training_failed"))))
    assert "AlgorithmError: PHOTO_TOO_SMALL: photos/cat-3.png is 96 x 64 px" in joined


def test_taken_edges_stand_out():
    root = parse(drawn("laptop_task_timeout"))
    edges = [g for g in root.iter(f"{SVG}g") if g.get("data-edge")]
    strong = [g for g in edges if g.get("data-taken") == "yes"]
    assert len(strong) == 8
    assert [g.get("data-edge") for g in strong].count("catch") == 1
    assert edges[-len(strong) :] == strong, "what was taken lies on top"


def test_hostile_text_is_only_text():
    history = recorded("training_failed")
    evil = '<script>alert(1)</script>\x00\x1b[31m ]]> & "quotes" \'' + "Ω漢" * 90
    for event in history["events"]:
        if "taskFailedEventDetails" in event:
            event["taskFailedEventDetails"] |= {"error": "<b>" + evil, "cause": evil}
    history["execution"] |= {"name": evil, "error": evil, "cause": evil}
    root = parse(draw(DEFINITION, history["execution"], history["events"]))
    assert not any("script" in element.tag for element in root.iter())
    assert any("<script>" in word for word in texts(root))


def test_a_long_state_name_is_cut_and_kept_in_the_tool_tip():
    name = "AStateWithAVeryLongNameThatGoesOnAndOnUntilTheEightyCharactersOfTheLimitAreUsed"
    definition = {"StartAt": name, "States": {name: {"Type": "Pass", "End": True}}}
    root = parse(draw(definition, {"name": "x", "status": "RUNNING"}, []))
    assert name not in texts(root)
    assert any(name in (title.text or "") for title in root.iter(f"{SVG}title"))


def contrast(one, other):
    def luminance(colour):
        parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("look", theme.LOOKS.values(), ids=[o.name for o in theme.LOOKS])
def test_text_has_the_contrast_of_wcag_aa(look):
    assert contrast(look.text, look.fill) >= 4.5
    if look.mark:
        assert contrast(theme.INK, look.fill) >= 4.5
        assert contrast(theme.INK_SOFT, look.fill) >= 4.5
        assert contrast("#ffffff", look.line) >= 4.5


def test_marks_tell_outcomes_apart_without_colour():
    marks = [look.mark for look in theme.LOOKS.values()]
    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "<1 ms"),
        (0.0404, "40 ms"),
        (42.14, "42.1 s"),
        (59.96, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_long_words_are_cut_where_they_can_be():
    lines = wrap("SageMaker.ResourceLimitExceededException", 120, 11, 5)
    assert lines == ["SageMaker.Resource", "LimitExceeded", "Exception"]
    assert "".join(lines) == "SageMaker.ResourceLimitExceededException"


def test_a_cut_word_gets_no_space_when_the_rest_is_left_out():
    assert wrap("SageMaker.ResourceLimitExceededException", 120, 11, 2) == [
        "SageMaker.Resource",
        "LimitExceededExce…",
    ]


def test_wrapping_keeps_to_its_width_and_its_lines():
    lines = wrap("many words " * 40 + "x" * 300, 150, 11, 4)
    assert len(lines) == 4
    assert all(width_of(line, 11) <= 150 for line in lines)
    assert lines[-1].endswith("…")
    assert fit("short", 100, 11) == "short"


def test_an_execution_is_fetched_page_by_page():
    history = recorded("throttled")
    arn = history["execution"]["executionArn"]
    client = boto3.client(
        "stepfunctions",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    execution, events = history["execution"], history["events"]
    with Stubber(client) as stub:
        stub.add_response("describe_execution", execution, {"executionArn": arn})
        stub.add_response(
            "describe_state_machine_for_execution",
            {
                "stateMachineArn": execution["stateMachineArn"],
                "name": "onboard",
                "definition": json.dumps(DEFINITION),
                "roleArn": "arn:aws:iam::123456789012:role/onboard",
                "updateDate": execution["startDate"],
            },
            {"executionArn": arn},
        )
        stub.add_response(
            "get_execution_history",
            {"events": events[:20], "nextToken": "more"},
            {"executionArn": arn},
        )
        stub.add_response(
            "get_execution_history",
            {"events": events[20:]},
            {"executionArn": arn, "nextToken": "more"},
        )
        assert draw_execution(client, arn) == draw(DEFINITION, execution, events)
        stub.assert_no_pending_responses()
