"""LoRA on a resident UNet: one pass, in which each group of rows has an adapter of its own.

The layers are put in once, when the base is loaded. A pass holds the rows of ``k`` adapters one
after the other; the frozen layer works on all of them in one product, the low-rank part is a
batched product with one entry an adapter (``m`` values an entry)::

    y = W x + bias                       [k m, in]  ->  [k m, out]
    z = x_k A_k^T                        [k, m, in] x [k, in, r]  ->  [k, m, r]
    y_k += z_k B_k^T                     [k, m, r] x [k, r, out]

Rows never meet, here or anywhere else in a UNet (its norms and attentions work per image), so an
image is what it would be alone. To switch adapters is to set one reference,
``Selection.shares``: no weight is merged, moved or renamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.contracts.artifact import PackedLayout
from limner.contracts.errors import LimnerError


@dataclass(frozen=True, slots=True)
class Factors:
    """The matrices of one adapted layer for ``k`` adapters, with ``scale`` 1 (alpha equals rank).

    Attributes:
        a: ``[k, rank, in]``, or ``[k, rank, in, kernel_h, kernel_w]`` of a convolution.
        b: ``[k, out, rank]``.
    """

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a pass's rows: those whose adapters have one layout.

    Attributes:
        rows: Which rows; their number is a multiple of ``k``, and each adapter has equally many.
        factors: Matrices by layer; a layer that is not named has none.
    """

    rows: slice
    factors: Mapping[str, Factors]


@dataclass(slots=True)
class Selection:
    """Which adapters the layers of one UNet read; none where ``shares`` is empty.

    Only the thread that runs the UNet may set it.
    """

    shares: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A layer that can be adapted.

    Attributes:
        name: Its path in the UNet.
        weight: Shape of its weight: ``(out, in)`` or ``(out, in, kernel_h, kernel_w)``.
    """

    name: str
    weight: tuple[int, ...]

    def factor_shapes(self, rank: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of its matrices, as in diffusers' state dict."""
        out, into, *kernel = self.weight
        yield f"unet.{self.name}.lora_A.weight", (rank, into, *kernel)
        yield f"unet.{self.name}.lora_B.weight", (out, rank, *(1 for _ in kernel))


class AdaptedLinear(nn.Linear):
    """A linear layer, ``[n, ..., in] -> [n, ..., out]``, that adds each row's adapter.

    Shares the parameters of the layer that it takes the place of.
    """

    def __init__(self, base: nn.Linear, name: str, selection: Selection) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, "meta")
        self.weight = base.weight
        self.bias = base.bias
        self.layer_name = name
        self.selection = selection

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name)
        """``W x + B A x``."""
        output = functional.linear(input, self.weight, self.bias)
        for share in self.selection.shares:
            own = share.factors.get(self.layer_name)
            if own is not None:
                k = len(own.a)
                x = input[share.rows].reshape(k, -1, input.shape[-1])
                y = output[share.rows].view(k, -1, output.shape[-1])
                y.baddbmm_(torch.bmm(x, own.a.transpose(1, 2)), own.b.transpose(1, 2))
        return output


