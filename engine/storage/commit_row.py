"""A row of the table ``commits``: one commit's appends with checksums, which ``check`` verifies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.errors import StoreDamagedError
from engine.storage import file_names
from engine.storage.extents import Append
from engine.storage.json_values import MAX, MAX_64, items, loads, number, text


@dataclass(frozen=True, slots=True)
class CommitRow:
    """The appends of one commit, in order."""

    commit: int
    appends: tuple[Append, ...]

    @property
    def key(self) -> bytes:
        """Return the row's key."""
        return self.commit.to_bytes(8, "big")

    def pack(self) -> bytes:
        """Return the row's value: JSON, a list of [family, extent, offset, length, xxh64]."""
        parts = [[a.family, a.extent, a.offset, a.length, a.xxh64] for a in self.appends]
        return json.dumps(parts).encode()

    @classmethod
    def unpack(cls, key: bytes, value: bytes) -> CommitRow:
        """Parse a row that ``pack`` wrote; raise ``StoreDamagedError`` if it is malformed."""
        try:
            found = []
            for family, extent, offset, length, xxh64 in map(items, items(loads(value))):
                found.append(
                    Append(
                        file_names.family(text(family)),
                        number(extent, 1, file_names.MAX_EXTENT),
                        number(offset, 0, MAX // 2),
                        number(length, 0, MAX // 2),
                        number(xxh64, 0, MAX_64),
                    )
                )
        except (ValueError, RecursionError) as error:
            raise StoreDamagedError(
                f"what a commit appended cannot be read ({error}); run 'engine check'"
            ) from None
        return cls(int.from_bytes(key, "big"), tuple(found))

    def only(self, wanted: Callable[[Append], bool]) -> CommitRow:
        """Return a copy with only the wanted appends."""
        return replace(self, appends=tuple(append for append in self.appends if wanted(append)))

    def with_checksum(self, at: int, xxh64: int) -> CommitRow:
        """Return a copy with another checksum for append ``at``."""
        appends = list(self.appends)
        appends[at] = replace(appends[at], xxh64=xxh64)
        return replace(self, appends=tuple(appends))
