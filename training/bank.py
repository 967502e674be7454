"""Adapters of many users on one frozen UNet, stacked so that one pass trains them all.

All matrices of a slot are one row of one flat buffer, and so are their gradients::

                 ┌ A of all keys and values of captions ┬ A, B of a layer ┬ A, B of a layer ┬ …
    slot 0       │                                      │ r in    out r   │                 │
    slot 1       │                                      │                 │                 │
    …            └──────────────────────────────────────┴─────────────────┴─────────────────┴ …

So a user is a row: his optimizer steps over one tensor, his gradient has one norm, a checkpoint
of him is one slice. A layer sees the same memory as [slots, r, in] and [slots, out, r].

Slots in use are always the first ones; who leaves is replaced by the last. A rank below that of
the bank is padded with zeros, which stay zeros: the gradient of a zero row of A is a product with
the zero column of B, and the other way round.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor

from training import lean
from training.attention import (
    Captions,
    Joint,
    KeyValueFunction,
    QueryKeyValueFunction,
    attend,
    for_rows,
    is_plain,
)
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
        a: Elements of A.
        b: Elements of B.
    """

    name: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    a: slice
    b: slice


@dataclass(frozen=True, slots=True)
class Group:
    """An attention whose projections are worked on together.

    Attributes:
        module: The attention.
        places: Places of query, key and value.
        order: Which of the cross-attentions it is, from 0; None for a self-attention.
    """

    module: Any
    places: tuple[int, int, int]
    order: int | None


@dataclass(frozen=True, slots=True)
class Pass:
    """What the layers look up while a thread is ``through`` some slots.

    Attributes:
        views: Of each layer.
        joints: Of each group; None for cross-attentions.
        captions: What the cross-attentions know; None where captions are not fixed.
    """

    views: Sequence[Views]
    joints: Sequence[Joint | None]
    captions: Captions | None = None


