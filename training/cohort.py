"""Many users trained at once on one frozen base.

::

    learner 0 ─ draws b noisy latents ─┐                              ┌─ its mean loss ─┐
    learner 1 ─ draws b noisy latents ─┼─ one pass through the UNet ──┼─ its mean loss ─┼─ sum
    …                                  ┘   (training.bank)            └─ …              ┘   │
                                                                                            │
    learner i: clip its gradient, its AdamW, its learning rate  <── one backward pass ──────┘

The loss is the sum of each user's own mean, so nobody's gradient is scaled by how many there are.
What a learner draws, how fast it learns and when it is done are its own. A learner whose numbers
go bad takes only its own rows along. tests/unit/training/test_cohort.py compares each adapter with
the one that peft and torch train for the user alone, without any cache.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limner.contracts.errors import LimnerError
from limner.contracts.training import TrainingConfig
from training.bank import Bank
from training.base import Base
from training.progress import Say, step_line
from training.recipe import (
    MAX_GRADIENT_NORM,
    WEIGHT_DECAY,
    Material,
    add_noise,
    draw_batch,
    learning_rate_share,
    prepare,
)

# Steps between two progress lines.
REPORT_EVERY: Final = 10
# Fixed, and not the number of CPUs: how a batch is cut decides the last bits of its sums, and the
# same photos and seed shall give the same bytes on every machine of a kind.
CPU_LANES: Final = 2
# torch.nn.utils.clip_grad_norm_ adds this to the norm.
_CLIP_EPSILON: Final = 1e-6
# What AdamW keeps of a row.
_MOMENTS: Final = frozenset({"step", "exp_avg", "exp_avg_sq"})


def set_threads(cpus: int) -> None:
    """Gives each lane its share of the CPUs; call it once, before any work."""
    torch.set_num_threads(max(1, cpus // CPU_LANES))


@dataclass(frozen=True, slots=True)
class Shape:
    """What the learners of a cohort have in common.

    Attributes:
        batch_size: Photos a step.
        target: Which layers get an adapter.
        has_prior: Whether as many class images are seen beside them.
        is_checkpointed: Whether activations are computed twice.
        precision: Of the frozen weights.
    """

    batch_size: int
    target: str
    has_prior: bool = False
    is_checkpointed: bool = False
    precision: str = "auto"

    @classmethod
    def of(cls, config: TrainingConfig) -> Shape:
        """The shape that a config asks for."""
        return cls(
            config.batch_size,
            config.target,
            has_prior=config.prior_images > 0,
            is_checkpointed=config.gradient_checkpointing,
            precision=config.precision,
        )

    @property
    def rows(self) -> int:
        """Rows of a learner in a pass through the UNet."""
        return self.batch_size * (2 if self.has_prior else 1)


@dataclass
class Learner:
    """One user in training.

    Attributes:
        name: What his progress lines are signed with; empty where there is nobody else.
        config: Every choice of the fine-tune.
        material: What he looks at.
        draw: The source of all his random draws; on the CPU, on any device.
        step: Steps done.
        loss: Mean loss of the last report's steps.
        error: Why he cannot go on; None if all is well.
        seconds: Wall time of his steps, however many others shared them.
    """

    name: str
    config: TrainingConfig
    material: Material
    draw: torch.Generator
    step: int = 0
    loss: float = math.nan
    error: LimnerError | None = None
    seconds: float = 0.0
    _losses: list[Tensor] = field(default_factory=list)
    _reported: float = 0.0

    @classmethod
    def of(
        cls, config: TrainingConfig, base: Base, photos: Sequence[Image.Image], name: str = ""
    ) -> Learner:
        """Prepares a user's material.

        Args:
            config: Every choice of the fine-tune.
            base: The frozen base.
            photos: RGB images of the subject.
            name: See the attributes.
        """
        draw = torch.Generator().manual_seed(config.seed)
        return cls(name, config, prepare(config, base, photos, draw), draw)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.config.learning_rate * learning_rate_share(self.step, self.config.steps)

    @property
    def has_ended(self) -> bool:
        """Whether there is no next step."""
        return self.error is not None or self.step == self.config.steps

    def count(self, loss: Tensor, seconds: float, say: Say, images_per_second: float) -> None:
        """Counts a step, and reports now and then.

        Args:
            loss: The step's mean loss; a scalar.
            seconds: Wall time of the step.
            say: Takes the progress lines.
            images_per_second: Images that all learners together see in a second.
        """
        self.step += 1
        self.seconds += seconds
        self._losses.append(loss)
        if self.step % REPORT_EVERY and self.step != self.config.steps:
            return
        self.loss = torch.stack(self._losses).mean().item()
        self._losses = []
        if not self._is_sound():
            return
        say(
            step_line(
                step=self.step,
                steps=self.config.steps,
                loss=self.loss,
                images_per_second=images_per_second,
                request=self.name,
            )
        )

    def state(self) -> dict[str, Tensor]:
        """What the next steps and reports depend on; ``restore`` takes it."""
        return {
            "draw": self.draw.get_state(),
            "losses": torch.stack(self._losses) if self._losses else torch.empty(0),
            "progress": torch.tensor([self.step, self.loss, self.seconds], dtype=torch.float64),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to where ``state`` was asked for."""
        self.draw.set_state(state["draw"])
        self._losses = list(state["losses"].to(self.material.latents.device, copy=True))
        step, self.loss, self.seconds = state["progress"].tolist()
        self.step = int(step)
        if self.step >= min(REPORT_EVERY, self.config.steps):
            self._is_sound()

    def _is_sound(self) -> bool:
        """Whether the last report's loss is a number; else he has ended."""
        if math.isfinite(self.loss):
            return True
        self.error = LimnerError("TRAINING_DIVERGED", f"The loss of step {self.step} is no number.")
        return False


