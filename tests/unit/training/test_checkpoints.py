"""A job that was killed, and started again, makes what it would have made."""

from __future__ import annotations

import random
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from limner.contracts import artifact as form
from limner.contracts.training import TrainingConfig
from training import checkpoints as module
from training import production
from training.base import Base, load_base
from training.batch import train_all
from training.checkpoints import Checkpoints, Member, Plan
from training.cohort import Cohort, Learner, Shape
from training.job import Work
from training.results import finished
from training.runner import Outcome, Runner
from training.settings import Settings
from training.stopping import Stop, StoppedError
from training.works import Works

KILLS = 20
# Of the first user: past his first report, so that there are losses not yet reported.
STEPS = 11


class Killed(BaseException):
    """As SIGKILL: nothing is saved, nobody is asked."""


@pytest.fixture(scope="module")
def base(base_dir: Path) -> Base:
    return load_base(base_dir, torch.device("cpu"))


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    return lambda line: record_property("figure", line)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number, color in enumerate(("green", "red", "blue")):
        (root / f"r{number}").mkdir()
        for index in range(3):
            image = Image.new("RGB", (48, 40), "white")
            ImageDraw.Draw(image).ellipse((5 + index, 5, 30, 30), fill=color)
            image.save(root / f"r{number}" / f"{index}.png")
    return root


def works_of(photos: Path, count: int, *, images: int = 1) -> list[Work]:
    """Users who differ in seed, rank and steps; the third one waits for a slot."""
    return [
        Work(
            request_id=f"r{user}",
            model_id="default",
            config=TrainingConfig(
                seed=user,
                steps=(STEPS, 6, 8)[user],
                batch_size=2,
                rank=(2, 3, 2)[user],
                target="attention",
                augmentations=2,
                preview_prompts=("a photo of {token}", "{token}")[:images],
                preview_steps=1,
            ),
            photos_dir=photos / f"r{user}",
        )
        for user in range(count)
    ]


def settings_of(root: Path) -> Settings:
    # Two slots; the figures of models are another test's, and most of the time here.
    return Settings(base_dir=root, rows=4, checkpoint_every_s=3600, quality=False)


def runner(base: Base, settings: Settings, *, is_signed: bool = True, **options: Stop) -> Runner:
    return Runner(
        base,
        rows=settings.rows,
        previews_dir=lambda work: settings.task_dir(work.request_id),
        parts_dir=settings.parts_dir,
        is_signed=is_signed,
        checkpoints=Checkpoints.of(settings),
        **options,
    )


def start(base: Base, settings: Settings, works: Sequence[Work]) -> None:
    """As ``training.program`` starts a batch."""
    ended = [work for work in works if finished(settings, work.request_id)]
    todo = [work for work in works if work not in ended]
    if todo:
        train_all(settings, base, Works(todo, ended=ended), checkpoints=Checkpoints.of(settings))


def adapters(settings: Settings, works: Sequence[Work]) -> dict[str, bytes]:
    found = {}
    for work in works:
        with tarfile.open(settings.task_dir(work.request_id) / "model.tar.gz") as tar:
            for name in (form.ADAPTER, form.MANIFEST):
                file = tar.extractfile(name)
                assert file is not None
                found[f"{work.request_id}/{name}"] = file.read()
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


