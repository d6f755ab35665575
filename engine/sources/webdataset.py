"""Files in an archive that belong together, as WebDataset has it.

A sample is files next to each other whose paths are equal up to the first dot of the name: images, and
beside them ``.json`` (an object: its fields), ``.cls`` (a label) and ``.txt`` (a text).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from engine.errors import ImageError
from engine.sources.metadata import checked_metadata

MAX_SIDECAR = 64 << 10  # bytes
SIDECARS = frozenset([b"json", b"cls", b"txt"])

# A sample is held until it is whole, so it must not be an archive: all of a.1.png, a.2.png, … are one.
# These depend on the archive only, so that its members have the same numbers each time.
_SAMPLE_FILES = 64
_SAMPLE_BYTES = 8 << 20  # of images, with which a sample takes no further one

_WHOLE = re.compile(r"[+-]?\d{1,18}")


@dataclass(slots=True)
class SampleFile:
    """One file of an archive, as far as it is needed."""

    name: bytes
    is_image: bool  # claims to be one
    size: int
    data: bytes = b""
    problem: str = ""  # why it was not read
    retryable: bool = False
    note: str = ""  # what it is, if it is no file
    begins: bool = False  # an archive behind another one

    @property
    def kind(self) -> bytes:
        """What a sample calls it: what stands behind the first dot of its name."""
        return self.name.rpartition(b"/")[2].partition(b".")[2]

    @property
    def is_sidecar(self) -> bool:
        """Whether it may say something of the images beside it."""
        return not self.is_image and not self.note and self.kind in SIDECARS

    @property
    def key(self) -> bytes:
        """What the files of a sample share."""
        folder, slash, base = self.name.rpartition(b"/")
        return folder + slash + base.partition(b".")[0]


def samples(files: Iterable[SampleFile]) -> Iterator[list[SampleFile]]:
    """Files that belong together; one sample is held at a time.

    A sample also ends with an archive, before a second sidecar of a kind, before an image where it has
    8 MiB of them, after 64 files, and where ``files`` break off. So a sidecar beside several images as
    large is of the one next to it alone, and the others have no metadata; one image has all of its own.
    """
    sample: list[SampleFile] = []
    key, sidecars, size = b"", set[bytes](), 0
    try:
        for file in files:
            same = sample and file.key == key and len(sample) < _SAMPLE_FILES and not file.begins
            again = file.is_sidecar and file.kind in sidecars
            if not same or again or (file.is_image and size >= _SAMPLE_BYTES):
                if sample:
                    yield sample
                sample, sidecars, size, key = [], set(), 0, file.key
            sample.append(file)
            if file.is_sidecar:
                sidecars.add(file.kind)
            elif file.is_image:
                size += file.size
    except Exception:
        if sample:
            yield sample
        raise
    if sample:
        yield sample


def metadata_of(
    sample: Iterable[SampleFile], wanted: Collection[str] | None = None
) -> dict[str, Any] | None:
    """What the sidecars of a sample say: fields of its JSON, "label", "text"; all, or those ``wanted``.

    A field of the JSON that is NaN or infinite is left out. ``ImageError`` if it cannot be read, has
    such a number further inside, or is too much: half of it is not kept.
    """
    said: dict[str, Any] = {}
    for file in sample:
        if not file.is_sidecar:
            continue
        suffix = file.kind.decode()
        if file.problem:
            raise ImageError(f"its .{suffix} {file.problem}")
        try:
            text = file.data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ImageError(f"its .{suffix} is not UTF-8") from None
        if suffix == "cls":
            said["label"] = int(text) if _WHOLE.fullmatch(text.strip()) else text.strip()
        elif suffix == "txt":
            said["text"] = text.rstrip("\r\n")
        else:
            # What .cls and .txt say is not overruled, wherever they stand.
            said = _object(text) | said
    if wanted is not None:
        said = {name: value for name, value in said.items() if name in wanted}
    return checked_metadata(said)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ImageError("its .json is not JSON") from None
    if not isinstance(found, dict):
        raise ImageError("its .json is not an object")
    # As in a table: a number that is none says nothing.
    return {
        name: value
        for name, value in found.items()
        if not isinstance(value, float) or math.isfinite(value)
    }
