"""Copies of bit images with flipped bits, looked up in the near tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine import PackedBits, Store

from ..data import bit_images
from ..report.tables import align
from .near_tier import NEAR, milliseconds_of

FLIPPED = (0.01, 0.05, 0.10)  # of the bits of a copy


@dataclass(frozen=True, slots=True)
class Bits:
    """Lookups of one kind of bit image: how many, how many found, hits on other images, and ms."""

    what: str
    asked: int
    found: int
    false: int
    milliseconds: list[float]


def measure_bits(
    n: int, store: Store, *, queries: int, seed: int, tick: Callable[[], None] = lambda: None
) -> list[Bits]:
    """Ingest ``n`` bit images into an empty store, and look up ``queries`` of each kind."""
    store.ingest(f"synthetic:bits?n={n}&seed={seed}")
    draw = np.random.default_rng([seed, n, 2])
    asked = [
        (f"{share:.0%} of the bits flipped", share, draw.integers(0, n, queries))
        for share in FLIPPED
    ]
    asked.append(("not there", 0.0, n + np.arange(queries)))
    found: list[Bits] = []
    for what, share, rows in asked:
        hits = false = 0
        spent = []
        for row in rows.tolist():
            packed = bit_images.packed(seed, row, 1)
            if share:
                packed = packed ^ np.packbits(
                    draw.random((1, bit_images.IMAGE_BYTES)) < share, axis=1
                )
            result = store.lookup(PackedBits(packed, *bit_images.SHAPE[:2]), tiers=NEAR)
            right = sum(
                hit.sources == (f"synthetic:bits?seed={seed}#{row}",) for hit in result.near
            )
            hits += right
            false += len(result.near) - right
            spent.append(result.milliseconds["near"])
            tick()
        found.append(Bits(what, len(rows), hits, false, spent))
    return found


def bits_table(n: int, found: Sequence[Bits]) -> str:
    """The lookups of bit images as aligned columns."""
    lines = [("bit images", "asked", "found", "%", "false hits", "p50 ms", "p99 ms")]
    for one in found:
        there = one.what != "not there"
        share = f"{100 * one.found / one.asked:.1f}" if there else "-"
        counts = (f"{one.asked:,}", f"{one.found:,}" if there else "-", share, f"{one.false:,}")
        lines.append((one.what, *counts, *milliseconds_of(one.milliseconds)))
    return f"{n:,} images of 100×100 RGB bits\n{align(lines, left=(0,))}"
