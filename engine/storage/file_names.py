"""What the files of a store are called: all that its writer may delete or write over.

A file that is called otherwise is somebody else's, wherever it lies, and is left alone.
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
FILES = (MANIFEST, LOCK, COMMIT, RESERVE, REJECTS)
FOLDERS = (KEYS, "pixels", "fingerprints", VECTORS, INDEX, ENCODER, MENDED)

MAX_NUMBER = (1 << 31) - 1  # of a file of the index, whose header has 32 bits for it
MAX_GENERATION = (1 << 24) - 1  # of an encoder
MAX_EXTENT = (1 << 24) - 1  # of an extent: a row of an image has 24 bits for it
_NUMBER = r"\d{8,10}"
_NEW = r"\.[0-9]+\.new"  # of a file that is being replaced, by the number of the process

# RocksDB's own, and rocksdict's.
_ROCKSDB = (
    r"CURRENT|IDENTITY|LOCK|LOG(\.old\.\d+)?|(MANIFEST|OPTIONS)-\d+(\.dbtmp)?|"
    r"\d+\.(sst|log|blob|dbtmp)|rocksdict-config\.json"
)
ROCKSDB = re.compile(_ROCKSDB)
ROCKSDB_MANIFEST = re.compile(r"MANIFEST-\d{1,20}")
GENERATION = re.compile(r"[1-9]\d{0,9}")
# What lies in each folder whose files the manifest names, and what replaced files are written as.
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

# What may lie in a folder that a store, a part of one or a copy of one is made in.
MADE = re.compile(
    rf"({MANIFEST}|{LOCK}|{COMMIT}|{RESERVE}|{REJECTS})|\.{MANIFEST}{_NEW}|"
    rf"{KEYS}/({_ROCKSDB})|"
    rf"(pixels|fingerprints|{VECTORS}/\d+|(coded/)?{INDEX})/\.?{_NUMBER}\."
    rf"(blobs|pdq|f32|ids|ivf|quantizer)({_NEW})?|"
    rf"{ENCODER}/\d+/({_ENCODER_FILE}|\.[^/\0]+{_NEW})"
)
_FAMILY = re.compile(rf"pixels\.blobs|fingerprints\.pdq|{VECTORS}/[1-9]\d{{0,9}}\.(f32|ids)")


# In the folder of a store: a new manifest, other files that were being replaced or copied, and what
# is made in a folder of its own.
NEW_MANIFEST = re.compile(rf"\.{MANIFEST}{_NEW}")
NEW_FILE = re.compile(rf"\.({MANIFEST}|{COMMIT}|{RESERVE}|{REJECTS}){_NEW}")
NEW_KEYS_FILE = re.compile(rf"\.({_ROCKSDB}){_NEW}")
MADE_FOLDER = re.compile(r"\..{1,255}\.([a-z]+-)?[0-9a-f]{8}\.(new|begun)", re.DOTALL)


def family(name: str) -> str:
    """The name of a family of extents, if it is one; else ``ValueError``."""
    if not _FAMILY.fullmatch(name):
        raise ValueError(f"extents are called {name[:60]!r}")
    return name


def segment(number: int) -> str:
    """The file of index segment ``number``, in the folder of the index."""
    return f"{number:08d}.ivf"


def quantizer(number: int) -> str:
    """The file of quantizer ``number``, in the folder of the index."""
    return f"{number:08d}.quantizer"


def next_number(used: Iterable[int], most: int) -> int:
    """A number that no file has, at most ``most``; ``StoreDamagedError`` where there is none left."""
    number = max(used, default=0) + 1
    if number > most:
        raise StoreDamagedError(
            f"the store names a file by the number {number - 1:,}, which is damage: restore a copy"
        )
    return number


def may_be_model(name: str) -> bool:
    """Whether the file of an encoder's model may have this name in a store."""
    return re.fullmatch(_ENCODER_FILE, name) is not None


def encoder_folder(file: str, generation: int) -> str:
    """The folder of an encoder's model, whose name the manifest has as ``file``."""
    found = _MODEL.fullmatch(file)
    if found is None or int(found[1]) != generation:
        raise StoreDamagedError(f"{file!r} is no name of an encoder's model in a store")
    return file.rpartition("/")[0]
