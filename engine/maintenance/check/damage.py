"""The damage that a check finds, as a repair needs to know it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from engine.records import Place
from engine.storage.bitmap import IdSet
from engine.storage.extents import Family


@dataclass(slots=True)
class DamagedAppend:
    """One append whose bytes are not those that were committed."""

    commit: int
    at: int  # its index among the appends of its commit
    family: Family
    place: Place


@dataclass(slots=True)
class Damage:
    """The damage that ``Check`` found; ``engine.maintenance.repair`` mends it."""

    commit: int  # the commit that was checked
    appends: list[DamagedAppend] = field(default_factory=list)
    images: list[int] = field(default_factory=list)  # images whose kept pixels are damaged
    images_known: bool = False  # whether ``images`` is complete: the keys could be read
    dead: dict[str, int] | None = None  # the right dead bytes, where the committed ones are wrong
    removed: IdSet | None = None  # the right ids of removed images, where the tombstones are wrong
    removed_vectors: dict[str, int] | None = None  # the right counts, where those are wrong
    index: list[Path] = field(default_factory=list)  # damaged files of the index
    encoder: bool = False
    tables: bool = False  # damaged files of RocksDB, which engine.maintenance.salvage mends
    unknown_ids: bool = False  # vectors with ids of images that cannot have them
    rows: bool = False  # readable tables of the keys that do not agree
