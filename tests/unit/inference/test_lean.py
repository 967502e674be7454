"""What is left out of a step changes no bit of it."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from inference.engine.base import ResidentBase
from inference.engine.lean import is_plain_attention, is_plain_block


def test_a_lean_unet_gives_the_same_bits(base: ResidentBase, base_folder: Path) -> None:
    plain = UNet2DConditionModel.from_pretrained(base_folder / "unet").eval()
    assert any(map(is_plain_attention, base.unet.modules()))
    assert any(map(is_plain_block, base.unet.modules()))
    sample, text = torch.randn(3, 4, 16, 16), torch.randn(3, 24, 16)
    times = torch.tensor([1, 500, 999])
    with torch.inference_mode():
        lean, own = (
            unet(sample, times, encoder_hidden_states=text, return_dict=False)[0]
            for unet in (base.unet, plain)
        )
    assert torch.equal(lean, own)


def test_a_mask_is_left_to_diffusers(base: ResidentBase) -> None:
    attention = next(module for module in base.unet.modules() if is_plain_attention(module))
    x = torch.randn(1, 5, attention.to_q.in_features)
    mask = torch.zeros(1, 1, 5)
    mask[..., 2:] = -10_000
    with torch.inference_mode():
        masked, short = attention(x, attention_mask=mask), attention(x[:, :2])
    torch.testing.assert_close(masked[:, :2], short)
