"""The records that rooms exchange; they have no behaviour of their own.

They are frozen dataclasses, except for the steps of a lookup. Those are named tuples, which take a third
of the time to make.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Buffer = bytes | memoryview


class Kind(enum.IntEnum):
    """The kind of an image's canonical pixels; one kind is never reduced to another.

    An imported vector has no pixels: its row has no key and no proof, a height of 1, and the vector's
    length as its width.
    """

    BITS = 1  # every channel value is one bit, packed eight to a byte
    U8 = 2  # 8 bits a channel
    U16 = 3  # 16 bits a channel, little-endian
    VECTOR = 4  # no pixels


class Pixels(NamedTuple):
    """One image in canonical form.

    ``canonical`` is a 16-byte header followed by the pixel bytes, row-major with interleaved
    channels (see ``engine.images.canonical``); it is what is hashed, stored and compared.
    ``channels`` is 3 (RGB) or 4 (RGBA, only where a pixel is not opaque). ``frames`` is 1 for
    a still image.
    """

    kind: Kind
    height: int
    width: int
    channels: int
    frames: int
    canonical: Buffer


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image file's canonical pixels, and the name of its container."""

    pixels: Pixels
    container: str  # lower case, as Pillow names it: "png", "jpeg"; "array" for rows of an array


class Place(NamedTuple):
    """The place of kept bytes: ``length`` bytes at ``offset`` of extent number ``extent``."""

    extent: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """The store's record of one image; ``Store.get`` returns it."""

    id: int
    kind: Kind
    height: int
    width: int
    channels: int
    frames: int
    container: str
    file_bytes: int  # size of the file it was first read from; 0 for a row of an array
    key: bytes  # 16 bytes, xxh3-128 of the canonical pixels; empty for a vector
    proof: bytes  # 32 bytes, SHA-256 of the canonical pixels; empty for a vector
    file_hash: bytes  # 32 bytes, SHA-256 of the file it was first read from; empty for a row
    quality: int  # 0-100: how much its fingerprint says about it
    place: Place | None  # its kept pixels
    decoder: str  # name and version of its decoder; empty for a row
    metadata: dict[str, object] | None = None  # label and the like, as ingested
    # (dim,) float32 on request; None without a vector, or if none was requested. Not compared.
    vector: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class IdenticalHit:
    """An image with the same canonical pixels as the query."""

    id: int
    sources: tuple[str, ...]
    source_count: int
    verified: str  # "bytes": kept pixels compared; "digest": SHA-256 compared
    metadata: dict[str, object] | None = None  # label and the like, as ingested


@dataclass(frozen=True, slots=True)
class NearHit:
    """An image within a Hamming distance of the query's fingerprint (0-256).

    For bit images with kept pixels, ``pixel_distance`` of ``pixel_values`` values differ.
    """

    id: int
    distance: int
    pixel_distance: int | None
    sources: tuple[str, ...]
    source_count: int
    pixel_values: int | None = None
    metadata: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class SimilarHit:
    """An image whose vector lies close to the query's; ``score`` is their cosine (-1 to 1).

    For imported vectors that were not normalized, it is their inner product. ``percentile`` is the share
    of random pairs of the store's images that are less alike, in percent: 99.98 is two in ten thousand.
    It is None in a store with too few vectors. ``stranger``: the image is no closer than one would be by
    chance.
    """

    id: int
    score: float
    sources: tuple[str, ...]
    source_count: int
    metadata: dict[str, object] | None = None
    percentile: float | None = None
    stranger: bool = False


