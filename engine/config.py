"""All defaults, with units: structural settings (fixed, saved in a store) and tunables."""

from __future__ import annotations

import operator
import os
import re
import secrets
from dataclasses import asdict, dataclass
from typing import Any

from engine import address_space
from engine.errors import EncoderError, StoreFormatError, UsageError

# --- structural: fixed when a store is created ----------------------------------------------------

FORMAT_VERSION = 1
MIN_READER = 1
MIN_WRITER = 1


@dataclass(frozen=True, slots=True)
class StructuralSettings:
    """Settings that decide how stored bytes are read; saved in the manifest and in the keys."""

    # 64 bits, drawn per store, so that nobody can prepare collisions in advance.
    hash_seed: int
    canonical_version: int = 1  # engine.images.canonical
    fingerprint_version: int = 1  # engine.images.fingerprint

    @classmethod
    def new(cls) -> StructuralSettings:
        """Return settings for a new store, with a random seed."""
        return cls(hash_seed=secrets.randbits(64))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StructuralSettings:
        """Parse what ``to_dict`` returned; raise ``StoreFormatError`` if it is malformed."""
        try:
            found = {name: values[name] for name in cls.__dataclass_fields__}
        except (KeyError, TypeError) as error:
            raise StoreFormatError(f"the manifest's settings cannot be read ({error})") from None
        for name, value in found.items():
            if type(value) is not int or not 0 <= value < 1 << 64:
                raise StoreFormatError(f"the manifest's settings cannot be read ({name})")
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


# --- tunables: arguments, with their defaults -----------------------------------------------------

STORE_VARIABLE = "ENGINE_STORE"
DEFAULT_STORE = "engine.store"
DEFAULT_ENCODER = "simclr"
DEFAULT_MEMORY = 1 << 30  # bytes
MEMORY_FLOOR = 128 << 20  # bytes
DEFAULT_K = 10  # images
DEFAULT_MAX_DISTANCE = 31  # bits of 256: a match, according to PDQ's authors
DEFAULT_NEAR_LIMIT = 100  # near images listed; near_count counts all
SOURCES_SHOWN = 10  # sources listed per hit; source_count counts all

KEEP_PIXELS = ("auto", "yes", "no")
KEEP_BITS_LIMIT = 64 << 10  # bytes: the largest packed bit image that "auto" keeps

CHUNK_FILES = 512  # images per commit, at most
CHUNK_ROWS = 20_000  # rows of an array per commit, at most
CHUNK_VECTORS = 1 << 16  # imported vectors per commit, at most
CHUNK_VECTOR_BYTES = 32 << 20  # the same in bytes
CHUNK_ENCODED_ROWS = 2_048  # rows per commit if they are encoded, which takes seconds
ENCODE_BATCH = 64  # images per call of the encoder
RECALL_SAMPLE = 1000  # vectors of a store with which recall is measured
EXACT_ROWS = 16_384  # with fewer vectors, an exact search beats an index

CHECKED_NUMBERS = 1 << 18  # numbers of vectors checked at a time, while they are in the cache
RERANK_DEPTHS = (1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 100)

EXTENT_ROWS = 1 << 20  # rows of a fixed-row extent, at most
EXTENT_BYTES = 1 << 30  # bytes after which a new extent of kept pixels begins


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a store handles at a time; passed in when it is opened.

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
    compact_batch: int = 4096  # images, or rows, that ``optimize`` handles at a time
    compact_bytes: int = 16 << 20  # pixels that ``optimize`` moves in one commit
    # Extents that one commit drops: it rewrites the commit records of each.
    compact_extents: int = 16
    recall_sample: int = RECALL_SAMPLE  # vectors of a store with which recall is measured
    # Candidates for which recall is measured, as multiples of k.
    rerank_depths: tuple[float, ...] = RERANK_DEPTHS
    # A quantizer is outdated with this many times the vectors that it was trained on.
    retrain_growth: float = 4
    # Vectors this many times as far from their centroids as trained ones are a different set.
    moved_ratio: float = 1.25
    # Seconds for which a run that is stopping continues to encode prepared images.
    finishing_seconds: float = 0.5
    checked_numbers: int = CHECKED_NUMBERS
    read_records: int = 1000  # records read at a time
    read_names: int = 4096  # names of sources read at a time
    lookup_rows: int = 4096  # rows looked up at a time
    lookup_probe: int = 64  # rows that show whether the others will come from memory
    # Seconds per key above which keys come from disk. Memory takes 3e-6, disk 7e-5, in a queue 1.5e-5.
    cold_key_seconds: float = 8e-6
    stop_checks: int = 256  # sources searched between two checks whether to stop
    copy_bytes: int = 32 << 20  # of a file that a backup copies at a time
    table_rows: int = 1 << 16  # of an exported table, per Parquet row group
    ballast_store: int = 8 << 20  # bytes of a store below which it has no ballast file
    ballast_bytes: int = 6 << 20  # of the smallest ballast file


# Measured, in bytes: opening a store; an ONNX session with the encoder that is shipped, and without its
# model; and the network, for each pixel of its input.
_OPENING_BYTES = 11 << 20
_ENCODER_BYTES = 40 << 20
_SESSION_BYTES = 16 << 20
_ENCODED_PIXEL_BYTES = 72
_ROOMY = 512 << 20