@dataclass(frozen=True, slots=True)
class Lane:
    """The part of a batch that one thread works on.

    Attributes:
        first: Its first slot.
        count: How many slots.
        rows: Which rows of each of them.
        part: Whose gradient buffer it fills.
    """

    first: int
    count: int
    rows: slice
    part: int


class Cohort:
    """Learners that share each pass through the UNet.

    Args:
        base: The frozen base; its UNet gets the bank.
        shape: What the learners have in common.
        rank: The highest rank of any of them.
        slots: How many learners there is room for.
        lanes: Threads that work on a batch at the same time; ``CPU_LANES`` on a CPU if it is not
            given, and one on an accelerator.
        say: Takes the progress lines.

    Attributes:
        learners: Who is in training, by slot.
    """

    def __init__(
        self,
        base: Base,
        shape: Shape,
        *,
        rank: int,
        slots: int,
        say: Say,
        lanes: int | None = None,
    ) -> None:
        if lanes is None:
            lanes = CPU_LANES if base.device.type == "cpu" else 1
        base.use(shape.precision)
        self.learners: list[Learner] = []
        self.shape = shape
        self.bank = Bank(
            base.pipeline.unet, target=shape.target, rank=rank, slots=slots, parts=lanes
        )
        self._base = base
        self._say = say
        self._lanes = lanes
        self._rows = [row.detach() for row in self.bank.weights]
        self._optimizer = torch.optim.AdamW(
            [{"params": [row]} for row in self._rows], weight_decay=WEIGHT_DECAY, fused=True
        )
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(
            lanes, initializer=torch.set_num_threads, initargs=(threads,)
        )
        self.bank.install()
        base.pipeline.unet.train()
        if shape.is_checkpointed:
            base.pipeline.unet.enable_gradient_checkpointing(_checkpoint)

    def close(self) -> None:
        """Takes the bank off the UNet, which is then as it was."""
        self._pool.shutdown()
        self.bank.remove()
        self._base.pipeline.unet.disable_gradient_checkpointing()
        self._base.pipeline.unet.eval()

    @property
    def has_room(self) -> bool:
        """Whether another learner can enter."""
        return len(self.learners) < self.bank.slots

    def enter(self, learner: Learner) -> None:
        """Gives a learner the next slot, with a fresh adapter.

        Raises:
            ValueError: If there is no room, or the learner is of another shape.
        """
        if not self.has_room or Shape.of(learner.config) != self.shape:
            raise ValueError("this learner cannot enter this cohort")
        if learner.config.rank > self.bank.rank:
            raise ValueError("the bank's rank is too low for this learner")
        slot = len(self.learners)
        self.bank.begin(slot, learner.config.rank, learner.draw)
        if not self.shape.has_prior:
            self.bank.see(slot, learner.material.text)
        self._optimizer.state.pop(self._rows[slot], None)
        self.learners.append(learner)

    def leave(self, learner: Learner) -> None:
        """Frees a learner's slot; the last one moves there, with all that he has."""
        slot, last = self.learners.index(learner), len(self.learners) - 1
        state = self._optimizer.state
        state.pop(self._rows[slot], None)
        if slot != last:
            self.bank.move(last, slot)
            if moved := state.pop(self._rows[last], None):
                state[self._rows[slot]] = moved
            self.learners[slot] = self.learners[last]
        self.learners.pop()

    def tensors(self, learner: Learner) -> dict[str, Tensor]:
        """A learner's adapter by diffusers' names.

        Raises:
            LimnerError: ``TRAINING_DIVERGED``, if a weight is no longer a number.
        """
        slot = self.learners.index(learner)
        tensors = self.bank.tensors(slot, learner.config.rank)
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise LimnerError("TRAINING_DIVERGED", "A weight of the adapter is no number.")
        return tensors

    @contextmanager
    def drawing_as(self, learner: Learner) -> Iterator[None]:
        """Inside, the base's pipeline draws with a learner's adapter."""
        unet = self._base.pipeline.unet
        unet.eval()
        self.bank.refresh()
        try:
            with self.bank.through(self.learners.index(learner), 1):
                yield
        finally:
            unet.train()

    def step(self) -> list[Learner]:
        """One optimizer step of everybody; returns those who have ended with it."""
        started = time.perf_counter()
        losses = self._backward()
        self._update()
        seconds = time.perf_counter() - started
        images = len(self.learners) * self.shape.rows
        for learner, loss in zip(self.learners, losses, strict=True):
            learner.count(loss, seconds, self._say, images / seconds)
        return [learner for learner in self.learners if learner.has_ended]

    # -- Between two steps ------------------------------------------------------------------------

    def layout(self) -> str:
        """Digest of where each matrix lies in a slot's row, and in which precision."""
        places = repr((self.bank.places, self.bank.weights.dtype))
        return hashlib.sha256(places.encode()).hexdigest()

    def state(self) -> dict[str, Tensor]:
        """Copies on the CPU of all that cannot be computed again, ``<slot>.<name>``."""
        return {
            f"{slot}.{name}": tensor.detach().to("cpu", copy=True)
            for slot, (learner, row) in enumerate(zip(self.learners, self._rows, strict=False))
            for name, tensor in {
                "weights": row,
                **self._optimizer.state.get(row, {}),
                **learner.state(),
            }.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to where ``state`` was asked for.

        Args:
            state: Of a cohort of the same layout, whose learners have entered this one in the
                order of their slots.
        """
        for slot, (learner, row) in enumerate(zip(self.learners, self._rows, strict=False)):
            prefix = f"{slot}."
            own = {
                name.removeprefix(prefix): tensor
                for name, tensor in state.items()
                if name.startswith(prefix)
            }
            row.copy_(own["weights"])
            learner.restore(own)
            moments = {name: own[name].to(row.device, copy=True) for name in _MOMENTS & own.keys()}
            if moments:  # before his first step AdamW knows nothing of him
                self._optimizer.state[row] = moments

    # -- One step ---------------------------------------------------------------------------------

    def _backward(self) -> Tensor:
        """Draws everybody's batch and fills the gradients; the mean loss of each: [k]."""
        active, unet = len(self.learners), self._base.pipeline.unet
        sources = [(part, who.draw) for who in self.learners for part in who.material.parts]
        parts = [part for part, _ in sources]
        drawn = [
            draw_batch(self._base, part.latents, self.shape.batch_size, draw)
            for part, draw in sources
        ]
        clean, noise, timesteps = (torch.cat(each) for each in zip(*drawn, strict=True))
        by_user = (active, self.shape.rows)
        noisy, wanted = (
            x.view(*by_user, *x.shape[1:]) for x in add_noise(self._base, clean, noise, timesteps)
        )  # [k, b, c, h, w]
        noisy = noisy.to(unet.dtype)
        weights = torch.stack([part.weights for part in parts]).gather(
            1, timesteps.view(len(parts), -1)
        )
        weights = weights.view(by_user).to(wanted.dtype)  # [k, b]
        timesteps = timesteps.view(by_user)

        def by_part(tensors: Iterable[Tensor]) -> Tensor:
            joined = torch.cat(list(tensors))
            return joined.view(active, -1, *joined.shape[1:])

        text = by_part(part.text for part in parts)  # [k, 1, t, d], or 2 captions
        added = {name: by_part(part.added[name] for part in parts) for name in parts[0].added}
        self.bank.refresh()

        def work(lane: Lane) -> Tensor:
            slots = slice(lane.first, lane.first + lane.count)

            def by_row(x: Tensor) -> Tensor:  # [k, 1 or 2, …] -> [k b, …], of this lane
                each = x[slots].repeat_interleave(self.shape.batch_size, 1)
                return each[:, lane.rows].flatten(0, 1)

            caption = None if self.shape.has_prior else text[slots, 0]
            with self.bank.through(lane.first, lane.count, part=lane.part, text=caption):
                predicted = unet(
                    noisy[slots, lane.rows].flatten(0, 1),  # [k b, c, h, w], of this lane
                    timesteps[slots, lane.rows].flatten(),
                    by_row(text),
                    added_cond_kwargs={name: by_row(x) for name, x in added.items()},
                    return_dict=False,
                )[0]
                error = predicted.float() if self.bank.is_mixed else predicted
                error = (error - wanted[slots, lane.rows].flatten(0, 1)).square().mean((1, 2, 3))
                error = error.view(lane.count, -1) * weights[slots, lane.rows]
                losses = error.sum(1) / self.shape.batch_size  # [k]
                losses.sum().backward()
            detached: Tensor = losses.detach()
            return detached

        lanes = self._cut(len(self.learners))
        results = list(self._pool.map(work, lanes)) if len(lanes) > 1 else [work(lanes[0])]
        if lanes[-1].part == 0:
            return torch.cat(results)
        for gradient in self.bank.gradients[1:]:
            self.bank.gradients[0][: len(self.learners)] += gradient[: len(self.learners)]
        return torch.stack(results).sum(0)

    def _cut(self, active: int) -> list[Lane]:
        """Shares the batch among the threads: by users if that comes out even, else by rows."""
        rows = self.shape.rows
        if active % self._lanes == 0:
            count = active // self._lanes
            return [Lane(n * count, count, slice(0, rows), 0) for n in range(self._lanes)]
        lanes = min(self._lanes, rows)
        edges = [-(-rows * n // lanes) for n in range(lanes + 1)]
        return [Lane(0, active, slice(*edges[n : n + 2]), n) for n in range(lanes)]

    def _update(self) -> None:
        active = len(self.learners)
        gradients = self.bank.gradients[0][:active]
        if self.bank.is_mixed:
            gradients = gradients.float()
        norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)  # [k, 1]
        gradients *= (MAX_GRADIENT_NORM / (norms + _CLIP_EPSILON)).clamp(max=1.0)
        for slot, group in enumerate(self._optimizer.param_groups):
            is_active = slot < active
            self._rows[slot].grad = gradients[slot] if is_active else None
            if is_active:
                group["lr"] = self.learners[slot].learning_rate
        self._optimizer.step()


def _checkpoint(module: Any, *inputs: Any) -> Any:  # noqa: ANN401 - diffusers ships no types
    """Forgets what a block has computed, and computes it again in the backward pass.

    There is no dropout, so no state of a generator is kept for the second time: on an accelerator
    to read it would be to wait for it.
    """
    return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def trained_alone(
    config: TrainingConfig, base: Base, photos: Sequence[Image.Image], say: Say
) -> Iterator[tuple[Cohort, Learner]]:
    """Trains one user by himself; inside, the cohort still holds him.

    Raises:
        LimnerError: ``TRAINING_DIVERGED``.
    """
    cohort = Cohort(base, Shape.of(config), rank=config.rank, slots=1, say=say)
    try:
        learner = Learner.of(config, base, photos)
        cohort.enter(learner)
        while not learner.has_ended:
            cohort.step()
        if learner.error is not None:
            raise learner.error
        yield cohort, learner
    finally:
        cohort.close()
