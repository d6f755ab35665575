"""``engine bench --store``: lookups of an existing store's own images, read-only.

Its images are looked up by the names of their sources, as far as these can still be read, in every tier
that the store has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..harness.measurement import BYTES, SECONDS, SHARE, Measurement, Skipped
from ..peers.methods import ENGINE


def figures(found: dict[str, Any]) -> Iterator[Measurement | Skipped]:
    """The child's measurements, as figures."""
    n, asked = found["images"], sum(found["asked"].values())
    note = f"{asked:,} of its own images; {found['unreadable']:,} more could not be read"
    if not asked:
        yield Skipped(n, "identical", ENGINE, "no source of its images can be read any more")
    for tier, count in found["asked"].items():
        share = found["found"].get(tier, 0) / count
        of = f"{count:,} of its own images; {found['unreadable']:,} more could not be read"
        yield Measurement(n, tier, ENGINE, "found", SHARE, (share,), of)
    for part, times in found["seconds"].items():
        tier, figure = _PARTS.get(part, ("images", part))
        yield Measurement(n, tier, ENGINE, figure, SECONDS, tuple(times), note)
    for part, size in found["bytes"].items():
        yield Measurement(n, "ingest", ENGINE, f"disk, {part}", BYTES, (float(size),))
    total = float(sum(found["bytes"].values()))
    yield Measurement(n, "ingest", ENGINE, "disk", BYTES, (total,))


_PARTS = {
    "identical": ("identical", "hit"),
    "near": ("near", "hit"),
    "similar": ("similar", "single"),
    "encode": ("images", "embed"),
}
