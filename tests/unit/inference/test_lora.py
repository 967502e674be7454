"""The adapted layers, and the layout that both sides derive by themselves."""

import pytest
import torch
from torch import nn

from inference.engine.base import ResidentBase
from inference.engine.lora import (
    Factors,
    LayerShape,
    Share,
    derive_layout,
    make_adaptable,
    unpack,
    widen,
)
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


def test_each_group_of_rows_has_its_own_change_of_weights() -> None:
    model, x, image = net(), torch.randn(7, 6), torch.randn(7, 3, 9, 9)
    selection, _ = make_adaptable(model)
    linear = Factors(torch.randn(3, 2, 6), torch.randn(3, 4, 2))
    conv = Factors(torch.randn(3, 2, 3, 3, 3), torch.randn(3, 5, 2))
    # Row 0 has no adapter, each of the three has two of the others.
    selection.shares = (Share(slice(1, 7), {"to_q": linear, "conv": conv}),)
    plain = net()
    drawn, convolved = model["to_q"](x), model["conv"](image)
    torch.testing.assert_close(drawn[0], plain["to_q"](x)[0])
    torch.testing.assert_close(convolved[0], plain["conv"](image)[0])
    for k in range(3):
        merged, mine = net(), slice(1 + 2 * k, 3 + 2 * k)
        merged["to_q"].weight.data += linear.b[k] @ linear.a[k]
        merged["conv"].weight.data += torch.einsum("or,rihw->oihw", conv.b[k], conv.a[k])
        torch.testing.assert_close(drawn[mine], merged["to_q"](x)[mine])
        torch.testing.assert_close(convolved[mine], merged["conv"](image)[mine])
    assert torch.equal(model["plain"](x), plain["plain"](x))


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
    rows = torch.ones(3, layout.size)
    factors = unpack(rows[1:], layout)
    assert set(factors) == {"down.0.to_q", "down.0.proj.to_q", "up.0.conv"}
    assert factors["up.0.conv"].a.shape == (2, 2, 3, 3, 3)
    assert factors["up.0.conv"].b.shape == (2, 5, 2)
    rows.zero_()
    assert all(not pair.a.any() and not pair.b.any() for pair in factors.values())


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_wider_row_is_the_same_change_of_weights(rank: int) -> None:
    own, wider = (derive_layout(SHAPES, ("to_q", "conv"), r) for r in (rank, 4))
    flat, row = torch.randn(own.size), torch.full((wider.size,), float("nan"))
    widen(flat, own, row, wider)
    narrow, wide = unpack(flat[None], own), unpack(row[None], wider)
    for name, pair in narrow.items():
        product = pair.b[0] @ pair.a[0].flatten(1)
        torch.testing.assert_close(wide[name].b[0] @ wide[name].a[0].flatten(1), product)


def test_every_linear_and_convolution_of_a_unet_can_be_adapted(base: ResidentBase) -> None:
    plain = [
        name for name, module in base.unet.named_modules() if type(module) in {nn.Linear, nn.Conv2d}
    ]
    assert plain == []
    assert len(base.layers) > 50
