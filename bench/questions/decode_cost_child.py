"""Decodes one image and looks at it, and says how far its memory rose; for ``decode_cost``."""

from __future__ import annotations

import ctypes
from pathlib import Path

from engine.images import fingerprint
from engine.images.decode import decode, memory_to_decode
from engine.images.rgb_picture import squash, to_rgb8

from ..harness import memory
from ..harness.process import answer

_SIDE = 96  # of an encoder's picture
_CLEAR_PEAK = Path("/proc/self/clear_refs")


def ask(small: str, large: str) -> dict[str, int]:
    """Peak memory in bytes of decoding ``large`` alone, and with what ingest does after it.

    ``small`` is a file of the same kind, which loads what the decoder needs. Only anonymous memory
    grows in between, so the kernel's peak of all resident memory, set back first, is exact: C code may
    hold the interpreter's lock for the whole of a decode, and nothing in this process can sample then.
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
    """Everything that an ingest does with the pixels; the peak when they are decoded."""
    found = decode(data, max_bytes=1 << 50).pixels
    peak = memory.peak_resident()
    fingerprint.fingerprint(found)
    squash(to_rgb8(found), _SIDE)
    return peak


if __name__ == "__main__":
    answer(ask)
