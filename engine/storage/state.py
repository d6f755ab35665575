"""State: what one commit leaves behind, in a row of its own among the keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from engine.config import EXTENT_ROWS, StructuralSettings
from engine.errors import StoreDamagedError, StoreFormatError
from engine.records import Place
from engine.storage import extents, file_names
from engine.storage.extents import Family
from engine.storage.json_values import items, loads, members, number
from engine.storage.manifest import Manifest, SegmentEntry
from engine.storage.vector_space import VectorSpace

_MAX_MISSING = 1 << 24  # ids whose fingerprints may be gone
_MAX_BYTES = 1 << 62  # of the extents of a family together


@dataclass(slots=True)
class State:
    """What is committed, as of one commit: the row ``meta/state``."""

    commit: int = 0
    next_id: int = 1
    next_array: int = 1
    images: int = 0
    sources: int = 0
    removed: int = 0
    vectors: dict[str, int] = field(default_factory=dict)  # generation → rows
    removed_vectors: dict[str, int] = field(default_factory=dict)  # of these, of removed images
    extents: dict[str, list[list[int]]] = field(default_factory=dict)  # family → [number, bytes]
    dead: dict[str, int] = field(default_factory=dict)  # extent of pixels → bytes of no image

    def pack(self) -> bytes:
        """The row's value."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}).encode()

    @classmethod
    def unpack(cls, value: bytes) -> State:
        """The state that ``pack`` wrote; ``StoreDamagedError`` if it is something else."""
        try:
            body = members(loads(value))
            found = cls(
                **{
                    name: number(body.get(name, least), least, most)
                    for name, (least, most) in _COUNTS.items()
                },
                vectors=_counted(body.get("vectors", {})),
                removed_vectors=_counted(body.get("removed_vectors", {})),
                extents={
                    file_names.family(name): _pairs(pairs)
                    for name, pairs in members(body.get("extents", {})).items()
                },
                dead=_counted(body.get("dead", {})),
            )
            unknown = body.keys() - {*cls.__slots__}
            if unknown:
                raise ValueError("it has counts that there are none of")
            # What is allocated by the number of ids goes with what is on the disk.
            rows = len(found.extents.get(extents.FINGERPRINTS.name, ())) * EXTENT_ROWS
            if found.next_id > rows + _MAX_MISSING:
                raise ValueError(f"{found.next_id:,} ids are more than there can be")
        except (ValueError, RecursionError) as error:
            raise StoreDamagedError(
                f"what the keys say is committed cannot be read ({error}); run 'engine check'"
            ) from None
        return found

    def next(self) -> State:
        """A copy, to become what the next commit leaves behind."""
        return replace(
            self,
            commit=self.commit + 1,
            vectors=dict(self.vectors),
            removed_vectors=dict(self.removed_vectors),
            extents={name: [list(pair) for pair in v] for name, v in self.extents.items()},
            dead=dict(self.dead),
        )

    @property
    def dead_vectors(self) -> int:
        """How many vectors are of images that were removed."""
        return sum(self.removed_vectors.values())

    @property
    def live_vectors(self) -> int:
        """How many vectors are of images that are there."""
        return sum(self.vectors.values()) - sum(self.removed_vectors.values())

    def bury(self, place: Place) -> None:
        """Count kept pixels as dead: no image has them any more."""
        number = str(place.extent)
        self.dead[number] = self.dead.get(number, 0) + place.length

    def last_extent(self, family: Family) -> tuple[int, int]:
        """Number and committed data bytes of a family's newest extent; (0, 0) if it has none."""
        numbers = self.extents.get(family.name)
        return (numbers[-1][0], numbers[-1][1]) if numbers else (0, 0)

    def vector_parts(self, space: VectorSpace) -> list[tuple[int, int]]:
        """The extents of a space's vectors: the number and the committed rows of each."""
        if not space.exists:
            return []
        family = space.vector_family
        return [
            (number, size // family.row_bytes) for number, size in self.extents.get(family.name, [])
        ]

    def live_segments(self, named: Manifest) -> list[SegmentEntry]:
        """The segments of a manifest that are over rows which are committed.

        Others are about to go or to come: the manifest names both while vectors are laid out again.
        """
        space, parts = named.space, dict(self.vector_parts(named.space))
        return [
            entry
            for entry in named.segments
            if entry.generation == space.generation
            and all(first + rows <= parts.get(extent, 0) for extent, first, rows in entry.ranges)
        ]


_MAX = (1 << 48) - 1  # rows have 48 bits for an id
# What the least and the most of each is; the least is what a new store has.
_COUNTS = {
    "commit": (0, _MAX),
    "next_id": (1, _MAX),
    "next_array": (1, (1 << 32) - 2),  # rows have 32 bits for it
    "images": (0, _MAX),
    "sources": (0, _MAX),
    "removed": (0, _MAX),
}


def _counted(value: object) -> dict[str, int]:
    """Counts by the number of a generation or of an extent."""
    found = members(value)
    for name in found:
        if not file_names.GENERATION.fullmatch(name):
            raise ValueError(f"{name[:60]!r} is no number of a file")
    return {name: number(count) for name, count in found.items()}


def _pairs(value: object) -> list[list[int]]:
    pairs = []
    for extent, size in map(items, items(value)):
        pairs.append([number(extent, 1, file_names.MAX_EXTENT), number(size)])
    if len({extent for extent, _ in pairs}) < len(pairs):
        raise ValueError("an extent is named twice")
    # What is added to a length, or mapped by it, must fit into 64 bits too.
    if sum(size for _, size in pairs) > _MAX_BYTES:
        raise ValueError("extents have more bytes than there can be")
    return pairs


def settings_in(value: bytes) -> StructuralSettings:
    """The settings that the keys have a copy of; ``StoreDamagedError`` if they are something else."""
    try:
        return StructuralSettings.from_dict(members(loads(value)))
    except (ValueError, StoreFormatError) as error:
        raise StoreDamagedError(
            f"the settings among the keys cannot be read ({error}); run 'engine check'"
        ) from None
