"""Rounds, their order, and what is made of their times."""

import json

import pytest
import torch

from benchmarks.measured import Measured

CPU = torch.device("cpu")


def test_all_come_once_a_round_in_an_order_that_is_drawn_and_repeats() -> None:
    def orders() -> list[str]:
        found: list[str] = []
        measured = Measured(CPU)

        def of(name: str) -> None:
            found.append(name)
            measured.time(name, lambda: None)

        measured.in_rounds({name: lambda _, name=name: of(name) for name in "abcd"}, 20)
        assert {len(times) for times in measured.cpu.values()} == {20}  # the first is dropped
        return ["".join(found[i : i + 4]) for i in range(0, len(found), 4)]

    one = orders()
    assert {"".join(sorted(order)) for order in one} == {"abcd"}
    assert len(one) == 21
    assert len(set(one)) > 10
    assert one == orders()


def test_parts_are_added_round_by_round() -> None:
    measured = Measured(CPU)
    measured.cpu = {"load": [1.0, 2.0], "unload": [10.0, 20.0]}
    measured.wall = {"load": [3.0, 4.0], "unload": [30.0, 40.0]}
    measured.add("both", ["load", "unload"])
    assert measured.cpu["both"] == [11.0, 22.0]
    assert measured.wall["both"] == [33.0, 44.0]


def test_a_figure_tells_how_many_times_faster_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    measured = Measured(CPU)
    measured.cpu = {"ours": [1.0, 2.0, 9.0], "peer": [8.0, 8.0, 8.0]}
    measured.wall = {"ours": [4.0, 4.0, 4.0], "peer": [8.0, 8.0, 8.0]}
    measured.say("some", ["peer", "absent"], compared=["ours"], base="G")
    ours, peer = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert ours["times"] == {"peer": 4.0}
    assert (ours["clock"], ours["spread"], ours["per_second"]) == ("cpu", [1.0, 9.0], 500.0)
    assert peer["times"] == {}


def test_a_gpu_is_waited_for_and_asked_for_its_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    gpu = {
        "synchronize": lambda _: calls.append("wait"),
        "reset_peak_memory_stats": lambda _: calls.append("reset"),
        "memory_allocated": lambda _: 5_000_000,
        "max_memory_allocated": lambda _: 7_000_000,
    }
    for name, function in gpu.items():
        monkeypatch.setattr(torch.cuda, name, function)
    measured = Measured(torch.device("cuda"))
    measured.time("ours", lambda: calls.append("work"))
    assert calls == ["reset", "wait", "work", "wait"]
    measured.say("some", [])
    line = json.loads(capsys.readouterr().out)
    assert line["clock"] == "wall"
    assert line["spread"] == [line["wall_ms"]] * 2
    assert (line["device_peak_mb"], line["above_resident_mb"]) == (7.0, 2.0)
