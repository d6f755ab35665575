"""What a run reads from its sources: the pictures to train on and those that are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import xxhash

from engine.records import Rejection
from engine.training import data

HELD_OUT_IMAGES = 1024  # at most so many are scored after each epoch
_HELD_OUT_FROM = 64  # images in all: of fewer none are held out


class Pictures(data.Pictures):
    """Pictures with the label that each has by its folder, relative to its source."""

    @property
    def labels(self) -> list[str | None]:
        """One for each picture; None for what lies in no folder."""
        return [_label(picture.name) for picture in self.pictures]


@dataclass(frozen=True, slots=True)
class Read:
    """Each picture in two sizes: shrunk to crop from, and squashed as an encoder is given it."""

    pictures: Pictures
    squashed: Pictures
    held_out: Pictures
    held_out_squashed: Pictures
    rejected: list[Rejection]
    close: Callable[[], None]


def read_images(
    sources: Sequence[str],
    folder: Path,
    *,
    side: int,
    square: int,
    held_out: float,
    pool: Executor,
    tick: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> Read:
    """Decode the images of ``sources`` into a nameless file in ``folder``.

    Held out are those in ``valid/`` and ``test/``, else the share ``held_out``, by a hash of the
    name. ``tick`` is told how many files are done and how many there are; once ``stop`` says so,
    what is left is not read.
    """
    files = data.named_images(sources)
    kept_out = data.named_images(sources, held_out=True)[:HELD_OUT_IMAGES]
    if not kept_out and len(files) >= _HELD_OUT_FROM:
        by_hash = sorted(files, key=lambda item: xxhash.xxh3_64_intdigest(_bytes(item[1])))
        kept_out = by_hash[: min(HELD_OUT_IMAGES, round(held_out * len(files)))]
        out = set(kept_out)
        files = [item for item in files if item not in out]
    total = len(files) + len(kept_out)
    pixel_file = data.PixelFile(folder)
    rejected: list[Rejection] = []

    def read(items: Sequence[tuple[Path, str]], before: int) -> tuple[Pictures, Pictures]:
        def told(done: int, _: int) -> None:
            tick(before + done, total)
            if stop():
                raise KeyboardInterrupt

        shrunk, squashed, bad = data.read_images(
            items, pixel_file, side=side, square=square, pool=pool, tick=told
        )
        rejected.extend(bad)
        return Pictures(pixel_file, shrunk.pictures), Pictures(pixel_file, squashed.pictures)

    try:
        return Read(*read(files, 0), *read(kept_out, len(files)), rejected, pixel_file.close)
    except BaseException:
        pixel_file.close()
        raise


def _label(name: str) -> str | None:
    parts = PurePosixPath(name).parts[:-1]
    if parts and parts[0] in (data.TRAIN, *data.HELD_OUT):  # the split is no part of the label
        parts = parts[1:]
    return "/".join(parts) or None


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
