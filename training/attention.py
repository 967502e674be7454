"""Attention of many users at once, without what is the same in every step.

* Query, key and value of a self-attention read the same input: their three A matrices lie side by
  side in the bank, so that one product serves them, and so does one gradient.
* Keys and values of a cross-attention read the caption, which never changes in a fine-tune: the
  frozen layers' answer to it is computed once when a user enters, and the A matrices of all these
  layers meet it in one product at the start of a pass. No gradient goes back into the caption.
* diffusers' own forward divides by one, drops nothing out, and looks up its processor's signature;
  here that is left out.

Where a pass has no fixed caption (a pipeline that draws), or an attention is of another kind, the
layers are called one by one as diffusers does it; both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - what the whole world calls it
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.layers import Views

# The widest head that gains on a CPU, the fewest scores of a head that are worth it, and how many
# scores stay in a core's cache.
NARROW: Final = 12
FEW_SCORES: Final = 2_048
CACHEFUL: Final = 524_288


@dataclass(frozen=True, slots=True)
class Joint:
    """The A matrices of layers with one input, side by side, for the adapters of one pass.

    Attributes:
        a: [k, layers * r, in].
        grad_a: Where their gradient goes.
    """

    a: Tensor
    grad_a: Tensor


@dataclass(frozen=True, slots=True)
class Captions:
    """What the cross-attentions of one pass know of their captions.

    Attributes:
        text: The captions' embeddings: [k, t, d].
        z: All cross-attentions' A matrices times the captions: [k, t, layers * r].
        grad_z: Where the gradient of ``z`` is gathered; each layer fills its columns.
        frozen: The frozen answers, by attention: keys and values, [k, t, c] each.
    """

    text: Tensor
    z: Tensor
    grad_z: Tensor
    frozen: list[tuple[Tensor, Tensor]]


class QueryKeyValueFunction(torch.autograd.Function):
    """Three frozen linear layers on one input, with ``k`` adapters each."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context has no public type
        x: Tensor,
        _anchor: Tensor,
        layers: tuple[torch.nn.Linear, ...],
        views: tuple[Views, ...],
        joint: Joint,
    ) -> tuple[Tensor, ...]:
        """[k m, …, in] -> three times [k m, …, out]."""
        k, rank = len(joint.a), views[0].a.shape[1]
        z = torch.bmm(x.reshape(k, -1, x.shape[-1]), joint.a.transpose(1, 2))  # [k, m, 3 r]
        outputs = []
        for layer, view, part in zip(layers, views, torch.split(z, rank, 2), strict=True):
            y = F.linear(x, layer.weight, layer.bias)
            y.view(k, -1, y.shape[-1]).baddbmm_(part, view.b.transpose(1, 2))
            outputs.append(y)
        ctx.save_for_backward(x, z)
        ctx.layers, ctx.views, ctx.joint = layers, views, joint
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The gradient of x; those of A and B go into their buffers."""
        x, z = ctx.saved_tensors
        joint = ctx.joint
        k, rank = len(joint.a), ctx.views[0].a.shape[1]
        parts = []
        for gradient, view, part in zip(gradients, ctx.views, torch.split(z, rank, 2), strict=True):
            per_adapter = gradient.reshape(k, -1, gradient.shape[-1])
            view.grad_b.copy_(torch.bmm(per_adapter.transpose(1, 2), part))
            parts.append(torch.bmm(per_adapter, view.b))
        grad_z = torch.cat(parts, 2)  # [k, m, 3 r]
        joint.grad_a.copy_(torch.bmm(grad_z.transpose(1, 2), x.reshape(k, -1, x.shape[-1])))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        first, *others = (
            (gradient.reshape(-1, gradient.shape[-1]), layer.weight)
            for gradient, layer in zip(gradients, ctx.layers, strict=True)
        )
        grad_x = torch.mm(*first)
        for flat, weight in others:
            grad_x.addmm_(flat, weight)
        grad_x.view(k, -1, x.shape[-1]).baddbmm_(grad_z, joint.a)
        return grad_x.view_as(x), None, None, None, None


class KeyValueFunction(torch.autograd.Function):
    """Keys and values of the captions of ``k`` adapters."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        _anchor: Tensor,
        frozen: tuple[Tensor, Tensor],
        views: tuple[Views, Views],
        z: tuple[Tensor, Tensor],
        grad_z: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, ...]:
        """Two times [k, t, c]."""
        ctx.save_for_backward(*z)
        ctx.views, ctx.grad_z = views, grad_z
        return tuple(
            torch.baddbmm(answer, part, view.b.transpose(1, 2))
            for answer, part, view in zip(frozen, z, views, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:  # noqa: ANN401
        """All gradients go into their buffers."""
        for gradient, part, view, to_z in zip(
            gradients, ctx.saved_tensors, ctx.views, ctx.grad_z, strict=True
        ):
            view.grad_b.copy_(torch.bmm(gradient.transpose(1, 2), part))
            to_z.copy_(torch.bmm(gradient, view.b))
        return None, None, None, None, None


class NarrowFunction(torch.autograd.Function):
    """Softmax attention of narrow heads on a CPU, a cacheful of scores at a time.

    torch's kernel works on blocks of [tokens, head width], whose products leave most of a vector
    register idle when a head is ten numbers wide. Here tokens lie innermost, and the scores are
    kept instead of computed again. One thread, rounds interleaved, forward and backward of 8 heads
    of 10 over 256 tokens: 2.0 times as fast; heads of 24: no gain.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:  # noqa: ANN401
        """[n, q, c], [n, t, c], [n, t, c] -> [n, q, c]."""
        width = query.shape[2] // heads
        q = _tokens_last(query, heads) * width**-0.5
        k, v = _tokens_last(key, heads), _tokens_last(value, heads)
        attended = torch.empty_like(q)
        scores = []
        for part in _cachefuls(q, k):
            score = torch.bmm(q[part].transpose(1, 2), k[part]).softmax(-1)  # [·, q, t]
            attended[part] = torch.bmm(v[part], score.transpose(1, 2))
            scores.append(score)
        ctx.save_for_backward(q, k, v, *scores)
        ctx.heads, ctx.scale = heads, width**-0.5
        return _tokens_first(attended, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Gradients of query, key and value."""
        q, k, v, *scores = ctx.saved_tensors
        g = _tokens_last(gradient, ctx.heads)
        grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))
        for part, score in zip(_cachefuls(q, k), scores, strict=True):
            grad_v[part] = torch.bmm(g[part], score)
            of_score = torch.bmm(g[part].transpose(1, 2), v[part])
            of_score = torch._softmax_backward_data(of_score, score, -1, score.dtype)
            grad_q[part] = torch.bmm(k[part], of_score.transpose(1, 2))
            grad_k[part] = torch.bmm(q[part], of_score)
        grads = (grad_q.mul_(ctx.scale), grad_k, grad_v)
        return (*(_tokens_first(grad, ctx.heads) for grad in grads), None)


