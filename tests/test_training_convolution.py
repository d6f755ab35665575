# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""Convolutions as products compute what PyTorch's own do, forwards and backwards."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import resnet18

from engine.training import convolution
from engine.training.convolution import Convolution
from engine.training.model import SimCLR

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def of_pytorch(
    x: Tensor, weight: Tensor, stride: int, padding: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What comes out, a gradient of it, and what that is by the input and by the weights."""
    x, weight = (value.float().requires_grad_() for value in (x, weight))
    out = F.conv2d(x, weight, None, stride, padding)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradient = gradient.bfloat16().float()  # so that rounding it to bf16 loses nothing
    of_x, of_weight = torch.autograd.grad(out, (x, weight), gradient)
    return out.detach(), gradient, of_x, of_weight


def near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    assert found.shape == wanted.shape and found.dtype == dtype
    return bool((found.float() - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    channels=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    shape=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.sampled_from([(1, 0), (3, 1), (3, 0)]),
    stride=st.integers(1, 3),
    chunk=st.sampled_from([1, 4000, 1 << 20]),
)
def test_products_are_the_convolution(
    dtype: torch.dtype,
    n: int,
    channels: tuple[int, int],
    shape: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    chunk: int,
) -> None:
    size, padding = kernel
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels[0], *shape, generator=generator).to(dtype)
    weight = torch.randn(channels[1], channels[0], size, size, generator=generator).to(dtype)
    out, gradient, of_x, of_weight = of_pytorch(x, weight, stride, padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_CHUNK_BYTES", chunk)  # one image a part, some, all
        assert near(convolution.convolved(x, weight, stride, padding), out, dtype)
        found = convolution.weight_gradient(gradient.to(dtype), x, weight, stride, padding)
        assert near(found, of_weight, dtype)
        found = convolution.input_gradient(gradient.to(dtype), x, weight, stride, padding)
        assert near(found, of_x, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 8, 9])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_a_layer_learns_as_pytorchs_does(width: int, autocast: bool) -> None:
    theirs = nn.Conv2d(512, 512, 3, padding=1, bias=False)
    ours = Convolution.of(theirs)
    assert ours.weight is theirs.weight
    grads = []
    x = torch.randn(4, 512, width, width, generator=torch.Generator().manual_seed(0))
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = layer(given)
        theirs.weight.grad = None
        out.float().square().mean().backward()
        assert given.grad is not None and theirs.weight.grad is not None
        grads.append((out.detach(), given.grad, theirs.weight.grad))
    dtype = torch.bfloat16 if autocast else torch.float32
    assert near(grads[0][0], grads[1][0].float(), dtype)
    for mine, wanted in zip(grads[0][1:], grads[1][1:], strict=True):
        assert mine.dtype == torch.float32
        assert (mine - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()


@pytest.mark.slow
def test_products_are_used_where_maps_are_small_and_only_in_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def counted(gradient: Tensor, x: Tensor, *rest: object) -> Tensor:
        asked.append(tuple(gradient.shape[2:]))
        return real(gradient, x, *rest)  # type: ignore[arg-type]

    real = convolution.weight_gradient
    monkeypatch.setattr(convolution, "weight_gradient", counted)
    network = SimCLR().train()
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 3, 96, 96)).sum().backward()
    assert sorted(set(asked)) == [(3, 3), (6, 6)]  # of the last two stages
    asked.clear()
    network.eval()(torch.randn(2, 3, 96, 96)).sum().backward()
    assert asked == []


@pytest.mark.parametrize(("side", "wanted"), [(3, 1), (4, 1), (5, 0)])
def test_of_many_weights_all_three_passes_are_products(
    monkeypatch: pytest.MonkeyPatch, side: int, wanted: int
) -> None:
    asked = []
    for name in ("convolved", "input_gradient", "weight_gradient"):
        real = getattr(convolution, name)

        def counted(*given: object, name: str = name, real: Any = real) -> Tensor:
            asked.append(name)
            found: Tensor = real(*given)
            return found

        monkeypatch.setattr(convolution, name, counted)
    layer = Convolution.of(nn.Conv2d(512, 512, 3, padding=1, bias=False))
    x = torch.randn(2, 512, side, side, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    assert asked.count("weight_gradient") == 1
    assert asked.count("convolved") == asked.count("input_gradient") == wanted


@pytest.mark.slow
def test_a_network_is_torchvisions_in_all_that_is_saved() -> None:
    theirs = resnet18(weights=None)
    theirs.fc = nn.Identity()
    trunk = SimCLR().trunk
    assert [(name, p.shape) for name, p in trunk.named_parameters()] == [
        (name, p.shape) for name, p in theirs.named_parameters()
    ]
    assert list(trunk.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, bias=True),
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, dilation=2, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.Conv2d(4, 4, 3, stride=(1, 2), bias=False),
        nn.Conv2d(4, 4, 3, padding=(0, 1), bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
    ],
    ids=["bias", "groups", "dilation", "same", "strides", "paddings", "reflect"],
)
def test_what_it_cannot_compute_is_refused(conv: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match="plain convolution"):
        Convolution.of(conv)