class Bank:
    """The adapters of a cohort.

    Installed on a UNet it replaces the forward functions of the adapted layers. Outside of
    ``through`` they compute what the frozen layers compute.

    Args:
        unet: The frozen UNet.
        target: Which layers get an adapter (``training.targets``).
        rank: The highest rank of any adapter.
        slots: How many adapters there is room for.
        parts: Threads that work on a batch at the same time.

    Attributes:
        weights: Matrices, one row a slot: [slots, size], in the precision of training.
        gradients: Gradients, one such buffer for each part of a batch: [slots, size] each.
        places: Where each layer's matrices lie, in the UNet's order of layers.
    """

    def __init__(self, unet: Any, *, target: str, rank: int, slots: int, parts: int = 1) -> None:  # noqa: ANN401
        self.rank = rank
        self.slots = slots
        self._unet = unet
        self._lean: list[Any] = []
        named = adapted_layers(unet, target)
        self._layers = [layer for _, layer in named]
        self._groups = _groups(unet, named)
        self._crosses = [group for group in self._groups if group.order is not None]
        self.places, size = _arrange(named, self._groups, rank)
        parameter = next(unet.parameters())
        device, dtype = parameter.device, parameter.dtype
        # The optimizer works in float32 at least: updates are too small for the digits of bfloat16.
        master = torch.float32 if dtype.itemsize < torch.float32.itemsize else dtype
        self.weights = torch.zeros(slots, size, device=device, dtype=master)
        self.is_mixed = master != dtype
        self._used = self.weights.to(dtype) if self.is_mixed else self.weights
        self.gradients = [
            torch.zeros(slots, size, device=device, dtype=dtype) for _ in range(parts)
        ]
        self.anchor = torch.zeros((), device=device, dtype=dtype, requires_grad=True)
        # Backward runs in the thread that calls it, but for CUDA: then there is one part only.
        self._now: Any = threading.local() if parts > 1 else SimpleNamespace()
        self._known: dict[tuple[int, int, int], Pass] = {}
        self._frozen: list[tuple[Tensor, Tensor]] = []

    @property
    def size(self) -> int:
        """Elements of a row."""
        return self.weights.shape[1]

    # -- On the UNet ------------------------------------------------------------------------------

    def install(self) -> None:
        """Puts the bank on the UNet."""
        for index, layer in enumerate(self._layers):
            make = _convolve if isinstance(layer, torch.nn.Conv2d) else _multiply
            layer.forward = make(self, layer, index)
        for index, group in enumerate(self._groups):
            group.module.forward = _attend(self, group, index)
        self._lean = lean.install(self._unet)

    def remove(self) -> None:
        """Takes the bank off the UNet, which is as it was: only forward functions were replaced."""
        for module in (*self._layers, *(group.module for group in self._groups)):
            vars(module).pop("forward", None)
        lean.remove(self._lean)

    def now(self) -> Pass | None:
        """What this thread is ``through``."""
        return getattr(self._now, "through", None)

    @contextmanager
    def through(
        self, first: int, count: int, *, part: int = 0, text: Tensor | None = None
    ) -> Iterator[None]:
        """Inside, this thread's passes belong to the adapters of some neighbouring slots.

        The rows of a pass are those of the first slot, then those of the next …, equally many for
        each. A backward pass must end inside, too.

        Args:
            first: The first slot.
            count: How many slots.
            part: Which buffer the gradients of a backward pass go to.
            text: The slots' captions [count, t, d], if all rows of a slot share the one that
                ``see`` was told of; None if captions come with each call.
        """
        known = self._known.get((first, count, part))
        if known is None:
            known = self._known[first, count, part] = self._pass(first, count, part)
        if text is None or not self._crosses:
            self._now.through = known
            try:
                yield
            finally:
                self._now.through = None
            return
        joint = self._captions_joint(first, count, part)
        z = torch.bmm(text, joint.a.transpose(1, 2))
        frozen = [(k[first : first + count], v[first : first + count]) for k, v in self._frozen]
        captions = Captions(text, z, torch.empty_like(z), frozen)
        self._now.through = Pass(known.views, known.joints, captions)
        try:
            yield
            joint.grad_a.copy_(torch.bmm(captions.grad_z.transpose(1, 2), text))
        finally:
            self._now.through = None

    def refresh(self) -> None:
        """Hands the trained weights on to the passes; needed where those use fewer digits."""
        if self.is_mixed:
            self._used.copy_(self.weights)

    def _pass(self, first: int, count: int, part: int) -> Pass:
        rows = slice(first, first + count)
        used, gradient = self._used[rows], self.gradients[part][rows]

        def views(place: Place) -> Views:
            a = (count, place.a_shape[0], prod(place.a_shape[1:]))
            b = (count, place.b_shape[0], place.b_shape[1])
            return Views(
                a=used[:, place.a].view(a),
                b=used[:, place.b].view(b),
                grad_a=gradient[:, place.a].view(a),
                grad_b=gradient[:, place.b].view(b),
            )

        def joint(group: Group) -> Joint | None:
            if group.order is not None:
                return None
            query, _, value = (self.places[index] for index in group.places)
            inputs = query.a_shape[1]
            span = slice(query.a.start, value.a.stop)
            return Joint(
                used[:, span].view(count, -1, inputs), gradient[:, span].view(count, -1, inputs)
            )

        return Pass(
            [views(place) for place in self.places], [joint(group) for group in self._groups]
        )

    def _captions_joint(self, first: int, count: int, part: int) -> Joint:
        """The A matrices of all keys and values of captions; they lie first in a row."""
        rows = slice(first, first + count)
        last = self.places[self._crosses[-1].places[2]]
        width = last.a_shape[1]
        return Joint(
            self._used[rows, : last.a.stop].view(count, -1, width),
            self.gradients[part][rows, : last.a.stop].view(count, -1, width),
        )

    # -- One slot ---------------------------------------------------------------------------------

    def begin(self, slot: int, rank: int, draw: torch.Generator) -> None:
        """Makes a slot's adapter a fresh one: A Gaussian with deviation 1/r, B zero.

        It begins as no change (peft's ``init_lora_weights="gaussian"``). The draws do not depend
        on the bank's rank, nor on its device.
        """
        row = self.weights[slot].zero_()
        for place in self.places:
            drawn = torch.randn(rank, *place.a_shape[1:], generator=draw) / rank
            row[place.a][: drawn.numel()] = drawn.flatten().to(row)

    def see(self, slot: int, text: Tensor) -> None:
        """Computes what the frozen cross-attentions make of a slot's caption: [1, t, d]."""
        with torch.no_grad():
            for index, group in enumerate(self._crosses):
                answers = [
                    torch.nn.functional.linear(text, layer.weight, layer.bias)
                    for layer in (group.module.to_k, group.module.to_v)
                ]
                if index == len(self._frozen):
                    k, v = (answer.new_empty(self.slots, *answer.shape[1:]) for answer in answers)
                    self._frozen.append((k, v))
                for kept, answer in zip(self._frozen[index], answers, strict=True):
                    kept[slot] = answer[0]

    def move(self, source: int, target: int) -> None:
        """Moves a slot's adapter, and what is known of its caption, to another slot."""
        self.weights[target] = self.weights[source]
        for pair in self._frozen:
            for kept in pair:
                kept[target] = kept[source]

    def matrices(self, slot: int, rank: int) -> Iterator[tuple[str, Tensor]]:
        """Views of a slot's matrices by diffusers' names, as its shapes have them.

        ``unet.<layer>.lora_A.weight`` [rank, in, …] and ``lora_B`` [out, rank, …].
        """
        row = self.weights[slot]
        for place in self.places:
            name = f"{PREFIX}{place.name}"
            yield f"{name}.lora_A.weight", row[place.a].view(place.a_shape)[:rank]
            yield f"{name}.lora_B.weight", row[place.b].view(place.b_shape)[:, :rank]

    def tensors(self, slot: int, rank: int) -> dict[str, Tensor]:
        """Copies of a slot's matrices, sorted by name, in float32 on the CPU."""
        return {
            name: matrix.to("cpu", torch.float32, copy=True).contiguous()
            for name, matrix in sorted(self.matrices(slot, rank))
        }


