"""The batches of a run: the images in each, and their augmented views.

A batch depends only on the seed and the number of the step. So a run can resume at any step without
repeating earlier ones, and without a saved generator state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import xxhash
from torch import Generator, Tensor

from engine.training import augment
from engine.training.pictures import Pictures
from engine.training.settings import TrainSettings


class Batches:
    """Draws batches of ``size`` images; each epoch shuffles all images again.

    Images that do not fill a batch are left out of the epoch.
    """

    def __init__(
        self,
        pictures: Pictures,
        settings: TrainSettings,
        size: int,
        device: torch.device,
        pool: ThreadPoolExecutor,
        views: int = 2,
    ) -> None:
        """``views`` is how many of each image a batch has."""
        self._pictures = pictures
        self._settings = settings
        self._size = size
        self._device = device
        self._pool = pool
        self._views = views
        self.per_epoch = len(pictures) // size

    def between(self, first: int, end: int) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the rows of the images and their views, for the steps ``first`` up to ``end``.

        Views are (views × size, 3, S, S) float32 on the device, all first views before the second ones.
        With a GPU, the next batch is prepared while the GPU computes. On a CPU that would only take
        cores from the network.
        """
        if self._device.type == "cpu":
            for step in range(first, end):
                yield self._batch(step)
            return
        with ThreadPoolExecutor(1) as ahead:
            waiting: Future[tuple[list[int], Tensor]] | None = None
            for step in range(first, end):
                coming = ahead.submit(self._batch, step)
                if waiting is not None:
                    yield waiting.result()
                waiting = coming
            if waiting is not None:
                yield waiting.result()

    def rows(self, step: int) -> list[int]:
        """The images of a step, counted from 0."""
        epoch, in_epoch = divmod(step, self.per_epoch)
        generator = _generator(self._settings.seed, "order", epoch)
        shuffled = torch.randperm(len(self._pictures), generator=generator)
        rows: list[int] = shuffled[in_epoch * self._size :][: self._size].tolist()
        return rows

    def views(self, pictures: Pictures, rows: Sequence[int], generator: Generator) -> Tensor:
        """One augmented view for each of ``rows``: (len(rows), 3, S, S) float32 on the device."""
        draws = augment.draw([pictures.sizes[row] for row in rows], self._settings, generator)
        crops = augment.crop(
            [pictures[row] for row in rows],
            draws,
            self._settings.image_size,
            self._pool if self._device.type != "cpu" else None,
        )
        return augment.colour(crops.to(self._device), draws, self._settings)

    def _batch(self, step: int) -> tuple[list[int], Tensor]:
        rows = self.rows(step)
        generator = _generator(self._settings.seed, "views", step)
        return rows, self.views(self._pictures, rows * self._views, generator)


def _generator(seed: int, what: str, number: int) -> Generator:
    # torch's CPU generator uses only 32 bits of a seed.
    mixed = xxhash.xxh3_64_intdigest(f"{seed} {what} {number}".encode()) & 0xFFFFFFFF
    return Generator().manual_seed(mixed)
