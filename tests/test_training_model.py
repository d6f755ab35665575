# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""The network and its deployed form."""

import pytest

torch = pytest.importorskip("torch")

from engine.training.model import Deployed, SimCLR, build, normalised
from engine.training.settings import TrainSettings


def test_its_parts_are_the_recipe() -> None:
    network = SimCLR()
    shapes = [tuple(p.shape) for p in network.head.parameters()]
    assert shapes == [(256, 512), (256,), (128, 256), (128,)]
    assert isinstance(network.head[1], torch.nn.ReLU)
    assert sum(p.numel() for p in network.trunk.parameters()) == 11_176_512  # ResNet-18 less fc


def test_embeddings_are_unit_float32() -> None:
    network = SimCLR(hidden=32, dim=16).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        z = network(torch.randn(3, 3, 32, 32))
    assert z.shape == (3, 16) and z.dtype == torch.float32
    assert torch.allclose(z.norm(dim=1), torch.ones(3), atol=1e-5)


@pytest.mark.slow
def test_a_seed_makes_the_network_and_leaves_the_global_state_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (build(TrainSettings(seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.head[0].weight, same.head[0].weight)
    assert not torch.equal(one.head[0].weight, other.head[0].weight)


@pytest.mark.slow
def test_the_deployed_form_computes_the_same() -> None:
    settings = TrainSettings()
    network = build(settings)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=generator)
    x = normalised(pixels, settings.mean, settings.std)
    network.train()(x)  # so that the running statistics are not the identity
    network.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.inference_mode():
        deployed = Deployed(network, settings.mean, settings.std)(pixels)
        assert torch.allclose(deployed, network(x), atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
