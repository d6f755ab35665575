"""The pictures of a training run: decoded once, kept in two sizes, some of them held out.

The sources are iterated up to three times. The first time reads no images and computes a key of their
names and stamps. The second time decodes everything, unless a cache has that key. The third time is
needed if the pictures exceed the limit of disk and must be smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from torch import Tensor

from engine.images import decode
from engine.records import Rejection
from engine.training.cache import FORMAT, PictureFile, PictureWriter, find_pictures
from engine.training.decoding import PictureDecoder
from engine.training.held_out import HELD_OUT_SHARE, not_as_asked, split
from engine.training.run_sources import RunSources, utf8

MAX_BYTES = 32 << 30  # disk for the decoded pictures


class Pictures:
    """Some of the pictures of a file, in one of their two sizes; a sequence of (H, W, 3) uint8."""

    def __init__(self, file: PictureFile, which: npt.NDArray[np.int64], *, squashed: bool) -> None:
        rows, texts = file.rows[which], file.texts
        self._file = file
        self._heights = rows["height"].astype(np.int64)
        self._widths = rows["width"].astype(np.int64)
        self._offsets = rows["at"].astype(np.int64)
        if squashed:
            self._offsets += 3 * self._heights * self._widths
            self._heights[:] = self._widths[:] = file.square
        self._file_bytes = rows["file_bytes"]
        self.sizes: list[tuple[int, int]] = list(
            zip(self._heights.tolist(), self._widths.tolist(), strict=True)
        )
        self.names = [
            texts.names[row] for row in which
        ]  # relative to their source, with "/" inside
        self.labels = [texts.labels[row] for row in which]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Tensor:
        height, width = self.sizes[index]
        return self._file.read(int(self._offsets[index]), height, width)

    @property
    def fingerprint(self) -> str:
        """xxh3-128, in hex, of the relative names, labels and file sizes, in order.

        The order matters, because a batch is drawn by the numbers of pictures.
        """
        digest = xxhash.xxh3_128()
        sizes = self._file_bytes.tolist()
        for name, label, size in zip(self.names, self.labels, sizes, strict=True):
            digest.update(utf8(f"{name}\0{label or ''}\0{size}\n"))
        return str(digest.hexdigest())


@dataclass(frozen=True, slots=True)
class RunPictures:
    """Each picture in two sizes: shrunk to crop from, and squashed as for an encoder."""

    pictures: Pictures
    squashed: Pictures
    held_out: Pictures
    held_out_squashed: Pictures
    rejected: list[Rejection]
    # Side of the shrunk pictures; smaller than requested if the limit of disk requires it.
    side: int
    reused: bool  # whether an earlier run kept these pictures, so that nothing was decoded
    held_out_note: str  # why the held-out pictures are not as requested; empty if they are
    close: Callable[[], None]  # frees the disk of a temporary file; pictures stay valid


def read_pictures(
    sources: Sequence[str],
    *,
    side: int,
    square: int,
    folder: Path,
    pool: Executor,
    tick: Callable[[int, int], None],
    stop: Callable[[], bool] = lambda: False,
    cache: Path | None = None,
    max_bytes: int = MAX_BYTES,
    held_out: float | None = HELD_OUT_SHARE,
) -> RunPictures:
    """Decode the images of every kind of source that ``engine ingest`` takes, but vectors.

    Each picture is kept twice: with the shorter side shrunk to ``side`` (never enlarged), and squashed
    to ``square`` × ``square``. They are kept in ``cache``, where later runs find them as long as the
    sources do not change, or else in a temporary file in ``folder``. If they would exceed ``max_bytes``,
    a smaller side is chosen, down to ``square``; ``UsageError`` if that is still too much.
    ``tick(done, total)`` gets the number of items done and about how many there are. Once ``stop()`` is
    true, ``KeyboardInterrupt`` is raised.

    At most 1,024 images are held out: those in ``valid/`` or ``test/`` beside ``train/`` (Roboflow's
    layout). Without such folders it is the share ``held_out``, by a hash of the name, of 64 images or
    more. None holds out only the folders. 0 holds out nothing, so the folders are trained on too.
    """
    listed = RunSources(sources)
    key, total = listed.key((FORMAT, decode.DECODER, side, square, max_bytes))
    file = find_pictures(cache, key, square) if cache is not None else None
    reused = file is not None
    if file is None:
        decoder = PictureDecoder(square, pool, tick, stop, total)
        file = decoder.read(listed, side, max_bytes, lambda: _writer(folder, cache, key))
    if reused:
        tick(total, total)
    trained, out = split(file, held_out)
    return RunPictures(
        Pictures(file, trained, squashed=False),
        Pictures(file, trained, squashed=True),
        Pictures(file, out, squashed=False),
        Pictures(file, out, squashed=True),
        list(file.texts.rejected),
        file.side,
        reused,
        not_as_asked(file, held_out, len(out)),
        file.close,
    )


def _writer(folder: Path, cache: Path | None, key: str) -> PictureWriter:
    return PictureWriter(folder, None) if cache is None else PictureWriter(cache, key)
