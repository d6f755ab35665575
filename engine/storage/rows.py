"""How rows are laid out among the keys: integers are big-endian, so that bytes sort as numbers do.

table     key                                  value
images    key(16)                              flags, id, proof, place of the pixels   (first image)
          key(16) id(8)                        the same, for each further image of that key
records   id(8)                                what is known of the image, or of up to 128 rows of an
                                               array from this id on: they differ in key and quality;
                                               of one that was removed the quality is 255;
                                               vectors that were brought have no key
sources   id(8) name                           SHA-256 of the file, or nothing
names     name                                 id, mtime_ns, size of the file
files     SHA-256 of a file (32)               id
arrays    "n" name                             JSON: number, mtime_ns, size, rows committed, kind
          "#" number(4)                        name
          "a" name of an archive               JSON: mtime_ns, size, members done, what they were
runs      "r" array(4) row(8)                  count, step, first id
          "i" bucket(8) id(8) array(4) row(8)  count, step  (runs over several images)
          "o" id(8) array(4) row(8)            count, step  (runs over one image)
rejects   name                                 JSON: reason, and the file's stamp
removed   bucket(8): id >> 15                  a bitmap of its ids that are of removed images, or 2 bytes
                                               for each of them (engine.storage.tombstones)
commits   commit(8)                            JSON: every append of the chunk with its xxh64
meta      "settings", "state"                  JSON
          "roots"                              JSON: folders that ingests were given

The first image of a key lies under the bare key, so that a lookup is a point read that a Bloom
filter answers, and a batch of lookups one call; a second image with the same xxh3-128 is next to
impossible, unless somebody wants it, and then costs a short scan.

A *run* says that ``count`` rows of an array, from ``row`` on, are the images ``id``, ``id + step``,
``id + 2·step`` …: one row for a chunk of an array instead of one an image (step 1), and for a
stretch of equal rows too (step 0). Runs are cut at multiples of 2^12 ids, so that the runs that
may cover an id lie in one bucket; those of a single image lie under that image, so that one that
is repeated a million times costs its neighbours nothing.
"""

from __future__ import annotations

from engine.errors import StoreDamagedError

TABLES = (
    "images",
    "records",
    "sources",
    "names",
    "files",
    "arrays",
    "runs",
    "rejects",
    "removed",
    "commits",
    "meta",
)
MAX_IDS = 1 << 48  # rows have 6 bytes for an id


class RowError(StoreDamagedError):
    """A row of the keys makes no sense, though it is what was written."""


def u64(value: int) -> bytes:
    """8 bytes, big-endian."""
    return value.to_bytes(8, "big")


def damaged_row(table: str) -> RowError:
    """The error for a row of ``table`` that no engine wrote."""
    return RowError(f"the table {table!r} has a row that makes no sense; run 'engine check'")
