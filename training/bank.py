"""Adapters of many users on one frozen UNet, stacked so that one pass trains them all.

All matrices of a slot are one row of one flat buffer, and so are their gradients::

                 ┌── A and B of layer 1 ──┬── A and B of layer 2 ──┬ …
    slot 0       │ r in     │ out r       │                        │      ── one user
    slot 1       │          │             │                        │      ── another one
    …            └──────────┴─────────────┴────────────────────────┴ …

So a user is a row: his optimizer steps over one tensor, his gradient has one norm, a checkpoint
of him is one slice. A layer sees the same memory as [slots, r, in] and [slots, out, r].

Slots in use are always the first ones; who leaves is replaced by the last. A rank below that of
the bank is padded with zeros, which stay zeros: the gradient of a zero row of A is a product with
the zero column of B, and the other way round.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - what the whole world calls it
from torch import Tensor

from training.layers import ConvolutionFunction, LinearFunction, Views
from training.targets import adapted_layers

PREFIX: Final = "unet."


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer's matrices lie in a row.

    Attributes:
        name: Name of the layer in the UNet.
        a_shape: Shape of A as diffusers stores it, at the bank's rank: [r, in] or [r, in, h, w].
        b_shape: Shape of B: [out, r] or [out, r, 1, 1].
        start: First element of A; B follows A.
    """

    name: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    start: int

    @property
    def middle(self) -> int:
        """First element of B."""
        return self.start + prod(self.a_shape)

    @property
    def stop(self) -> int:
        """One past the last element of B."""
        return self.middle + prod(self.b_shape)