def _groups(unet: Any, named: Sequence[tuple[str, Any]]) -> list[Group]:  # noqa: ANN401
    """Attentions whose three projections are all adapted, and alike enough to be joined."""
    index = {layer: number for number, (_, layer) in enumerate(named)}
    groups: list[Group] = []
    crosses = 0
    for module in unet.modules():
        if not is_plain(module):
            continue
        layers = (module.to_q, module.to_k, module.to_v)
        if not all(layer in index for layer in layers):
            continue
        places = (index[layers[0]], index[layers[1]], index[layers[2]])
        groups.append(Group(module, places, crosses if module.is_cross_attention else None))
        crosses += bool(module.is_cross_attention)
    return groups


def _arrange(
    named: Sequence[tuple[str, Any]], groups: Sequence[Group], rank: int
) -> tuple[list[Place], int]:
    """Places of all layers, and the size of a row."""
    shapes = [_shapes(layer, rank) for _, layer in named]
    crosses = [group for group in groups if group.order is not None]
    selves = [group for group in groups if group.order is None]
    wanted: list[tuple[int, str]] = [(i, "a") for group in crosses for i in group.places[1:]]
    for group in selves:
        wanted += [(i, kind) for kind in "ab" for i in group.places]
    wanted += [(i, kind) for i in range(len(named)) for kind in "ab"]
    spans: dict[tuple[int, str], slice] = {}
    size = 0
    for index, kind in dict.fromkeys(wanted):
        start, size = size, size + prod(shapes[index][kind == "b"])
        spans[index, kind] = slice(start, size)
    places = [
        Place(name, *shapes[index], spans[index, "a"], spans[index, "b"])
        for index, (name, _) in enumerate(named)
    ]
    return places, size


def _shapes(layer: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:  # noqa: ANN401
    if isinstance(layer, torch.nn.Conv2d):
        return (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
    return (rank, layer.in_features), (layer.out_features, rank)


def _multiply(bank: Bank, layer: torch.nn.Linear, index: int) -> Callable[..., Tensor]:
    plain: Callable[..., Tensor] = layer.forward

    def forward(x: Tensor, *_: object, **__: object) -> Tensor:
        now = bank.now()
        if now is None:
            return plain(x)
        y: Tensor = LinearFunction.apply(  # type: ignore[no-untyped-call]
            x, bank.anchor, layer.weight, layer.bias, now.views[index]
        )
        return y

    return forward


def _convolve(bank: Bank, layer: torch.nn.Conv2d, index: int) -> Callable[..., Tensor]:
    plain: Callable[..., Tensor] = layer.forward

    def forward(x: Tensor, *_: object, **__: object) -> Tensor:
        now = bank.now()
        if now is None:
            return plain(x)
        y: Tensor = ConvolutionFunction.apply(  # type: ignore[no-untyped-call]
            x, bank.anchor, layer, now.views[index]
        )
        return y

    return forward


def _attend(bank: Bank, group: Group, index: int) -> Callable[..., Tensor]:
    module = group.module
    plain: Callable[..., Tensor] = module.forward
    projections = (module.to_q, module.to_k, module.to_v)

    def self_attention(x: Tensor, now: Pass) -> Tensor:
        views = tuple(now.views[place] for place in group.places)
        joint = now.joints[index]
        qkv = QueryKeyValueFunction.apply(  # type: ignore[no-untyped-call]
            x, bank.anchor, projections, views, joint
        )
        return attend(module, *qkv)

    def cross_attention(x: Tensor, now: Pass, captions: Captions, order: int) -> Tensor:
        _, key, value = group.places
        first = 2 * order * bank.rank
        middle, stop = first + bank.rank, first + 2 * bank.rank
        halves = [
            (part[..., first:middle], part[..., middle:stop])
            for part in (captions.z, captions.grad_z)
        ]
        k, v = KeyValueFunction.apply(  # type: ignore[no-untyped-call]
            bank.anchor,
            captions.frozen[order],
            (now.views[key], now.views[value]),
            *halves,
        )
        return attend(module, module.to_q(x), for_rows(k, len(x)), for_rows(v, len(x)))

    def forward(x: Tensor, encoder_hidden_states: Tensor | None = None, **options: Any) -> Tensor:  # noqa: ANN401
        now = bank.now()
        is_masked = options.get("attention_mask") is not None
        if now is None or is_masked:
            return plain(x, encoder_hidden_states, **options)
        if encoder_hidden_states is None:
            return self_attention(x, now)
        if now.captions is not None and group.order is not None:
            return cross_attention(x, now, now.captions, group.order)
        return plain(x, encoder_hidden_states, **options)

    return forward
