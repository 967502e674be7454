"""The laptop's cells of the fault matrix: all at once, and each must end as it did in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from limner.contracts import keys
from tests.support.faults.laptop_cells import Staged, laptop_cells, staged
from tests.support.faults.light_laptop import MODEL, LightLaptop, light_laptop
from tests.support.laptop import until


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightLaptop]:
    with light_laptop(tmp_path_factory.mktemp("crowd")) as laptop:
        yield laptop


def stage(crowd: LightLaptop, cell: Staged) -> None:
    if cell.has_model:
        crowd.put_model(cell.user_id)
    crowd.put(cell.request_id, cell.user_id, fails=cell.fails)


def test_cells_end_on_the_laptop_as_they_do_in_memory(
    crowd: LightLaptop, figure: Callable[[str], None]
) -> None:
    cells = [staged(cell, number) for number, cell in enumerate(laptop_cells())]
    crowd.each(lambda cell: stage(crowd, cell), cells)
    crowd.laptop.control.trouble(faults=[fault for cell in cells for fault in cell.faults])
    crowd.each(lambda cell: crowd.start(cell.request_id, cell.user_id), cells)
    rows = crowd.rest([cell.request_id for cell in cells])
    crowd.laptop.control.trouble()
    until(crowd.models, lambda rows: not any("active_request" in row for row in rows.values()))

    models, jobs, wrong = crowd.models(), Counter(crowd.jobs()), []
    silent = {cell.request_id for cell in cells if "already_ready" in rows[cell.request_id]}
    wanted = {cell.request_id for cell in cells} - silent
    told = until(crowd.told, lambda heard: wanted <= heard.keys(), 30)
    for cell in cells:
        row = rows[cell.request_id]
        code = row.get("error", {}).get("M", {}).get("code", {}).get("S", "")
        if (row["status"]["S"], code) != cell.expected:
            wrong.append(f"{cell.cell}: {row['status']['S']} {code}, in memory {cell.expected}")
        versions = [
            version
            for (user, name), version in models.items()
            if user == cell.user_id and "#" in name and version["status"]["S"] == "READY"
        ]
        paid = jobs[keys.job_name(cell.request_id, 1)] + jobs[keys.job_name(cell.request_id, 2)]
        live = models.get((cell.user_id, MODEL), {}).get("live_version")
        if len(versions) > 1 or paid > 1 or (versions and live is None):
            wrong.append(f"{cell.cell}: {len(versions)} versions, {paid} jobs, live {live}")
        if cell.request_id not in silent and not told[cell.request_id]:
            wrong.append(f"{cell.cell}: nobody was told")
        if "open" in row:
            wrong.append(f"{cell.cell}: has ended, and is still open")
    assert not wrong, "\n".join(wrong)
    assert not crowd.gate()
    endings = Counter(row["status"]["S"] for row in rows.values())
    figure(
        f"matrix  {len(cells)} of its cells at once on the laptop: all as in memory ("
        + ", ".join(f"{n} {status}" for status, n in sorted(endings.items()))
        + ")"
    )
