"""The layout of rows among the keys. Integers are big-endian, so that bytes sort like numbers.

table     key                                  value
images    key(16)                              flags, id, proof, place of the pixels   (first image)
          key(16) id(8)                        the same, for each further image of that key
records   id(8)                                the record of the image, or of up to 128 rows of an
                                               array from this id on, with a key and a quality each;
                                               a removed row has the quality 255; imported vectors
                                               have no key
sources   id(8) name                           SHA-256 of the file, or nothing
names     name                                 id, mtime_ns, size of the file
files     SHA-256 of a file (32)               id
arrays    "n" name                             JSON: number, mtime_ns, size, rows committed, kind
          "#" number(4)                        name
          "a" name of an archive               JSON: mtime_ns, size, finished members, their kinds
runs      "r" array(4) row(8)                  count, step, first id
          "i" bucket(8) id(8) array(4) row(8)  count, step  (runs over several images)
          "o" id(8) array(4) row(8)            count, step  (runs over one image)
rejects   name                                 JSON: reason, and the file's stamp
removed   bucket(8): id >> 15                  the ids of removed images in the bucket: a bitmap, or 2
                                               bytes each (engine.storage.tombstones)
commits   commit(8)                            JSON: every append of the chunk with its xxh64
meta      "settings", "manifest", "state"      JSON
          "roots"                              JSON: the folders that were ingested
          "counted"                            the last commit that updated the next rows
          "sources" id(8)                      how many files and runs of its own an image has; only
                                               for images with many (engine.storage.source_counts)
          "rescued"                            nothing: rows were lost, and a repair is not finished

The first image of a key lies under the bare key. So a lookup is a point read that a Bloom filter
answers, and a batch of lookups is one call. A second image with the same xxh3-128 is nearly impossible
unless somebody constructs it, and then costs a short scan.

A *run* says that ``count`` rows of an array, from ``row`` on, are the images ``id``, ``id + step``,
``id + 2·step`` …: one row for a chunk of an array instead of one per image (step 1), and also
one row for a stretch of equal rows (step 0). Runs are cut at multiples of 2^12 ids, so that all runs
that may cover an id lie in one bucket. Runs of a single image lie under that image; an image that is
repeated a million times then costs its neighbours nothing.
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
    """A row of the keys is malformed, though its checksum is right."""


def u64(value: int) -> bytes:
    """8 bytes, big-endian."""
    return value.to_bytes(8, "big")


def damaged_row(table: str) -> RowError:
    """Return the error for a malformed row of ``table``."""
    return RowError(f"the table {table!r} has a malformed row; run 'engine check'")
