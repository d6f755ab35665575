# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""The losses against their formulas, written out."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from engine.training.loss import Negatives, info_nce, label_loss, nt_xent

Vectors = npt.NDArray[np.float64]

NEGATIVES = st.builds(
    Negatives,
    beta=st.sampled_from([0.0, 0.3, 1.0]),
    tau_plus=st.sampled_from([0.0, 0.05, 0.3]),
    semi_hard=st.booleans(),
)
TEMPERATURES = st.sampled_from([0.07, 0.1, 0.5])


def unit(n: int, d: int, seed: int) -> "torch.Tensor":
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=1)


def anchor_slowly(near: float, far: list[float], temperature: float, how: Negatives) -> float:
    """The loss of one anchor, of its cosines, step by step as the docstring says it."""
    if how.semi_hard:
        far = [cosine for cosine in far if cosine < near] or [min(far)]
    n = len(far)
    sims = [cosine / temperature for cosine in far]
    whole = sum(math.exp(how.beta * sim) for sim in sims)
    weights = [n * math.exp(how.beta * sim) / whole for sim in sims]
    g = sum(weight * math.exp(sim) for weight, sim in zip(weights, sims, strict=True))
    pull = math.exp(near / temperature)
    if how.tau_plus:
        g = (g - how.tau_plus * n * pull) / (1 - how.tau_plus)
        g = max(g, n * math.exp(-1 / temperature))
    return -math.log(pull / (pull + g))


def nt_xent_slowly(z1: Vectors, z2: Vectors, temperature: float, how: Negatives) -> float:
    z = np.concatenate([z1, z2])
    n = len(z1)
    losses = []
    for i in range(2 * n):
        other = (i + n) % (2 * n)
        far = [float(z[i] @ z[j]) for j in range(2 * n) if j not in (i, other)]
        losses.append(anchor_slowly(float(z[i] @ z[other]), far, temperature, how))
    return float(np.mean(losses))


def info_nce_slowly(
    queries: Vectors,
    keys: Vectors,
    images: list[int],
    queue: Vectors,
    queue_images: list[int],
    temperature: float,
    how: Negatives,
) -> float:
    losses = []
    for i, image in enumerate(images):
        far = [float(queries[i] @ keys[j]) for j in range(len(images)) if images[j] != image]
        far += [
            float(queries[i] @ queue[j])
            for j in range(len(queue))
            if queue_images[j] not in (image, -1)
        ]
        losses.append(anchor_slowly(float(queries[i] @ keys[i]), far, temperature, how))
    return float(np.mean(losses))


@pytest.mark.parametrize(("n", "d", "temperature"), [(2, 3, 0.5), (5, 8, 0.1), (16, 128, 0.1)])
def test_it_is_the_formula(n: int, d: int, temperature: float) -> None:
    z1, z2 = unit(n, d, 0), unit(n, d, 1)
    slowly = nt_xent_slowly(z1.double().numpy(), z2.double().numpy(), temperature, Negatives())
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(slowly, rel=1e-5)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(2, 6),
    d=st.integers(2, 6),
    seed=st.integers(0, 1000),
    temperature=TEMPERATURES,
    how=NEGATIVES,
)
def test_nt_xent_with_chosen_negatives_is_the_formula(
    n: int, d: int, seed: int, temperature: float, how: Negatives
) -> None:
    # In float64, because a negative may be as near as the positive to the last bit of float32.
    z1, z2 = unit(n, d, seed), unit(n, d, seed + 1)
    slowly = nt_xent_slowly(z1.double().numpy(), z2.double().numpy(), temperature, how)
    assert nt_xent(z1, z2, temperature, how).item() == pytest.approx(slowly, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    m=st.integers(1, 4),
    d=st.integers(2, 6),
    queue_images=st.lists(st.integers(-1, 5), max_size=8),
    seed=st.integers(0, 1000),
    temperature=TEMPERATURES,
    how=NEGATIVES,
)
def test_info_nce_is_the_formula(
    m: int, d: int, queue_images: list[int], seed: int, temperature: float, how: Negatives
) -> None:
    images = [*range(m), *range(m)]  # two views of each, as a batch has them
    if m == 1 and not {image for image in queue_images if image > 0}:
        queue_images = [*queue_images, 1]  # an anchor without a negative has no loss
    queries, keys = unit(2 * m, d, seed), unit(2 * m, d, seed + 1)
    queue = unit(len(queue_images), d, seed + 2).view(-1, d)
    fast = info_nce(
        queries,
        keys,
        torch.tensor(images),
        queue,
        torch.tensor(queue_images, dtype=torch.long),
        temperature,
        how,
    )
    slowly = info_nce_slowly(
        queries.double().numpy(),
        keys.double().numpy(),
        images,
        queue.double().numpy(),
        queue_images,
        temperature,
        how,
    )
    assert fast.item() == pytest.approx(slowly, rel=1e-3, abs=1e-5)


def test_hard_negatives_weigh_more() -> None:
    def pulls(how: Negatives) -> tuple[float, float]:
        z1, z2 = unit(8, 4, 0), unit(8, 4, 1).requires_grad_()
        nt_xent(z1, z2, 0.5, how).backward()
        cosines = (z1[0] @ z2.detach().T)[1:]
        near, far = int(cosines.argmax()) + 1, int(cosines.argmin()) + 1
        return float(z2.grad[near].norm()), float(z2.grad[far].norm())

    (near, far), (hard_near, hard_far) = pulls(Negatives()), pulls(Negatives(beta=2.0))
    assert hard_near / hard_far > near / far


@pytest.mark.parametrize("how", [Negatives(beta=0.5), Negatives(0.5, 0.1), Negatives(0, 0, True)])
@pytest.mark.parametrize("temperature", [0.005, 0.1])
def test_gradients_are_numbers_where_views_are_alike(how: Negatives, temperature: float) -> None:
    z = unit(1, 8, 0).expand(6, 8).clone().requires_grad_()
    loss = nt_xent(z, z.roll(1, 0), temperature, how)
    loss.backward()
    assert math.isfinite(loss.item()) and bool(torch.isfinite(z.grad).all())


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
    assert label_loss(z1.bfloat16(), torch.arange(8)).dtype == torch.float32


def test_both_views_have_a_gradient() -> None:
    z1, z2 = unit(4, 8, 0).requires_grad_(), unit(4, 8, 1).requires_grad_()
    nt_xent(z1, z2, 0.1).backward()
    assert z1.grad.abs().sum() > 0 and z2.grad.abs().sum() > 0


def test_the_loss_of_labels_is_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    first = -math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(-1)))
    loss = label_loss(logits, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx((first + math.log(3)) / 2, rel=1e-6)
