"""Reads the images of a run, and checks that there are enough to learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch

from engine.encoders.importers.request import Images
from engine.errors import TrainingError
from engine.training.export import CALIBRATION_IMAGES
from engine.training.pictures import MAX_BYTES, Pictures, RunPictures, read_pictures
from engine.training.report import Reporter, TrainProgress
from engine.training.settings import TrainSettings


class TrainingSet:
    """The pictures of a run, and its batch size."""

    def __init__(self, read: RunPictures, batch: int) -> None:
        self.read = read
        self.batch = batch

    def described(
        self, description: str, init: str, teacher: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The data of checkpoints about the images, and about the encoders that the run began with."""
        return {
            "count": len(self.read.pictures),
            "fingerprint": self.read.pictures.fingerprint,
            "held_out": len(self.read.held_out),
            "held_out_fingerprint": self.read.held_out.fingerprint,
            "description": description,
            **({"init": init} if init else {}),
            **({"teacher": teacher} if teacher else {}),
        }

    def calibration(self) -> list[Images]:
        """Evenly spread images for the export: of those trained on, and of the held-out ones if any."""
        kept = [self.read.squashed]
        # Two images are always each other's nearest, so they would show nothing.
        if len(self.read.held_out_squashed) > 2:
            kept.append(self.read.held_out_squashed)
        return [
            torch.stack([images[i] for i in spread(len(images), CALIBRATION_IMAGES)]).numpy()
            for images in kept
        ]


def read_training_set(
    sources: Sequence[str],
    settings: TrainSettings,
    *,
    folder: Path,
    cache: Path | None,
    pool: Executor,
    stop: Callable[[], bool],
    reporter: Reporter,
    min_side: int = 0,
) -> TrainingSet:
    """Decode the images; ``TrainingError`` if there is nothing to learn from.

    Pictures are kept with a shorter side of at least ``min_side`` pixels, if they have them.
    Raises ``KeyboardInterrupt`` once ``stop()`` is true, because there is nothing to resume from yet.
    """

    def tick(done: int, total: int) -> None:
        reporter.tell(TrainProgress("read", done, total))

    side = max(round(settings.shrink * settings.image_size), min_side)
    read = read_pictures(
        sources,
        side=side,
        square=settings.image_size,
        folder=folder,
        cache=cache,
        held_out=settings.held_out,
        pool=pool,
        tick=tick,
        stop=stop,
    )
    try:
        if stop():
            raise KeyboardInterrupt
        total = _check_enough(read, sources)
        batch = min(settings.batch, len(read.pictures))
        _warn(read, side, total, batch, settings, reporter)
    except BaseException:
        read.close()
        raise
    return TrainingSet(read, batch)


def spread(n: int, most: int) -> list[int]:
    """Up to ``most`` evenly spread indices below ``n``."""
    count = min(n, most)
    return [i * n // count for i in range(count)]


def _check_enough(read: RunPictures, sources: Sequence[str]) -> int:
    """The number of images, unreadable ones included; ``TrainingError`` if too few can be trained on."""
    n = len(read.pictures)
    total = n + len(read.held_out) + len(read.rejected)
    if not total:
        raise TrainingError(
            f"there are no images in {', '.join(sources) or 'no sources'}: name a folder of images"
        )
    if n < 2:
        first = next((f" ({r.source}: {r.reason})" for r in read.rejected), "")
        raise TrainingError(
            f"{n} of {total} images can be read{first}, but training needs at least 2: add images"
        )
    if _alike(read.squashed):
        raise TrainingError(
            f"all {n} images are alike, so there is nothing to tell apart: add other images"
        )
    return total


def _warn(
    read: RunPictures,
    side: int,
    total: int,
    batch: int,
    settings: TrainSettings,
    reporter: Reporter,
) -> None:
    if read.rejected:
        reporter.warn(f"{len(read.rejected)} of {total} images cannot be read and are left out")
    if read.side < side:
        reporter.warn(
            f"crops are cut from pictures of {read.side} pixels a side instead of {side}: larger ones "
            f"exceed the limit of {MAX_BYTES >> 30} GiB of disk"
        )
    if read.held_out_note:
        reporter.warn(read.held_out_note)
    if settings.method == "supervised" and (unknown := _unknown_labels(read)):
        reporter.warn(
            f"{unknown:,} of {len(read.held_out):,} held-out images have a label that no training "
            f"image has: accuracy is measured on the others"
        )
    if batch < settings.batch:
        reporter.warn(
            f"{batch} images are fewer than a batch of {settings.batch}: the batch is {batch}, and a "
            f"small batch has few negatives"
        )


def _unknown_labels(read: RunPictures) -> int:
    known = set(read.pictures.labels)
    return sum(label not in known for label in read.held_out.labels)


def _alike(squashed: Pictures) -> bool:
    return all(torch.equal(squashed[0], squashed[i]) for i in range(1, len(squashed)))
