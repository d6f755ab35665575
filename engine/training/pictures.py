"""The pictures of a training run: decoded once, kept in two sizes, some of them held out.

Sources are gone through up to three times: once without reading an image, for a key that says what
there is; once to decode everything, unless a cache has that key; and once more where the pictures
take more disk than they may and have to be smaller.
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

MAX_BYTES = 32 << 30  # of disk, for the decoded pictures


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
        self.names = [texts.names[row] for row in which]  # relative to their source, with "/"
        self.labels = [texts.labels[row] for row in which]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Tensor:
        height, width = self.sizes[index]
        return self._file.read(int(self._offsets[index]), height, width)

    @property
    def fingerprint(self) -> str:
        """xxh3-128, in hex, of relative names, labels and sizes of files, in their order.

        In their order, because it is their numbers that are drawn for a batch.
        """
        digest = xxhash.xxh3_128()
        sizes = self._file_bytes.tolist()
        for name, label, size in zip(self.names, self.labels, sizes, strict=True):
            digest.update(utf8(f"{name}\0{label or ''}\0{size}\n"))
        return str(digest.hexdigest())


@dataclass(frozen=True, slots=True)
class RunPictures:
    """Each picture in two sizes: shrunk to crop from, and squashed as an encoder is given it."""

    pictures: Pictures
    squashed: Pictures
    held_out: Pictures
    held_out_squashed: Pictures
    rejected: list[Rejection]
    # Of the shrunk pictures: smaller than it was asked for where the disk's bound wants it.
    side: int
    reused: bool  # nothing was decoded: an earlier run kept these pictures
    held_out_note: str  # why it is not what was asked for, if it is not
    close: Callable[[], None]  # gives the disk of what is not kept back; pictures stay valid


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
    """Decode the images of all that ``engine ingest`` takes, but for vectors.

    Pictures are kept with the shorter side shrunk to ``side`` (never enlarged), and squashed to
    ``square`` × ``square``: in ``cache``, where later runs find them while the sources have not
    changed, else in a nameless file in ``folder``. Where they would take over ``max_bytes``, a
    smaller side is chosen, down to ``square``; ``UsageError`` says what that would take if it is
    still too much. ``tick`` is told how many items are done and about how many there are; once
    ``stop`` says so, ``KeyboardInterrupt`` is raised.

    Held out is what lies in ``valid/`` or ``test/`` beside ``train/`` (Roboflow's layout), else the
    share ``held_out`` by a hash of the name, of 64 images or more; at most 1,024. With None only
    the folders are, and with 0 nothing is: the folders are trained on too.
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
