"""The decoded pictures of a training run on disk: kept for the next run, or in a temporary file.

One file has the pixels of every picture in two sizes, first shrunk and then squashed. A table with the
place, size and name of each picture follows. The file is memory-mapped, so memory does not grow with the
pixels, and the kernel keeps in RAM what fits. A temporary file has no name, so it is gone however the
process ends.

A cache for later runs is a folder:

    KEY.json             manifest, written last and renamed: names the other file, with checksums
    KEY.TOKEN.pixels     pixels and table

A manifest names exactly one file. So the file of a killed run is never taken for complete, and the
next writer removes it. A file that does not match its manifest is made again. Pixels have no checksum,
because reading all of them at the start would cost more time than it could save.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.errors import TrainingError, UsageError
from engine.images import hashing
from engine.records import Rejection
from engine.storage.durable import fsync_dir, replace_file

Array = npt.NDArray[np.uint8]

FORMAT = 1
ROW = np.dtype(
    [
        ("at", "<i8"),  # offset of the shrunk pixels; the squashed ones follow them
        ("height", "<i4"),
        ("width", "<i4"),
        ("file_bytes", "<i8"),
        ("held_out", "u1"),  # whether its folder is held out
    ]
)
_MAX_SIDE = 1 << 20  # pixels, so that the product of two fits into 64 bits
_MAX_MANIFEST = 1 << 16  # bytes
_NAMED = re.compile(r"([0-9a-f]{32})\.[0-9a-f]{16}\.pixels")


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of the table: a name and a label for each picture, and the rejected images."""

    names: list[str]
    labels: list[str | None]
    rejected: list[Rejection]


class PictureFile:
    """The pixels, memory-mapped, and the table of the pictures."""

    def __init__(
        self, file: BinaryIO, rows: npt.NDArray[Any], texts: Texts, side: int, square: int
    ) -> None:
        self._file = file
        self._map: mmap.mmap | None = None
        self.rows = rows
        self.texts = texts
        self.side = side  # the shorter side of the shrunk pictures, at most
        self.square = square

    def read(self, offset: int, height: int, width: int) -> Tensor:
        """(height, width, 3) uint8, a view of the map that must not be written to."""
        if self._map is None:
            # Copy on write, because torch warns about read-only memory.
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(
            self._map, dtype=torch.uint8, count=height * width * 3, offset=offset
        )
        return flat.view(height, width, 3)

    def close(self) -> None:
        """Close the file, which frees the disk of a temporary one; views stay valid."""
        self._file.close()


class PictureWriter:
    """Writes a ``PictureFile``: pictures one after the other, then ``finish``."""

    def __init__(self, folder: Path, key: str | None) -> None:
        """Create the file in ``folder``: with a ``key`` for later runs, else as a temporary file."""
        self._folder, self._key = folder, key
        self._path: Path | None = None
        try:
            if key is None:
                # Without a name, a killed run leaves nothing behind.
                self._file: BinaryIO = tempfile.TemporaryFile(  # noqa: SIM115
                    dir=folder, prefix=".pixels-"
                )
            else:
                folder.mkdir(parents=True, exist_ok=True)
                _tidy(folder)
                self._path = folder / f"{key}.{secrets.token_hex(8)}.pixels"
                self._file = self._path.open("x+b")
                # The lock shows ``_tidy`` of other runs that its writer is running.
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"{folder} cannot hold the decoded images: {error.strerror}; choose another folder"
            ) from None
        self.bytes = 0
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._names: list[str] = []
        self._labels: list[str | None] = []

    def add(
        self,
        name: str,
        label: str | None,
        file_bytes: int,
        shrunk: Array,
        squashed: Array,
        *,
        held_out: bool,
    ) -> None:
        """Append one picture: (h, w, 3) and (S, S, 3) uint8."""
        height, width, _ = shrunk.shape
        self._rows.append((self.bytes, height, width, file_bytes, held_out))
        self._names.append(name)
        self._labels.append(label)
        self._write(np.ascontiguousarray(shrunk))
        self._write(np.ascontiguousarray(squashed))

    def finish(
        self, rejected: Sequence[Rejection], side: int, square: int, *, keep: bool
    ) -> PictureFile:
        """Write the table and return the pictures; with ``keep``, later runs find them by the key."""
        rows = np.array(self._rows, ROW)
        texts = Texts(self._names, self._labels, list(rejected))
        at = self.bytes
        table = rows.tobytes() + _packed(texts)
        self._write(np.frombuffer(table, np.uint8))
        try:
            self._file.flush()
            if self._path is not None and self._key is not None and keep:
                os.fsync(self._file.fileno())
                fsync_dir(self._folder)
                manifest = {
                    "format": FORMAT,
                    "key": self._key,
                    "file": self._path.name,
                    "bytes": self.bytes,
                    "table": at,
                    "table_xxh64": hashing.checksum(table),
                    "pictures": len(rows),
                    "side": side,
                    "square": square,
                }
                replace_file(self._folder / f"{self._key}.json", _sealed(manifest))
                # Remove the file that this one replaced.
                _tidy(self._folder, self._path)
            elif self._path is not None:
                self._path.unlink()
        except OSError as error:
            raise self._full(error) from None
        return PictureFile(self._file, rows, texts, side, square)

    def abandon(self) -> None:
        """Remove the file."""
        # Closing may fail to flush to a full disk, which does not matter here.
        with contextlib.suppress(OSError):
            self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self, array: Array) -> None:
        try:
            self._file.write(array.data)
        except OSError as error:
            raise self._full(error) from None
        self.bytes += array.nbytes

    def _full(self, error: OSError) -> TrainingError:
        return TrainingError(
            f"cannot keep the decoded images in {self._folder}: {error.strerror}; "
            f"make room there, or choose another folder"
        )


