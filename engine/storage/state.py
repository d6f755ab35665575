"""State: what one commit leaves behind, in a row of its own among the keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from engine.records import Place
from engine.storage.extents import Family, vectors
from engine.storage.manifest import EncoderEntry, Manifest, SegmentEntry


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
        """The state that ``pack`` wrote."""
        return cls(**json.loads(value))

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

    def vector_parts(self, encoder: EncoderEntry | None) -> list[tuple[int, int]]:
        """The extents of an encoder's vectors: the number and the committed rows of each."""
        if encoder is None:
            return []
        family = vectors(encoder.generation, encoder.dim)
        return [
            (number, size // family.row_bytes) for number, size in self.extents.get(family.name, [])
        ]

    def live_segments(self, named: Manifest) -> list[SegmentEntry]:
        """The segments of a manifest that are over rows which are committed.

        Others are about to go or to come: the manifest names both while vectors are laid out anew.
        """
        encoder, parts = named.encoder, dict(self.vector_parts(named.encoder))
        return [
            entry
            for entry in named.segments
            if encoder is not None
            and entry.generation == encoder.generation
            and all(first + rows <= parts.get(extent, 0) for extent, first, rows in entry.ranges)
        ]
