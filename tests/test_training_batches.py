# ruff: noqa: E402 (torch is optional: without it the module is skipped)
"""Which images are in which batch, and that a step follows from its number alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")

from engine.training.batches import Batches
from engine.training.settings import TrainSettings


class Pictures:
    """Ten random pictures of several sizes."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.sizes = [(20 + i, 30) for i in range(10)]
        self.pixels = [
            torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator)
            for size in self.sizes
        ]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> "torch.Tensor":
        return self.pixels[index]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def batches(pool: ThreadPoolExecutor, size: int, seed: int = 0) -> Batches:
    settings = TrainSettings(image_size=16, batch=size, seed=seed)
    return Batches(Pictures(), settings, size, torch.device("cpu"), pool)  # type: ignore[arg-type]


def test_every_epoch_sees_every_image_once(pool: ThreadPoolExecutor) -> None:
    drawn = batches(pool, 5)
    assert drawn.per_epoch == 2
    first, second = drawn.rows(0) + drawn.rows(1), drawn.rows(2) + drawn.rows(3)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_what_does_not_fill_a_batch_waits(pool: ThreadPoolExecutor) -> None:
    drawn = batches(pool, 4)
    assert drawn.per_epoch == 2
    assert len({*drawn.rows(0), *drawn.rows(1)}) == 8
    seen = {row for step in range(20) for row in drawn.rows(step)}
    assert seen == set(range(10))


def test_a_step_is_the_same_from_wherever_a_run_begins(pool: ThreadPoolExecutor) -> None:
    drawn = batches(pool, 4)
    whole = list(drawn.between(0, 5))
    rest = list(batches(pool, 4).between(3, 5))
    for (rows, views), (again, others) in zip(whole[3:], rest, strict=True):
        assert rows == again and torch.equal(views, others)
    assert not torch.equal(whole[3][1], whole[4][1])


def test_a_batch_has_two_different_views_of_each_image(pool: ThreadPoolExecutor) -> None:
    ((rows, views),) = batches(pool, 4).between(0, 1)
    assert len(rows) == 4 and views.shape == (8, 3, 16, 16) and views.dtype == torch.float32
    assert not any(torch.equal(views[i], views[i + 4]) for i in range(4))


def test_another_seed_draws_otherwise(pool: ThreadPoolExecutor) -> None:
    one, other = batches(pool, 4), batches(pool, 4, seed=1 << 40)
    assert [one.rows(i) for i in range(4)] != [other.rows(i) for i in range(4)]