class AdaptedConv2d(nn.Conv2d):
    """A convolution, ``[n, in, h, w] -> [n, out, h', w']``, that adds each row's adapter.

    A is a convolution with the base's own kernel, stride and padding; B one with a 1x1 kernel.
    """

    def __init__(self, base: nn.Conv2d, name: str, selection: Selection) -> None:
        super().__init__(
            base.in_channels,
            base.out_channels,
            cast("tuple[int, int]", base.kernel_size),
            cast("tuple[int, int]", base.stride),
            cast("tuple[int, int]", base.padding),
            cast("tuple[int, int]", base.dilation),
            bias=base.bias is not None,
            device="meta",
        )
        self.weight = base.weight
        self.bias = base.bias
        self.layer_name = name
        self.selection = selection

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name)
        """``W * x + B * (A * x)``."""
        output: Tensor = self._conv_forward(input, self.weight, self.bias)
        for share in self.selection.shares:
            own = share.factors.get(self.layer_name)
            if own is not None:
                self._add(input[share.rows], output[share.rows], own)
        return output

    def _add(self, x: Tensor, y: Tensor, own: Factors) -> None:
        """Adds ``B_k * (A_k * x_k)`` to ``y`` in place."""
        k, out, rank = own.b.shape
        # One convolution an adapter; a grouped one would have to move the rows into channels.
        parts = zip(x.chunk(k), own.a, strict=True)
        z = torch.cat([self._conv_forward(part, a, None) for part, a in parts])
        # B is a 1x1 convolution: one product an image.
        b = own.b.repeat_interleave(len(y) // k, dim=0) if k < len(y) else own.b
        y.view(len(y), out, -1).baddbmm_(b, z.view(len(y), rank, -1))


def make_adaptable(unet: nn.Module) -> tuple[Selection, tuple[LayerShape, ...]]:
    """Puts adapted layers in the place of every plain linear and convolution layer.

    Args:
        unet: Changed in place; its state dict keeps its names and tensors.

    Returns:
        The selection that all of them read, and what can be adapted.
    """
    selection = Selection()
    shapes: list[LayerShape] = []
    for name, module in list(unet.named_modules()):
        adapted: nn.Module
        # Exact types: a subclass has a forward of its own, which ours would replace.
        if type(module) is nn.Linear:
            adapted = AdaptedLinear(module, name, selection)
        elif type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
            adapted = AdaptedConv2d(module, name, selection)
        else:
            continue
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, adapted)
        shapes.append(LayerShape(name, tuple(module.weight.shape)))
    return selection, tuple(shapes)


def derive_layout(
    shapes: tuple[LayerShape, ...], target_modules: tuple[str, ...], rank: int
) -> PackedLayout:
    """The packed layout of an adapter with these targets on a UNet with these layers.

    Args:
        shapes: The layers that can be adapted.
        target_modules: Names of layers in the pipeline (``unet.mid_block….to_q``), whole or their
            last parts (``to_q``), as peft reads them.
        rank: Rank of all matrices.

    Raises:
        LimnerError: ``ARTIFACT_INVALID``, if a target names no layer.
    """
    wanted = set(target_modules)
    met: set[str] = set()
    chosen: list[LayerShape] = []
    for shape in shapes:
        parts = f"unet.{shape.name}".split(".")
        hits = wanted.intersection(".".join(parts[i:]) for i in range(len(parts)))
        if hits:
            met |= hits
            chosen.append(shape)
    if not chosen or met != wanted:
        missing = ", ".join(sorted(wanted - met)[:3]) or "nothing"
        raise LimnerError(
            "ARTIFACT_INVALID", f"The manifest adapts layers that the base lacks: {missing[:200]}."
        )
    return PackedLayout.of(item for shape in chosen for item in shape.factor_shapes(rank))


def unpack(rows: Tensor, layout: PackedLayout) -> dict[str, Factors]:
    """Views of flat rows as the matrices of each layer; copies nothing.

    Args:
        rows: ``[k, layout.size]``, one row an adapter; rows may lie apart, elements may not.
        layout: From ``derive_layout``, so each A has its B.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    k = len(rows)
    for item in layout:
        name, _, half = item.name.removesuffix(".weight").rpartition(".")
        # B of a convolution is [out, rank, 1, 1]; it is used as a matrix.
        shape = item.shape if half == "lora_A" else item.shape[:2]
        view = rows[:, item.start : item.stop].view(k, *shape)
        halves.setdefault(name.removeprefix("unet."), {})[half] = view
    return {name: Factors(pair["lora_A"], pair["lora_B"]) for name, pair in halves.items()}


def widen(flat: Tensor, layout: PackedLayout, row: Tensor, wider: PackedLayout) -> None:
    """Copies an adapter into a row of a layout of the same layers and a higher rank.

    What lies beyond its own rank is set to zero, which changes no image: a zero row of A meets a
    zero column of B. With equal ranks it is one copy.

    Args:
        flat: ``[layout.size]``.
        layout: The adapter's own.
        row: ``[wider.size]``, overwritten.
        wider: The row's.
    """
    if layout.size == wider.size:
        row.copy_(flat)
        return
    row.zero_()
    for item, place in zip(layout, wider, strict=True):
        source = flat[item.start : item.stop].view(torch.Size(item.shape))
        target = row[place.start : place.stop].view(torch.Size(place.shape))
        target[: item.shape[0], : item.shape[1]].copy_(source)
