"""Every default, with its unit: structural settings (saved in a store, fixed) apart from tunables."""

from __future__ import annotations

import operator
import os
import re
import secrets
from dataclasses import asdict, dataclass
from typing import Any

from engine import address_space
from engine.errors import StoreFormatError, UsageError

# --- structural: what a store is made with and keeps for good -------------------------------------

FORMAT_VERSION = 1
MIN_READER = 1
MIN_WRITER = 1


@dataclass(frozen=True, slots=True)
class StructuralSettings:
    """What decides how stored bytes are to be read; saved in the manifest and among the keys."""

    hash_seed: int  # 64 bits, drawn per store, so that nobody can prepare collisions in advance
    canonical_version: int = 1  # engine.images.canonical
    fingerprint_version: int = 1  # engine.images.fingerprint

    @classmethod
    def new(cls) -> StructuralSettings:
        """Settings for a new store, with a random seed."""
        return cls(hash_seed=secrets.randbits(64))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StructuralSettings:
        """Settings as ``to_dict`` gave them; ``StoreFormatError`` if they are something else."""
        try:
            found = {name: values[name] for name in cls.__dataclass_fields__}
        except (KeyError, TypeError) as error:
            raise StoreFormatError(f"the manifest's settings cannot be read ({error})") from None
        for name, value in found.items():
            if type(value) is not int or not 0 <= value < 1 << 64:
                raise StoreFormatError(f"the manifest's settings cannot be read ({name})")
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


# --- tunables: arguments, with their defaults -----------------------------------------------------

STORE_VARIABLE = "ENGINE_STORE"
DEFAULT_STORE = "engine.store"
DEFAULT_ENCODER = "simclr"
DEFAULT_MEMORY = 1 << 30  # bytes
MEMORY_FLOOR = 128 << 20  # bytes
DEFAULT_K = 10  # images
DEFAULT_MAX_DISTANCE = 31  # bits of 256: what PDQ's authors call a match
DEFAULT_NEAR_LIMIT = 100  # near images listed; near_count counts all
SOURCES_SHOWN = 10  # sources listed a hit; source_count counts all

KEEP_PIXELS = ("auto", "yes", "no")
KEEP_BITS_LIMIT = 64 << 10  # bytes: the largest packed bit image that "auto" keeps

CHUNK_FILES = 512  # images of one commit, at most
CHUNK_ROWS = 20_000  # rows of an array of one commit, at most
CHUNK_VECTORS = 1 << 16  # imported vectors of one commit, at most
CHUNK_VECTOR_BYTES = 32 << 20  # the same in bytes
CHUNK_ENCODED_ROWS = 2_048  # the same with vectors, which take seconds
ENCODE_BATCH = 64  # images a call of the encoder
RECALL_SAMPLE = 1000  # vectors of a store that recall is measured with
EXACT_ROWS = 16_384  # vectors below which searching all of them beats an index

CHECKED_NUMBERS = 1 << 18  # of vectors looked at at a time, while they are in the cache
RERANK_DEPTHS = (1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 100)

