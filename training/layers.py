"""Low-rank layers that many adapters pass at once: each group of rows has an adapter of its own.

A layer's input holds the rows of ``k`` adapters one after the other, equally many for each. The
frozen layer works on all of them in one product; the low-rank part is a batched product with one
batch entry an adapter (shapes of a linear layer, ``m`` rows an adapter)::

    y = x W^T + bias                     [k m, in]  ->  [k m, out]
    z = x_k A_k^T                        [k, m, in] x [k, in, r]  ->  [k, m, r]
    y_k += z_k B_k^T                     [k, m, r] x [k, r, out]

Rows never meet, here or anywhere else in a UNet (its norms and attentions work per image), so an
adapter learns what it would have learnt alone. The scale of LoRA (Hu et al., "LoRA: Low-Rank
Adaptation of Large Language Models", 2021, section 4.1) is 1, since alpha equals the rank.

The backward passes write the gradients of A and B straight into the bank's buffers instead of
handing them to autograd: two nodes a layer less, no accumulation, no copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - what the whole world calls it
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Views:
    """One layer's matrices and gradients for the adapters of one pass.

    Attributes:
        a: [k, r, in], or [k, r, in * height * width] for a convolution.
        b: [k, out, r].
        grad_a: Where the gradient of ``a`` goes; the shape of ``a``.
        grad_b: Where the gradient of ``b`` goes; the shape of ``b``.
    """

    a: Tensor
    b: Tensor
    grad_a: Tensor
    grad_b: Tensor


class LinearFunction(torch.autograd.Function):
    """A frozen linear layer with ``k`` adapters."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context has no public type
        x: Tensor,
        _anchor: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        views: Views,
    ) -> Tensor:
        """[k m, …, in] -> [k m, …, out]; ``_anchor`` makes autograd call backward at all."""
        k = len(views.a)
        y = F.linear(x, weight, bias)
        per_adapter = x.reshape(k, -1, x.shape[-1])
        z = torch.bmm(per_adapter, views.a.transpose(1, 2))
        y.view(k, -1, y.shape[-1]).baddbmm_(z, views.b.transpose(1, 2))
        ctx.save_for_backward(x, z)
        ctx.weight, ctx.views = weight, views
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The gradient of x; those of A and B go into their buffers."""
        x, z = ctx.saved_tensors
        views = ctx.views
        k = len(views.a)
        per_adapter = gradient.reshape(k, -1, gradient.shape[-1])
        views.grad_b.copy_(torch.bmm(per_adapter.transpose(1, 2), z))
        grad_z = torch.bmm(per_adapter, views.b)
        views.grad_a.copy_(torch.bmm(grad_z.transpose(1, 2), x.reshape(k, -1, x.shape[-1])))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        grad_x = torch.matmul(gradient, ctx.weight)
        grad_x.view(k, -1, x.shape[-1]).baddbmm_(grad_z, views.a)
        return grad_x, None, None, None, None


class ConvolutionFunction(torch.autograd.Function):
    """A frozen convolution with ``k`` adapters: A is a convolution, B a 1x1 one."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        _anchor: Tensor,
        layer: torch.nn.Conv2d,
        views: Views,
    ) -> Tensor:
        """[k m, in, h, w] -> [k m, out, h', w']."""
        k = len(views.a)
        y = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)
        rank, out = views.a.shape[1], y.shape[1]
        pixels = y.shape[2] * y.shape[3]
        z = x.new_empty(len(x), rank, *y.shape[2:])
        rows = len(x) // k
        for index in range(k):
            mine = slice(index * rows, (index + 1) * rows)
            z[mine] = F.conv2d(
                x[mine],
                views.a[index].view(rank, -1, *layer.kernel_size),
                None,
                layer.stride,
                layer.padding,
                layer.dilation,
            )
        # A 1x1 convolution as one product per image: torch has no fast kernel for tiny ones.
        per_image = views.b[:, None].expand(k, rows, out, rank).reshape(-1, out, rank)
        y.view(-1, out, pixels).baddbmm_(per_image, z.view(-1, rank, pixels))
        ctx.save_for_backward(x, z)
        ctx.layer, ctx.views = layer, views
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The gradient of x; those of A and B go into their buffers."""
        x, z = ctx.saved_tensors
        layer, views = ctx.layer, ctx.views
        k, rank, out = len(views.a), views.a.shape[1], gradient.shape[1]
        rows, pixels = len(x) // k, gradient.shape[2] * gradient.shape[3]
        per_image = gradient.reshape(-1, out, pixels)
        products = torch.bmm(per_image, z.view(-1, rank, pixels).transpose(1, 2))
        torch.sum(products.view(k, rows, out, rank), 1, out=views.grad_b)
        b_t = views.b.transpose(1, 2)[:, None].expand(k, rows, rank, out).reshape(-1, rank, out)
        grad_z = torch.bmm(b_t, per_image).view_as(z)
        wants_x = ctx.needs_input_grad[0]
        grad_x = (
            _convolution_backward(gradient, x, layer.weight, layer, (True, False))[0]
            if (wants_x)
            else None
        )
        for index in range(k):
            mine = slice(index * rows, (index + 1) * rows)
            weight = views.a[index].view(rank, -1, *layer.kernel_size)
            to_x, to_a = _convolution_backward(
                grad_z[mine], x[mine], weight, layer, (wants_x, True)
            )
            views.grad_a[index] = to_a.reshape(rank, -1)
            if grad_x is not None:
                grad_x[mine] += to_x
        return grad_x, None, None, None


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    layer: torch.nn.Conv2d,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the weight, each only if it is wanted."""
    answer = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        False,
        [0, 0],
        1,
        [*wanted, False],
    )
    return answer[0], answer[1]
