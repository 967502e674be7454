"""The adapted layers, and the layout that both sides derive by themselves."""

import pytest
import torch
from torch import nn

from inference.engine.base import ResidentBase
from inference.engine.lora import Factors, LayerShape, derive_layout, make_adaptable, unpack
from limner.contracts.errors import LimnerError


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "to_q": nn.Linear(6, 4),
            "plain": nn.Linear(6, 4, bias=False),
            "conv": nn.Conv2d(3, 5, 3, stride=2, padding=1),
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
        }
    )


def test_making_adaptable_keeps_outputs_tensors_and_names() -> None:
    model, x, image = net(), torch.randn(2, 6), torch.randn(2, 3, 9, 9)
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    expected = [model["to_q"](x), model["plain"](x), model["conv"](image)]
    _, shapes = make_adaptable(model)
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
    actual = [model["to_q"](x), model["plain"](x), model["conv"](image)]
    assert all(torch.equal(one, two) for one, two in zip(expected, actual, strict=True))
    # A grouped convolution has no low-rank form of this kind: it cannot be adapted.
    assert [shape.name for shape in shapes] == ["to_q", "plain", "conv"]


def test_the_selected_factors_are_added_as_a_change_of_weights() -> None:
    model, x, image = net(), torch.randn(2, 6), torch.randn(2, 3, 9, 9)
    selection, _ = make_adaptable(model)
    linear = Factors(torch.randn(2, 6), torch.randn(4, 2))
    conv = Factors(torch.randn(2, 3, 3, 3), torch.randn(5, 2, 1, 1))
    merged = net()
    merged["to_q"].weight.data += linear.b @ linear.a
    merged["conv"].weight.data += torch.einsum("or,rihw->oihw", conv.b[..., 0, 0], conv.a)
    selection.factors = {"to_q": linear, "conv": conv}
    torch.testing.assert_close(model["to_q"](x), merged["to_q"](x))
    torch.testing.assert_close(model["conv"](image), merged["conv"](image))
    assert torch.equal(model["plain"](x), merged["plain"](x))


SHAPES = (
    LayerShape("down.0.to_q", (4, 6)),
    LayerShape("down.0.proj.to_q", (4, 6)),
    LayerShape("up.0.conv", (5, 3, 3, 3)),
    LayerShape("up.0.xto_q", (4, 6)),
)


def test_targets_may_be_whole_names_or_their_last_parts() -> None:
    short = derive_layout(SHAPES, ("conv", "to_q"), 2)
    names = ("down.0.proj.to_q", "down.0.to_q", "up.0.conv")
    assert derive_layout(SHAPES, names, 2).digest() == short.digest()
    in_pipeline = tuple(f"unet.{name}" for name in names)
    assert derive_layout(SHAPES, in_pipeline, 2).digest() == short.digest()
    assert {item.name: item.shape for item in short} == {
        "unet.down.0.proj.to_q.lora_A.weight": (2, 6),
        "unet.down.0.proj.to_q.lora_B.weight": (4, 2),
        "unet.down.0.to_q.lora_A.weight": (2, 6),
        "unet.down.0.to_q.lora_B.weight": (4, 2),
        "unet.up.0.conv.lora_A.weight": (2, 3, 3, 3),
        "unet.up.0.conv.lora_B.weight": (5, 2, 1, 1),
    }


@pytest.mark.parametrize("targets", [(), ("to_z",), ("to_q", "to_z"), ("o_q",), ("unet",), ("",)])
def test_a_target_that_names_no_layer_is_refused(targets: tuple[str, ...]) -> None:
    with pytest.raises(LimnerError) as refused:
        derive_layout(SHAPES, targets, 2)
    assert refused.value.code == "ARTIFACT_INVALID"


def test_unpacking_copies_nothing() -> None:
    layout = derive_layout(SHAPES, ("to_q", "conv"), 2)
    flat = torch.arange(layout.size, dtype=torch.float32)
    factors = unpack(flat, layout)
    assert set(factors) == {"down.0.to_q", "down.0.proj.to_q", "up.0.conv"}
    flat.zero_()
    assert all(not pair.a.any() and not pair.b.any() for pair in factors.values())


def test_every_linear_and_convolution_of_a_unet_can_be_adapted(base: ResidentBase) -> None:
    plain = [
        name for name, module in base.unet.named_modules() if type(module) in {nn.Linear, nn.Conv2d}
    ]
    assert plain == []
    assert len(base.layers) > 50
