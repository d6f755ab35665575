"""The names of a store's files: all that its writer may delete or overwrite.

A file with any other name belongs to somebody else and is left alone, wherever it lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.errors import StoreDamagedError

MANIFEST = "MANIFEST.json"
LOCK = "LOCK"
COMMIT = "COMMIT"
RESERVE = "RESERVE"
REJECTS = "rejects.jsonl"
KEYS = "keys"
INDEX = "index"
VECTORS = "vectors"
ENCODER = "encoder"
MENDED = "keys.mended"
REEMBED = "reembed"
FILES = (MANIFEST, LOCK, COMMIT, RESERVE, REJECTS)
FOLDERS = (KEYS, "pixels", "fingerprints", VECTORS, INDEX, ENCODER, MENDED, REEMBED)

# The greatest number of an index file: its header has 32 bits for it.
MAX_NUMBER = (1 << 31) - 1
MAX_GENERATION = (1 << 24) - 1  # of an encoder
# The greatest number of an extent: an image's row has 24 bits for it.
MAX_EXTENT = (1 << 24) - 1
_NUMBER = r"\d{8,10}"
# The ending of a file that will replace another one, with the process's id.
_NEW = r"\.[0-9]+\.new"

# The files of RocksDB and of rocksdict.
_ROCKSDB = (
    r"CURRENT|IDENTITY|LOCK|LOG(\.old\.\d+)?|(MANIFEST|OPTIONS)-\d+(\.dbtmp)?|"
    r"\d+\.(sst|log|blob|dbtmp)|rocksdict-config\.json"
)
ROCKSDB = re.compile(_ROCKSDB)
ROCKSDB_MANIFEST = re.compile(r"MANIFEST-\d{1,20}")
GENERATION = re.compile(r"[1-9]\d{0,9}")
# The files in each folder whose files the manifest names, and the names of their replacements.
_OF_FOLDERS = {
    "pixels": r"blobs",
    "fingerprints": r"pdq",
    VECTORS: r"f32|ids",
    INDEX: r"ivf|quantizer",
}
OF_FOLDER = {
    folder: re.compile(rf"{_NUMBER}\.({suffix})|\.{_NUMBER}\.({suffix}){_NEW}")
    for folder, suffix in _OF_FOLDERS.items()
}
_ENCODER_FILE = r"[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]{0,200}"
_MODEL = re.compile(rf"{ENCODER}/([1-9]\d{{0,9}})/{_ENCODER_FILE}")

# The files of an unfinished reembed, besides the vectors and the encoder.
STAGED = "staged.json"
CHUNKS = "chunks"
OF_REEMBED = re.compile(rf"{STAGED}|{CHUNKS}|{LOCK}|\.{STAGED}{_NEW}")

# The files that may lie in a temporary folder for a store, for a part of one or for a copy of one.
MADE = re.compile(
    rf"({MANIFEST}|{LOCK}|{COMMIT}|{RESERVE}|{REJECTS})|\.{MANIFEST}{_NEW}|"
    rf"{KEYS}/({_ROCKSDB})|"
    rf"(pixels|fingerprints|{VECTORS}/\d+|(coded/)?{INDEX})/\.?{_NUMBER}\."
    rf"(blobs|pdq|f32|ids|ivf|quantizer)({_NEW})?|"
    rf"{ENCODER}/\d+/({_ENCODER_FILE}|\.[^/\0]+{_NEW})"
)
# Those in folders of vectors and encoders that nothing names. The model of an encoder may have any name,
# but here another name is somebody else's.
LEFT_BEHIND = re.compile(
    rf"{VECTORS}/\d+/\.?{_NUMBER}\.(f32|ids)({_NEW})?|"
    rf"{ENCODER}/\d+/({_ENCODER_FILE}\.onnx|encoder\.json|tokenizer\.json|\.[^/\0]+{_NEW})"
)
_FAMILY = re.compile(rf"pixels\.blobs|fingerprints\.pdq|{VECTORS}/[1-9]\d{{0,9}}\.(f32|ids)")


# Temporary entries in a store's folder: a new manifest, other files being replaced or copied, and
# folders being built.
NEW_MANIFEST = re.compile(rf"\.{MANIFEST}{_NEW}")
NEW_FILE = re.compile(rf"\.({MANIFEST}|{COMMIT}|{RESERVE}|{REJECTS}){_NEW}")
NEW_KEYS_FILE = re.compile(rf"\.({_ROCKSDB}){_NEW}")
MADE_FOLDER = re.compile(r"\..{1,255}\.([a-z]+-)?[0-9a-f]{8}\.(new|begun)", re.DOTALL)


def family(name: str) -> str:
    """Return ``name`` if it is a family of extents; raise ``ValueError`` otherwise."""
    if not _FAMILY.fullmatch(name):
        raise ValueError(f"{name[:60]!r} is not a family of extents")
    return name


def segment(number: int) -> str:
    """Return the file name of index segment ``number``."""
    return f"{number:08d}.ivf"


def quantizer(number: int) -> str:
    """Return the file name of quantizer ``number``."""
    return f"{number:08d}.quantizer"


def next_number(used: Iterable[int], most: int) -> int:
    """Return an unused number up to ``most``; ``StoreDamagedError`` if there is none left."""
    number = max(used, default=0) + 1
    if number > most:
        raise StoreDamagedError(
            f"the store names a file by the number {number - 1:,}, which is damage: restore a copy"
        )
    return number


def encoder_generations(names: Iterable[str]) -> list[int]:
    """Return the generations among the names of folders in ``ENCODER`` or ``VECTORS``."""
    return [int(name) for name in names if GENERATION.fullmatch(name)]


def may_be_model(name: str) -> bool:
    """Return whether an encoder's model may have this file name in a store."""
    return re.fullmatch(_ENCODER_FILE, name) is not None


def encoder_folder(file: str, generation: int) -> str:
    """Return the folder of an encoder's model; ``file`` is the model's path in the manifest."""
    found = _MODEL.fullmatch(file)
    if found is None or int(found[1]) != generation:
        raise StoreDamagedError(f"{file!r} is not the path of an encoder's model in a store")
    return file.rpartition("/")[0]
