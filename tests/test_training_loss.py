# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""NT-Xent against the formula, written out."""

import math

import pytest

torch = pytest.importorskip("torch")

from engine.training.loss import nt_xent


def unit(n: int, d: int, seed: int) -> "torch.Tensor":
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=1)


def slowly(z1: "torch.Tensor", z2: "torch.Tensor", temperature: float) -> float:
    z = [*z1.double(), *z2.double()]
    n = len(z1)
    total = 0.0
    for i, anchor in enumerate(z):
        cosines = {j: float(anchor @ other) for j, other in enumerate(z) if j != i}
        below = sum(math.exp(cosine / temperature) for cosine in cosines.values())
        total -= math.log(math.exp(cosines[(i + n) % (2 * n)] / temperature) / below)
    return total / (2 * n)


@pytest.mark.parametrize(("n", "d", "temperature"), [(2, 3, 0.5), (5, 8, 0.1), (16, 128, 0.1)])
def test_it_is_the_formula(n: int, d: int, temperature: float) -> None:
    z1, z2 = unit(n, d, 0), unit(n, d, 1)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(
        slowly(z1, z2, temperature), rel=1e-5
    )


def test_the_order_of_the_views_does_not_matter() -> None:
    z1, z2 = unit(6, 8, 0), unit(6, 8, 1)
    assert nt_xent(z1, z2, 0.1).item() == pytest.approx(nt_xent(z2, z1, 0.1).item(), rel=1e-6)


def test_views_that_agree_cost_less() -> None:
    z1 = unit(16, 32, 0)
    assert nt_xent(z1, z1, 0.1) < nt_xent(z1, z1.roll(1, 0), 0.1)


def test_a_view_is_not_compared_with_itself() -> None:
    # All alike: each anchor chooses among 2n - 1 others, with nothing to tell them apart.
    z = unit(1, 8, 0).expand(4, 8)
    assert nt_xent(z, z, 0.1).item() == pytest.approx(math.log(7), rel=1e-5)


def test_half_precision_is_taken_in_float32() -> None:
    z1, z2 = unit(8, 16, 0), unit(8, 16, 1)
    loss = nt_xent(z1.bfloat16(), z2.bfloat16(), 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(nt_xent(z1, z2, 0.1).item(), rel=0.05)


def test_both_views_have_a_gradient() -> None:
    z1, z2 = unit(4, 8, 0).requires_grad_(), unit(4, 8, 1).requires_grad_()
    nt_xent(z1, z2, 0.1).backward()
    assert z1.grad.abs().sum() > 0 and z2.grad.abs().sum() > 0