@dataclass(frozen=True, slots=True)
class EncoderMemory:
    """Bytes of anonymous memory of an encoder: when loaded, and for each picture of a run."""

    load_bytes: int
    picture_bytes: int

    @classmethod
    def guess(cls, model_bytes: int, image_size: int) -> EncoderMemory:
        """For an encoder that was not measured, with an input of ``image_size`` pixels a side."""
        load = max(_ENCODER_BYTES, _SESSION_BYTES + 2 * model_bytes)
        return cls(load, image_size**2 * _ENCODED_PIXEL_BYTES)


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The shares of ``memory``, in bytes of anonymous memory above the empty process."""

    total: int = DEFAULT_MEMORY

    @property
    def block_cache(self) -> int:
        """Return the size of RocksDB's block cache, with index and filter partitions."""
        return self.total // 4

    @property
    def write_buffers(self) -> int:
        """Return the size of all memtables: at least RocksDB's minimum, at most a second's writes."""
        return min(self.total // 8, 64 << 20)

    @property
    def chunk(self) -> int:
        """Return the canonical bytes held for one commit."""
        return self.total // 8

    @property
    def block(self) -> int:
        """Return the bytes of array rows read at a time; three such blocks are in use at once."""
        return self.total // 16

    @property
    def read_ahead(self) -> int:
        """Return the most bytes of keys (all tables) to read ahead whole, into the page cache."""
        return self.total

    @property
    def decoding(self) -> int:
        """Return the memory for all images being decoded at a time, and so for the largest one.

        It excludes what an ingest holds at the same time: a chunk, write buffers and an open store. The
        block cache shrinks to make room for a large image (``crowded_cache``).
        """
        return self.total - self.chunk - self.write_buffers - _OPENING_BYTES

    @property
    def crowded_cache(self) -> int:
        """Return the size of the block cache while images take most of the memory."""
        return self.block_cache // 8

    @property
    def reading(self) -> int:
        """Return the bytes of image files read or decoded at a time; a larger file comes alone."""
        return self.total // 16

    @property
    def encode_batch(self) -> int:
        """Return the images per call of the encoder: 64 take 40 MiB more than 8."""
        return ENCODE_BATCH if self.total >= _ROOMY else ENCODE_BATCH // 8

    def encoder_batch(self, name: str, needs: EncoderMemory) -> int:
        """Return how many pictures the encoder ``name`` may run at a time, at most ``encode_batch``.

        ``EncoderError`` if there is no room for one, beside a quarter of the memory for images.
        """
        room = self.decoding - self.total // 4 - needs.load_bytes
        if room < needs.picture_bytes:
            raise EncoderError(
                f"the encoder {name!r} takes {_mebibytes(needs.load_bytes + needs.picture_bytes)}, "
                f"which does not fit into memory= {_mebibytes(self.total)}: give at least "
                f"{_mebibytes(self._for_encoder(needs))}, or choose a smaller encoder"
            )
        return min(self.encode_batch, room // needs.picture_bytes)

    @staticmethod
    def _for_encoder(needs: EncoderMemory) -> int:
        """Return a memory into which the encoder fits, in steps of 64 MiB."""
        step = 64 << 20
        total = MEMORY_FLOOR
        while True:
            budget = MemoryBudget(total)
            if budget.decoding - total // 4 >= needs.load_bytes + needs.picture_bytes:
                return total
            # Less than a whole share of the memory is left, so no step is too large.
            missing = needs.load_bytes + needs.picture_bytes - budget.decoding + total // 4
            total += max(step, missing // step * step)

    def beside_encoder(self, name: str, needs: EncoderMemory) -> int:
        """Return the rest of ``decoding`` with the encoder ``name`` loaded and running."""
        batch = self.encoder_batch(name, needs) * needs.picture_bytes
        return max(self.decoding - needs.load_bytes - batch, self.total // 4)

    @property
    def max_file(self) -> int:
        """Return the size of the largest image file that is read into memory."""
        return self.total // 4

    @property
    def training(self) -> int:
        """Return the bytes of vectors held to train the index, or added to it at a time."""
        return self.total // 4


def _mebibytes(count: int) -> str:
    return f"{-(-count >> 20)}M"


_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_memory(text: str | int | None) -> MemoryBudget:
    """Parse a memory size such as ``"2G"`` or ``"512M"`` (binary units), or a number of bytes.

    None is the default, reduced to what a limit on address space leaves. Raises ``UsageError`` if it is
    not a size, less than 128M, or more than that limit leaves.
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
    """Return an integer of any library, such as an element of a NumPy array, as an int.

    Raises ``TypeError`` for anything else, and for a bool, which is more likely a mistake.
    """
    if isinstance(value, bool):
        raise TypeError("a bool is not a number here")
    return operator.index(value)  # type: ignore[arg-type]


def check_keep_pixels(value: str) -> None:
    """Raise ``UsageError`` unless ``value`` is one of ``KEEP_PIXELS``."""
    if value not in KEEP_PIXELS:
        raise UsageError(f"keep_pixels= is one of {', '.join(KEEP_PIXELS)}, not {value!r}")


def check_workers(value: int | None) -> None:
    """Raise ``UsageError`` unless ``value`` is None or a number of threads, 1 or more."""
    if value is not None and value < 1:
        raise UsageError(f"workers must be 1 or more, not {value}")


def check_wait(value: float) -> float:
    """Return the seconds to wait for the writer's lock; ``UsageError`` if they are invalid."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # This also refuses NaN.
    if not is_number or not value >= 0:
        raise UsageError(f"wait= is a number of seconds, 0 or more, not {value!r:.60}")
    return float(value)


def cpu_count() -> int:
    """Return the cores that this process may use, or the machine's if that is not known."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_store() -> str:
    """Return the store that a command uses if none is named."""
    return os.environ.get(STORE_VARIABLE) or DEFAULT_STORE