class Bank:
    """The adapters of a cohort.

    Installed on a UNet it replaces the forward functions of the adapted layers. Outside of
    ``through`` they compute what the frozen layers compute.

    Args:
        unet: The frozen UNet.
        target: Which layers get an adapter (``training.targets``).
        rank: The highest rank of any adapter.
        slots: How many adapters there is room for.

    Attributes:
        weights: Matrices, one row a slot: [slots, size], in the precision of training.
        gradients: Gradients, one such buffer for each part of a batch that is worked on at the
            same time: [slots, size] each.
    """

    def __init__(self, unet: Any, *, target: str, rank: int, slots: int, parts: int = 1) -> None:  # noqa: ANN401
        self.rank = rank
        self.slots = slots
        self._unet = unet
        self._layers: list[Any] = []
        self.places: list[Place] = []
        size = 0
        for name, layer in adapted_layers(unet, target):
            place = _place(name, layer, rank, size)
            size = place.stop
            self._layers.append(layer)
            self.places.append(place)
        parameter = next(unet.parameters())
        device, dtype = parameter.device, parameter.dtype
        # The optimizer works in float32 at least: updates are too small for the digits of bfloat16.
        master = torch.float32 if dtype.itemsize < 4 else dtype
        self.weights = torch.zeros(slots, size, device=device, dtype=master)
        self.is_mixed = master != dtype
        self._used = self.weights.to(dtype) if self.is_mixed else self.weights
        self.gradients = [
            torch.zeros(slots, size, device=device, dtype=dtype) for _ in range(parts)
        ]
        self._passing = threading.local()
        self._known: dict[tuple[int, int, int], list[Views]] = {}
        self._anchor = torch.zeros((), device=device, dtype=dtype, requires_grad=True)

    @property
    def size(self) -> int:
        """Elements of a row."""
        return self.weights.shape[1]

    # -- On the UNet ------------------------------------------------------------------------------

    def install(self) -> None:
        """Puts the bank on the UNet."""
        for index, layer in enumerate(self._layers):
            forward = _convolve if isinstance(layer, torch.nn.Conv2d) else _multiply
            layer.forward = forward(self, layer, index)

    def remove(self) -> None:
        """Takes the bank off the UNet, which is as it was: only forward functions were replaced."""
        for layer in self._layers:
            vars(layer).pop("forward", None)

    @contextmanager
    def through(self, first: int, count: int, part: int = 0) -> Iterator[None]:
        """Inside, this thread's passes belong to the adapters of some neighbouring slots.

        The rows of a pass are those of the first slot, then those of the next …, equally many for
        each.

        Args:
            first: The first slot.
            count: How many slots.
            part: Which buffer the gradients of a backward pass go to.
        """
        views = self._known.get((first, count, part))
        if views is None:
            views = [self._views(place, first, count, part) for place in self.places]
            self._known[first, count, part] = views
        self._passing.views = views
        try:
            yield
        finally:
            self._passing.views = None

    def views(self) -> Sequence[Views] | None:
        """Matrices of the pass that this thread makes; None outside of ``through``."""
        return getattr(self._passing, "views", None)

    @property
    def anchor(self) -> Tensor:
        """What a pass hangs its backward on where no input needs a gradient."""
        return self._anchor

    def refresh(self) -> None:
        """Hands the trained weights on to the passes; needed where those use fewer digits."""
        if self.is_mixed:
            self._used.copy_(self.weights)

    def _views(self, place: Place, first: int, count: int, part: int) -> Views:
        a = (count, place.a_shape[0], prod(place.a_shape[1:]))
        b = (count, place.b_shape[0], place.b_shape[1])

        def view(buffer: Tensor, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
            return buffer[first : first + count, start:stop].view(shape)

        gradient = self.gradients[part]
        return Views(
            a=view(self._used, place.start, place.middle, a),
            b=view(self._used, place.middle, place.stop, b),
            grad_a=view(gradient, place.start, place.middle, a),
            grad_b=view(gradient, place.middle, place.stop, b),
        )

    # -- One adapter ------------------------------------------------------------------------------

    def begin(self, slot: int, rank: int, draw: torch.Generator) -> None:
        """Makes a slot's adapter a fresh one: A Gaussian with deviation 1/r, B zero.

        It begins as no change (peft's ``init_lora_weights="gaussian"``). The draws do not depend
        on the bank's rank, nor on its device.
        """
        row = self.weights[slot].zero_()
        for place in self.places:
            drawn = torch.randn(rank, *place.a_shape[1:], generator=draw) / rank
            row[place.start : place.start + drawn.numel()] = drawn.flatten().to(row)

    def tensors(self, slot: int, rank: int) -> dict[str, Tensor]:
        """A slot's adapter by diffusers' names, sorted, on the CPU.

        ``unet.<layer>.lora_A.weight`` [rank, in, …] and ``lora_B`` [out, rank, …], in float32.
        """
        row = self.weights[slot]
        found: dict[str, Tensor] = {}
        for place in self.places:
            a = row[place.start : place.middle].view(place.a_shape)[:rank]
            b = row[place.middle : place.stop].view(place.b_shape)[:, :rank]
            found[f"{PREFIX}{place.name}.lora_A.weight"] = _kept(a)
            found[f"{PREFIX}{place.name}.lora_B.weight"] = _kept(b)
        return {name: found[name] for name in sorted(found)}

    def fill(self, slot: int, rank: int, tensors: dict[str, Tensor]) -> None:
        """Puts an adapter, as ``tensors`` gives it, into a slot."""
        row = self.weights[slot].zero_()
        for place in self.places:
            a = row[place.start : place.middle].view(place.a_shape)
            b = row[place.middle : place.stop].view(place.b_shape)
            a[:rank] = tensors[f"{PREFIX}{place.name}.lora_A.weight"].to(row)
            b[:, :rank] = tensors[f"{PREFIX}{place.name}.lora_B.weight"].to(row)


def _place(name: str, layer: Any, rank: int, start: int) -> Place:  # noqa: ANN401
    if isinstance(layer, torch.nn.Conv2d):
        a = (rank, layer.in_channels, *layer.kernel_size)
        return Place(name, a, (layer.out_channels, rank, 1, 1), start)
    return Place(name, (rank, layer.in_features), (layer.out_features, rank), start)


def _kept(matrix: Tensor) -> Tensor:
    # A copy: the slot is going to be another user's.
    return matrix.detach().to("cpu", torch.float32, copy=True).contiguous()


def _multiply(bank: Bank, layer: torch.nn.Linear, index: int) -> Any:  # noqa: ANN401
    def forward(x: Tensor, *_: object, **__: object) -> Tensor:
        views = bank.views()
        if views is None:
            return F.linear(x, layer.weight, layer.bias)
        y: Tensor = LinearFunction.apply(x, bank.anchor, layer.weight, layer.bias, views[index])
        return y

    return forward


def _convolve(bank: Bank, layer: torch.nn.Conv2d, index: int) -> Any:  # noqa: ANN401
    plain = layer.forward

    def forward(x: Tensor, *_: object, **__: object) -> Tensor:
        views = bank.views()
        if views is None:
            return plain(x)
        y: Tensor = ConvolutionFunction.apply(x, bank.anchor, layer, views[index])
        return y

    return forward