EXTENT_ROWS = 1 << 20  # rows of a fixed-row extent, at most
EXTENT_BYTES = 1 << 30  # bytes after which a new extent of kept pixels is begun


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of something a store handles at a time, passed in when it is opened.

    The defaults suit every store. Tests pass smaller ones, to reach each edge with a few images.
    """

    chunk_files: int = CHUNK_FILES
    chunk_rows: int = CHUNK_ROWS
    chunk_vectors: int = CHUNK_VECTORS
    chunk_vector_bytes: int = CHUNK_VECTOR_BYTES
    chunk_encoded_rows: int = CHUNK_ENCODED_ROWS
    exact_rows: int = EXACT_ROWS
    unindexed_rows: int = 16 * EXACT_ROWS  # vectors after which a running ingest stops to index
    extent_rows: int = EXTENT_ROWS
    extent_bytes: int = EXTENT_BYTES
    removal_batch: int = 4096  # images or sources that one commit removes
    compact_batch: int = 4096  # images, or rows, that ``optimize`` looks at at a time
    compact_bytes: int = 16 << 20  # pixels that ``optimize`` moves in one commit
    # Extents that one commit drops: it rewrites the commit records of each.
    compact_extents: int = 16
    recall_sample: int = RECALL_SAMPLE  # vectors of a store that recall is measured with
    # Times k: candidates that recall is tried with.
    rerank_depths: tuple[float, ...] = RERANK_DEPTHS
    retrain_growth: float = 4  # times as many vectors as it was trained on, and a quantizer is old
    moved_ratio: float = 1.25  # times as far from their centroids as trained ones: other vectors
    finishing_seconds: float = 0.5  # that a run which is to stop goes on to encode what is prepared
    checked_numbers: int = CHECKED_NUMBERS
    read_records: int = 1000  # records read at a time
    read_names: int = 4096  # names of sources read at a time
    lookup_rows: int = 4096  # rows looked up at a time
    lookup_probe: int = 64  # rows that show whether the others will come from memory
    cold_key_seconds: float = (
        8e-6  # a key; from memory it takes 3e-6, from disk 7e-5, in a queue 1.5e-5
    )
    stop_checks: int = 256  # sources looked for between two questions whether to stop
    copy_bytes: int = 32 << 20  # of a file that a backup copies at a time
    table_rows: int = 1 << 16  # of an exported table, that Parquet keeps together
    ballast_store: int = 8 << 20  # bytes of a store below which it has no ballast file
    ballast_bytes: int = 6 << 20  # of the smallest ballast file


# Measured, in bytes: what opening a store takes; an ONNX session with the encoder that is shipped;
# and what its network takes for each pixel of its input.
_OPENING_BYTES = 11 << 20
_ENCODER_BYTES = 40 << 20
_ENCODED_PIXEL_BYTES = 72
_ROOMY = 512 << 20


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """How ``memory`` is shared out, in bytes of anonymous memory above the empty process."""

    total: int = DEFAULT_MEMORY

    @property
    def block_cache(self) -> int:
        """RocksDB's cache of blocks, index and filter partitions included."""
        return self.total // 4

    @property
    def write_buffers(self) -> int:
        """All memtables together; at least RocksDB's minimum, at most what fills in a second."""
        return min(self.total // 8, 64 << 20)

    @property
    def chunk(self) -> int:
        """Canonical bytes held for one commit."""
        return self.total // 8

    @property
    def block(self) -> int:
        """Rows of an array that are read at a time; three such blocks are under way at once."""
        return self.total // 16

    @property
    def read_ahead(self) -> int:
        """The most keys (bytes of all tables) that are fetched whole: into the page cache, not ours."""
        return self.total

    @property
    def decoding(self) -> int:
        """What all images that are being decoded at a time may take, so also the largest one.

        All but what an ingest holds beside them: a chunk, write buffers and what opening a store takes.
        The block cache makes room for a large image (``crowded_cache``).
        """
        return self.total - self.chunk - self.write_buffers - _OPENING_BYTES

    @property
    def crowded_cache(self) -> int:
        """The block cache while images take most of the memory."""
        return self.block_cache // 8

    @property
    def reading(self) -> int:
        """Image files that are read or decoded at a time, in bytes; a larger one comes alone."""
        return self.total // 16

    @property
    def encode_batch(self) -> int:
        """Images a call of the encoder in an ingest: a batch of 64 takes 40 MiB more than one of 8."""
        return ENCODE_BATCH if self.total >= _ROOMY else ENCODE_BATCH // 8

    def beside_encoder(self, image_size: int) -> int:
        """What is left of ``decoding`` where an encoder of this input (pixels a side) is loaded."""
        batch = self.encode_batch * image_size**2 * _ENCODED_PIXEL_BYTES
        return max(self.decoding - _ENCODER_BYTES - batch, self.total // 4)

    @property
    def max_file(self) -> int:
        """Largest image file read into memory."""
        return self.total // 4

    @property
    def training(self) -> int:
        """Vectors held to train the index, and those added to it at a time."""
        return self.total // 4


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_memory(text: str | int | None) -> MemoryBudget:
    """A memory size such as ``"2G"`` or ``"512M"`` (binary units), or a number of bytes.

    Without one it is the default, or what a limit on address space leaves of it. Raises ``UsageError``
    if it is no size, less than 128M, or more than that limit leaves.
    """
    room = address_space.room()
    if text is None:
        most = DEFAULT_MEMORY if room is None else min(DEFAULT_MEMORY, room)
        return MemoryBudget(max(most, MEMORY_FLOOR))
    if not isinstance(text, str):
        try:
            size = whole(text)
        except TypeError:
            raise UsageError(f"memory= {text!r} is not a size: write it like '2G'") from None
    else:
        match = _SIZE.fullmatch(text)
        if not match:
            raise UsageError(f"memory= {text!r} is not a size: write it like 512M or 2G")
        size = int(min(float(match[1]), 1 << 60) * (1 << _UNITS[match[2].upper()]))
    if size < MEMORY_FLOOR:
        raise UsageError(f"memory= {text} is too little: at least 128M is needed")
    if room is not None and size > max(room, MEMORY_FLOOR):
        raise UsageError(
            f"memory= {text} is more than the limit on address space leaves: give at most "
            f"{max(room, MEMORY_FLOOR) >> 20}M, or raise it with 'ulimit -v'"
        )
    return MemoryBudget(size)


def whole(value: object) -> int:
    """An integer of whatever library, such as an element of a NumPy array.

    Raises ``TypeError`` for anything else. A bool is none here: it is more likely a mistake.
    """
    if isinstance(value, bool):
        raise TypeError("a bool is no number here")
    return operator.index(value)  # type: ignore[arg-type]


def check_keep_pixels(value: str) -> None:
    """``UsageError`` if it is none of ``KEEP_PIXELS``."""
    if value not in KEEP_PIXELS:
        raise UsageError(f"keep_pixels= is one of {', '.join(KEEP_PIXELS)}, not {value!r}")


def check_workers(value: int | None) -> None:
    """``UsageError`` if it is a number of threads that cannot work."""
    if value is not None and value < 1:
        raise UsageError(f"workers must be 1 or more, not {value}")


def check_wait(value: float) -> float:
    """How many seconds to wait for the writer's lock; ``UsageError`` if that is no such number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not value >= 0:  # NaN is no such number either
        raise UsageError(f"wait= is a number of seconds, 0 or more, not {value!r:.60}")
    return float(value)


def cpu_count() -> int:
    """How many cores this process may use (not how many the machine has, where that is known)."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_store() -> str:
    """The store that a command uses when none is named."""
    return os.environ.get(STORE_VARIABLE) or DEFAULT_STORE
