"""Attentions and residual blocks without the work that changes nothing.

diffusers' own forwards look up their processor's signature at each call, divide by one, and call a
dropout of nothing: on a UNet of many small layers, and on a GPU that waits for Python, that is a
twentieth of a step. What remains are the same operations in the same order, so the same numbers.
Modules of another kind than Stable Diffusion's keep their own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional


def make_lean(unet: nn.Module) -> None:
    """Gives the plain attentions and residual blocks of a UNet a lean forward."""
    module: Any
    for module in unet.modules():
        if is_plain_attention(module):
            module.forward = _attention(module)
        elif is_plain_block(module):
            module.forward = _block(module)


def is_plain_attention(module: Any) -> bool:  # noqa: ANN401 (diffusers has no types)
    """Whether a module is an attention as those of Stable Diffusion's transformers."""
    return (
        isinstance(module, Attention)
        and type(module.processor) is AttnProcessor2_0
        and module.spatial_norm is None
        and module.group_norm is None
        and not module.norm_cross
        and module.norm_q is None
        and module.norm_k is None
        and not module.residual_connection
        and module.rescale_output_factor == 1
        and not module.only_cross_attention
        and module.to_out[1].p == 0
    )


def is_plain_block(module: Any) -> bool:  # noqa: ANN401
    """Whether a module is a residual block as those of Stable Diffusion."""
    return (
        isinstance(module, ResnetBlock2D)
        and module.upsample is None
        and module.downsample is None
        and module.time_emb_proj is not None
        and module.time_embedding_norm == "default"
        and not module.skip_time_act
        and isinstance(module.nonlinearity, nn.SiLU)
        and module.output_scale_factor == 1
        and module.dropout.p == 0
    )


def _attention(module: Any) -> Callable[..., Tensor]:  # noqa: ANN401
    plain: Callable[..., Tensor] = module.forward

    def heads(x: Tensor) -> Tensor:
        """``[n, tokens, heads * width] -> [n, heads, tokens, width]``."""
        return x.view(x.shape[0], x.shape[1], module.heads, -1).transpose(1, 2)

    def forward(
        x: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: object,
    ) -> Tensor:
        if attention_mask is not None or x.ndim != 3:
            return plain(x, encoder_hidden_states, attention_mask, **options)
        source = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (heads(module.to_q(x)), heads(module.to_k(source)), heads(module.to_v(source)))
        seen = functional.scaled_dot_product_attention(q, k, v)
        output: Tensor = module.to_out[0](seen.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))
        return output

    return forward


def _block(module: Any) -> Callable[..., Tensor]:  # noqa: ANN401
    def forward(x: Tensor, temb: Tensor, *_: object, **__: object) -> Tensor:
        h = module.conv1(functional.silu(module.norm1(x)))
        h = h + module.time_emb_proj(functional.silu(temb))[:, :, None, None]
        h = module.conv2(functional.silu(module.norm2(h)))
        if module.conv_shortcut is not None:
            x = module.conv_shortcut(x)
        summed: Tensor = x + h
        return summed

    return forward
