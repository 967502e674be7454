"""The geometry of the drawing: no overlap, nothing outside, no line through a box."""

import itertools
import json
from pathlib import Path
from random import Random

import pytest

from limner.graph.layout import arrange
from limner.graph.machine import END, START, Edge, EdgeKind, read_machine

ROOT = Path(__file__).parents[3]
DEFINITIONS = [Path(__file__).parent / "onboard_like.asl.json"]
DEFINITIONS += sorted((ROOT / "workflows" / "asl").glob("*.asl.json"))
BRANCHING = {
    "StartAt": "A",
    "States": {
        "A": {"Type": "Choice", "Choices": [{"Next": "B"}, {"Next": "C"}], "Default": "D"},
        "B": {"Type": "Pass", "Next": "E"},
        "C": {"Type": "Wait", "Seconds": 1, "Next": "A"},
        "D": {"Type": "Task", "Resource": "arn:aws:states:::sns:publish", "End": True},
        "E": {"Type": "Pass", "End": True},
    },
}


def sizes_of(machine, height=lambda _: 54.0):
    sizes = {node.name: (230.0, height(i)) for i, node in enumerate(machine.nodes)}
    named = {edge.source for edge in machine.edges} | {edge.target for edge in machine.edges}
    return sizes | {name: (60.0, 28.0) for name in (START, END) if name in named}


def cases():
    for path in DEFINITIONS:
        yield pytest.param(json.loads(path.read_text()), id=path.name)
    yield pytest.param(BRANCHING, id="branching")


def any_machine(seed):
    """A definition with branches, loops, shared handlers and states that nothing leads to."""
    random = Random(seed)
    names = [f"State{number}" for number in range(random.randint(1, 22))]
    states = {}
    for number, name in enumerate(names):
        later = names[number + 1 :] or names
        draw = random.random()
        if draw < 0.2:
            anywhere = names if random.random() < 0.2 else later
            rules = [{"Next": random.choice(anywhere)} for _ in range(random.randint(1, 3))]
            states[name] = {"Type": "Choice", "Choices": rules, "Default": random.choice(later)}
        elif draw < 0.3 or name == names[-1]:
            states[name] = {"Type": random.choice(["Succeed", "Fail"])}
        else:
            way_on = {"End": True} if draw > 0.95 else {"Next": random.choice(later[:3])}
            catchers = [{"Next": random.choice(names[-3:])} for _ in range(random.randint(0, 2))]
            states[name] = {"Type": "Task", "Catch": catchers} | way_on
    return {"StartAt": names[0], "States": states}


@pytest.fixture(params=list(cases()))
def machine(request):
    return read_machine(request.param)


@pytest.fixture(params=["even", "uneven"])
def laid_out(machine, request):
    def uneven(index):
        return 54.0 + 37.0 * (index % 4)

    heights = {"even": lambda _: 54.0, "uneven": uneven}
    return arrange(machine, sizes_of(machine, heights[request.param]))


def assert_boxes_are_apart(laid_out):
    for (name, a), (other, b) in itertools.combinations(laid_out.boxes.items(), 2):
        apart = a.right <= b.x or b.right <= a.x or a.bottom <= b.y or b.bottom <= a.y
        assert apart, (name, other)


def test_everything_is_inside_the_canvas(laid_out):
    for box in laid_out.boxes.values():
        assert box.x >= 0
        assert box.y >= 0
        assert box.right <= laid_out.width + 1e-6
        assert box.bottom <= laid_out.height + 1e-6
    for route in laid_out.routes:
        for x, y in route.points:
            assert 0 <= x <= laid_out.width + 1e-6
            assert 0 <= y <= laid_out.height + 1e-6


def assert_lines_keep_clear_of_boxes(laid_out):
    for route in laid_out.routes:
        for (x1, y1), (x2, y2) in itertools.pairwise(route.points):
            for name, box in laid_out.boxes.items():
                crosses = (
                    min(x1, x2) < box.right - 1
                    and max(x1, x2) > box.x + 1
                    and min(y1, y2) < box.bottom - 1
                    and max(y1, y2) > box.y + 1
                )
                assert not crosses, (route.edge, name)


def test_boxes_do_not_overlap(laid_out):
    assert_boxes_are_apart(laid_out)


def test_no_line_runs_through_a_box(laid_out):
    assert_lines_keep_clear_of_boxes(laid_out)


@pytest.mark.parametrize("seed", range(40))
def test_any_machine_is_drawn_cleanly(seed):
    machine = read_machine(any_machine(seed))
    laid_out = arrange(machine, sizes_of(machine, lambda index: 54.0 + 37.0 * (index % 3)))
    assert {route.edge for route in laid_out.routes} == set(machine.edges)
    assert_boxes_are_apart(laid_out)
    assert_lines_keep_clear_of_boxes(laid_out)


def test_every_edge_is_drawn_from_border_to_border(machine, laid_out):
    assert len(laid_out.routes) == len(machine.edges)
    assert {route.edge for route in laid_out.routes} == set(machine.edges)
    for route in laid_out.routes:
        for point, name in ((0, route.edge.source), (-1, route.edge.target)):
            (x, y), box = route.points[point], laid_out.boxes[name]
            on_side = x in (pytest.approx(box.x), pytest.approx(box.right))
            on_edge = y in (pytest.approx(box.y), pytest.approx(box.bottom))
            assert on_side or on_edge, route.edge


def test_the_main_path_goes_straight_down(machine, laid_out):
    middles = [laid_out.boxes[name].middle for name in machine.spine]
    assert [y for _, y in middles] == sorted(y for _, y in middles)
    if len(machine.spine) > 3:
        assert max(x for x, _ in middles) - min(x for x, _ in middles) < 1


def test_a_handler_of_many_has_one_rail():
    machine = read_machine(json.loads(DEFINITIONS[0].read_text()))
    laid_out = arrange(machine, sizes_of(machine))
    rail = [r for r in laid_out.routes if r.edge.target == "RecordFailure"]
    rail = [r for r in rail if r.edge.kind is EdgeKind.CATCH]
    assert len(rail) == 10
    assert len({r.points[-3:] for r in rail}) == 1, "they arrive as one line"
    assert sum(r.own == r.points for r in rail) == 1, "all but one leave theirs at the next"


def test_the_same_layout_every_time(machine):
    assert arrange(machine, sizes_of(machine)) == arrange(machine, sizes_of(machine))


def test_rules_with_the_same_target_are_one_edge():
    definition = {
        "StartAt": "A",
        "States": {
            "A": {
                "Type": "Task",
                "Resource": "arn:aws:states:::aws-sdk:s3:copyObject",
                "Next": "B",
                "Catch": [{"ErrorEquals": ["States.ALL"], "Next": "B"}],
            },
            "B": {"Type": "Succeed"},
        },
    }
    machine = read_machine(definition)
    assert machine.edges == (Edge(START, "A", EdgeKind.NEXT), Edge("A", "B", EdgeKind.NEXT))
    assert (machine.nodes[0].service, machine.nodes[0].action) == ("S3", "CopyObject")


def test_the_spine_is_the_way_to_success():
    machine = read_machine(json.loads(DEFINITIONS[0].read_text()))
    assert machine.spine[0] == "CheckModelStatus"
    assert machine.spine[-1] == "Onboarded"
    assert "FineTune" in machine.spine
