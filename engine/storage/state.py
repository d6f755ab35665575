"""State: the counts and lengths after one commit, in a row of its own among the keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from engine.config import EXTENT_ROWS, StructuralSettings
from engine.errors import StoreDamagedError, StoreFormatError
from engine.records import Place
from engine.storage import extents, file_names
from engine.storage.extents import Family
from engine.storage.json_values import items, loads, members, number
from engine.storage.manifest import Manifest, Measured, SegmentEntry
from engine.storage.vector_space import VectorSpace

_MAX_MISSING = 1 << 24  # ids whose fingerprints may be missing
_MAX_BYTES = 1 << 62  # of all extents of a family


@dataclass(slots=True)
class State:
    """The committed counts and lengths as of one commit: the row ``meta/state``."""

    commit: int = 0
    next_id: int = 1
    next_array: int = 1
    images: int = 0
    sources: int = 0
    removed: int = 0
    # Generation → rows.
    vectors: dict[str, int] = field(default_factory=dict)
    # Generation → rows of removed images.
    removed_vectors: dict[str, int] = field(default_factory=dict)
    # Family → [number, data bytes] of each extent.
    extents: dict[str, list[list[int]]] = field(default_factory=dict)
    # Extent of pixels → bytes that no image uses any more.
    dead: dict[str, int] = field(default_factory=dict)

    def pack(self) -> bytes:
        """Return the row's value."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}).encode()

    @classmethod
    def unpack(cls, value: bytes) -> State:
        """Parse a value that ``pack`` wrote; raise ``StoreDamagedError`` if it is malformed."""
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
                raise ValueError("it has unknown fields")
            # Memory is allocated by the number of ids, so that number must match the extents on disk.
            rows = len(found.extents.get(extents.FINGERPRINTS.name, ())) * EXTENT_ROWS
            if found.next_id > rows + _MAX_MISSING:
                raise ValueError(f"{found.next_id:,} ids are more than there can be")
        except (ValueError, RecursionError) as error:
            raise StoreDamagedError(
                f"what the keys say is committed cannot be read ({error}); run 'engine check'"
            ) from None
        return found

    def next(self) -> State:
        """Return a copy to update for the next commit."""
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
        """Return how many vectors belong to removed images."""
        return sum(self.removed_vectors.values())

    @property
    def live_vectors(self) -> int:
        """Return how many vectors belong to existing images."""
        return sum(self.vectors.values()) - sum(self.removed_vectors.values())

    def bury(self, place: Place) -> None:
        """Count kept pixels as dead, because no image uses them any more."""
        number = str(place.extent)
        self.dead[number] = self.dead.get(number, 0) + place.length

    def last_extent(self, family: Family) -> tuple[int, int]:
        """Return number and committed data bytes of a family's newest extent; (0, 0) without one."""
        numbers = self.extents.get(family.name)
        return (numbers[-1][0], numbers[-1][1]) if numbers else (0, 0)

    def vector_parts(self, space: VectorSpace) -> list[tuple[int, int]]:
        """Return the number and the committed rows of each extent of a space's vectors."""
        if not space.exists:
            return []
        family = space.vector_family
        return [
            (number, size // family.row_bytes) for number, size in self.extents.get(family.name, [])
        ]

    def manifest_of(self, named: Manifest) -> Manifest:
        """Return a manifest as of this commit: with the encoder that made the committed vectors.

        While the encoder is being replaced, the manifest names both. The commit that switches over has
        extents of the incoming one, and none of the other.
        """
        if named.incoming is None:
            return named
        old, new = named.space, VectorSpace.of(named.incoming)
        landed = new.vector_family.name in self.extents
        gone = {family.name for family in (old if landed else new).families}
        live = replace(
            named,
            encoder=named.incoming if landed else named.encoder,
            incoming=None,
            extents={name: numbers for name, numbers in named.extents.items() if name not in gone},
        )
        if not landed:
            return live
        # Only the wanted recall outlives the old vectors.
        measured = Measured(named.measured.target) if named.measured is not None else None
        return replace(live, segments=(), quantizers=(), measured=measured)

    def is_beyond(self, named: Manifest) -> bool:
        """Return whether a manifest is of an earlier commit, of vectors of another encoder."""
        known = max((space.generation for space in named.spaces), default=0)
        return any(
            extents.generation_of(name) > known for name, pairs in self.extents.items() if pairs
        )

    def live_segments(self, named: Manifest) -> list[SegmentEntry]:
        """Return a manifest's segments whose rows are all committed.

        The others are about to come or go: during a reordering, the manifest names old and new ones.
        """
        space, parts = named.space, dict(self.vector_parts(named.space))
        return [
            entry
            for entry in named.segments
            if entry.generation == space.generation
            and all(first + rows <= parts.get(extent, 0) for extent, first, rows in entry.ranges)
        ]


_MAX = (1 << 48) - 1  # rows have 48 bits for an id
# The least and the greatest value of each count; the least is a new store's.
_COUNTS = {
    "commit": (0, _MAX),
    "next_id": (1, _MAX),
    "next_array": (1, (1 << 32) - 2),  # rows have 32 bits for it
    "images": (0, _MAX),
    "sources": (0, _MAX),
    "removed": (0, _MAX),
}


def _counted(value: object) -> dict[str, int]:
    """Parse counts by the number of a generation or an extent."""
    found = members(value)
    for name in found:
        if not file_names.GENERATION.fullmatch(name):
            raise ValueError(f"{name[:60]!r} is not a file number")
    return {name: number(count) for name, count in found.items()}


def _pairs(value: object) -> list[list[int]]:
    pairs = []
    for extent, size in map(items, items(value)):
        pairs.append([number(extent, 1, file_names.MAX_EXTENT), number(size)])
    if len({extent for extent, _ in pairs}) < len(pairs):
        raise ValueError("an extent is named twice")
    # Lengths are added to and mapped, so the sums must fit into 64 bits too.
    if sum(size for _, size in pairs) > _MAX_BYTES:
        raise ValueError("extents have more bytes than there can be")
    return pairs


def settings_in(value: bytes) -> StructuralSettings:
    """Parse the settings in the keys; raise ``StoreDamagedError`` if they are malformed."""
    try:
        return StructuralSettings.from_dict(members(loads(value)))
    except (ValueError, StoreFormatError) as error:
        raise StoreDamagedError(
            f"the settings among the keys cannot be read ({error}); run 'engine check'"
        ) from None
