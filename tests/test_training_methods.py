# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""What each method keeps beside the network, and how it changes with a step."""

import pytest

from engine.errors import TrainingError

torch = pytest.importorskip("torch")

from engine.training.loss import nt_xent
from engine.training.methods import Contrastive, Momentum, Supervised, method
from engine.training.model import SimCLR, build
from engine.training.settings import TrainSettings

MOCO = TrainSettings(method="moco", queue=10, image_size=32, hidden=32, dim=16)


def embed(network: SimCLR, x: "torch.Tensor") -> "torch.Tensor":
    z: torch.Tensor = network(x)
    return z


def views(n: int, seed: int = 0) -> "torch.Tensor":
    return torch.randn(2 * n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def step(kept: Contrastive, network: SimCLR, rows: list[int], seed: int = 0) -> "torch.Tensor":
    loss = kept.loss(network, embed, rows, views(len(rows), seed))
    kept.after_step(network)
    return loss


@pytest.mark.slow
def test_the_settings_choose_the_method() -> None:
    network = build(MOCO)
    labels = ["a", "b"]
    assert type(method(TrainSettings(), network, labels)) is Contrastive
    assert isinstance(method(MOCO, network, labels), Momentum)
    assert isinstance(method(TrainSettings(method="supervised"), network, labels), Supervised)


@pytest.mark.slow
def test_simclr_takes_the_first_half_against_the_second() -> None:
    network = build(MOCO).eval()
    x = views(4)
    z = network(x)
    expected = nt_xent(z[:4], z[4:], 0.1)
    assert torch.equal(Contrastive(TrainSettings()).loss(network, embed, [0, 1, 2, 3], x), expected)


@pytest.mark.slow
def test_the_queue_holds_the_newest_keys() -> None:
    network = build(MOCO).eval()
    moco = Momentum(MOCO, network)
    assert moco.tensors()["queue_images"].tolist() == [-1] * 10
    step(moco, network, [0, 1, 2], 0)
    assert moco.tensors()["queue_images"].tolist() == [0, 1, 2, 0, 1, 2, -1, -1, -1, -1]
    step(moco, network, [3, 4, 5], 1)  # goes around
    assert moco.tensors()["queue_images"].tolist() == [4, 5, 2, 0, 1, 2, 3, 4, 5, 3]
    # The key encoder was the network itself, and still is: neither has changed.
    expected = network(views(3, 1))
    assert torch.allclose(moco.tensors()["queue"][6:9], expected[:3], atol=1e-6)
    assert torch.allclose(moco.tensors()["queue"][:2], expected[4:], atol=1e-6)


@pytest.mark.slow
def test_a_batch_longer_than_the_queue_leaves_its_end() -> None:
    network = build(MOCO).eval()
    moco = Momentum(MOCO, network)
    step(moco, network, list(range(7)))
    assert sorted(moco.tensors()["queue_images"].tolist()) == sorted([4, 5, 6, *range(7)])


@pytest.mark.slow
def test_the_key_encoder_follows_slowly_and_has_no_gradient() -> None:
    network = build(MOCO).train()
    moco = Momentum(MOCO, network)
    step(moco, network, [0, 1, 2]).backward()
    assert all(not name.startswith("key") for name in moco.parameters())
    for t in range(1, 30):
        before = {name: value.clone() for name, value in moco.tensors().items()}
        with torch.no_grad():
            for value in network.parameters():
                value += 0.1 * torch.randn_like(value)
        moco.after_step(network)
        momentum = min(MOCO.momentum, (1 + t) / (10 + t))
        for name in ("head.0.weight", "trunk.bn1.running_var"):
            was, now = before[f"key.{name}"], moco.tensors()[f"key.{name}"]
            goal = network.state_dict()[name]
            assert torch.allclose(now, momentum * was + (1 - momentum) * goal, atol=1e-5)


@pytest.mark.slow
def test_only_the_queries_have_a_gradient() -> None:
    network = build(MOCO).train()
    moco = Momentum(MOCO, network)
    moco.loss(network, embed, [0, 1, 2], views(3)).backward()
    assert all(value.grad is not None for value in network.parameters())
    assert all(not value.requires_grad for value in moco.tensors().values())


@pytest.mark.slow
@pytest.mark.parametrize("queue", [0, 10])
def test_what_is_kept_comes_back(queue: int) -> None:
    settings = TrainSettings(method="moco", queue=queue, image_size=32, hidden=32, dim=16)
    network = build(settings).eval()
    one, other = Momentum(settings, network), Momentum(settings, build(settings))
    step(one, network, [0, 1, 2], 0)
    with torch.no_grad():
        network.head[0].weight += 1
    step(one, network, [3, 4, 5], 1)
    other.load({name: value.clone() for name, value in one.tensors().items()})
    assert torch.equal(step(one, network, [0, 5], 2), step(other, network, [0, 5], 2))
    assert all(torch.equal(value, other.tensors()[key]) for key, value in one.tensors().items())
    with pytest.raises(RuntimeError, match="shape"):
        other.load(one.tensors() | {"key.head.0.weight": torch.zeros(2)})
    with pytest.raises(KeyError):
        other.load({})


def test_labels_are_numbered_in_the_order_of_their_names() -> None:
    settings = TrainSettings(method="supervised", image_size=32, hidden=32, dim=16)
    kept = Supervised(settings, ["dogs", "cats", "dogs"], torch.device("cpu"))
    assert kept.numbers(["dogs", "cats", None, "bees"]).tolist() == [1, 0, -1, -1]
    assert set(kept.parameters()) == {"log_scale", "linear.weight", "linear.bias"}


@pytest.mark.slow
def test_a_classifier_learns_and_its_accuracy_counts_known_labels_only() -> None:
    settings = TrainSettings(method="supervised", image_size=32, hidden=32, dim=16)
    labels = ["a", "b", "a", "b"]
    kept = Supervised(settings, labels, torch.device("cpu"))
    network = build(settings).eval()
    x = views(4)
    z = network(x).detach()
    apart = torch.nn.functional.normalize(z - z.mean(0), dim=1)  # an untrained network's are alike
    optimizer = torch.optim.Adam(kept.parameters().values(), lr=0.1)
    first = None
    for _ in range(50):
        optimizer.zero_grad()
        loss = kept.loss(network, lambda *_: apart, [0, 1, 2, 3], x)
        loss.backward()
        optimizer.step()
        first = loss.item() if first is None else first
    assert loss.item() < first / 2
    right = kept.accuracy(apart[:4], labels)
    assert right is not None and right >= 0.75
    assert kept.accuracy(apart[:4], ["a", "b", None, "c"]) in (0.5, 1.0)
    assert kept.accuracy(apart[:4], [None] * 4) is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None, "b"], "1 of 3 images have no label"),
        (["a", "a"], "all 2 images have the same label"),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels: list[str | None], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Supervised(TrainSettings(method="supervised"), labels, torch.device("cpu"))