class Steps:
    """Counts the steps of all cohorts; kills before or after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        self.kill_at: int | None = None
        self.is_after = False
        sound = Cohort.step

        def step(cohort: Cohort) -> list[Learner]:
            if self.done == self.kill_at and not self.is_after:
                raise Killed
            ended = sound(cohort)
            self.done += 1
            if self.done == self.kill_at and self.is_after:
                raise Killed
            return ended

        monkeypatch.setattr(Cohort, "step", step)

    def next_start(self, *, kill_at: int | None = None, is_after: bool = False) -> None:
        self.done, self.kill_at, self.is_after = 0, kill_at, is_after


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def save_by_chance(monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> None:
    """So that a kill loses some steps, as one between two checkpoints does."""
    is_due = property(lambda _: chance.random() < 0.25)
    monkeypatch.setattr(Checkpoints, "is_due", is_due)


@pytest.mark.parametrize("users", [1, 3], ids=["alone", "three-in-two-slots"])
def test_a_run_killed_at_any_step_makes_the_same_bytes(
    base: Base,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: Steps,
    figure: Callable[[str], None],
    users: int,
) -> None:
    works = works_of(photos, users)
    unharmed = settings_of(tmp_path / "unharmed")
    start(base, unharmed, works)
    whole, expected = steps.done, adapters(unharmed, works)

    chance = random.Random(users)
    save_by_chance(monkeypatch, chance)
    repeated, results_kept = 0, 0
    for trial in range(KILLS):
        settings = settings_of(tmp_path / str(trial))
        kill_at = chance.randrange(1, whole)
        steps.next_start(kill_at=kill_at, is_after=chance.random() < 0.5)
        with pytest.raises(Killed):
            start(base, settings, works)
        before = {
            path: (path.stat().st_mtime_ns, path.read_bytes())
            for path in settings.checkpoint_dir.rglob("*")
            if path.is_file() and path.parent != settings.state_dir
        }
        results = {p.parent for p in before if p.name == "result.json"}
        left = names(settings.checkpoint_dir)
        steps.next_start()
        start(base, settings, works)
        assert adapters(settings, works) == expected, f"killed at step {kill_at}"
        assert left <= names(settings.checkpoint_dir), "nothing is deleted"
        for path, kept in before.items():
            if path.parent in results:
                assert (path.stat().st_mtime_ns, path.read_bytes()) == kept
        results_kept += len(results)
        repeated += kill_at + steps.done - whole
        shutil.rmtree(settings.base_dir)
    figure(
        f"P8 killed at {KILLS} random steps of {whole}, {users} user(s): adapters bit-identical in"
        f" {KILLS} of {KILLS}; {repeated / KILLS:.1f} steps repeated on average, with a checkpoint"
        f" every 4th step by chance; {results_kept} results found and kept"
    )


def test_one_job_dies_again_and_again(
    base: Base, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: Steps
) -> None:
    """Each start gets three steps further, and saves after each of them."""
    works = works_of(photos, 3)
    unharmed, settings = settings_of(tmp_path / "unharmed"), settings_of(tmp_path / "ml")
    start(base, unharmed, works)
    whole, starts = steps.done, 1
    monkeypatch.setattr(Checkpoints, "is_due", property(lambda _: True))
    steps.next_start(kill_at=3)
    while True:
        try:
            start(base, settings, works)
            break
        except Killed:
            starts += 1
            steps.next_start(kill_at=3)
    assert starts == -(-whole // 3)
    assert adapters(settings, works) == adapters(unharmed, works)


# -- Stopped --------------------------------------------------------------------------------------


def test_who_is_stopped_while_he_draws_goes_on_drawing(
    base: Base, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: Steps
) -> None:
    settings, works = settings_of(tmp_path / "ml"), works_of(photos, 1, images=2)
    unharmed = settings_of(tmp_path / "unharmed")
    (expected,) = runner(base, unharmed).run(works)
    stop, sound = Stop(), production.preview

    def preview(config: TrainingConfig, base: Base, prompt: str, seed: int) -> Image.Image:
        stop.ask()
        return sound(config, base, prompt, seed)

    with monkeypatch.context() as patched:
        patched.setattr(production, "preview", preview)
        with pytest.raises(StoppedError):
            list(runner(base, settings, stop=stop).run(works))
    assert names(settings.task_dir("r0")) == {"preview-00.png"}
    steps.next_start()
    (outcome,) = runner(base, settings).run(works)
    assert steps.done == 0
    assert outcome.made is not None
    assert expected.made is not None
    assert outcome.made.members == expected.made.members
    assert outcome.made.timings["train_seconds"] > 0
    assert names(settings.task_dir("r0")) == {"preview-00.png", "preview-01.png"}


def test_a_stop_loses_no_step(
    base: Base, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: Steps
) -> None:
    settings, works = settings_of(tmp_path / "ml"), works_of(photos, 1)
    list(runner(base, settings_of(tmp_path / "unharmed")).run(works))
    whole, stop, counted = steps.done, Stop(), Cohort.step

    def step(cohort: Cohort) -> list[Learner]:
        if steps.done == 4:
            stop.ask()
        return counted(cohort)

    steps.next_start()
    with monkeypatch.context() as patched:
        patched.setattr(Cohort, "step", step)
        with pytest.raises(StoppedError):
            list(runner(base, settings, stop=stop).run(works))
    assert steps.done == 5
    steps.next_start()
    list(runner(base, settings).run(works))
    assert steps.done == whole - 5


def test_a_stop_outside_of_the_loop_is_obeyed_at_once() -> None:
    stop = Stop()
    stop.obey()
    with pytest.raises(StoppedError):
        stop.ask()


def test_a_stop_inside_waits_for_whoever_obeys() -> None:
    stop = Stop()
    with stop.patience():
        stop.ask()
        with pytest.raises(StoppedError):
            stop.obey()


# -- The two files --------------------------------------------------------------------------------


@pytest.fixture
def saved(
    base: Base, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: Steps
) -> Iterator[Settings]:
    """A job of one request that was killed after its 6th step, and saved each of them."""
    settings = settings_of(tmp_path / "ml")
    steps.next_start(kill_at=6)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Checkpoints, "is_due", property(lambda _: True))
        list(runner(base, settings).run(works_of(photos, 1)))
    steps.next_start()
    assert not any(settings.parts_dir.iterdir())
    yield settings
    assert names(settings.state_dir) >= {"host-0-a.safetensors", "host-0-b.safetensors"}


def by_age(settings: Settings) -> list[Path]:
    """The files of the host, the newer one first."""
    paths = settings.state_dir.glob("host-0-*")
    return sorted(paths, key=lambda path: module._read(path)[0].serial, reverse=True)


def train_rest(base: Base, settings: Settings, works: Sequence[Work], steps: Steps) -> int:
    """Starts the job again; how many steps that took."""
    (outcome,) = runner(base, settings).run(works)
    assert isinstance(outcome, Outcome)
    assert outcome.made is not None
    return steps.done


def test_the_newer_file_counts(base: Base, photos: Path, saved: Settings, steps: Steps) -> None:
    assert train_rest(base, saved, works_of(photos, 1), steps) == STEPS - 6


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


def relabel(data: bytes) -> bytes:
    """Other metadata than what was hashed."""
    return re.sub(
        rb'(\\"elapsed_s\\":)(\d)', lambda found: found[1] + bytes([found[2][0] ^ 1]), data, count=1
    )


def later(data: bytes) -> bytes:
    return data.replace(b'{\\"form\\":1', b'{\\"form\\":2', 1)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (cut, "damaged"),
        (flip, "damaged"),
        (relabel, "damaged"),
        (lambda _: b"", "damaged"),
        (lambda _: b"Dear Sir or Madam", "damaged"),
        (later, "form"),
    ],
    ids=["cut", "flip", "relabel", "empty", "text", "later"],
)
def test_a_torn_file_leaves_the_older_one(
    base: Base,
    photos: Path,
    saved: Settings,
    steps: Steps,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[bytes], bytes],
    reason: str,
) -> None:
    newer, older = by_age(saved)
    data = newer.read_bytes()
    assert harm(data) != data
    newer.write_bytes(harm(data))
    assert train_rest(base, saved, works_of(photos, 1), steps) == STEPS - 5
    heard = capsys.readouterr().out
    assert f"event=passed_over checkpoint={newer.stem} reason={reason}" in heard
    assert "event=resumed learners=1" in heard
    older.write_bytes(harm(older.read_bytes()))


def test_two_torn_files_are_none(base: Base, photos: Path, saved: Settings, steps: Steps) -> None:
    for path in by_age(saved):
        path.write_bytes(cut(path.read_bytes()))
    assert train_rest(base, saved, works_of(photos, 1), steps) == STEPS


@pytest.mark.parametrize("other", ["request", "config", "base", "host"])
def test_a_checkpoint_of_something_else_is_passed_over(
    base: Base,
    photos: Path,
    saved: Settings,
    steps: Steps,
    capsys: pytest.CaptureFixture[str],
    other: str,
) -> None:
    (work,) = works_of(photos, 1)
    match other:
        case "request":
            work = replace(work, request_id="r1")
        case "config":
            work = replace(work, config=work.config.model_copy(update={"seed": 5}))
        case "base":
            base = replace(base, digest="0" * 64)
        case _:
            Checkpoints.of(saved, host=1).finish()
            for path in by_age(saved):
                path.rename(path.with_name(path.name.replace("host-0", "host-1")))
                path.touch()
    assert train_rest(base, saved, [work], steps) == STEPS
    heard = capsys.readouterr().out
    assert "event=resumed" not in heard
    if other != "host":
        assert heard.count("reason=other") == 2


def test_a_bank_of_another_layout_starts_anew(
    base: Base,
    photos: Path,
    saved: Settings,
    steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Cohort, "layout", lambda _: "of tomorrow")
    assert train_rest(base, saved, works_of(photos, 1), steps) == STEPS
    assert "event=passed_over" in capsys.readouterr().out


def test_photos_that_are_gone_are_their_works_own_trouble(
    base: Base, photos: Path, saved: Settings, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    (work,) = works_of(photos, 1)
    (outcome,) = runner(base, saved).run(Works([replace(work, photos_dir=tmp_path / "nothing")]))
    assert outcome.error is not None
    assert outcome.error.code == "TOO_FEW_PHOTOS"


def test_who_is_done_leaves_no_adapter_behind(
    base: Base, photos: Path, saved: Settings, steps: Steps
) -> None:
    works = works_of(photos, 1)
    train_all(saved, base, works, checkpoints=Checkpoints.of(saved))
    assert steps.done == STEPS - 6
    for path in by_age(saved):
        header, tensors = module._read(path)
        assert (header.plan, tensors) == (None, {})
    steps.next_start()
    assert train_rest(base, saved, works, steps) == STEPS


def test_a_short_job_of_one_leaves_no_files(base: Base, photos: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    train_all(settings, base, works_of(photos, 1), checkpoints=Checkpoints.of(settings))
    assert not settings.state_dir.exists()


def test_a_full_disk_costs_the_checkpoint_only(
    base: Base,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomically", full)
    monkeypatch.setattr(Checkpoints, "is_due", property(lambda _: True))
    settings = settings_of(tmp_path)
    train_all(settings, base, works_of(photos, 1), checkpoints=Checkpoints.of(settings))
    assert (settings.task_dir("r0") / "result.json").exists()
    assert "event=unsaved reason=OSError" in capsys.readouterr().out


def test_it_is_due_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    found = Checkpoints(tmp_path / "s", host=3, parts_dir=tmp_path / "parts", every_s=60)
    plan = Plan(base_sha256="", layout="", rank=1, slots=1, running=(), waiting=())
    now = 159.0
    assert not found.is_due
    now = 160.0
    assert found.is_due
    found.save(plan, {})
    assert not found.is_due
    assert names(tmp_path / "s") == {"host-3-a.safetensors"}
    found.save(plan, {})
    found.save(plan, {})
    assert names(tmp_path / "s") == {"host-3-a.safetensors", "host-3-b.safetensors"}
    a, b = (module._read(tmp_path / "s" / f"host-3-{side}.safetensors")[0] for side in "ab")
    assert (a.serial, b.serial) == (3, 2)


def test_a_diverged_learner_stays_diverged(base: Base, photos: Path) -> None:
    """Saved while another one of the same step was drawing his images."""
    (work,) = works_of(photos, 1)
    cohort = Cohort(base, Shape.of(work.config), rank=2, slots=1, say=lambda _: None)
    images = [Image.new("RGB", (40, 40), "red")] * 3
    learner = Learner.of(work.config, base, images)
    learner.material.latents.fill_(float("nan"))
    cohort.enter(learner)
    while not learner.has_ended:
        cohort.step()
    state = cohort.state()
    cohort.leave(learner)
    again = Learner.of(work.config, base, images)
    cohort.enter(again)
    cohort.restore(state)
    cohort.close()
    assert (again.step, str(again.error)) == (10, str(learner.error))


def test_a_member_is_its_request_and_its_config(photos: Path) -> None:
    work, other = works_of(photos, 2)
    assert Member.of(work) != Member.of(replace(other, request_id=work.request_id))
