"""What lookups in the near tier share: the tier, the photographs, and times as cells of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine import Store

from ..harness.errors import BenchError
from ..harness.measurement import quantiles

NEAR = ("near",)  # the tier


def photos_by_id(photos: Sequence[Path], store: Store) -> dict[int, Path]:
    """The first photograph of each image in ``store``, which has to hold all of ``photos``."""
    ids: dict[int, Path] = {}
    for photo in photos:
        same = store.lookup(photo.read_bytes(), tiers=["identical"]).identical
        if not same:
            raise BenchError(f"{photo} is not in the store")
        ids.setdefault(same[0].id, photo)
    return ids


def milliseconds_of(times: Sequence[float]) -> tuple[str, str]:
    """Median and 99th percentile of milliseconds, as text."""
    p50, p99 = quantiles(times)
    return f"{p50:.2f}", f"{p99:.2f}"
