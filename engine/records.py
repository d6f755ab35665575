"""The records that cross the borders between rooms; no behaviour of their own.

Frozen dataclasses, but for what a lookup makes on its way, which are named tuples: these take a third
of the time to make.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

Buffer = bytes | memoryview


class Kind(enum.IntEnum):
    """What an image's canonical pixels are made of; never reduced from one to another.

    An imported vector has none: a row of that kind has no key and no proof, is 1 high and
    as wide as the vector is long.
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
    """An image file's canonical pixels, with the name of the container they came in."""

    pixels: Pixels
    container: str  # lower case, as Pillow names it: "png", "jpeg"; "array" for rows of an array


class Place(NamedTuple):
    """Where kept bytes lie: ``length`` bytes at ``offset`` of extent number ``extent``."""

    extent: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What the store knows of one image; ``Store.get`` returns it."""

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
    decoder: str  # what decoded it, with its version; empty for a row
    metadata: dict[str, object] | None = None  # label and the like, as it was given


@dataclass(frozen=True, slots=True)
class IdenticalHit:
    """An image whose canonical pixels are the query's own."""

    id: int
    sources: tuple[str, ...]
    source_count: int
    verified: str  # "bytes": kept pixels compared; "digest": SHA-256 compared
    metadata: dict[str, object] | None = None  # label and the like, as it was given


@dataclass(frozen=True, slots=True)
class NearHit:
    """An image within a Hamming distance of the query's fingerprint (0-256).

    Of bit images whose pixels are kept ``pixel_distance`` values differ, of ``pixel_values``.
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

    Of imported vectors that were not normalized it is their inner product.
    """

    id: int
    score: float
    sources: tuple[str, ...]
    source_count: int
    metadata: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class LookupResult:
    """What one query found. An id appears only in the strictest tier that found it."""

    query: str
    searched: tuple[str, ...] = ()
    identical: tuple[IdenticalHit, ...] = ()
    near: tuple[NearHit, ...] = ()  # the nearest of them
    near_count: int = 0  # of all that are near
    similar: tuple[SimilarHit, ...] = ()
    milliseconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """One image that training could not read, and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did; ``seen`` = added + duplicates + unchanged + rejected."""

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
    notes: dict[str, int] = field(default_factory=dict)  # what else was met, and how many of it


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """What an ingest would do, told without reading an image; see ``Store.plan``."""

    images: int  # that would be read: new, changed, or not finished
    unchanged: int
    rejected: int  # known to be, or unreadable at first sight
    skipped: int
    archives: int  # whose images only reading them would count
    bytes_to_read: int
    disk_bytes: int  # by how much the store would grow, at most; without those archives' images
    free_bytes: int  # of the disk that the store is on


@dataclass(frozen=True, slots=True)
class MissingBelow:
    """How many of the sources below one folder are gone from the disk."""

    folder: str
    missing: int
    sources: int  # of which it is known whether they are there
    needs_yes: bool  # so many that its disk may be away: they only go with ``yes``


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """What a removal did, or would do."""

    images: int  # that are gone, with all that was known of them
    sources: int
    not_found: tuple[str, ...]  # ids and names that were asked for and are not there
    seconds: float
    kept: tuple[str, ...] = ()  # sources that may be missing and may not, and why they stay
    interrupted: bool = False
    dry_run: bool = False  # nothing was removed; the fields below are of a dry run only
    needs_yes: bool = False  # without ``yes`` nothing would be removed
    folders: tuple[MissingBelow, ...] = ()  # where sources are missing
    would_go: tuple[str, ...] = ()  # the first sources; an array or an image by id is one line


@dataclass(frozen=True, slots=True)
class OptimizeReport:
    """What an optimize did; bytes are of the disk."""

    bytes_before: int
    bytes_after: int
    rewritten: int  # extents of pixels that are no more
    moved: int  # images whose pixels lie elsewhere now
    seconds: float
    skipped: tuple[str, ...] = ()  # what was not done, and why
    damaged: int = 0  # extents that stay, since what is in them cannot be read
    laid_out: int = 0  # vectors that lie anew, in the order of the index
    recall: dict[str, object] | None = None  # as ``StoreInfo`` has it
    peak_memory_bytes: int = 0  # anonymous memory
    interrupted: bool = False


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
    recall: dict[str, object] | None  # wanted, measured, of how many; what searches then look at


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup copied: the store as it was after commit number ``commit``."""

    path: str
    commit: int
    images: int
    vectors: int
    files: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote, in rows of each of its files."""

    path: str
    images: int
    sources: int
    vectors: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Problem:
    """One contradiction that ``check`` found; ``fixed`` once ``check(fix=True)`` has mended it."""

    part: str  # the file or table it is in
    what: str
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``check`` looked at and what it found."""

    images: int
    vectors: int
    bytes_read: int
    seconds: float
    problems: tuple[Problem, ...]
    leftover_bytes: int = 0  # of an interrupted writer: no damage, and gone with the next write

    @property
    def ok(self) -> bool:
        """True when nothing is wrong, or everything that was has been fixed."""
        return all(problem.fixed for problem in self.problems)