@dataclass(frozen=True, slots=True)
class LookupResult:
    """The results of one query. An id appears only in the strictest tier that found it."""

    query: str
    searched: tuple[str, ...] = ()
    identical: tuple[IdenticalHit, ...] = ()
    near: tuple[NearHit, ...] = ()  # the nearest ones
    near_count: int = 0  # the number of all near images
    similar: tuple[SimilarHit, ...] = ()
    milliseconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """An image that training could not read, and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """The result of an ingest; ``seen`` = added + duplicates + unchanged + rejected."""

    seen: int
    added: int
    duplicates: int
    unchanged: int
    rejected: int
    skipped: int
    seconds: float
    images_per_second: float
    peak_memory_bytes: int  # anonymous memory
    peak_rss_bytes: int  # with mapped pages
    rejects_file: str | None
    interrupted: bool = False
    # Other things that it met, and how many of each.
    notes: dict[str, int] = field(default_factory=dict)
    vectors: int = 0  # rows of vectors among those seen
    image_vectors: int = 0  # images, new or stored, that got the vector that came with them


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """The expected result of an ingest, found without reading an image; see ``Store.plan``."""

    images: int  # to be read: new, changed, or not finished
    unchanged: int
    rejected: int  # known to be, or unreadable at first sight
    skipped: int
    archives: int  # archives whose images can be counted only by reading them
    bytes_to_read: int
    disk_bytes: int  # the most by which the store would grow, without those archives' images
    free_bytes: int  # of the disk that holds the store


@dataclass(frozen=True, slots=True)
class MissingBelow:
    """The sources below one folder that are gone from the disk."""

    folder: str
    missing: int
    sources: int  # sources that could be checked
    needs_yes: bool  # so many are missing that the disk may be offline: they need ``yes`` to go


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """The result of a removal, or of its dry run."""

    images: int  # removed, with all records of them
    sources: int
    not_found: tuple[str, ...]  # requested ids and names that the store does not have
    seconds: float
    kept: tuple[str, ...] = ()  # possibly missing sources that stay, and why
    interrupted: bool = False
    dry_run: bool = False  # nothing was removed; the fields below are only set in a dry run
    needs_yes: bool = False  # without ``yes`` nothing would be removed
    folders: tuple[MissingBelow, ...] = ()  # folders with missing sources
    would_go: tuple[str, ...] = ()  # the first sources; an array or an image by id is one line


@dataclass(frozen=True, slots=True)
class OptimizeReport:
    """The result of an optimize; bytes are on disk."""

    bytes_before: int
    bytes_after: int
    rewritten: int  # extents of pixels that were replaced or deleted
    moved: int  # images whose pixels were moved
    seconds: float
    skipped: tuple[str, ...] = ()  # steps that were not done, and why
    damaged: int = 0  # extents that stay, because they cannot be read
    laid_out: int = 0  # vectors that were put into the order of the index
    recall: dict[str, object] | None = None  # as in ``StoreInfo``
    peak_memory_bytes: int = 0  # anonymous memory
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class ReembedReport:
    """The result of a reembed, or of its dry run."""

    encoder: str  # the encoder's name
    images: int  # in the store, without imported vectors
    embedded: int  # vectors that this run made
    kept: int  # vectors that were there already: of an earlier run, or of the same encoder
    unreachable: int  # images without kept pixels, and without a source that still has them
    lost: int  # of those, and of pictures without a vector, the images that have a vector now
    examples: tuple[str, ...]  # of unreachable images: a number, and a source
    switched: bool  # whether the store has the vectors of this encoder now
    seconds: float
    images_per_second: float
    disk_bytes: int  # that it still needs, at most
    free_bytes: int  # of the store's disk
    peak_memory_bytes: int = 0  # anonymous memory
    without_vector: int = 0  # pictures for which the encoder gives no vector
    interrupted: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """The state of a store, counted and measured."""

    path: str
    uuid: str
    format: int
    images: int
    vectors: int
    sources: int
    removed: int
    rejects: int
    bytes: dict[str, int]
    encoder: dict[str, object] | None
    segments: list[dict[str, object]]
    recall: dict[str, object] | None  # the target, the measured values, and how far searches look
    # The scores of random pairs of its images, at the median, 99 % and 99.9 %; None with few vectors.
    random_pairs: dict[str, float] | None = None
    # An unfinished reembed: its encoder, how many vectors it has, and their bytes on disk.
    reembed: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class BackupReport:
    """The result of a backup: a copy of the store as of commit number ``commit``."""

    path: str
    commit: int
    images: int
    vectors: int
    files: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The result of an export, in rows of each of its files."""

    path: str
    images: int
    sources: int
    vectors: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Problem:
    """A contradiction that ``check`` found; ``fixed`` once ``check(fix=True)`` has mended it."""

    part: str  # the file or table it is in
    what: str
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``check`` read and what it found."""

    images: int
    vectors: int
    bytes_read: int
    seconds: float
    problems: tuple[Problem, ...]
    # Left by an interrupted writer. They are not damage, and the next write deletes them.
    leftover_bytes: int = 0
    # Of an unfinished reembed, which goes on from them. They are not damage either.
    reembed_bytes: int = 0

    @property
    def ok(self) -> bool:
        """Return whether nothing is wrong, or everything wrong has been fixed."""
        return all(problem.fixed for problem in self.problems)
