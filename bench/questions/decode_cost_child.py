"""Decodes one image, does an ingest's work on it, and reports its peak memory; for ``decode_cost``."""

from __future__ import annotations

import ctypes
from pathlib import Path

from engine.images import fingerprint
from engine.images.decode import decode, memory_to_decode
from engine.images.preprocessing import squash
from engine.images.rgb_picture import to_rgb8

from ..harness import memory
from ..harness.process import answer

_SIDE = 96  # of an encoder's picture
_CLEAR_PEAK = Path("/proc/self/clear_refs")


def ask(small: str, large: str) -> dict[str, int]:
    """Peak memory in bytes of decoding ``large`` alone, and with an ingest's later work.

    ``small`` is a file of the same kind; decoding it first loads the decoder's libraries. After
    that only anonymous memory grows, so the kernel's peak of all resident memory, reset first, is
    exact. Samples would not do: C code may hold the GIL for the whole of a decode.
    """
    _whole(Path(small).read_bytes())
    data = Path(large).read_bytes()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR_PEAK.write_text("5")
    before = memory.peak_resident()
    decoded = _whole(data) - before
    found = {"decoded": decoded, "whole": memory.peak_resident() - before}
    return found | {"counted": memory_to_decode(data)}


def _whole(data: bytes) -> int:
    """Do an ingest's work on the pixels; returns the peak after decoding."""
    found = decode(data, max_bytes=1 << 50).pixels
    peak = memory.peak_resident()
    fingerprint.fingerprint(found)
    squash(to_rgb8(found), _SIDE)
    return peak


if __name__ == "__main__":
    answer(ask)
