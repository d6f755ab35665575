"""Groups the files of an archive into WebDataset samples, and reads their metadata.

A sample is a run of files whose paths are equal up to the first dot of the name. It holds images and
their sidecars: ``.json`` (an object), ``.cls`` (a label) and ``.txt`` (a text).
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

# A sample is in memory until it is complete, so it must not grow to a whole archive: a.1.png, a.2.png
# and so on are one sample. The limits depend only on the archive, so member numbers never change.
_SAMPLE_FILES = 64
_SAMPLE_BYTES = 8 << 20  # of images; at this size a sample takes no further image

_WHOLE = re.compile(r"[+-]?\d{1,18}")


@dataclass(slots=True)
class SampleFile:
    """One file of an archive, with the data that is needed of it."""

    name: bytes
    is_image: bool  # whether it claims to be an image
    size: int
    data: bytes = b""
    problem: str = ""  # why it was not read
    retryable: bool = False
    note: str = ""  # what it is, if it is not a file
    begins: bool = False  # whether it is the first member of a further archive in the file

    @property
    def kind(self) -> bytes:
        """Its kind within a sample: the name after the first dot."""
        return self.name.rpartition(b"/")[2].partition(b".")[2]

    @property
    def is_sidecar(self) -> bool:
        """Whether it may hold metadata of the images beside it."""
        return not self.is_image and not self.note and self.kind in SIDECARS

    @property
    def key(self) -> bytes:
        """The path that all files of a sample share."""
        folder, slash, base = self.name.rpartition(b"/")
        return folder + slash + base.partition(b".")[0]


def samples(files: Iterable[SampleFile]) -> Iterator[list[SampleFile]]:
    """Yield the samples of ``files``; one sample is in memory at a time.

    A sample also ends with its archive, before a second sidecar of one kind, before an image once it
    has 8 MiB of images, after 64 files, and where ``files`` break off. So with several images of that
    size, a sidecar belongs only to the image next to it, and the others have no metadata. A single image
    always has its own.
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
    """The metadata of a sample: the fields of its JSON, "label" and "text"; all, or those ``wanted``.

    A field of the JSON that is NaN or infinite is left out. ``ImageError`` if a sidecar cannot be read,
    holds such a number further inside, or is too large. Metadata is never kept in part.
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
            # The values of .cls and .txt win, whatever the order of the files.
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
    # Leave NaN and infinity out, as in a table.
    return {
        name: value
        for name, value in found.items()
        if not isinstance(value, float) or math.isfinite(value)
    }