def find_pictures(folder: Path, key: str, square: int) -> PictureFile | None:
    """The pictures that an earlier run kept under ``key``; None if they must be made."""
    try:
        manifest = _manifest(folder / f"{key}.json")
        if manifest["key"] != key or manifest["square"] != square:
            return None
        name, at, count = manifest["file"], manifest["table"], manifest["pictures"]
        numbers = (at, count, manifest["bytes"], manifest["side"])
        if any(type(number) is not int or number < 0 for number in numbers):
            return None
        named = _NAMED.fullmatch(name)
        if named is None or named[1] != key:
            return None
        file = (folder / name).open("rb")
        try:
            size = os.fstat(file.fileno()).st_size
            if size != manifest["bytes"] or at + count * ROW.itemsize > size:
                raise ValueError
            file.seek(at)
            table = file.read(size - at)
            if hashing.checksum(table) != manifest["table_xxh64"]:
                raise ValueError
            rows = np.frombuffer(table, ROW, count)
            _check(rows, at, square)
            texts = _unpacked(table[count * ROW.itemsize :], count)
            # A read-only folder is fine too.
            with contextlib.suppress(OSError):
                os.utime(folder / f"{key}.json")
            return PictureFile(file, rows, texts, manifest["side"], square)
        except BaseException:
            file.close()
            raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
        return None


def _check(rows: npt.NDArray[Any], most: int, square: int) -> None:
    """``ValueError`` if the pixels of a picture are outside the first ``most`` bytes."""
    height, width, at = (rows[name].astype(np.int64) for name in ("height", "width", "at"))
    good = (height > 0) & (height <= _MAX_SIDE) & (width > 0) & (width <= _MAX_SIDE)
    good &= (at >= 0) & (at <= most) & (rows["file_bytes"] >= 0)
    if not good.all() or (at + 3 * (height * width + square * square) > most).any():
        raise ValueError("a picture is outside its file")


def _packed(texts: Texts) -> bytes:
    rejected = [[one.source, one.reason] for one in texts.rejected]
    # Names that are not UTF-8 hold lone surrogates, which JSON's ASCII escapes can carry.
    return json.dumps([texts.names, texts.labels, rejected]).encode()


def _unpacked(data: bytes, count: int) -> Texts:
    names, labels, rejected = json.loads(data)
    good = len(names) == len(labels) == count
    good = good and all(isinstance(name, str) for name in names)
    good = good and all(label is None or isinstance(label, str) for label in labels)
    if not good or not all(isinstance(part, str) for pair in rejected for part in pair):
        raise ValueError("invalid names")
    return Texts(names, labels, [Rejection(source, reason) for source, reason in rejected])


def _sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest as JSON; its last field is the xxh64 of all others."""
    check = hashing.checksum(json.dumps(manifest).encode())
    return json.dumps({**manifest, "xxh64": check}, indent=1).encode() + b"\n"


def _manifest(path: Path) -> dict[str, Any]:
    """Read a manifest; ``ValueError`` if it is damaged."""
    with path.open("rb") as file:
        found = json.loads(file.read(_MAX_MANIFEST))
    if not isinstance(found, dict):
        raise ValueError("not a manifest")
    check = found.pop("xxh64", None)
    if check != hashing.checksum(json.dumps(found).encode()) or found.get("format") != FORMAT:
        raise ValueError("a damaged manifest")
    return found


def _tidy(folder: Path, own: Path | None = None) -> None:
    """Remove files of pixels that no manifest names and no process is writing."""
    for path in folder.iterdir():
        named = _NAMED.fullmatch(path.name)
        if named is None or path == own:
            continue
        with contextlib.suppress(OSError):
            try:
                if _manifest(folder / f"{named[1]}.json").get("file") == path.name:
                    continue
            except (ValueError, RecursionError, OSError):
                pass
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