def _tokens_last(x: Tensor, heads: int) -> Tensor:
    """[n, t, c] -> [n heads, c/heads, t]."""
    n, tokens, _ = x.shape
    return x.reshape(n, tokens, heads, -1).permute(0, 2, 3, 1).reshape(n * heads, -1, tokens)


def _tokens_first(x: Tensor, heads: int) -> Tensor:
    """[n heads, c/heads, t] -> [n, t, c]."""
    tokens = x.shape[2]
    return x.view(-1, heads, x.shape[1], tokens).permute(0, 3, 1, 2).flatten(2)


def _cachefuls(q: Tensor, k: Tensor) -> list[slice]:
    each = max(1, CACHEFUL // (q.shape[2] * k.shape[2]))
    return [slice(start, start + each) for start in range(0, len(q), each)]


def is_narrow(module: Any, query: Tensor, key: Tensor) -> bool:  # noqa: ANN401
    """Whether ``NarrowFunction`` is the faster one, by what was measured."""
    scores = query.shape[1] * key.shape[1]
    return (
        query.device.type == "cpu"
        and query.shape[2] // module.heads <= NARROW
        and FEW_SCORES <= scores <= CACHEFUL
    )


def is_plain(module: Any) -> bool:  # noqa: ANN401
    """Whether a module is an attention that does nothing but attend, as those of Stable Diffusion.

    Only then may ``attend`` stand for its forward.
    """
    return (
        isinstance(module, Attention)
        and isinstance(module.processor, AttnProcessor2_0)
        and not any(
            getattr(module, name) is not None
            for name in ("spatial_norm", "group_norm", "norm_q", "norm_k", "add_k_proj")
        )
        and not module.norm_cross
        and not module.residual_connection
        and module.rescale_output_factor == 1
        and module.to_out[1].p == 0
    )


def attend(
    module: Any,  # noqa: ANN401 - diffusers ships no types
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    """What follows the projections: [n, q, c], [n, t, c], [n, t, c] -> [n, q, c]."""
    heads = module.heads
    project: Callable[[Tensor], Tensor] = module.to_out[0].forward
    if is_narrow(module, query, key):
        narrow: Tensor = NarrowFunction.apply(query, key, value, heads)  # type: ignore[no-untyped-call]
        return project(narrow)

    def split(x: Tensor) -> Tensor:
        return x.view(len(x), x.shape[1], heads, -1).transpose(1, 2)  # [n, heads, t, c/heads]

    attended = F.scaled_dot_product_attention(split(query), split(key), split(value))
    return project(attended.transpose(1, 2).reshape_as(query))


def for_rows(x: Tensor, rows: int) -> Tensor:
    """Each caption's keys or values for all rows of its user: [k, t, c] -> [k rows/k, t, c]."""
    k = len(x)
    if rows == k:
        return x
    return x[:, None].expand(k, rows // k, *x.shape[1:]).reshape(rows, *x.shape[1:])
