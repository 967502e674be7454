"""LoRA on a resident UNet: layers that read their matrices from whichever adapter is selected.

The layers are put in once, when the base is loaded. To switch adapters is to set one reference,
``Selection.factors``: no weight is merged, moved or renamed, and a layer without an adapter costs
one branch more than before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from limner.contracts.artifact import PackedLayout
from limner.contracts.errors import LimnerError


@dataclass(frozen=True, slots=True)
class Factors:
    """The two matrices of one adapted layer, with ``scale`` 1 (alpha equals the rank).

    Attributes:
        a: ``[rank, in]``, or ``[rank, in, kernel_h, kernel_w]`` of a convolution.
        b: ``[out, rank]``, or ``[out, rank, 1, 1]`` of a convolution.
    """

    a: Tensor
    b: Tensor


@dataclass(slots=True)
class Selection:
    """Which adapter the layers of one UNet read; none where ``factors`` is None.

    Only the thread that runs the UNet may set it.
    """

    factors: Mapping[str, Factors] | None = None


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
    """A linear layer, ``[..., in] -> [..., out]``, that adds the selected adapter's share.

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
        factors = self.selection.factors
        if factors is None or (own := factors.get(self.layer_name)) is None:
            return output
        return output + functional.linear(functional.linear(input, own.a), own.b)


class AdaptedConv2d(nn.Conv2d):
    """A convolution, ``[n, in, h, w] -> [n, out, h', w']``, that adds the adapter's share.

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
        factors = self.selection.factors
        if factors is None or (own := factors.get(self.layer_name)) is None:
            return output
        inner: Tensor = self._conv_forward(input, own.a, None)
        return output + functional.conv2d(inner, own.b)


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


# One config is shared by nearly all users of an endpoint, so their layout is derived once.
@lru_cache(maxsize=32)
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


def unpack(flat: Tensor, layout: PackedLayout) -> dict[str, Factors]:
    """Views of one flat tensor as the matrices of each layer; copies nothing.

    Args:
        flat: ``[layout.size]``.
        layout: From ``derive_layout``, so each A has its B.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for item in layout:
        name, _, half = item.name.removesuffix(".weight").rpartition(".")
        view = flat[item.start : item.stop].view(torch.Size(item.shape))
        halves.setdefault(name.removeprefix("unet."), {})[half] = view
    return {name: Factors(pair["lora_A"], pair["lora_B"]) for name, pair in halves.items()}
