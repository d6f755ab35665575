"""One row of the table ``commits``: what a commit has appended, with checksums, for ``check``."""

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
    """The appends of one commit, in their order."""

    commit: int
    appends: tuple[Append, ...]

    @property
    def key(self) -> bytes:
        """The row's key."""
        return self.commit.to_bytes(8, "big")

    def pack(self) -> bytes:
        """The row's value: JSON, a list of [family, extent, offset, length, xxh64]."""
        parts = [[a.family, a.extent, a.offset, a.length, a.xxh64] for a in self.appends]
        return json.dumps(parts).encode()

    @classmethod
    def unpack(cls, key: bytes, value: bytes) -> CommitRow:
        """The row that ``pack`` wrote; ``StoreDamagedError`` if it is something else."""
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
        """The same without the appends that are not wanted."""
        return replace(self, appends=tuple(append for append in self.appends if wanted(append)))

    def with_checksum(self, at: int, xxh64: int) -> CommitRow:
        """The same with another checksum for one of its appends."""
        appends = list(self.appends)
        appends[at] = replace(appends[at], xxh64=xxh64)
        return replace(self, appends=tuple(appends))
