"""The images of a run, checked to be enough to learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch

from engine.errors import TrainingError
from engine.training.export import CALIBRATION_IMAGES
from engine.training.pictures import MAX_BYTES, Pictures, RunPictures, read_pictures
from engine.training.quantise import Images
from engine.training.report import Reporter, TrainProgress
from engine.training.settings import TrainSettings


class TrainingSet:
    """What a run has read, and the batch that it can be trained with."""

    def __init__(self, read: RunPictures, batch: int) -> None:
        self.read = read
        self.batch = batch

    def described(self, description: str, init: str) -> dict[str, Any]:
        """What checkpoints say of the images, and of the encoder that the run began with."""
        return {
            "count": len(self.read.pictures),
            "fingerprint": self.read.pictures.fingerprint,
            "held_out": len(self.read.held_out),
            "held_out_fingerprint": self.read.held_out.fingerprint,
            "description": description,
            **({"init": init} if init else {}),
        }

    def calibration(self) -> list[Images]:
        """For the export: evenly spread images of those trained on, and of those held out if any."""
        kept = [self.read.squashed]
        # Of two each is the other's nearest, whatever int8 does.
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
) -> TrainingSet:
    """Decode the images; ``TrainingError`` where there is nothing to learn from.

    ``KeyboardInterrupt`` once ``stop`` says so: there is nothing yet to go on from.
    """

    def tick(done: int, total: int) -> None:
        reporter.tell(TrainProgress("read", done, total))

    side = round(settings.shrink * settings.image_size)
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
    """Up to ``most`` of n indices, evenly spread."""
    count = min(n, most)
    return [i * n // count for i in range(count)]


def _check_enough(read: RunPictures, sources: Sequence[str]) -> int:
    """How many images there are, those that cannot be read included."""
    n = len(read.pictures)
    total = n + len(read.held_out) + len(read.rejected)
    if not total:
        raise TrainingError(
            f"no images in {', '.join(sources) or 'no sources'}: name a folder that has some"
        )
    if n < 2:
        first = next((f" ({r.source}: {r.reason})" for r in read.rejected), "")
        raise TrainingError(
            f"{n} of {total} images can be read{first}, and training needs at least 2: add images"
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
            f"crops are cut from pictures of {read.side} pixels a side, not {side}: "
            f"{MAX_BYTES >> 30} GiB of disk hold no larger ones"
        )
    if read.held_out_note:
        reporter.warn(read.held_out_note)
    if settings.method == "supervised" and (unknown := _unknown_labels(read)):
        reporter.warn(
            f"{unknown:,} of {len(read.held_out):,} images that are held out have a label of which "
            f"no image is trained on: accuracy is that of the others"
        )
    if batch < settings.batch:
        reporter.warn(
            f"{batch} images are fewer than a batch of {settings.batch}: the batch is {batch}, "
            f"and a small batch has few negatives to learn from"
        )


def _unknown_labels(read: RunPictures) -> int:
    known = set(read.pictures.labels)
    return sum(label not in known for label in read.held_out.labels)


def _alike(squashed: Pictures) -> bool:
    return all(torch.equal(squashed[0], squashed[i]) for i in range(1, len(squashed)))
