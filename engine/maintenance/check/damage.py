"""What a check finds broken, in the terms of what a repair can mend."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engine.records import Place
from engine.storage.bitmap import IdSet
from engine.storage.extents import Family


@dataclass(slots=True)
class DamagedAppend:
    """One append whose bytes are not what was committed."""

    commit: int
    at: int  # which of the appends of its commit
    family: Family
    place: Place


@dataclass(slots=True)
class Damage:
    """What ``Check`` found broken; ``engine.maintenance.repair`` mends it."""

    commit: int  # as of which
    appends: list[DamagedAppend] = field(default_factory=list)
    images: list[int] = field(default_factory=list)  # whose kept pixels are damaged
    images_known: bool = False  # whether these are all of them: the keys could be read
    dead: dict[str, int] | None = None  # what is to count as dead, where that is something else
    removed: IdSet | None = None  # which ids are of removed images, where something else is said
    removed_vectors: dict[str, int] | None = None  # the same of vectors
    index: list[Path] = field(default_factory=list)  # files of it
    encoder: bool = False
    tables: bool = False  # files of RocksDB: engine.maintenance.salvage mends them
    unknown_ids: bool = False  # vectors are named images that cannot have them
    rows: bool = False  # tables of the keys that can be read, and do not agree
