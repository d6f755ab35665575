"""The numbers of images to measure, and whether their stores fit on the disk."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from engine.errors import UsageError

STORE_BYTES = 3_900  # of disk, an image: 3,750 of pixels, 32 of fingerprint, keys and records
_FACTOR = 10  # from one size to the next
_MAX = 1 << 53  # rows of a synthetic set


def parse_count(text: str) -> int:
    """A number of images as people write it: 100000, 100_000, 1e5. ``UsageError`` for other text."""
    try:
        value = float(text)
        whole = int(text) if "e" not in text.lower() and "." not in text else int(value)
        if whole != value:
            raise ValueError
    except (ValueError, OverflowError):
        raise UsageError(
            f"n is a whole number of images such as 100000 or 1e5, not {text!r}"
        ) from None
    return check_n(whole)


def check_n(n: int) -> int:
    """Return ``n`` if a set of bit images can have that many, else raise ``UsageError``."""
    if not 1 <= n <= _MAX:
        raise UsageError(f"n must be at least 1 and at most 2^53 images, not {n}")
    return n


def steps_up_to(n: int, steps: int) -> list[int]:
    """At most ``steps`` sizes, each ten times the one before, rising to ``n``: 1e5 in 3 → 1e3, 1e4, 1e5.

    A small ``n`` gets fewer steps, because no size is below 1.
    """
    if steps < 1:
        raise UsageError(f"steps must be 1 or more, not {steps}")
    return [n // _FACTOR**back for back in reversed(range(steps)) if n >= _FACTOR**back]


def check_disk(n: int, folder: Path | None, each: int = STORE_BYTES, what: str = "images") -> None:
    """``UsageError`` unless ``n`` of ``what``, of ``each`` bytes, fit on the disk of ``folder``.

    None is the system's folder for temporary files.
    """
    folder = folder or Path(tempfile.gettempdir())
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    need, free = n * each, shutil.disk_usage(there).free
    if need > free:
        raise UsageError(
            f"{n:,} {what} take about {_size(need)} of disk and {folder} has {_size(free)} free: "
            f"measure fewer, or on another disk"
        )


def _size(bytes_: int) -> str:
    return f"{bytes_ / 1e12:,.1f} TB" if bytes_ >= 1e12 else f"{bytes_ / 1e9:,.1f} GB"
